"""Speech calls: what they may ask, and what they are told, at once or frame by frame.

Source: Alibaba docs, "Qwen-TTS API reference"; the limit's text and the answer's form as recorded.
"""

import base64
from collections.abc import Iterator
from typing import Any

from ops.sandbox import sound, tokens
from ops.sandbox.models import Model
from ops.sandbox.options import SpeechUnit
from ops.sandbox.orders import Order
from ops.sandbox.refusals import invalid
from ops.sandbox.tasks import Task

LONGEST = 600
LONGEST_INSTRUCTIONS = 1600  # tokens
EUROPEAN = ("English", "German", "Italian", "Portuguese", "Spanish", "French", "Russian")
LANGUAGES = ("Auto", "Chinese", "Japanese", "Korean", *EUROPEAN)
FRAME_BYTES = 48_000  # a second


def check(document: dict[str, Any], model: Model, unit: SpeechUnit) -> Order:
    """Return the order that a body places, or raise the Refusal for what is wrong in it."""
    given = document["input"]
    text, voice = given.get("text"), given.get("voice")
    if not isinstance(text, str) or not text.strip():
        raise invalid("Missing required parameter: input.text")
    if _size(text, unit) > LONGEST:
        message = f"Range of input length should be [0, {LONGEST}]"
        raise invalid(f"<400> InternalError.Algo.InvalidParameter: {message}")
    if not isinstance(voice, str) or not voice:
        raise invalid("Missing required parameter: input.voice")
    if model.voices:  # else it speaks with an account's own
        _one_of("voice", voice, model.voices)
    _one_of("language_type", given.get("language_type") or "Auto", LANGUAGES)
    if model.takes_instructions and tokens.count(str(given.get("instructions") or "")) > LONGEST_INSTRUCTIONS:
        raise invalid(f"instructions must have {LONGEST_INSTRUCTIONS} tokens at most")
    return Order(model.id, "multimodal", text.encode("utf-8", "replace").decode(), voice=str(voice))


def _size(text: str, unit: SpeechUnit) -> int:
    if unit is SpeechUnit.BYTES:
        return len(text.encode("utf-8", "replace"))
    return len(text) + (len(tokens.HAN.findall(text)) if unit is SpeechUnit.BILLED else 0)


def finished(task: Task, link: str, expires: int, request_id: str) -> dict[str, Any]:
    """Return the answer with the recording's link, which is plain http, as recorded."""
    audio = {"data": "", "expires_at": expires, "id": f"audio_{request_id}", "url": link}
    return {
        "output": {"audio": audio, "finish_reason": "stop"},
        "usage": _usage(task),
        "request_id": request_id,
    }


def frames(task: Task, last: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answers of a stream: samples in base64, then `last`, whole with link and usage."""
    samples = sound.pcm(task.order.prompt, task.order.voice)
    audio = last["output"]["audio"]
    for start in range(0, len(samples), FRAME_BYTES):
        data = base64.b64encode(samples[start : start + FRAME_BYTES]).decode()
        piece = {"data": data, "expires_at": audio["expires_at"], "id": audio["id"], "url": ""}
        yield {"output": {"audio": piece, "finish_reason": "null"}, "request_id": last["request_id"]}
    yield last


def _usage(task: Task) -> dict[str, Any]:
    units = task.usage
    if "characters" in units:
        return dict(units)
    return units | {
        "total_tokens": sum(units.values()),
        "input_tokens_details": {"text_tokens": units["input_tokens"]},
        "output_tokens_details": {"audio_tokens": units["output_tokens"], "text_tokens": 0},
    }


def _one_of(name: str, given: Any, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise invalid(f"<400> InternalError.Algo.InvalidParameter: Input should be {allowed}: input.{name}")
