"""What a finished task or call says: links, failed parts, and what is billed.

Answers differ by model and by year, so all of it is read leniently: a number may be a string, a field may be missing
or of another type. Where the answer is silent about what is billed, the request's own numbers stand in for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from worker import catalog
from worker.catalog import Usage
from worker.kinds import fields
from worker.kinds.kind import Source

_LINKS = ("video_url", "url", "image")
_NUMBER_LIMIT = 2**63
_COUNT_LIMIT = 10**9  # of anything that one call uses: its price, and the sum of a batch's lines, fit into a bigint
_WORD_LIMIT = 200  # characters; longer texts are no measure of use
_TOKENS = {
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "cached_tokens": ("prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens"),
    "reasoning_tokens": ("output_tokens_details.reasoning_tokens", "completion_tokens_details.reasoning_tokens"),
}
_TIER = re.compile(r"(\d{3,4})P?", re.IGNORECASE)


def sources(output: Mapping[str, Any], role: str, extension: str) -> tuple[Source, ...]:
    """Every link in the `output` of a finished task or call, in its order; parts that failed have none."""
    links = (part.get(name) for part in _parts(output) for name in _LINKS)
    found = dict.fromkeys(link for link in links if isinstance(link, str) and link.startswith(("http://", "https://")))
    return tuple(Source(link, role, extension) for link in found)


def failures(output: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Code and message of each part that failed in a task that succeeded as a whole."""
    failed = (part for part in _list(output.get("results")) if isinstance(part, Mapping) and part.get("code"))
    return tuple({"code": part["code"], "message": part.get("message")} for part in failed)


def video_usage(wanted: BaseModel, answer: Mapping[str, Any]) -> Usage:
    """Seconds and tier: `duration` else `video_duration`, `SR` else the size, else what was asked for."""
    asked = video_asked(wanted)
    said = mapping(answer.get("usage"))
    seconds = number(said.get("duration")) or number(said.get("video_duration"))
    sizes = (said.get(name) for name in ("SR", "size", "video_ratio"))
    tier = next(filter(None, map(_tier, sizes)), None)
    audio = said.get("audio") if isinstance(said.get("audio"), bool) else None
    return _settled(said, asked, {"seconds": seconds, "tier": tier, "audio": audio})


def video_asked(wanted: BaseModel) -> dict[str, Any]:
    """Seconds and tier as they were asked for, and whether with sound where that is a choice."""
    asked = wanted.model_dump(exclude_none=True)
    tier = asked.get("resolution") or catalog.load().tier(asked.get("size", ""))
    return _known({"seconds": asked.get("duration"), "tier": tier, "audio": asked.get("audio")})


def image_usage(wanted: BaseModel, answer: Mapping[str, Any]) -> Usage:
    """Pictures: `image_count` (of qwen-image-3.0 `output_image_count`), else links, else as many as were asked for."""
    said = mapping(answer.get("usage"))
    told = number(said.get("image_count")) or number(said.get("output_image_count"))
    links = len(sources(mapping(answer.get("output")), "image", "png"))
    return _settled(said, image_asked(wanted), {"images": told or links or None})


def image_asked(wanted: BaseModel) -> dict[str, Any]:
    """Pictures as they were asked for, and what else moves their price."""
    asked = wanted.model_dump(exclude_none=True)
    return _known({"images": asked.get("n"), "prompt_extend": asked.get("prompt_extend")})


def video_echoed(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the provider repeats of a clip's request, as far as it does."""
    said = mapping(answer.get("usage"))
    sizes = [said.get(name) for name in ("SR", "size", "video_ratio")]
    size = next((size for size in sizes if isinstance(size, str) and catalog.load().tier(size)), None)
    return _known(
        {
            "orig_prompt": _prompt(answer),
            "duration": number(said.get("output_video_duration"))
            or number(said.get("duration") or said.get("video_duration")),
            "tier": next(filter(None, map(_tier, sizes)), None),
            "size": size,
        }
    )


def image_echoed(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the provider repeats of a picture's request, as far as it does."""
    metrics = mapping(mapping(answer.get("output")).get("task_metrics"))
    return _known({"orig_prompt": _prompt(answer), "n": number(metrics.get("TOTAL"))})


def tokens(said: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens by what they were for, in the native interface's words or OpenAI's; only those that were told."""
    return _known({name: _first(said, paths) for name, paths in _TOKENS.items()})


def choice(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first answer of a conversation; empty when there is none."""
    return next(map(mapping, _list(output.get("choices"))), {})


def number(value: Any) -> int | float | None:
    """A number above zero, written as one or as a string; None for anything else, and for what is no count at all."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        real = float(value)
    except (ValueError, OverflowError):
        return None
    if not 0 < real < _COUNT_LIMIT:  # which no NaN is
        return None
    return int(real) if real.is_integer() else real


def _settled(said: Mapping[str, Any], asked: Mapping[str, Any], billed: Mapping[str, Any]) -> Usage:
    kept = {name: value for name, value in said.items() if fields.is_storable(name) and _is_plain(value)}
    return Usage({**kept, **asked, **_known(billed)})


def _is_plain(value: Any) -> bool:
    """Whether a value can be kept as JSON by the database."""
    is_number = isinstance(value, int | float) and abs(value) < _NUMBER_LIMIT  # which no NaN is
    return is_number or (isinstance(value, str) and len(value) <= _WORD_LIMIT and fields.is_storable(value))


def _first(said: Mapping[str, Any], paths: Iterable[str]) -> int | float | None:
    """The first number above zero at one of the paths, each a name or a name within a named object."""
    return next(filter(None, (number(_at(said, path)) for path in paths)), None)


def _at(said: Mapping[str, Any], path: str) -> Any:
    outer, _, inner = path.partition(".")
    return mapping(said.get(outer)).get(inner) if inner else said.get(outer)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _tier(value: Any) -> str | None:
    digits = _TIER.fullmatch(str(number(value) or value))
    return f"{digits[1]}P" if digits else catalog.load().tier(str(value))


def _prompt(answer: Mapping[str, Any]) -> str | None:
    prompts = (part.get("orig_prompt") for part in _parts(mapping(answer.get("output"))))
    return next((prompt for prompt in prompts if isinstance(prompt, str)), None)


def _parts(output: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The output itself, its results (a list, or for some models one object), and the contents of its messages."""
    yield output
    yield mapping(output.get("results"))
    yield from map(mapping, _list(output.get("results")))
    for choice in _list(output.get("choices")):
        yield from map(mapping, _list(mapping(mapping(choice).get("message")).get("content")))


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
