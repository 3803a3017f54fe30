"""What users send to have texts embedded."""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic import model_validator as whole

from worker.catalog import Variant
from worker.kinds.fields import Filled, Input, Text, no
from worker.kinds.text_batch import Window

MOST = 200_000  # texts, in the job and in the objects that it names

_PLAIN = {"output_type": "dense", "text_type": "document", "instruct": None}  # all that a line of a batch can ask


class Mode(StrEnum):
    """How the texts go to the provider."""

    CALLS = "calls"  # ten by ten, within the limits of calls
    BATCH = "batch"  # in files: half the price, within a day or more
    AUTO = "auto"  # the cheaper one that the deadline and the input allow


class Item(BaseModel):
    """One text, or an object full of them: exactly one of text and key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text | None = Field(None, min_length=1, max_length=200, description="what its line is called; default: number")
    text: Text | None = Field(None, description="the text itself")
    key: Filled | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="an object in the bucket: JSONL (a text, or an object with `text` and `id`), or a text a line",
    )

    @whole(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.text is None) == (self.key is None):
            raise no("one_source", "must have exactly one of text and key")
        if self.key is not None and self.id is not None:
            raise no("not_taken", "an object has no id: each of its lines may have one")
        return self


class Embedding(Input):
    """Texts in; a line with a vector for each out, in their order."""

    texts: tuple[Text | Item, ...] = Field(
        min_length=1,
        max_length=MOST,
        description="texts, or objects with `id` and `text`, or with the `key` of a file full of texts",
        examples=[["A noria lifts water out of a river.", {"id": "sail", "text": "The wind turns it."}]],
    )
    text_type: Literal["document", "query"] | None = Field(
        None, description="what is searched, or what one searches by"
    )
    instruct: Text | None = Field(None, max_length=2000, description="what the vectors are for, in English")
    dimension: int | None = Field(None, description="of a vector")
    output_type: Text | None = Field(None, description="dense, sparse, or dense&sparse")
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="of the result")
    window: Window = Field("24h", description="how long a batch may take: 24h to 336h, or 1d to 14d")
    deadline_hours: float | None = Field(
        None, gt=0, le=8760, description="for auto: within how many hours it is needed"
    )
    mode: Mode = Field(Mode.AUTO, description="calls, batch (half the price, up to a day or more) or auto")

    @property
    def is_plain(self) -> bool:
        """Whether a batch can ask for it: its lines are spelled for the compatible surface."""
        return all(getattr(self, name) == value for name, value in _PLAIN.items())

    @field_validator("format")
    @classmethod
    def _can_be_written(cls, value: str, info: ValidationInfo) -> str:
        if info.context and value == "parquet" and not writes_parquet():
            raise no("not_installed", "this server writes no Parquet: it needs the extra `parquet` (PyArrow)")
        return value

    @field_validator("mode")
    @classmethod
    def _is_served(cls, value: Mode, info: ValidationInfo) -> Mode:
        if not info.context or value is not Mode.BATCH:
            return value
        model = info.context["model"].id
        if info.context["catalog"].variant(model, Variant.BATCH) is None:
            raise no("not_offered", f"{model} is not offered by batch: take calls, or auto")
        if asked := [name for name, plain in _PLAIN.items() if info.data.get(name, plain) != plain]:
            raise no("contradiction", f"a batch takes no {' and no '.join(asked)}: leave that out, or take calls")
        return value


def writes_parquet() -> bool:
    """Whether PyArrow is installed here, which the extra `parquet` brings."""
    return importlib.util.find_spec("pyarrow") is not None


def as_item(given: Any) -> Item:
    """A text as an item."""
    return Item(text=given) if isinstance(given, str) else given
