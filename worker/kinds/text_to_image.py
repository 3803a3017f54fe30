"""Pictures from words: the Wan and Qwen text-to-image models."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel, Field

from worker.kinds import fields, visual
from worker.kinds.fields import Filled, Size
from worker.kinds.kind import CallKind
from worker.kinds.visual import MediaInput

NAME = "text-to-image"


class TextToImage(MediaInput):
    """Each picture is billed, whatever its size."""

    prompt: Filled = Field(description="what is in the picture", examples=["a flower shop in the morning sun"])
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
