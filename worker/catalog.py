"""The catalog: all that we know of the provider's models, as data.

A model is an entry in `catalog.yaml`, so a new one of a known family is a few lines there and no code. The
file is checked whole when it is read: a word that the schema does not know, a default that its own model
would refuse, a name that two models claim are each an error that names the model.

A name that users write (an id, an id as another region spells it, a name that people believe to be one) leads
to one `Model`; what differs by region is its `ModelInRegion`.

Some models are had in more ways than one: a text model by a call, in the provider's nightly batches, as a task. Each
other way is a `Variant`, a model of its own (`qwen-plus@batch`), since it has limits and prices of its own; users
never name one, and no list shows it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from worker import prices
from worker.errors import Fault, InvalidInput
from worker.prices import Price, Usage

__all__ = [
    "Catalog",
    "CatalogError",
    "Model",
    "ModelInRegion",
    "Price",
    "Protocol",
    "RunSeconds",
    "Sizes",
    "Surface",
    "Thinking",
    "UnknownModel",
    "Usage",
    "UsageShape",
    "Variant",
    "load",
    "parse",
]

_OURS = {"path", "protocol", "usage", "always", "surface", "repeatable", "variant", "thinks_unstreamed"}  # not shown
_HALF = Decimal("0.5")
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
    MESSAGES = "messages"  # input.messages, as in a chat, of one prompt
    SPEECH = "speech"  # input.text, input.voice
    CHAT = "chat"  # a conversation, spelled as the surface wants it
    BATCH = "batch"  # a file of conversations


_MEDIA = frozenset({Protocol.PROMPT, Protocol.FRAMES, Protocol.MEDIA, Protocol.MESSAGES})
_OF_MEDIA = ("prompt_limit", "usage")


class Surface(StrEnum):
    """Which of the provider's interfaces a request is spelled for."""

    NATIVE = "native"  # /api/v1
    COMPATIBLE = "compatible"  # /compatible-mode/v1, as OpenAI's


class Thinking(StrEnum):
    """Whether a model thinks before it answers (Alibaba docs, 'Deep thinking')."""

    NONE = "none"
    HYBRID = "hybrid"  # when it is asked to
    ALWAYS = "always"


class Variant(StrEnum):
    """Another way to have a text model's answers."""

    BATCH = "batch"  # the Batch API: half the price, within a day or more, outside the limits of calls
    TASKS = "tasks"  # an asynchronous task; most accounts are refused it


class UsageShape(StrEnum):
    """Which fields a finished task's usage has (Alibaba docs, 'Wan text-to-video API reference')."""

    SPLIT = "split"  # duration, input_video_duration, output_video_duration, SR, size or ratio, video_count
    SHORT = "short"  # duration, SR, video_count
    RATIO = "ratio"  # video_duration, video_ratio, video_count
    IMAGES = "images"  # image_count


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


