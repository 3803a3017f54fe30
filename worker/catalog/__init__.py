"""The catalog: all that we know of the provider's models, as data.

A model is an entry in `models.yaml`, so a new one of a known family is a few lines there and no code. The
file is checked whole when it is read: a word that the schema does not know, a default that its own model
would refuse, a name that two models claim are each an error that names the model.

A name that users write (an id, an id as another region spells it, a name that people believe to be one) leads
to one `Model`; what differs by region is its `ModelInRegion`. A dated version (`qwen-plus-2025-09-11`) is a model of
its own: what was asked for is what the request says, and the provider counts its limits apart.

Some models are had in more ways than one: a text model by a call, in the provider's nightly batches, as a task. Each
other way is a `Variant`, a model of its own (`qwen-plus@batch`), since it has limits and prices of its own; users
never name one, and no list shows it.

An operator's own file is laid over this one (`overlay`): `NORIA_CATALOG` names it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from worker.catalog import overlay
from worker.catalog.models import MICRO, Entry, Model, Protocol, Sizes, Surface, Thinking, Usage, Variant
from worker.errors import Fault, InvalidInput, NoriaError
from worker.states import Mode

__all__ = [
    "MICRO",
    "Catalog",
    "CatalogError",
    "Model",
    "Protocol",
    "Sizes",
    "Surface",
    "Thinking",
    "UnknownModel",
    "Usage",
    "Variant",
    "load",
    "parse",
    "shipped",
]

_HALF = Decimal("0.5")
_BEIJING = "cn-beijing"
_CHATS_A_SECOND = 1000
_FILE = Path(__file__).with_name("models.yaml")
_OWN = "NORIA_CATALOG"
_OWN_BYTES = 1 << 20  # of an operator's file at the most


class CatalogError(NoriaError, ValueError):
    """The catalog file is wrong; the message names the line, or the model and its entry, and an operator's file."""


class UnknownModel(InvalidInput):
    """No model goes by that name; the message lists the nearest ones."""

    def __init__(self, name: str, near: Iterable[str]) -> None:
        advice = "near it: " + ", ".join(near) if near else "GET /v1/models lists them"
        super().__init__([Fault("/model", "unknown_model", f"no model {name[:80]!r}; {advice}")])


class Catalog:
    """All models, in the file's order. Processes whose catalogs have the same `digest` go by the same."""

    def __init__(
        self,
        models: Iterable[Model],
        tiers: Mapping[str, str],
        defaults: Mapping[str, str] | None = None,
        digest: str = "",
    ) -> None:
        self.digest = digest
        self.every = tuple(models)  # the variants among them: each has lanes of its own
        self._tiers = tiers
        self._named: dict[str, Model] = {}
        for model in self.every:
            self._claim(model)
        self._defaults = dict(defaults or {})
        if strange := sorted(name for name in self._defaults.values() if name not in self._named):
            raise CatalogError(f"defaults: there is no model {', '.join(strange)}")
        for model in self.every:
            if model.successor and (model.successor not in self._named or self._named[model.successor].retired):
                raise CatalogError(f"{model.id}: its successor {model.successor} is not offered")

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

    def variant(self, name: str, variant: str | None) -> Model | None:
        """Another way to have that model; None when the provider has none."""
        return self._named.get(f"{self.model(name).id}@{variant}")

    def default(self, work: str) -> str | None:
        """The id of the model for a kind, or a part of its work, when nobody names one; None: it must be named."""
        return self._defaults.get(work)

    def end(self, name: str) -> str | None:
        """When the model of this name was retired and what to take instead; None: it was not, or there is none."""
        found = self._named.get(name.strip().lower())
        return found.end if found else None

    def tier(self, size: str) -> str | None:
        """The tier that a video of this size is billed in ("720P"); None for a size of no tier."""
        return self._tiers.get(size)

    def _unknown(self, name: str) -> UnknownModel:
        near = _near(name.strip().lower()[:80], tuple(self._named))
        return UnknownModel(name, dict.fromkeys(self._named[match].id.partition("@")[0] for match in near))

    def _claim(self, model: Model) -> None:
        for name in model.names:
            other = self._named.setdefault(name.lower(), model)
            if other is not model:
                raise CatalogError(f"{model.id}: {name} is a name of {other.id} already")


