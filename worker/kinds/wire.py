"""An input spelled as the provider wants it: where each field goes in the body, by protocol.

A field that a protocol does not name goes to `parameters` under its own name. Everything that is billed stands in the
input already, so nothing is left to the provider's defaults.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from worker.catalog import Model, Protocol
from worker.kinds.kind import Request
from worker.states import Mode

_PLACES: dict[Protocol, dict[str, str]] = {
    # Alibaba docs, 'Wan text-to-video', 'image-to-video (first frame)' and 'text-to-image V2 API reference'
    Protocol.PROMPT: {
        "prompt": "input.prompt",
        "negative_prompt": "input.negative_prompt",
        "audio_url": "input.audio_url",
        "img_url": "input.img_url",
        "template": "input.template",
    },
    # 'Wan first-and-last-frame-to-video API reference'
    Protocol.FRAMES: {
        "prompt": "input.prompt",
        "negative_prompt": "input.negative_prompt",
        "img_url": "input.first_frame_url",
        "last_frame_url": "input.last_frame_url",
        "template": "input.template",
    },
    # 'Wan 2.7 - image-to-video API'
    Protocol.MEDIA: {
        "prompt": "input.prompt",
        "negative_prompt": "input.negative_prompt",
        "img_url": "media.first_frame",
        "last_frame_url": "media.last_frame",
        "audio_url": "media.driving_audio",
    },
    # 'Wan text-to-image V2 API reference', wan2.6; 'Qwen-Image text-to-image API reference'
    Protocol.MESSAGES: {"prompt": "messages.text"},
    # 'Qwen-TTS API reference'
    Protocol.SPEECH: {
        "text": "input.text",
        "voice": "input.voice",
        "language": "input.language_type",
        "instructions": "input.instructions",
    },
}


def request(model: Model, region: str, wanted: BaseModel) -> Request:
    """The create call for a checked input, with the model's id as that region spells it."""
    here = model.region(region)
    assert here is not None, "a job goes only to a region that serves its model"
    body: dict[str, Any] = {"model": here.id, "input": {}, "parameters": dict(model.always)}
    for name, value in wanted.model_dump(exclude_none=True).items():
        _put(body, _PLACES[model.protocol].get(name, f"parameters.{name}"), value)
    return Request(model.path, _headers(model, wanted), body)


def _put(body: dict[str, Any], place: str, value: Any) -> None:
    part, _, name = place.partition(".")
    match part:
        case "media":
            body["input"].setdefault("media", []).append({"type": name, "url": value})
        case "messages":
            body["input"]["messages"] = [{"role": "user", "content": [{name: value}]}]
        case _:
            body[part][name] = value


def _headers(model: Model, wanted: BaseModel) -> dict[str, str]:
    values = wanted.model_dump(exclude_none=True).values()
    headers = {} if model.mode is Mode.CALL else {"X-DashScope-Async": "enable"}
    if any(isinstance(value, str) and value.startswith("oss://") for value in values):
        headers["X-DashScope-OssResourceResolve"] = "enable"
    return headers
