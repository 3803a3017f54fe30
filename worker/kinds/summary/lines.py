"""The files of a provider batch: a line for each call, and a line for each answer, in any order.

A line's name tells what it is for, so that an answer finds its place without a list of what was asked.
Alibaba docs, 'Batch API': at most 50,000 lines and 500 MB in a file, one model, each name once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.catalog import Model, Surface
from worker.kinds import answers, text
from worker.kinds.text import Conversation

LINES_LIMIT = 50_000
BYTES_LIMIT = 480_000_000  # of 500 MB, whichever way they count them


@dataclass(frozen=True)
class Part:
    """An object with lines: how many there are, their bytes, and the tokens that they take at most."""

    key: str
    lines: int
    bytes: int
    input_tokens: int
    output_tokens: int


def line(model: Model, regions: Iterable[str], document: int, place: int, of: int, call: Conversation) -> bytes:
    """One call, as OpenAI's batches have it."""
    region = next((region for region in regions if model.region(region)), None) or next(iter(model.regions))
    said = {
        "custom_id": f"{document}.{place}.{of}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": text.body(model, region, call, Surface.COMPATIBLE, streams=False),
    }
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def answered(chunks: Iterable[bytes]) -> Iterator[tuple[int, int, int, Mapping[str, Any]]]:
    """The answers in a results file: document, place, of how many, and the body. What is no answer is left out."""
    for each in _split(chunks):
        said = _read(each)
        response = answers.mapping(said.get("response"))
        body = answers.mapping(response.get("body"))
        name = _named(said.get("custom_id"))
        if name and response.get("status_code") == 200 and body.get("choices") and not said.get("error"):
            yield (*name, body)


def files(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Which parts go together in a file: as many as one takes."""
    group: list[Part] = []
    for part in parts:
        if group and not _fits([*group, part]):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _fits(group: list[Part]) -> bool:
    return sum(part.lines for part in group) <= LINES_LIMIT and sum(part.bytes for part in group) <= BYTES_LIMIT


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    yield rest


def _read(each: bytes) -> Mapping[str, Any]:
    try:
        return answers.mapping(json.loads(each))
    except ValueError:
        return {}


def _named(custom_id: Any) -> tuple[int, int, int] | None:
    numbers = str(custom_id).split(".")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        return None
    document, place, of = map(int, numbers)
    return document, place, of