@lru_cache(maxsize=256)
def _near(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names nearest to one that is none of them; kept, since each row of a file may have the same slip."""
    return tuple(difflib.get_close_matches(name, names, n=3))


_BATCHES = 8  # of one model at once, which is ours: the provider sets no limit
_BATCH = {
    "kinds": ("text-batch",),
    "mode": Mode.BATCH,
    "protocol": Protocol.BATCH,
    "surface": Surface.COMPATIBLE,
    "path": "/batches",
    "takes": (),
    "requires": (),
    "dimensions": (),
    "output_types": (),
    "default": {},
    "run_seconds": {"early": 300, "median": 9000, "late": 86400},  # two lines were seen to take two and a half hours
}


class _Family(Entry):
    family: str
    source: str
    shared: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, dict[str, Any]]


class _File(Entry):
    as_of: date
    currency: str = Field(pattern="^CNY$")
    tiers: dict[str, tuple[str, ...]]
    defaults: dict[str, str] = Field(default_factory=dict)
    families: tuple[_Family, ...]


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where the plain loader would keep the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise CatalogError(f"line {key.start_mark.line + 1}: {key.value} is written twice")
            seen.add(str(key.value))
        return node


def parse(text: str, own: str = "") -> Catalog:
    """The catalog in such a text, with an operator's own laid over; raises CatalogError."""
    try:
        content = _File.model_validate(_Loader(text).get_single_data())
    except (ValidationError, yaml.YAMLError) as error:
        raise CatalogError(str(error)) from None
    laid = _overlay(own)
    tiers = {size: tier for tier, sizes in content.tiers.items() for size in sizes}
    entries = overlay.ids(entry for family in content.families for entry in _members(family, tiers))
    try:
        models = [_model(entry) for entry in overlay.lay(entries, laid).values()]
        every = [*models, *(other for model in models for other in _variants(model))]
        digest = hashlib.sha256(f"{text}\0{own}".encode()).hexdigest()[:12]
        return Catalog(every, tiers, {**content.defaults, **laid.defaults}, digest)
    except (overlay.Misfit, CatalogError) as error:
        raise CatalogError(f"{_line(own, str(error).partition(':')[0])}{error}") from None


@cache
def shipped() -> Catalog:
    """The catalog of this release alone."""
    return parse(_FILE.read_text(encoding="utf-8"))


@cache
def load() -> Catalog:
    """The catalog of this release under the file that NORIA_CATALOG names, read once in a process.

    Raises CatalogError, which names that file, where it cannot be read or is wrong.
    """
    path = os.environ.get(_OWN)
    if not path:
        return shipped()
    try:
        with Path(path).open("rb") as file:
            content = file.read(_OWN_BYTES + 1)
        return parse(_FILE.read_text(encoding="utf-8"), content.decode("utf-8"))
    except OSError as error:
        raise CatalogError(f"{_OWN}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CatalogError(f"{_OWN}: {path}: is not text in UTF-8") from None
    except CatalogError as error:
        raise CatalogError(f"{_OWN}: {path}: {error}") from None


def _overlay(own: str) -> overlay.Overlay:
    if len(own.encode()) > _OWN_BYTES:
        raise CatalogError(f"has more than {_OWN_BYTES} bytes")
    try:
        return overlay.Overlay.model_validate(_Loader(own).get_single_data() or {})
    except CatalogError:
        raise
    except ValidationError as error:
        raise CatalogError(overlay.faults(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a day that no calendar has is a ValueError
        raise CatalogError(" ".join(str(error).split())) from None


def _line(own: str, model: str) -> str:
    """Where in the operator's file that model stands, as `line 3: `; empty where it does not."""
    for key, value in getattr(yaml.compose(own, Loader=_Loader), "value", ()):
        if key.value == "models":
            for name, _ in value.value:
                if name.value == model:
                    return f"line {name.start_mark.line + 1}: "
    return ""


def _members(family: _Family, tiers: Mapping[str, str]) -> Iterator[overlay.Raw]:
    of_all = {"family": family.family, "source": family.source, "size_tiers": tiers}
    for name, own in family.models.items():
        entry = {**family.shared, **own, **of_all}
        default = {**family.shared.get("default", {}), **own.get("default", {})}
        entry["default"] = {key: value for key, value in default.items() if value is not None}
        versions = entry.pop("snapshots", {})
        yield _named(name, entry, entry.get("regions", {}))
        for version, its in versions.items():
            yield _version(name, str(version), entry, its)


def _version(name: str, version: str, entry: dict[str, Any], its: dict[str, Any]) -> overlay.Raw:
    """A version as the model itself, but for what is told of it: it is in its regions alone, with limits of its own.

    No Batch API and no other names unless told. The console lists no lower price of a version's for what the cache had.
    """
    places = {place: _uncached(entry["regions"].get(place, {})) | there for place, there in its["regions"].items()}
    return _named(f"{name}-{version}", {**entry, "aliases": (), "batch": (), "batch_chat": False, **its}, places)


def _uncached(there: dict[str, Any]) -> dict[str, Any]:
    shared = {key: value for key, value in there.items() if key != "id"}
    return shared | {"prices": [{**row, "cached": None} for row in there.get("prices", ())]}


def _named(name: str, entry: dict[str, Any], places: Mapping[str, dict[str, Any]]) -> overlay.Raw:
    regions = {place: {"id": name, **there} for place, there in places.items()}
    return {**entry, "id": name, "regions": regions}


def _variants(model: Model) -> Iterator[Model]:
    """The other ways to have a model. Calls on the compatible surface cannot be made tasks: that is a native header."""
    if model.batch:
        yield _model({**_entry(model, Variant.BATCH), **_BATCH, "regions": _batched(model)})
    if model.batch_chat:
        yield _model({**_entry(model, Variant.CHAT), **_chat(model)})
    if model.protocol is Protocol.CHAT and model.surface is Surface.NATIVE:
        yield _model({**_entry(model, Variant.TASKS), **_unthinking(model)})


def _chat(model: Model) -> dict[str, Any]:
    """Batch Chat, in Beijing alone; a call that went without an answer is not made so again, since it may be billed.

    Alibaba docs, 'OpenAI compatible - Batch Chat' (May 2026): 1,000 calls a second, and 10,000 of a model that wait at
    once. Eight that wait is ours.
    """
    there = model.regions[_BEIJING]
    prices = [row.at(_HALF).model_dump(by_alias=True) for row in there.prices]
    return {
        **_unthinking(model),
        "mode": Mode.CALL,
        "surface": Surface.BATCH_CHAT,
        "path": "/chat/completions",
        "repeatable": True,
        "repeats": 1,
        "regions": {_BEIJING: {"id": there.id, "rps": _CHATS_A_SECOND, "concurrency": _BATCHES, "prices": prices}},
    }


def _unthinking(model: Model) -> dict[str, Any]:
    """What a variant that is not streamed takes: a model thinks in streams alone."""
    takes = [name for name in model.takes if "think" not in name and "reasoning" not in name]
    default = {name: value for name, value in model.default.items() if name in takes}
    return {"kinds": ("text",), "takes": takes, "default": default}


def _entry(model: Model, variant: Variant) -> dict[str, Any]:
    return {
        **model.model_dump(by_alias=True),
        "id": f"{model.id}@{variant}",
        "variant": variant,
        "batch": (),
        "batch_chat": False,
        "mode": Mode.TASK,
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
        if place in model.batch
    }


def _model(entry: dict[str, Any]) -> Model:
    try:
        return Model.model_validate(entry)
    except ValidationError as error:
        raise CatalogError(f"{entry['id']}: {overlay.faults(error)}") from None
