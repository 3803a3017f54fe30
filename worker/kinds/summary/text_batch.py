"""A provider batch: one file of many chat calls, answered within a day or more at half the price.

It is made as a child only. Its input names the file in our bucket: a line for each call. Its results are a file too, a
line for each answer, in any order, with what each call cost; a line's name ties an answer to its call.
Alibaba docs, 'OpenAI compatible - Batch': at most 50,000 lines and 500 MB in a file, one model, each name once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from worker.catalog import Catalog, Model, Surface, Usage
from worker.kinds import answers, text
from worker.kinds.kind import CallKind, Request
from worker.kinds.text import Conversation

NAME = "text-batch"

LINES_LIMIT = 50_000
BYTES_LIMIT = 480_000_000  # below 500 MB, whichever way the provider counts them


class TextBatch(BaseModel):
    """The file with the lines, how many there are, and how long the provider may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="the object with the lines")
    lines: int = Field(ge=1, le=LINES_LIMIT, description="calls in it")
    window: str = Field("24h", pattern=r"^\d{1,3}[hd]$", description="after which what is not done is left undone")
    input_tokens: int = Field(0, ge=0, description="of all lines, as estimated")
    output_tokens: int = Field(0, ge=0, description="of all lines, at the most")


@dataclass(frozen=True)
class Part:
    """An object with lines: how many there are, their bytes, and the tokens that they take at most."""

    key: str
    lines: int
    bytes: int
    input_tokens: int
    output_tokens: int


def check(_catalog: Catalog, _model: Model, raw: Any, _region: str | None) -> TextBatch:
    """The input; a parent makes it, so a fault in it is our own mistake."""
    return TextBatch.model_validate(raw)


def request(model: Model, region: str, wanted: TextBatch) -> Request:
    """The create call with our file's key, which the provider's id for the file replaces before the call is sent."""
    here = model.region(region)
    assert here is not None, "a job goes only to a region that serves its model"
    return Request(model.path, {}, {"model": here.id, **wanted.model_dump()}, Surface.COMPATIBLE)


def estimate(model: Model, wanted: TextBatch) -> Usage:
    """What the lines may cost in all, each at the tier of the average one; nothing where there is no estimate."""
    counts = {"input_tokens": wanted.input_tokens, "output_tokens": wanted.output_tokens}
    units = {name: count for name, count in counts.items() if count}
    return Usage({**units, "tier": model.token_tier(wanted.input_tokens / wanted.lines)} if units else {})


def words(wanted: TextBatch) -> str:
    """ "200 calls within 24h"."""
    return f"{wanted.lines} calls within {wanted.window}"


def line(model: Model, regions: Iterable[str], name: str, call: Conversation) -> bytes:
    """One call, as OpenAI's batches have it."""
    region = next((region for region in regions if model.region(region)), None) or next(iter(model.regions))
    asked = {
        "custom_id": name,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": text.body(model, region, call, Surface.COMPATIBLE, streams=False),
    }
    return json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def files(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """The parts grouped into files, each with as many as a file takes."""
    group: list[Part] = []
    for part in parts:
        if group and not _fits([*group, part]):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def answered(chunks: Iterable[bytes]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The answers in a results file: the line's name, and the body. Lines without an answer are left out."""
    for each in _split(chunks):
        told = _read(each)
        response = answers.mapping(told.get("response"))
        body = answers.mapping(response.get("body"))
        if response.get("status_code") == 200 and body.get("choices") and not told.get("error"):
            yield str(told.get("custom_id")), body


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


KIND = CallKind(
    name=NAME,
    input=TextBatch,
    check=check,
    request=request,
    estimate=estimate,
    words=words,
    internal=True,
)
