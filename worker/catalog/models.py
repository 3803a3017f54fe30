"""What the provider offers: a model, how it is asked, what it takes, where, and for how much.

These are the entries of the catalog's file. They are checked as they are read, so that a mistake in the file names its
model. A price is data with a date; usage carries no money, only what the provider counts (seconds, pictures, tokens,
characters) and what moves the price: a tier, sound or none, whether the model thought.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from worker.media import Shape
from worker.states import Mode

MICRO = 1_000_000  # money is counted in millionths of the currency's unit

_OURS = {
    "path",
    "protocol",
    "always",
    "surface",
    "repeatable",
    "repeats",
    "keeps_shape",
    "variant",
    "size_tiers",
    "answer_limit",
}  # not shown
_SIDES = re.compile(r"[0-9]{1,5}\*[0-9]{1,5}")


class Protocol(StrEnum):
    """How a request is spelled; the kinds know where each field goes."""

    PROMPT = "prompt"  # input.prompt, input.img_url
    FRAMES = "frames"  # input.first_frame_url, input.last_frame_url
    MEDIA = "media"  # input.media, a list of typed links
    MESSAGES = "messages"  # input.messages, as in a chat, of one prompt
    SPEECH = "speech"  # input.text, input.voice
    CHAT = "chat"  # a conversation, spelled as the surface wants it
    EMBEDDING = "embedding"  # input.texts
    BATCH = "batch"  # a file of conversations, or of texts to embed


_MEDIA = frozenset({Protocol.PROMPT, Protocol.FRAMES, Protocol.MEDIA, Protocol.MESSAGES})


class Surface(StrEnum):
    """Which of the provider's interfaces a request is spelled for."""

    NATIVE = "native"  # /api/v1
    COMPATIBLE = "compatible"  # /compatible-mode/v1, as OpenAI's
    BATCH_CHAT = "batch-chat"  # the same on a host of its own, where a call waits for its turn and costs half


class Thinking(StrEnum):
    """Whether a model thinks before it answers (Alibaba docs, 'Deep thinking')."""

    NONE = "none"
    HYBRID = "hybrid"  # when it is asked to
    ALWAYS = "always"


class Variant(StrEnum):
    """Another way to have a text model's answers."""

    BATCH = "batch"  # the Batch API: half the price, within a day or more, outside the limits of calls
    TASKS = "tasks"  # an asynchronous task; most accounts are refused it
    CHAT = "chat"  # Batch Chat: a call that waits for minutes, at half the price


