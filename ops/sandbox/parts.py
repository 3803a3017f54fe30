"""What a message shows: pictures, clips and sound among its parts, how many tokens they are, and what they may be.

The compatible interface has typed parts (`{"type": "image_url", "image_url": {"url": …}}`), the native one names
(`{"image": …}`). The sandbox fetches nothing: a picture behind a link is taken to have 1024*1024 pixels and one inline
its own, a clip and a sound to play 5 seconds. Source: Alibaba docs, "Visual understanding" and "Qwen-Omni".
"""

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ops.sandbox import media
from ops.sandbox.models import Model
from ops.sandbox.refusals import Refusal, invalid

LINKED_PIXELS = 1024 * 1024
USUAL_TOKENS = 2560  # of a picture, at most, where the call says nothing
AROUND = 2
CLIP_TOKENS, CLIP_SECONDS = 1_282, 5
SOUND_TOKENS, SOUND_SECONDS = 25, 5  # a second
SHORTEST, STEEPEST = 10, 200  # pixels of a side, and how many times the longer one may be as long
SORTS = {"image_url": "image", "video_url": "video", "input_audio": "audio", "video": "video"}
LINKS = ("http://", "https://", "data:", "oss://")


@dataclass(frozen=True)
class Shown:
    """A picture, clip or sound: its sort, the link to it, and its tokens."""

    sort: str  # image, video or audio
    link: str
    tokens: int


def shown(model: Model, messages: Any) -> list[Shown]:
    """Return what all messages show, in their order; raise the Refusal of what the model does not take."""
    found = [_shown(model, sort, value, part) for part in _parts(messages) for sort, value in _named(part)]
    for each in found:
        if each.sort == "audio" and not model.hears:
            raise _no("does not support audio input", model)
        if each.sort != "audio" and not model.sees:
            raise _no(f"does not support {each.sort} input", model)
    return found


def links(messages: Any) -> list[str]:
    """Return the links that messages show."""
    return [link for part in _parts(messages) for _, value in _named(part) for link in _links(value)]


def _parts(messages: Any) -> Iterator[dict[str, Any]]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        yield from (part for part in content if isinstance(part, dict)) if isinstance(content, list) else ()


def _named(part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the sort and value of what a part shows, in either interface's words."""
    typed = part.get("type")
    if typed in SORTS:
        yield SORTS[typed], part.get(typed)
    elif typed is None:
        yield from ((sort, part[sort]) for sort in ("image", "video", "audio") if part.get(sort))


def _links(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = value.get("url") or value.get("data")
    return [str(link) for link in (value if isinstance(value, list) else [value]) if link]


def _shown(model: Model, sort: str, value: Any, part: dict[str, Any]) -> Shown:
    named = _links(value)
    if not named or not all(link.startswith(LINKS) for link in named):
        raise Refusal(400, "InvalidParameter", "The provided URL does not appear to be valid.")
    if sort == "image" or (sort == "video" and len(named) > 1):
        size = sum(_picture(model, link, part.get("max_pixels")) for link in named)
    elif sort == "video":
        size = CLIP_TOKENS
    else:
        size = SOUND_TOKENS * SOUND_SECONDS
    return Shown(sort, named[0], size)


def _picture(model: Model, link: str, most: Any) -> int:
    pixels = LINKED_PIXELS
    if link.startswith("data:"):
        width, height = _sides(link)
        if min(width, height) <= SHORTEST:
            raise invalid(f"The image length and width do not meet the model restrictions. [height:{height}]")
        if max(width, height) > STEEPEST * min(width, height):
            raise invalid("absolute aspect ratio must be smaller than 200")
        pixels = width * height
    cap = most if isinstance(most, int) and most > 0 else USUAL_TOKENS * model.token_pixels
    return math.ceil(min(pixels, cap) / model.token_pixels) + AROUND


def _sides(link: str) -> tuple[int, int]:
    try:
        return media.sides(base64.b64decode(link.partition(",")[2]))
    except (OSError, ValueError):
        raise invalid("The image format is illegal and cannot be opened.") from None


def _no(reason: str, model: Model) -> Refusal:
    return invalid(f"<400> InternalError.Algo.InvalidParameter: The model {model.id} {reason}.")
