"""Pictures from pictures: changed by words, or put together from several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, AliasChoices, Field

from worker.catalog import Model
from worker.kinds import fields, text_to_image, visual
from worker.kinds.fields import Filled, Pictures, Rule, Size, no
from worker.kinds.kind import CallKind
from worker.kinds.visual import MediaInput

NAME = "image-edit"
_MOST = 9  # pictures; the most that any model takes


def _encloses(box: list[int]) -> list[int]:
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise no("empty_box", "must be [left, top, right, bottom]: left before right, top before bottom")
    return box


Box = Annotated[
    list[Annotated[int, Field(ge=0, le=8000)]], Field(min_length=4, max_length=4), AfterValidator(_encloses)
]


def _boxes_fit(_model: Model, value: list[list[Box]] | None, given: Mapping[str, Any]) -> None:
    pictures = given.get("pictures")
    if value is not None and pictures is not None and len(value) != len(pictures):
        raise no("wrong_length", f"has boxes for {len(value)} pictures of {len(pictures)}: give [] for one without")


class ImageEdit(MediaInput):
    """The result has the shape of the last picture, unless a size is given. Each picture that is made is billed.

    What is given is not: JPEG, PNG without transparency, BMP or WEBP, of at most 10 or 20 MB.
    """

    without_default: ClassVar[frozenset[str]] = frozenset({"size"})
    rules: ClassVar[Mapping[str, Rule]] = {
        **MediaInput.rules,
        "pictures": visual.pictures_fit,
        "size": visual.edited_size_fits,
        "n": visual.number_fits,
        "boxes": _boxes_fit,
    }

    prompt: Filled = Field(description="what to change, or what to make of them", examples=["put the hat on the cat"])
    pictures: Annotated[Pictures, Field(min_length=1, max_length=_MOST)] = Field(
        validation_alias=AliasChoices("pictures", "images"),
        description="links, files' keys, or data:image/…, in the order in which the prompt counts them",
        examples=[["https://example.com/cat.png", "https://example.com/hat.png"]],
    )
    sequence: bool | None = Field(None, description="pictures that belong together, `n` of them at most")
    size: Size | None = Field(None, description="width*height, or 1K, 2K with the shape of the last picture")
    n: int | None = Field(None, description="how many pictures, each of them paid for", examples=[1])
    boxes: Annotated[list[Annotated[list[Box], Field(max_length=2)]], Field(max_length=_MOST)] | None = Field(
        None, description="where to change each picture: at most two boxes [left, top, right, bottom] in its pixels"
    )


KIND: CallKind = replace(text_to_image.KIND, name=NAME, input=ImageEdit, check=partial(fields.check, NAME, ImageEdit))
