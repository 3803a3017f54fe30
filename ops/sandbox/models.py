"""The sandbox's table of models, read from `models.yaml`.

A row says only where it differs from the model it is `like`; the table is flat once read. Ids are those of one
region: what Beijing calls `wanx2.1-…`, other regions call `wan2.1-…`, and each answers only to its own name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

BEIJING = "cn-beijing"
TABLE = Path(__file__).with_name("models.yaml")


@dataclass(frozen=True)
class Call:
    """One way to create: the path under `/api/v1/services/`, and whether it makes a task or answers at once."""

    name: str
    path: str
    is_async: bool


@dataclass(frozen=True)
class Model:
    """One model as one region offers it."""

    id: str
    makes: str  # video or image
    calls: tuple[Call, ...]
    needs: tuple[str, ...]  # keys of `input` that must be there
    shape: str  # size | resolution | ratio | free: how a request says how large
    sizes: dict[str, str]  # "1280*720" → tier
    tiers: tuple[str, ...]
    default_size: str
    default_tier: str
    renders: str  # the tier it renders whatever was asked; empty: as asked
    ratios: tuple[str, ...]
    sides: tuple[int, ...]  # shortest and longest side of a free size
    seconds: tuple[int, ...]
    pictures: int
    default_pictures: int
    prompt_limit: int
    tells_prompt: bool  # orig_prompt is in the result
    tells_rewrite: bool  # actual_prompt is, when prompt_extend was true
    usage: str
    limit: tuple[int, float]  # creates, in so many seconds
    concurrency: int | None
    prices: dict[str, int]  # tier → micro-CNY a second, or "each" → micro-CNY a picture
    silent_prices: dict[str, int]
    keeps_days: int  # for which a link of the synchronous path lives
    run_seconds: float  # median

    def call(self, path: str) -> Call | None:
        """Return the way to create that `path` is for this model, None where it is none."""
        return next((call for call in self.calls if call.path == path), None)


@cache
def read(region: str) -> Mapping[str, Model]:
    """Return the models that a region offers, by the id it gives them."""
    table = yaml.safe_load(TABLE.read_text())
    models = (_model(model_id, table, region) for model_id in table["models"])
    return {model.id: model for model in models if model is not None}


def _model(model_id: str, table: dict[str, Any], region: str) -> Model | None:
    row = _flat(model_id, table["models"])
    if region not in row.get("regions", [region]):
        return None
    is_home = region == BEIJING
    return Model(
        id=model_id if is_home else row.get("abroad_id", model_id),
        makes=row["makes"],
        calls=tuple(Call(name, **table["paths"][name]) for name in row["calls"]),
        needs=tuple(row["needs"]),
        shape=row["shape"],
        sizes=_sizes(row, table["tiers"]),
        tiers=tuple(row.get("tiers", ())),
        default_size=row.get("default_size", ""),
        default_tier=row.get("default_tier", ""),
        renders=row.get("renders", ""),
        ratios=tuple(row.get("ratios", ())),
        sides=tuple(row.get("sides", ())),
        seconds=_seconds(row.get("seconds", [])),
        pictures=row.get("pictures", 1),
        default_pictures=row.get("default_pictures", 1),
        prompt_limit=row["prompt_limit"],
        tells_prompt=row.get("tells_prompt", True),
        tells_rewrite=row.get("tells_rewrite", False),
        usage=row["usage"],
        limit=tuple(row["limit"]),
        concurrency=row["concurrency"],
        prices=_micros(row["price"] if is_home else row.get("abroad", {})),
        silent_prices=_micros(row.get("silent" if is_home else "silent_abroad", {})),
        keeps_days=row.get("keeps_days", 1),
        run_seconds=row["run_seconds"],
    )


def _flat(model_id: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = rows[model_id]
    if "like" not in row:
        return row
    inherited = _flat(row["like"], rows)
    # Where a model is offered and what it is called abroad belong to it alone.
    return {key: inherited[key] for key in inherited if key not in ("abroad_id", "regions")} | row


def _sizes(row: dict[str, Any], tiers: dict[str, list[str]]) -> dict[str, str]:
    if row["makes"] == "image":
        return dict.fromkeys(row.get("sizes", ()), "each")
    return {size: tier for tier in row["tiers"] for size in tiers[tier]}


def _seconds(allowed: list[int] | dict[str, int]) -> tuple[int, ...]:
    if isinstance(allowed, dict):
        return tuple(range(allowed["from"], allowed["to"] + 1))
    return tuple(allowed)


def _micros(prices: dict[str, float]) -> dict[str, int]:
    return {tier: round(price * 1_000_000) for tier, price in prices.items()}