class Entry(BaseModel):
    """A part of the file: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pixels(Entry):
    """Which sizes are taken beside the listed ones: bounds in pixels, and at most `ratio` to 1."""

    side: tuple[int, int] | None = None
    area: tuple[int, int] | None = None
    ratio: float | None = None

    def fit(self, width: int, height: int) -> bool:
        """Whether a picture of this size is taken."""
        long, short = max(width, height), min(width, height)
        return (
            short > 0
            and (self.side is None or self.side[0] <= short <= long <= self.side[1])
            and (self.area is None or self.area[0] <= width * height <= self.area[1])
            and (self.ratio is None or long <= self.ratio * short)
        )

    def __str__(self) -> str:
        side = self.side and f"sides of {self.side[0]} to {self.side[1]} pixels"
        area = self.area and f"{self.area[0]} to {self.area[1]} pixels in all"
        ratio = self.ratio and f"at most {self.ratio:g} to 1"
        return ", ".join(part for part in (side, area, ratio) if part)


class Sizes(Entry):
    """The sizes that a model takes: by tier, or listed, or any that fits `pixels`."""

    tiers: dict[str, tuple[str, ...]] = {}
    listed: tuple[str, ...] = ()
    pixels: Pixels | None = None

    @cached_property
    def named(self) -> tuple[str, ...]:
        """Every size that can be named beforehand."""
        return (*(size for sizes in self.tiers.values() for size in sizes), *self.listed)

    def __contains__(self, size: object) -> bool:
        if self.pixels is None or size in self.named or not _SIDES.fullmatch(str(size)):
            return size in self.named
        width, height = map(int, str(size).split("*"))
        return self.pixels.fit(width, height)

    def __str__(self) -> str:
        return ", ".join(self.named) + (f", or any W*H with {self.pixels}" if self.pixels else "")


class Pictures(Entry):
    """What a model takes as a picture: bytes at the most, which sizes, and whether a PNG may have an alpha channel."""

    bytes: int
    pixels: Pixels
    takes_alpha: bool = False

    def unfit(self, length: int, shape: Shape | None) -> str:
        """Why a picture is not taken; empty where it is, as far as its header says."""
        if length > self.bytes:
            return f"has {length} bytes, and may have {self.bytes}"
        if shape is not None and not self.pixels.fit(shape.width, shape.height):
            return f"has {shape.width}*{shape.height} pixels, and must have {self.pixels}"
        is_clear = shape is not None and shape.has_alpha and not self.takes_alpha
        return "is a PNG with an alpha channel, and must be without" if is_clear else ""


class Recordings(Entry):
    """What a model takes as clips or as sound: bytes at the most, and from how many seconds to how many."""

    bytes: int
    seconds: tuple[float, float]
    seconds_together: float | None = None  # of all that one request names

    def unfit(self, length: int, seconds: float | None) -> str:
        """Why one is not taken; empty where it is, as far as its header says how long it plays."""
        if length > self.bytes:
            return f"has {length} bytes, and may have {self.bytes}"
        least, most = self.seconds
        if seconds is not None and not least <= seconds <= most:
            return f"plays {seconds:g} seconds, and must play {least:g} to {most:g}"
        return ""


class References(Entry):
    """How many pictures, clips and recordings a request may show to a model, each and in all."""

    pictures: int = 0
    clips: int = 0
    sounds: int = 0
    total: int
    has_voices: bool = False  # each of them may come with a voice
    is_mixed: bool = True  # pictures, clips and sounds may be shown together
    seconds_with_clips: int | None = None  # of the result at most, where a clip is among them; None: as ever

    def unfit(self, counts: Mapping[str, int]) -> str:
        """Why so many pictures, clips and sounds are not taken; empty where they are."""
        for sort, count in counts.items():
            if count > getattr(self, sort):
                return f"has {count} {sort}, and may have {getattr(self, sort)}"
        total = sum(counts.values())
        return f"has {total} files, and may have {self.total} in all" if total > self.total else ""


class Vision(Entry):
    """How many tokens a model makes of what it sees."""

    token_pixels: int  # that are one token
    pixels: tuple[int, int]  # of a picture, as it is scaled: what a request may ask for
    usual_pixels: int  # the most of a picture where the request says nothing
    clip_tokens: int  # of a clip, at most


@dataclass(frozen=True)
class Usage:
    """What is billed, in the model's own units: `{"seconds": 5, "tier": "720P"}`, `{"images": 2}`.

    What else the provider reported is kept beside them.
    """

    units: dict[str, Any] = field(default_factory=dict)


class Price(Entry):
    """What `per` of a unit cost from a day on: one amount, or one a tier; `when` narrows it to some usage.

    `cached`: the share of it that input tokens cost which the provider had in its cache; none: all of it.
    """

    since: date = Field(alias="from")
    unit: str
    per: int = Field(1, ge=1)
    when: dict[str, Any] = {}
    cached: Decimal | None = Field(None, ge=0, le=1)
    cny: Decimal | dict[str, Decimal]

    def applies(self, usage: Usage, on: date) -> bool:
        """Whether this row speaks of such usage, on that day."""
        return self.since <= on and all(usage.units.get(key) == value for key, value in self.when.items())

    def micro(self, usage: Usage) -> Fraction | None:
        """What this usage costs in millionths, unrounded; None when the row has no amount for its tier."""
        amount = self.cny.get(str(usage.units.get("tier"))) if isinstance(self.cny, dict) else self.cny
        quantity = usage.units.get(self.unit)
        if amount is None or not isinstance(quantity, int | float):
            return None
        return Fraction(amount) * MICRO * (Fraction(str(quantity)) - self._spared(usage, quantity)) / self.per

    def at(self, share: Decimal) -> Price:
        """The row at a share of its amounts, and without the cache's discount: the two do not add up."""
        if isinstance(self.cny, dict):
            less: Decimal | dict[str, Decimal] = {tier: amount * share for tier, amount in self.cny.items()}
        else:
            less = self.cny * share
        return self.model_copy(update={"cny": less, "cached": None})

    def _spared(self, usage: Usage, quantity: float) -> Fraction:
        """How much of the quantity the cache made free."""
        known = usage.units.get("cached_tokens")
        if self.cached is None or not isinstance(known, int | float):
            return Fraction(0)
        return Fraction(str(min(known, quantity))) * (1 - Fraction(self.cached))