class ModelInRegion(_Entry):
    """A model as one region serves it: its id there, a main account's limits (None: none set), prices."""

    id: str
    rps: float | None = None  # creates a second
    rpm: int | None = None  # creates a minute, which are kept in seconds too: it says `rps` where that is not said
    concurrency: int | None = None  # tasks in process at once
    tpm: int | None = None  # tokens a minute
    tpd: int | None = None  # tokens a day
    prices: tuple[Price, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _by_the_second(cls, said: Any) -> Any:
        return {"rps": said["rpm"] / 60, **said} if isinstance(said, dict) and said.get("rpm") else said


class RunSeconds(_Entry):
    """How long a task of this model takes: when the first, half and nearly all of them are done."""

    early: int
    median: int
    late: int


class Model(_Entry):
    """One model: what it makes, how it is asked, what it takes, where, and for how much."""

    id: str
    variant: Variant | None = None
    family: str
    source: str
    kinds: tuple[str, ...]
    protocol: Protocol
    surface: Surface = Surface.NATIVE
    path: str  # under the surface's root
    sync: bool = False  # the create call answers with the result itself
    repeatable: bool = False  # a call whose answer is lost is made again: it is cheap, and cannot be looked up
    aliases: tuple[str, ...] = ()
    prompt_limit: int | None = None  # characters; the provider cuts the rest silently
    negative_prompt_limit: int = 500
    text_limit: int | None = None  # of the text that one call speaks; more is refused
    context: int | None = None  # tokens, in and out
    max_output: int | None = None  # tokens
    thinking: Thinking = Thinking.NONE
    thinks_unstreamed: bool = False  # it may think in a call that does not stream its answer
    token_tiers: dict[str, int] = {}  # of prices: the most input tokens of each, in rising order
    batch: bool = False  # the Batch API has it
    requires: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    sizes: Sizes | None = None
    resolutions: tuple[str, ...] = ()
    ratios: tuple[str, ...] = ()
    durations: tuple[int, ...] = ()  # seconds
    voices: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    n_max: int = 0  # pictures in one call
    default: dict[str, Any] = {}
    always: dict[str, Any] = {}
    usage: UsageShape | None = None  # of media
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
            "voice": self.voices,
            "language": self.languages,
            "n": tuple(range(1, self.n_max + 1)),
        }
        return {name: values for name, values in of_all.items() if values}

    @cached_property
    def fields(self) -> frozenset[str]:
        """The input fields that the model takes."""
        prompt = ["prompt"] if self.prompt_limit else []
        return frozenset({*prompt, *self.requires, *self.takes, *self.choices})

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name that leads here: the id, its spellings in the regions, the aliases; of a variant the id alone."""
        if self.variant:
            return frozenset({self.id})
        return frozenset({self.id, *self.aliases, *(there.id for there in self.regions.values())})

    def region(self, region: str) -> ModelInRegion | None:
        """The model as that region serves it; None when it does not."""
        return self.regions.get(region)

    def price(self, usage: Usage, region: str, on: date) -> int | None:
        """What the usage costs there on that day in millionths of CNY, rounded half up; None when unknown.

        Where tokens have tiers, those of the input choose the tier of the whole.
        """
        here, units = self.region(region), usage.units
        if self.token_tiers:
            units = {**units, "tier": self.token_tier(units.get("input_tokens"))}
        return prices.total(here.prices if here else (), Usage(units), on)

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
            "fields": sorted(self.fields),
            "aliases": sorted(self.names - {self.id}),
            "currency": "CNY",
        }

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """A default that the model itself would refuse is a slip of the file's; so is a picture's or clip's gap."""
        gaps = [name for name in _OF_MEDIA if self.protocol in _MEDIA and getattr(self, name) is None]
        if gaps:
            raise ValueError(f"{', '.join(gaps)}: nothing is said of it")
        for name, value in self.default.items():
            if name not in self.fields or (name in self.choices and value not in self.choices[name]):
                raise ValueError(f"default {name}: {value} is not one that the model takes")
        missing = sorted(self.choices.keys() - self.default.keys())
        if missing:
            raise ValueError(f"no default for {', '.join(missing)}")
        return self


