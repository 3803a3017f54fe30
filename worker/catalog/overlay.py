"""An operator's own file (`NORIA_CATALOG`), laid over the catalog of the release.

    models:
      wan2.7-t2v-2026-11-20:                 # a model that the release does not know: as another, but for what is told
        like: wan2.7-t2v
        regions: {cn-beijing: {rps: 2}}      # it is in these alone; without them, in all of the other's
      wan2.7-t2v:                            # one that it knows: what is told here takes the place of what it has
        aliases: [our-clips]                 # added to those that it has
        default: {resolution: 1080P}         # laid over entry by entry; null removes one
        regions:
          cn-beijing:
            concurrency: 20
            prices: [{from: 2026-12-01, unit: seconds, cny: {720P: 0.50, 1080P: 0.90}}]
    defaults: {text: qwen3.6-plus}

A price of a known model is one more dated row, later than all that it has for the same usage: what was billed before
that day is billed the same after it. The entries are those of `models.yaml`, before they are checked.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, ValidationError

from worker.catalog.models import Entry, Price

MODELS = 500  # that one file may tell of

Raw = dict[str, Any]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_NOT_LIKE = (
    "id",
    "aliases",
    "batch",
    "batch_chat",
    "retired",
    "retired_by",
    "successor",
)  # what is of the other model alone


class Overlay(Entry):
    """What an operator's file holds."""

    defaults: dict[str, str] = Field({}, max_length=MODELS)
    models: dict[str, dict[str, Any]] = Field({}, max_length=MODELS)


class Misfit(ValueError):
    """An entry cannot be laid over; `model` is the one that it is of."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"{model}: {why}")
        self.model = model


def lay(entries: Mapping[str, Raw], own: Overlay) -> dict[str, Raw]:
    """The entries by their ids with the operator's own laid over; raises Misfit. None of the given ones is changed."""
    laid = dict(entries)
    for name, told in own.models.items():
        laid[name] = _changed(name, laid[name], told) if name in laid else _new(name, laid, told)
    return laid


def _new(name: str, known: Mapping[str, Raw], told: Raw) -> Raw:
    if not _ID.fullmatch(name):
        raise Misfit(name[:100], "an id has up to 100 letters, digits, '.', '_', '/' and '-'")
    if "like" not in told:
        raise Misfit(name, "the catalog has no such model; for a new one say `like: ` and one that it has")
    if not isinstance(told["like"], str) or told["like"] not in known:
        raise Misfit(name, f"like: the catalog has no model {str(told['like'])[:100]!r}")
    other = copy.deepcopy(known[told["like"]])
    places = _parts(name, told, "regions") or {place: {} for place in other["regions"]}
    alike = {place: {**_place(other, place), **_part(name, f"regions.{place}", own)} for place, own in places.items()}
    own = {key: value for key, value in told.items() if key != "like"}
    kept = {key: value for key, value in other.items() if key not in _NOT_LIKE}
    return {**kept, **own, "id": name, "default": _default(name, other, told), "regions": _named(name, alike)}


def _changed(name: str, known: Raw, told: Raw) -> Raw:
    if "like" in told or "id" in told:
        raise Misfit(name, "the catalog has this model already: `like` and `id` are for a new one")
    places = {
        place: _changed_place(name, place, known["regions"].get(place, {}), own)
        for place, own in _parts(name, told, "regions").items()
    }
    own = dict(told)
    if isinstance(told.get("aliases"), list):
        own["aliases"] = [*known.get("aliases", ()), *told["aliases"]]
    regions = {**known["regions"], **_named(name, places)}
    return {**known, **own, "default": _default(name, known, told), "regions": regions}


def _changed_place(name: str, place: str, known: Raw, told: Any) -> Raw:
    own = _part(name, f"regions.{place}", told)
    if "prices" not in own:
        return {**known, **own}
    had = list(known.get("prices", ()))
    rows = _prices(name, place, own["prices"])
    for at, row in enumerate(rows):
        same = [old.since for old in _prices(name, place, had) if (old.unit, old.when) == (row.unit, row.when)]
        if same and row.since <= max(same):
            why = f"from {row.since} is not after {max(same)}, when the price that it follows began: past bills stay"
            raise Misfit(name, f"regions.{place}.prices.{at}: {why}")
    kept = {key: value for key, value in known.items() if key != "unpriced"} if rows else known
    return {**kept, **own, "prices": [*had, *own["prices"]]}


def _prices(name: str, place: str, rows: Any) -> list[Price]:
    if not isinstance(rows, list | tuple):
        raise Misfit(name, f"regions.{place}.prices: must be a list")
    made = []
    for at, row in enumerate(rows):
        try:
            made.append(Price.model_validate(row))
        except ValidationError as error:
            raise Misfit(name, f"regions.{place}.prices.{at}: {faults(error)}") from None
    return made


def faults(error: ValidationError) -> str:
    """Each entry that is wrong, and why."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())


def _place(entry: Raw, place: str) -> Raw:
    return {key: value for key, value in entry["regions"].get(place, {}).items() if key != "id"}


def _named(name: str, places: Mapping[str, Raw]) -> dict[str, Raw]:
    return {place: {"id": name, **there} for place, there in places.items()}


def _default(name: str, known: Raw, told: Raw) -> Raw:
    laid = {**known.get("default", {}), **_parts(name, told, "default")}
    return {key: value for key, value in laid.items() if value is not None}


def _parts(name: str, told: Raw, entry: str) -> Raw:
    return _part(name, entry, told.get(entry))


def _part(name: str, entry: str, told: Any) -> Raw:
    if told is None:
        return {}
    if not isinstance(told, dict):
        raise Misfit(name, f"{entry}: must be a mapping")
    return told


def ids(entries: Iterable[Raw]) -> dict[str, Raw]:
    """The entries by their ids."""
    return {entry["id"]: entry for entry in entries}