class ModelInRegion(Entry):
    """A model as one region serves it: its id there, a main account's limits (None: none set), prices."""

    id: str
    rps: float | None = None  # creates a second
    rpm: int | None = None  # creates a minute, which are kept in seconds too: it says `rps` where that is not said
    concurrency: int | None = None  # tasks in process at once
    tpm: int | None = None  # tokens a minute
    tpd: int | None = None  # tokens a day
    prices: tuple[Price, ...] = ()
    unpriced: str | None = None  # why there is no price

    @model_validator(mode="before")
    @classmethod
    def _by_the_second(cls, said: Any) -> Any:
        return {"rps": said["rpm"] / 60, **said} if isinstance(said, dict) and said.get("rpm") else said


class RunSeconds(Entry):
    """How long a task of this model takes: when the first, half and nearly all of them are done."""

    early: int
    median: int
    late: int


class Model(Entry):
    """One model: what it makes, how it is asked, what it takes, where, and for how much."""

    id: str
    variant: Variant | None = None
    family: str
    source: str
    kinds: tuple[str, ...]
    protocol: Protocol
    surface: Surface = Surface.NATIVE
    path: str  # under the surface's root
    mode: Mode = Mode.TASK  # how a job on it is carried out
    repeatable: bool = False  # a call whose answer is lost is made again: it is cheap, and cannot be looked up
    aliases: tuple[str, ...] = ()
    prompt_limit: int | None = None  # characters; the provider cuts the rest silently
    negative_prompt_limit: int = 500
    text_limit: int | None = None  # of the text that one call speaks; more is refused
    context: int | None = None  # tokens, in and out
    max_output: int | None = None  # tokens
    answer_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # as the compatible surface calls it
    max_thinking: int = 81_920  # tokens that it thinks at the most; no model of the family has more
    thinking: Thinking = Thinking.NONE
    searches: bool = False  # the web, where it is asked to
    token_tiers: dict[str, int] = {}  # of prices: the most input tokens of each, in rising order
    batch: tuple[str, ...] = ()  # the regions whose Batch API has it
    batch_chat: bool = False  # whether Batch Chat has it, which is in Beijing alone
    repeats: int = 5  # calls of one job at most that go without an answer, where such a call is made again
    requires: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    sizes: Sizes | None = None
    edited_sizes: Sizes | None = None  # where pictures are given, or a sequence is made; None: as ever
    size_tiers: dict[str, str] = {}  # size → the tier that a video of it is billed in; the same for every model
    resolutions: tuple[str, ...] = ()
    ratios: tuple[str, ...] = ()
    durations: tuple[int, ...] = ()  # seconds
    dimensions: tuple[int, ...] = ()  # of vectors
    output_types: tuple[str, ...] = ()  # dense, sparse, dense&sparse
    texts: int = 0  # embedded by one call
    text_tokens: int = 0  # of each of them
    voices: tuple[str, ...] = ()  # that everybody has; none: it speaks with an account's own
    dialects: dict[str, str] = {}  # by voice, of all that the family has
    languages: tuple[str, ...] = ()
    n_max: int = 0  # pictures in one call
    sequence_max: int = 0  # pictures of a sequence, which belong together; 0: it makes none
    pictures: Pictures | None = None  # None: what the provider takes of any model; so of the next two
    clips: Recordings | None = None
    sounds: Recordings | None = None
    references: References | None = None
    vision: Vision | None = None
    sound_tokens: float = 0  # a second of what it hears
    streams: bool = False  # it answers in a stream alone
    input_seconds: int = 0  # of clips that are billed at most, beside those that are made
    keeps_shape: bool = True  # what it makes has the tier and the seconds that were asked for
    default: dict[str, Any] = {}
    always: dict[str, Any] = {}
    run_seconds: RunSeconds
    regions: dict[str, ModelInRegion]
    retired: date | None = None
    retired_by: Literal["notice", "reports"] | None = None
    successor: str | None = None  # the id of the model to take instead
    lighter: str | None = None  # the id of a cheaper one that does as well for labels and short texts

    @cached_property
    def choices(self) -> dict[str, Container[Any]]:
        """The fields whose values can be named, each with the values that the model takes."""
        of_all: dict[str, Sizes | tuple[str, ...] | tuple[int, ...] | None] = {
            "size": self.sizes,
            "resolution": self.resolutions,
            "ratio": self.ratios,
            "duration": self.durations,
            "dimension": self.dimensions,
            "output_type": self.output_types,
            "voice": self.voices,
            "language": self.languages,
            "n": tuple(range(1, max(self.n_max, self.sequence_max) + 1)),
        }
        return {name: values for name, values in of_all.items() if values}

    @cached_property
    def fields(self) -> frozenset[str]:
        """The input fields that the model takes."""
        prompt = ["prompt"] if self.prompt_limit else []
        search = ["enable_search", "search_options"] if self.searches else []
        return frozenset({*prompt, *search, *self.requires, *self.takes, *self.choices})

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name that leads here: the id, its spellings in the regions, the aliases; of a variant the id alone."""
        if self.variant:
            return frozenset({self.id})
        return frozenset({self.id, *self.aliases, *(there.id for there in self.regions.values())})

    @property
    def end(self) -> str | None:
        """When it was retired, by whose word, and what to take instead; None where it was not."""
        if self.retired is None:
            return None
        whose = "the provider" if self.retired_by == "notice" else "the provider, by others' reports"
        return f"{self.id} was retired by {whose} on {self.retired}: take {self.successor}"

    def region(self, region: str) -> ModelInRegion | None:
        """The model as that region serves it; None when it does not."""
        return self.regions.get(region)

    def price(self, usage: Usage, region: str, on: date) -> int | None:
        """What the usage costs there on that day in millionths of CNY, rounded half up; None when unknown.

        Where tokens have tiers, those of the input choose the tier of the whole, unless the usage names it, as that of
        many calls does.
        """
        here, units = self.region(region), usage.units
        if self.token_tiers and "tier" not in units:
            units = {**units, "tier": self.token_tier(units.get("input_tokens"))}
        return _total(here.prices if here else (), Usage(units), on)

    def tier(self, size: str) -> str | None:
        """The tier that a video of this size is billed in ("720P"); None for a size of no tier."""
        return self.size_tiers.get(size)

    def token_tier(self, tokens: Any) -> str | None:
        """The tier of prices for so many input tokens; None when there is none, or when nobody knows how many."""
        count = tokens if isinstance(tokens, int | float) else math.inf
        return next((tier for tier, most in self.token_tiers.items() if count <= most), None)

    def as_json(self) -> dict[str, Any]:
        """The model as GET /v1/models shows it; amounts of money are decimal strings."""
        shown = self.model_dump(mode="json", by_alias=True, exclude=_OURS)
        return {
            "object": "model",
            **shown,
            "dialects": {voice: dialect for voice, dialect in self.dialects.items() if voice in self.voices},
            "fields": sorted(self.fields),
            "aliases": sorted(self.names - {self.id}),
            "currency": "CNY",
        }

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """A default that the model itself would refuse is a slip of the file's; so is a picture's or clip's gap."""
        ending = (self.retired, self.retired_by, self.successor)
        if any(ending) != all(ending):
            raise ValueError("retired, retired_by and successor go together")
        if self.protocol in _MEDIA and self.prompt_limit is None:
            raise ValueError("prompt_limit: is missing")
        for name, value in self.default.items():
            if name not in self.fields or (name in self.choices and value not in self.choices[name]):
                raise ValueError(f"default {name}: {value} is not one that the model takes")
        unbilled = {"size"} if self.n_max else set()  # a picture costs the same at every size
        missing = sorted(self.choices.keys() - self.default.keys() - unbilled)
        if missing:
            raise ValueError(f"no default for {', '.join(missing)}")
        return self


def _total(rows: Iterable[Price], usage: Usage, on: date) -> int | None:
    """What the usage costs on that day by these rows, in millionths, rounded half up; None when that is unknown.

    Of the rows for a unit the most specific one counts, then the newest. A model with several units (tokens in and
    out) costs their sum. Exact until the last step, so that nothing is rounded twice.
    """
    speaking = sorted((row for row in rows if row.applies(usage, on)), key=lambda row: (len(row.when), row.since))
    amounts = [row.micro(usage) for row in {row.unit: row for row in speaking}.values()]
    known = [amount for amount in amounts if amount is not None]
    return int(sum(known) + Fraction(1, 2)) if known and len(known) == len(amounts) else None