class Catalog:
    """All models, in the file's order."""

    def __init__(
        self, models: Iterable[Model], tiers: Mapping[str, Iterable[str]], defaults: Mapping[str, str] | None = None
    ) -> None:
        self.every = tuple(models)  # the variants among them: each has lanes of its own
        self._tiers = {size: tier for tier, sizes in tiers.items() for size in sizes}
        self._named: dict[str, Model] = {}
        for model in self.every:
            self._claim(model)
        self._defaults = {kind: self.model(name).id for kind, name in (defaults or {}).items()}

    def model(self, name: str) -> Model:
        """The model that goes by this name, whatever its case; raises UnknownModel, which lists near ones."""
        wanted = name.strip().lower()
        if wanted not in self._named:
            raise self._unknown(name)
        return self._named[wanted]

    def offered(self, name: str) -> Model:
        """The same for a name that a user gave, who may not name a variant."""
        model = self.model(name)
        if model.variant:
            raise self._unknown(name)
        return model

    def models(self, kind: str | None = None) -> tuple[Model, ...]:
        """Every model that users may name, or those that make one kind of thing."""
        return tuple(model for model in self.every if not model.variant and (kind is None or kind in model.kinds))

    def variant(self, name: str, variant: Variant) -> Model | None:
        """Another way to have that model; None when the provider has none."""
        return self._named.get(f"{self.model(name).id}@{variant}")

    def default(self, work: str) -> str | None:
        """The id of the model for a kind, or a part of its work, when nobody names one; None: it must be named."""
        return self._defaults.get(work)

    def tier(self, size: str) -> str | None:
        """The tier that a video of this size is billed in ("720P"); None for a size of no tier."""
        return self._tiers.get(size)

    def _unknown(self, name: str) -> UnknownModel:
        near = difflib.get_close_matches(name.strip().lower()[:80], self._named, n=3)
        return UnknownModel(name, dict.fromkeys(self._named[match].id.partition("@")[0] for match in near))

    def _claim(self, model: Model) -> None:
        for name in model.names:
            other = self._named.setdefault(name.lower(), model)
            if other is not model:
                raise CatalogError(f"{model.id}: {name} is a name of {other.id} already")


_BATCHES = 8  # of one model at once, which is ours: the provider sets no limit
_BATCH = {
    "kinds": ("text-batch",),
    "protocol": Protocol.BATCH,
    "surface": Surface.COMPATIBLE,
    "path": "/batches",
    "takes": (),
    "default": {},
    "run_seconds": {"early": 300, "median": 9000, "late": 86400},  # two lines were seen to take two and a half hours
}


class _Family(_Entry):
    family: str
    source: str
    shared: dict[str, Any] = {}
    models: dict[str, dict[str, Any]]


class _File(_Entry):
    as_of: date
    currency: str = Field(pattern="^CNY$")
    tiers: dict[str, tuple[str, ...]]
    defaults: dict[str, str] = {}
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
    models = [model for family in content.families for model in _members(family)]
    return Catalog(
        [*models, *(other for model in models for other in _variants(model))], content.tiers, content.defaults
    )


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


def _variants(model: Model) -> Iterator[Model]:
    """The other ways to have a model. Calls on the compatible surface cannot be made tasks: that is a native header."""
    if model.batch:
        yield _model({**_entry(model, Variant.BATCH), **_BATCH, "regions": _batched(model)})
    if model.protocol is Protocol.CHAT and model.surface is Surface.NATIVE:
        unthinking = [name for name in model.takes if "think" not in name and "reasoning" not in name]
        default = {name: value for name, value in model.default.items() if name in unthinking}
        yield _model({**_entry(model, Variant.TASKS), "takes": unthinking, "default": default, "kinds": ("text",)})


def _entry(model: Model, variant: Variant) -> dict[str, Any]:
    return {
        **model.model_dump(by_alias=True),
        "id": f"{model.id}@{variant}",
        "variant": variant,
        "batch": False,
        "sync": False,
        "repeatable": False,
    }


def _batched(model: Model) -> dict[str, Any]:
    """At half the price, and outside the limits of calls (Alibaba docs, 'Rate limits' and 'Model pricing')."""
    return {
        place: {
            "id": there.id,
            "concurrency": _BATCHES,
            "prices": [row.at(_HALF).model_dump(by_alias=True) for row in there.prices],
        }
        for place, there in model.regions.items()
    }


def _model(entry: dict[str, Any]) -> Model:
    try:
        return Model.model_validate(entry)
    except ValidationError as error:
        slips = (f"{'.'.join(map(str, slip['loc']))}: {slip['msg']}" for slip in error.errors())
        raise CatalogError(f"{entry['id']}: {'; '.join(slips)}") from None
