"""Pictures from words: the Wan and Qwen text-to-image models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, Field

from worker.catalog import Model, Usage
from worker.kinds import answers, checks, wire
from worker.kinds.checks import MediaInput
from worker.kinds.fields import Size, Text
from worker.kinds.kind import Kind, Source

NAME = "text-to-image"


class TextToImage(MediaInput):
    """Each picture is billed, whatever its size."""

    prompt: Text = Field(description="what is in the picture", examples=["a flower shop in the morning sun"])
    size: Size | None = Field(None, description="width*height, or 1K, 2K, 4K", examples=["1024*1024"])
    n: int | None = Field(None, description="how many pictures, each of them paid for", examples=[1])
    thinking_mode: bool | None = Field(None, description="let the model reason first: slower, often better")


def outputs(output: Mapping[str, Any]) -> tuple[Source, ...]:
    """The pictures that were made; those that failed are in `failures`."""
    return answers.sources(output, "image", "png")


def estimate(_: Model, wanted: BaseModel) -> Usage:
    """Each picture asked for."""
    return Usage(answers.image_asked(wanted))


def words(wanted: BaseModel) -> str:
    """ "1024*1024 ×2"."""
    asked = wanted.model_dump(exclude_none=True)
    return f"{asked.get('size', '?')} ×{asked.get('n', 1)}"


def echoes(wanted: BaseModel) -> dict[str, Any]:
    """The prompt as it was sent, and how many pictures."""
    asked = wanted.model_dump(exclude_none=True)
    return {"orig_prompt": asked.get("prompt"), "n": asked.get("n")}


KIND = Kind(
    name=NAME,
    input=TextToImage,
    check=partial(checks.check, NAME, TextToImage),
    request=wire.request,
    outputs=outputs,
    failures=answers.failures,
    usage=answers.image_usage,
    estimate=estimate,
    words=words,
    echoes=echoes,
    echoed=answers.image_echoed,
)
