"""What users send to have documents summarized."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic import model_validator as whole

from worker.catalog import Variant
from worker.kinds import answers
from worker.kinds.fields import Filled, Input, Link, Text, is_fetched, no
from worker.kinds.text_batch import Window

MOST = 10_000  # documents
PARTS = 20_000  # of documents, each read by one call

_SOURCES = ("text", "url", "key", "prefix")

_SHORTEST, _LONGEST = 5, 5000  # words


def _length(value: Any) -> Any:
    words = int(value) if isinstance(value, str) and value.isdecimal() else value
    is_count = isinstance(words, int) and not isinstance(words, bool) and _SHORTEST <= words <= _LONGEST
    if not is_count and words not in ("short", "medium", "long"):
        raise no("bad_length", f"must be short, medium, long, or {_SHORTEST} to {_LONGEST:,} words")
    return words


def _style(value: Any) -> Any:
    if isinstance(value, dict) and list(value) == ["schema"] and isinstance(value["schema"], dict):
        if fault := answers.schema_fault(value["schema"]):
            raise no("bad_schema", fault)
    elif value not in ("bullets", "paragraph", "headline"):
        raise no("bad_style", 'must be bullets, paragraph, headline, or {"schema": a JSON schema}')
    return value


def _digest(value: Any) -> Any:
    """`true` is a digest with all its defaults; `false` is none."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Length = Annotated[Literal["short", "medium", "long"] | int, BeforeValidator(_length)]
Style = Annotated[Literal["bullets", "paragraph", "headline"] | dict[str, Any], BeforeValidator(_style)]


class Mode(StrEnum):
    """How the documents go to the provider."""

    CALLS = "calls"  # one by one, within the limits of calls
    BATCH = "batch"  # in one file: half the price, within a day or more
    TASKS = "tasks"  # as asynchronous tasks; most accounts are refused it, and calls are made then
    CHAT = "chat"  # by Batch Chat: half the price, each call waits for its turn for minutes; else by calls
    AUTO = "auto"  # the cheaper of calls and batch that the deadline allows


OTHER_WAYS = (Mode.BATCH, Mode.TASKS, Mode.CHAT)  # each needs a variant of the model


class Document(BaseModel):
    """One document, or all below a prefix: exactly one of text, url, key and prefix."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text | None = Field(
        None, min_length=1, max_length=200, description="what its line is called; default: key, file or number"
    )
    text: Filled | None = Field(None, description="the document itself")
    url: Link | None = Field(None, description="a link to it", examples=["https://example.com/report.pdf"])
    key: Filled | None = Field(None, min_length=1, max_length=1024, description="an object in the bucket")
    prefix: Filled | None = Field(None, min_length=1, max_length=1024, description="all objects below it")
    since: AwareDatetime | None = Field(None, description="of a prefix: objects changed at or after this time")
    until: AwareDatetime | None = Field(None, description="of a prefix: objects changed before this time")

    @field_validator("url")
    @classmethod
    def _can_be_fetched(cls, value: str | None) -> str | None:
        if value is not None and not is_fetched(value):
            raise no("bad_link", "must be a link that can be fetched: https://…")
        return value

    @whole(mode="after")
    def _is_one_thing(self) -> Self:
        sources = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(sources) != 1:
            given = " and ".join(sources) or "none"
            raise no("one_source", f"must have exactly one of {', '.join(_SOURCES)}; it has {given}")
        if self.prefix is None and (self.since or self.until):
            raise no("needs_prefix", "since and until choose among the objects of a prefix, and there is none")
        if self.prefix is not None and self.id is not None:
            raise no("not_taken", "a prefix has no id: each of its objects is called by its key")
        if self.since and self.until and self.since >= self.until:
            raise no("empty_window", "since is not before until, so no object can be meant")
        return self


class Digest(BaseModel):
    """One text over all the summaries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    style: Literal["bullets", "paragraph"] = "paragraph"
    length: Length = Field("long", description="words, or short, medium, long")
    language: Text | None = Field(None, max_length=100, description="default: that of the summaries")
    focus: Text | None = Field(None, max_length=2000, description="what matters to its readers")


class Summary(Input):
    """Documents in; a line for each in summaries.jsonl out, and a digest over all in digest.md if that is wanted."""

    documents: tuple[Document, ...] = Field(
        min_length=1,
        max_length=MOST,
        description="what is to be summarized",
        examples=[[{"id": "wheel", "text": "A noria lifts water out of a river, bucket by bucket."}]],
    )
    style: Style = Field(
        "paragraph", description='bullets, paragraph, headline, or {"schema": a JSON schema} for an object of its shape'
    )
    language: Text | None = Field(
        None, max_length=100, description="default: each document's own", examples=["English"]
    )
    focus: Text | None = Field(None, max_length=2000, description="what matters to the readers", examples=["prices"])
    length: Length = Field("medium", description="words, or short, medium, long")
    digest: Annotated[Digest | None, BeforeValidator(_digest)] = Field(None, description="true, or how it should be")
    mode: Mode = Field(Mode.AUTO, description="calls, batch or chat (half the price, a day or minutes), tasks or auto")
    deadline_hours: float | None = Field(
        None, gt=0, le=8760, description="for auto: within how many hours it is needed"
    )
    window: Window = Field("24h", description="how long a batch may take: 24h to 336h, or 1d to 14d")
    reduce_model: Text | None = Field(None, description="what joins the parts of long documents, and the digest")
    enable_thinking: bool | None = Field(None, description="let the models reason first: slower, dearer, no batch")
    max_tokens: int | None = Field(None, ge=1, description="of a summary; default: by its length")

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The JSON schema that a summary has to fit; None: it is text."""
        return self.style["schema"] if isinstance(self.style, dict) else None

    @field_validator("documents")
    @classmethod
    def _have_their_own_ids(cls, value: tuple[Document, ...]) -> tuple[Document, ...]:
        seen: set[str] = set()
        for place, document in enumerate(value):
            if document.id in seen:
                raise no("duplicate_id", f"the id of document {place}, {document.id[:80]!r}, stands twice")
            seen |= {document.id} if document.id else set()
        return value

    @field_validator("mode")
    @classmethod
    def _is_served(cls, value: Mode, info: ValidationInfo) -> Mode:
        if info.context and value in OTHER_WAYS:
            model = info.context["model"].id
            if info.context["catalog"].variant(model, Variant(value.value)) is None:
                raise no("not_offered", f"{model} is not offered by {value}: take calls, or auto")
        return value

    @field_validator("enable_thinking")
    @classmethod
    def _is_streamed(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if info.context and value and info.data.get("mode") in OTHER_WAYS:
            raise no("contradiction", f"models think only in calls: leave it out, or the mode {info.data['mode']}")
        return value
