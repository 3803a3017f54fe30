"""The catalog: all that we know of the provider's models, as data.

A model is an entry in `catalog.yaml`, so a new one of a known family is a few lines there and no code. The
file is checked whole when it is read: a word that the schema does not know, a default that its own model
would refuse, a name that two models claim are each an error that names the model.

A name that users write (an id, an id as another region spells it, a name that people believe to be one) leads
to one `Model`; what differs by region is its `ModelInRegion`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from worker.errors import Fault, InvalidInput

MICRO = 1_000_000  # money is counted in millionths of the currency's unit

_SIDES = re.compile(r"[0-9]{1,5}\*[0-9]{1,5}")
_FILE = Path(__file__).with_name("catalog.yaml")


class CatalogError(ValueError):
    """The catalog file is wrong; the message names the line, or the model and its entry."""


class UnknownModel(InvalidInput):
    """No model goes by that name; the message lists the nearest ones."""

    def __init__(self, name: str, near: Iterable[str]) -> None:
        advice = "near it: " + ", ".join(near) if near else "GET /v1/models lists them"
        super().__init__([Fault("/model", "unknown_model", f"no model {name[:80]!r}; {advice}")])


class Protocol(StrEnum):
    """How a request is spelled; the kinds know where each field goes."""

    PROMPT = "prompt"  # input.prompt, input.img_url
    FRAMES = "frames"  # input.first_frame_url, input.last_frame_url
    MEDIA = "media"  # input.media, a list of typed links
    MESSAGES = "messages"  # input.messages, as in a chat


class UsageShape(StrEnum):
    """Which fields a finished task's usage has (Alibaba docs, 'Wan text-to-video API reference')."""

    SPLIT = "split"  # duration, input_video_duration, output_video_duration, SR, size or ratio, video_count
    SHORT = "short"  # duration, SR, video_count
    RATIO = "ratio"  # video_duration, video_ratio, video_count
    IMAGES = "images"  # image_count


@dataclass(frozen=True)
class Usage:
    """What is billed, in the model's own units: `{"seconds": 5, "tier": "720P"}`, `{"images": 2}`.

    What else the provider reported is kept beside them.
    """

    units: dict[str, Any] = field(default_factory=dict)


class _Entry(BaseModel):
    """A part of the file: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pixels(_Entry):
    """Which sizes are taken beside the listed ones: bounds in pixels, and at most `ratio` to 1."""

    side: tuple[int, int] | None = None
    area: tuple[int, int] | None = None
    ratio: int | None = None

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
        ratio = self.ratio and f"at most {self.ratio} to 1"
        return ", ".join(part for part in (side, area, ratio) if part)


class Sizes(_Entry):
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


class Price(_Entry):
    """What `per` of a unit cost from a day on: one amount, or one a tier; `when` narrows it to some usage."""

    since: date = Field(alias="from")
    unit: str
    per: int = Field(1, ge=1)
    when: dict[str, Any] = {}
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
        return Fraction(amount) * MICRO * Fraction(str(quantity)) / self.per


class ModelInRegion(_Entry):
    """A model as one region serves it: its id there, a main account's limits (None: none set), prices."""

    id: str
    rps: float | None = None  # creates a second; limits by the minute are kept in seconds too
    concurrency: int | None = None  # tasks in process at once
    tpm: int | None = None  # tokens a minute
    tpd: int | None = None  # tokens a day
    prices: tuple[Price, ...] = ()


class RunSeconds(_Entry):
    """How long a task of this model takes: when the first, half and nearly all of them are done."""

    early: int
    median: int
    late: int


