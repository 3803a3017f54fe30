"""One call that embeds a few texts; its vectors are kept in the bucket, since a row is no place for them.

Alibaba docs, 'Text embedding, synchronous API'. Its usage tells the tokens in all: a vector costs nothing but its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from worker.catalog import Model, Usage
from worker.kinds import answers, fields, text
from worker.kinds.fields import Text
from worker.kinds.kind import CallKind, Request

NAME = "embedding-call"


class EmbeddingCall(BaseModel):
    """Complete: a parent made it of an input that was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: tuple[Text, ...] = Field(min_length=1, description="what is embedded")
    dimension: int = Field(description="of a vector")
    output_type: str = Field(description="dense, sparse, or both")
    text_type: str = Field(description="document or query")
    instruct: Text | None = Field(None, description="what the vectors are for")


def request(model: Model, region: str, wanted: EmbeddingCall) -> Request:
    """The call: what tells vectors apart is always said."""
    here = model.region(region)
    assert here is not None, "a job goes only to a region that serves its model"
    asked = wanted.model_dump(exclude_none=True, exclude={"texts"})
    body = {"model": here.id, "input": {"texts": list(wanted.texts)}, "parameters": asked}
    return Request(model.path, {}, body, model.surface)


def result(_: EmbeddingCall, output: Mapping[str, Any]) -> dict[str, Any]:
    """The vectors as the provider gave them, each with the place of its text."""
    return {"embeddings": answers.storable(answers.items(output.get("embeddings")))}


def usage(_: Model, wanted: EmbeddingCall, answer: Mapping[str, Any]) -> Usage:
    """The tokens as the provider counted them, else by our count."""
    told = answers.number(answers.mapping(answer.get("usage")).get("total_tokens"))
    return Usage({"input_tokens": told or _tokens(wanted)})


def estimate(_: Model, wanted: EmbeddingCall) -> Usage:
    """The tokens by a count that is rather too high."""
    return Usage({"input_tokens": _tokens(wanted)})


def words(wanted: EmbeddingCall) -> str:
    """ "10 texts, 1024 numbers each"."""
    return f"{len(wanted.texts)} texts, {wanted.dimension} numbers each"


def _tokens(wanted: EmbeddingCall) -> int:
    return sum(map(text.tokens, wanted.texts))


KIND = CallKind(
    name=NAME,
    input=EmbeddingCall,
    check=partial(fields.check, NAME, EmbeddingCall),
    request=request,
    usage=usage,
    estimate=estimate,
    words=words,
    result=result,
    is_bulky=True,
    internal=True,
)
