"""What the kinds of pictures and clips share: the fields of their inputs, how a request is spelled, what answers tell.

A request is spelled by the model's protocol: it says where each field goes in the body, and a field that it does not
name goes to `parameters` under its own name. Everything that is billed is complete in the input, so nothing is left to
the provider's defaults. Where an answer lacks what is billed, the input's own numbers stand in for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from worker import text
from worker.catalog import Model, Protocol, Usage
from worker.kinds import answers
from worker.kinds.fields import SEED_LIMIT, Filled, Input, Rule, Sound, Text, Tier, no
from worker.kinds.kind import Request, Source
from worker.states import Mode

_LINKS = ("video_url", "url", "image")
_NUMBER_LIMIT = 2**63
_WORD_LIMIT = 200  # characters; longer texts are no measure of use
_TIER = re.compile(r"(\d{3,4})P?", re.IGNORECASE)

_PROMPTS = {"prompt": "input.prompt", "negative_prompt": "input.negative_prompt"}
_PLACES: dict[Protocol, dict[str, str]] = {
    # Alibaba docs, 'Wan text-to-video', 'image-to-video (first frame)' and 'text-to-image V2 API reference'
    Protocol.PROMPT: {
        **_PROMPTS,
        "audio_url": "input.audio_url",
        "img_url": "input.img_url",
        "template": "input.template",
    },
    # 'Wan first-and-last-frame-to-video API reference'
    Protocol.FRAMES: {
        **_PROMPTS,
        "img_url": "input.first_frame_url",
        "last_frame_url": "input.last_frame_url",
        "template": "input.template",
    },
    # 'Wan 2.7 - image-to-video API'
    Protocol.MEDIA: {
        **_PROMPTS,
        "img_url": "media.first_frame",
        "last_frame_url": "media.last_frame",
        "audio_url": "media.driving_audio",
    },
    # 'Wan text-to-image V2 API reference', wan2.6; 'Qwen-Image text-to-image API reference'
    Protocol.MESSAGES: {"prompt": "messages.text"},
}


def _prompt_fits(model: Model, value: str | None, _given: Mapping[str, Any]) -> None:
    _length_fits(model.id, model.prompt_limit, value)


def _negative_prompt_fits(model: Model, value: str | None, _given: Mapping[str, Any]) -> None:
    _length_fits(model.id, model.negative_prompt_limit, value)


def _length_fits(model: str, limit: int | None, value: str | None) -> None:
    if value is not None and limit is not None and len(value) > limit:
        cut = f"{model} reads {limit}: the provider would cut the rest silently and bill all the same"
        raise no("too_long", f"has {len(value)} characters, {cut}")


def _shots_fit(_model: Model, value: str | None, given: Mapping[str, Any]) -> None:
    if value is not None and given.get("prompt_extend") is False:
        raise no("needs_prompt_extend", "works only while prompt_extend is true")


class MediaInput(Input):
    """What the inputs of all media kinds share; the model's defaults fill what the user leaves out."""

    rules: ClassVar[Mapping[str, Rule]] = {"prompt": _prompt_fits, "negative_prompt": _negative_prompt_fits}

    prompt: Filled | None = Field(None, description="what to make, in any language")
    negative_prompt: Text | None = Field(None, description="what should not be in it", examples=["blurred"])
    prompt_extend: bool | None = Field(None, description="let the provider rewrite the prompt: slower, often better")
    watermark: bool | None = Field(None, description="mark it in the corner as made by AI")
    seed: int | None = Field(None, ge=0, le=SEED_LIMIT, description="equal seeds give similar results")


class VideoInput(MediaInput):
    """What the inputs of the video kinds share."""

    rules: ClassVar[Mapping[str, Rule]] = {**MediaInput.rules, "shot_type": _shots_fit}

    audio_url: Sound | None = Field(None, description="its sound, a link or a file's key: wav or mp3, 3 to 30 s, 15 MB")
    resolution: Tier | None = Field(None, description="the tier, which is what is paid for", examples=["720P"])
    duration: int | None = Field(None, description="seconds, each of them paid for", examples=[5])
    shot_type: Literal["single", "multi"] | None = Field(None, description="one shot or several; needs prompt_extend")


def request(model: Model, region: str, wanted: BaseModel) -> Request:
    """The create call for a checked input, with the model's id as that region spells it.

    A list fills its place item by item: media in its order, the parts of a message before its text.
    """
    here = model.region(region)
    assert here is not None, "a job goes only to a region that serves its model"
    body: dict[str, Any] = {"model": here.id, "input": {}, "parameters": dict(model.always)}
    for name, value in wanted.model_dump(exclude_none=True).items():
        _put(body, _PLACES[model.protocol].get(name, f"parameters.{name}"), value)
    headers = {} if model.mode is Mode.CALL else {"X-DashScope-Async": "enable"}
    return Request(model.path, headers, body)


def sources(output: Mapping[str, Any], role: str, extension: str) -> tuple[Source, ...]:
    """Every link in the `output` of a finished task or call, in its order; parts that failed have none."""
    links = (part.get(name) for part in _parts(output) for name in _LINKS)
    return tuple(Source(link, role, extension) for link in dict.fromkeys(filter(answers.is_link, links)))