class Model(_Entry):
    """One model: what it makes, how it is asked, what it takes, where, and for how much."""

    id: str
    family: str
    source: str
    kinds: tuple[str, ...]
    protocol: Protocol
    path: str  # under /api/v1
    sync: bool = False  # the create call answers with the result itself
    aliases: tuple[str, ...] = ()
    prompt_limit: int  # characters; the provider cuts the rest silently
    negative_prompt_limit: int = 500
    requires: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    sizes: Sizes | None = None
    resolutions: tuple[str, ...] = ()
    ratios: tuple[str, ...] = ()
    durations: tuple[int, ...] = ()  # seconds
    n_max: int = 0  # pictures in one call
    default: dict[str, Any] = {}
    always: dict[str, Any] = {}
    usage: UsageShape
    run_seconds: RunSeconds
    regions: dict[str, ModelInRegion]
    retired: date | None = None

    @cached_property
    def choices(self) -> dict[str, Container[Any]]:
        """The fields whose values can be named, each with the values that the model takes."""
        of_all: dict[str, Sizes | tuple[str, ...] | tuple[int, ...] | None] = {
            "size": self.sizes,
            "resolution": self.resolutions,
            "ratio": self.ratios,
            "duration": self.durations,
            "n": tuple(range(1, self.n_max + 1)),
        }
        return {name: values for name, values in of_all.items() if values}

    @cached_property
    def fields(self) -> frozenset[str]:
        """The input fields that the model takes."""
        return frozenset({"prompt", *self.requires, *self.takes, *self.choices})

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name that leads here: the id, its spellings in the regions, the aliases."""
        return frozenset({self.id, *self.aliases, *(there.id for there in self.regions.values())})

    def region(self, region: str) -> ModelInRegion | None:
        """The model as that region serves it; None when it does not."""
        return self.regions.get(region)

    def price(self, usage: Usage, region: str, on: date) -> int | None:
        """What the usage costs there on that day in millionths of CNY, rounded half up; None when unknown.

        Of the rows for a unit the most specific one counts, then the newest. A model with several units
        (tokens in and out) costs their sum. Exact until the last step, so that nothing is rounded twice.
        """
        here = self.region(region)
        rows = [row for row in (here.prices if here else ()) if row.applies(usage, on)]
        rows.sort(key=lambda row: (len(row.when), row.since))
        amounts = [row.micro(usage) for row in {row.unit: row for row in rows}.values()]
        known = [amount for amount in amounts if amount is not None]
        return int(sum(known) + Fraction(1, 2)) if known and len(known) == len(amounts) else None

    def as_json(self) -> dict[str, Any]:
        """The model as GET /v1/models shows it; amounts of money are decimal strings."""
        shown = self.model_dump(mode="json", by_alias=True, exclude={"path", "protocol", "usage", "always"})
        return {
            "object": "model",
            **shown,
            "fields": sorted(self.fields),
            "aliases": sorted(self.names - {self.id}),
            "currency": "CNY",
        }

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """A default that the model itself would refuse is a slip of the file's."""
        for name, value in self.default.items():
            if name not in self.fields or (name in self.choices and value not in self.choices[name]):
                raise ValueError(f"default {name}: {value} is not one that the model takes")
        missing = sorted(self.choices.keys() - self.default.keys())
        if missing:
            raise ValueError(f"no default for {', '.join(missing)}")
        return self


class Catalog:
    """All models, in the file's order."""

    def __init__(self, models: Iterable[Model], tiers: Mapping[str, Iterable[str]]) -> None:
        self._models = tuple(models)
        self._tiers = {size: tier for tier, sizes in tiers.items() for size in sizes}
        self._named: dict[str, Model] = {}
        for model in self._models:
            self._claim(model)

    def model(self, name: str) -> Model:
        """The model that goes by this name, whatever its case; raises UnknownModel, which lists near ones."""
        wanted = name.strip().lower()
        if wanted not in self._named:
            near = difflib.get_close_matches(wanted[:80], self._named, n=3)
            raise UnknownModel(name, dict.fromkeys(self._named[match].id for match in near))
        return self._named[wanted]

    def models(self, kind: str | None = None) -> tuple[Model, ...]:
        """Every model, or those that make one kind of thing."""
        return tuple(model for model in self._models if kind is None or kind in model.kinds)

    def tier(self, size: str) -> str | None:
        """The tier that a video of this size is billed in ("720P"); None for a size of no tier."""
        return self._tiers.get(size)

    def _claim(self, model: Model) -> None:
        for name in model.names:
            other = self._named.setdefault(name.lower(), model)
            if other is not model:
                raise CatalogError(f"{model.id}: {name} is a name of {other.id} already")


class _Family(_Entry):
    family: str
    source: str
    shared: dict[str, Any] = {}
    models: dict[str, dict[str, Any]]


class _File(_Entry):
    as_of: date
    currency: str = Field(pattern="^CNY$")
    tiers: dict[str, tuple[str, ...]]
    families: tuple[_Family, ...]


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where the plain loader would keep the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise CatalogError(f"line {key.start_mark.line + 1}: {key.value} is written twice")
            seen.add(key.value)
        return node


def parse(text: str) -> Catalog:
    """The catalog in such a text; raises CatalogError."""
    try:
        content = _File.model_validate(_Loader(text).get_single_data())
    except (ValidationError, yaml.YAMLError) as error:
        raise CatalogError(str(error)) from None
    return Catalog((model for family in content.families for model in _members(family)), content.tiers)


@cache
def load() -> Catalog:
    """The catalog of this release, read once in a process."""
    return parse(_FILE.read_text(encoding="utf-8"))


def _members(family: _Family) -> Iterator[Model]:
    for name, own in family.models.items():
        entry = {**family.shared, **own, "id": name, "family": family.family, "source": family.source}
        default = {**family.shared.get("default", {}), **own.get("default", {})}
        entry["default"] = {key: value for key, value in default.items() if value is not None}
        entry["regions"] = {place: {"id": name, **there} for place, there in entry.get("regions", {}).items()}
        yield _model(entry)


def _model(entry: dict[str, Any]) -> Model:
    try:
        return Model.model_validate(entry)
    except ValidationError as error:
        slips = (f"{'.'.join(map(str, slip['loc']))}: {slip['msg']}" for slip in error.errors())
        raise CatalogError(f"{entry['id']}: {'; '.join(slips)}") from None
