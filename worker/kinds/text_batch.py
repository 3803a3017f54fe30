"""A provider batch: one file of many chat calls, answered within a day or more at half the price.

It is made as a child only. Its input names the file in our bucket; its results are files too, whose lines have what
each call cost, so nothing of them is known before they are read. (Alibaba docs, 'OpenAI compatible - Batch'.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from worker.catalog import Model, Surface, Usage
from worker.kinds.kind import Kind, Request, Source

NAME = "text-batch"


class TextBatch(BaseModel):
    """The file with the lines, how many there are, and how long the provider may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="the object with the lines")
    lines: int = Field(ge=1, le=50_000, description="calls in it")
    window: str = Field("24h", pattern=r"^\d{1,3}[hd]$", description="after which what is not done is left undone")
    input_tokens: int = Field(0, ge=0, description="of all lines, as estimated")
    output_tokens: int = Field(0, ge=0, description="of all lines, at the most")


def check(_model: Model, raw: Any, _region: str | None) -> BaseModel:
    """The input; it comes from a parent, so it is right or our mistake."""
    return TextBatch.model_validate(raw)


def request(model: Model, region: str, wanted: BaseModel) -> Request:
    """The create call with our file's key, for which the provider's id is put in before it leaves."""
    here = model.region(region)
    assert here is not None, "a job goes only to a region that serves its model"
    return Request(model.path, {}, {"model": here.id, **wanted.model_dump()}, Surface.COMPATIBLE)


def estimate(model: Model, wanted: BaseModel) -> Usage:
    """What the lines may cost in all, each at the tier of the middling one; nothing where nobody estimated it."""
    asked = wanted.model_dump()
    units = {name: asked[name] for name in ("input_tokens", "output_tokens") if asked[name]}
    return Usage({**units, "tier": model.token_tier(asked["input_tokens"] / asked["lines"])} if units else {})


def words(wanted: BaseModel) -> str:
    """ "200 calls within 24h"."""
    asked = wanted.model_dump()
    return f"{asked['lines']} calls within {asked['window']}"


def _nothing(_output: Mapping[str, Any]) -> tuple[Source, ...]:
    return ()


def _no_failures(_output: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    return ()


def _no_usage(_wanted: BaseModel, _answer: Mapping[str, Any]) -> Usage:
    return Usage()


def _no_echo(_value: Any) -> dict[str, Any]:
    return {}


KIND = Kind(
    name=NAME,
    input=TextBatch,
    check=check,
    request=request,
    outputs=_nothing,
    failures=_no_failures,
    usage=_no_usage,
    estimate=estimate,
    words=words,
    echoes=_no_echo,
    echoed=_no_echo,
    internal=True,
)
