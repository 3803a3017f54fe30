"""A provider batch: one file of many calls of one endpoint, answered within a day or more at half the price.

It is made as a child only. Its input names the file in our bucket: a line for each call. Its results are a file too, a
line for each answer, in any order, with what each call cost; a line's name ties an answer to its call.
Alibaba docs, 'OpenAI compatible - Batch': at most 50,000 lines and 500 MB in a file, one model, each name once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from worker.catalog import Catalog, Model, Surface, Usage, Variant
from worker.kinds import answers, text
from worker.kinds.fields import no
from worker.kinds.kind import CallKind, Parent, Request
from worker.kinds.text import Conversation

NAME = "text-batch"

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"  # what a file's lines all ask
FEW = 100  # calls, which are made in minutes one by one

LINES_LIMIT = 50_000
BYTES_LIMIT = 480_000_000  # below 500 MB, whichever way the provider counts them

_WINDOW = re.compile(r"(\d{1,3})([hd])")


def hours(window: str) -> int:
    """How long a batch may take; 0 for what is no window."""
    found = _WINDOW.fullmatch(window)
    return int(found[1]) * {"h": 1, "d": 24}[found[2]] if found else 0


def _window(value: str) -> str:
    if not 24 <= hours(value) <= 336:
        raise no("bad_window", "must be 24h to 336h, or 1d to 14d, in whole hours or days")
    return value


Window = Annotated[str, AfterValidator(_window)]


class TextBatch(BaseModel):
    """The file with the lines, how many there are, and how long the provider may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="the object with the lines")
    lines: int = Field(ge=1, le=LINES_LIMIT, description="calls in it")
    endpoint: str = Field(CHAT, description="what all of them ask")
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
    return spelled(name, CHAT, text.body(model, region(model, regions), call, Surface.COMPATIBLE, streams=False))


def region(model: Model, regions: Iterable[str]) -> str:
    """The first of the regions that serves the model, else any that does."""
    return next((region for region in regions if model.region(region)), None) or next(iter(model.regions))


def spelled(name: str, endpoint: str, body: Mapping[str, Any]) -> bytes:
    """A line: the call of that name."""
    asked = {"custom_id": name, "method": "POST", "url": endpoint, "body": body}
    return json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def why_none(parent: Parent, count: int, window: str, deadline_hours: float | None) -> str | None:
    """Why so many calls are better made one by one, in a few words; None: a batch is the cheaper way."""
    batched = parent.catalog.variant(parent.model, Variant.BATCH)
    regions = {account.region for account in parent.settings.all_accounts}
    if batched is None or regions.isdisjoint(batched.regions):
        return f"{parent.model} is not offered in batches"
    if deadline_hours is not None and deadline_hours < hours(window):
        return f"{deadline_hours:g} hours are too few for a batch, which may take {hours(window)}"
    if count < FEW:
        return "they are few, and calls take minutes where a batch takes hours"
    return None


def why(deadline_hours: float | None) -> str:
    """Why a batch was chosen, in a few words."""
    time = f"there are {deadline_hours:g} hours" if deadline_hours else "there is no deadline"
    return f"it is half the price, and {time}"


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
        made = body.get("choices") or body.get("data")
        if response.get("status_code") == 200 and made and not told.get("error"):
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
