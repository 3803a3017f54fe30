"""Pictures from words: the Wan and Qwen text-to-image models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from worker.catalog import Model
from worker.kinds import fields, visual
from worker.kinds.fields import Filled, Rule, Size
from worker.kinds.kind import CallKind
from worker.kinds.visual import MediaInput

NAME = "text-to-image"


def _size_fits(model: Model, value: str | None, given: Mapping[str, Any]) -> None:
    if given.get("sequence"):
        visual.edited_size_fits(model, value, given)


class TextToImage(MediaInput):
    """Each picture is billed, whatever its size. Those of a sequence belong together: one cat in four seasons."""

    rules: ClassVar[Mapping[str, Rule]] = {**MediaInput.rules, "size": _size_fits, "n": visual.number_fits}

    prompt: Filled = Field(description="what is in the picture", examples=["a flower shop in the morning sun"])
    sequence: bool | None = Field(None, description="pictures that belong together, `n` of them at most")
    size: Size | None = Field(None, description="width*height, or 1K, 2K, 4K", examples=["1024*1024"])
    n: int | None = Field(None, description="how many pictures, each of them paid for", examples=[1])
    thinking_mode: bool | None = Field(None, description="let the model reason first: slower, often better")


def words(wanted: BaseModel) -> str:
    """ "1024*1024 ×2"."""
    asked = wanted.model_dump(exclude_none=True)
    return f"{asked.get('size', '?')} ×{asked.get('n', 1)}"


KIND = CallKind(
    name=NAME,
    input=TextToImage,
    check=partial(fields.check, NAME, TextToImage),
    request=visual.request,
    outputs=partial(visual.sources, role="image", extension="png"),
    failures=visual.failures,
    usage=visual.image_usage,
    estimate=visual.image_asked,
    words=words,
    echoes=visual.image_echoes,
    echoed=visual.image_echoed,
)