def failures(output: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Code and message of each part that failed in a task that succeeded as a whole."""
    failed = (part for part in map(answers.mapping, answers.items(output.get("results"))) if part.get("code"))
    return tuple({"code": part["code"], "message": part.get("message")} for part in failed)


def video_asked(model: Model, wanted: BaseModel) -> Usage:
    """Seconds and tier as they were asked for, and whether with sound where that is a choice."""
    asked = wanted.model_dump(exclude_none=True)
    tier = asked.get("resolution") or model.tier(asked.get("size", ""))
    return Usage(answers.known({"seconds": asked.get("duration"), "tier": tier, "audio": asked.get("audio")}))


def video_usage(model: Model, wanted: BaseModel, answer: Mapping[str, Any]) -> Usage:
    """Seconds and tier: `duration` else `video_duration`, `SR` else the size, else what was asked for."""
    told = answers.mapping(answer.get("usage"))
    seconds = answers.number(told.get("duration")) or answers.number(told.get("video_duration"))
    audio = told.get("audio") if isinstance(told.get("audio"), bool) else None
    return _settled(
        told, video_asked(model, wanted), {"seconds": seconds, "tier": _tier_told(model, told), "audio": audio}
    )


def image_asked(_model: Model, wanted: BaseModel) -> Usage:
    """Pictures as they were asked for, and what else moves their price."""
    asked = wanted.model_dump(exclude_none=True)
    return Usage(answers.known({"images": asked.get("n"), "prompt_extend": asked.get("prompt_extend")}))


def image_usage(model: Model, wanted: BaseModel, answer: Mapping[str, Any]) -> Usage:
    """Pictures: `image_count` (of qwen-image-3.0 `output_image_count`), else links, else as many as were asked for."""
    told = answers.mapping(answer.get("usage"))
    count = answers.number(told.get("image_count")) or answers.number(told.get("output_image_count"))
    links = len(sources(answers.mapping(answer.get("output")), "image", "png"))
    return _settled(told, image_asked(model, wanted), {"images": count or links or None})


def video_echoes(model: Model, wanted: BaseModel) -> dict[str, Any]:
    """The prompt as it was sent, and the shape of the clip."""
    asked, billed = wanted.model_dump(exclude_none=True), video_asked(model, wanted).units
    shape = {"duration": billed.get("seconds"), "tier": billed.get("tier"), "size": asked.get("size")}
    return answers.known({"orig_prompt": asked.get("prompt"), **shape})


def video_echoed(model: Model, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the provider repeats of a clip's request, as far as it does."""
    told = answers.mapping(answer.get("usage"))
    rendered = answers.number(told.get("output_video_duration"))
    shape = {
        "duration": rendered or answers.number(told.get("duration") or told.get("video_duration")),
        "tier": _tier_told(model, told),
        "size": next((size for size in _sizes(told) if isinstance(size, str) and model.tier(size)), None),
    }
    return answers.known({"orig_prompt": _prompt(answer), **shape})


def image_echoes(_model: Model, wanted: BaseModel) -> dict[str, Any]:
    """The prompt as it was sent, and how many pictures."""
    asked = wanted.model_dump(exclude_none=True)
    return {"orig_prompt": asked.get("prompt"), "n": asked.get("n")}


def image_echoed(_model: Model, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the provider repeats of a picture's request, as far as it does."""
    metrics = answers.mapping(answers.mapping(answer.get("output")).get("task_metrics"))
    return answers.known({"orig_prompt": _prompt(answer), "n": answers.number(metrics.get("TOTAL"))})


def _put(body: dict[str, Any], place: str, value: Any) -> None:
    part, _, name = place.partition(".")
    match part:
        case "media":
            body["input"].setdefault("media", []).extend({"type": name, "url": url} for url in _each(value))
        case "messages":
            messages = body["input"].setdefault("messages", [{"role": "user", "content": []}])
            messages[0]["content"].extend({name: each} for each in _each(value))
            messages[0]["content"].sort(key=lambda each: "text" in each)  # stable: pictures come first
        case _:
            body[part][name] = value


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _settled(told: Mapping[str, Any], asked: Usage, billed: Mapping[str, Any]) -> Usage:
    """What is billed; beside it whatever else the provider counted, as far as the database takes it."""
    kept = {name: value for name, value in told.items() if _is_stored(name) and _is_plain(value)}
    return Usage({**kept, **asked.units, **answers.known(billed)})


def _is_plain(value: Any) -> bool:
    """Whether a value is a number or a short text that JSON in the database can hold."""
    is_number = isinstance(value, int | float) and abs(value) < _NUMBER_LIMIT  # False for NaN
    return is_number or (isinstance(value, str) and len(value) <= _WORD_LIMIT and _is_stored(value))


def _is_stored(value: str) -> bool:
    return text.UNSTORABLE.search(value) is None


def _sizes(told: Mapping[str, Any]) -> list[Any]:
    return [told.get(name) for name in ("SR", "size", "video_ratio")]


def _tier_told(model: Model, told: Mapping[str, Any]) -> str | None:
    """The first tier among what the provider says of the size: 720, "720P" or "1280*720"."""
    for value in _sizes(told):
        digits = _TIER.fullmatch(str(answers.number(value) or value))
        if tier := f"{digits[1]}P" if digits else model.tier(str(value)):
            return tier
    return None


def _prompt(answer: Mapping[str, Any]) -> str | None:
    prompts = (part.get("orig_prompt") for part in _parts(answers.mapping(answer.get("output"))))
    return next((prompt for prompt in prompts if isinstance(prompt, str)), None)


def _parts(output: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The output itself, its results (a list, or for some models one object), and the contents of its messages."""
    yield output
    yield answers.mapping(output.get("results"))
    yield from map(answers.mapping, answers.items(output.get("results")))
    for choice in map(answers.mapping, answers.items(output.get("choices"))):
        yield from map(answers.mapping, answers.items(answers.mapping(choice.get("message")).get("content")))
