"""What each lane may do: the provider's limits, from the catalog, overridden by the settings, in the rows of `lanes`.

What a lane learned stays. Where its limits change, what was booked and parked under the old ones is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, func, or_
from sqlalchemy.dialects.postgresql import insert as upsert

from worker.catalog import Catalog, Model
from worker.settings import Account, Limit, Settings
from worker.tables import Lane, Owner

SHARE = 0.9  # of a published rate: the provider counts in windows that we cannot see

_CONFIGURED = ("account", "concurrency", "interval_us", "tpm", "tpd")


_ANEW = {
    "next_at": func.least(Lane.next_at, func.now()),
    "tokens_at": func.least(Lane.tokens_at, func.now()),
    "parked_until": None,
    "parked_why": None,
}


@dataclass(frozen=True)
class Limits:
    """Tasks at once, the time between two creates, and tokens a minute and a day (None: the provider sets none)."""

    concurrency: int
    interval: timedelta
    tpm: int | None
    tpd: int | None


def of(settings: Settings, model: Model, region: str) -> Limits:
    """A model's limits in a region: settings first, then the catalog."""
    there = model.region(region)
    assert there is not None, "lanes are made for the regions that a model is in"
    said = settings.limits.get(model.id, Limit.model_construct())
    # both are kept evenly on the wire, so the lower one counts
    per_second = min((rate for rate in (said.rps, said.rpm and said.rpm / 60) if rate), default=there.rps or 1.0)
    return Limits(
        concurrency=int(_first(said.concurrency, there.concurrency, settings.calls_concurrency)),
        interval=timedelta(seconds=1 / (per_second * SHARE)),
        tpm=said.tpm or there.tpm,
        tpd=said.tpd or there.tpd,
    )


def sync(connection: Connection, catalog: Catalog, settings: Settings) -> None:
    """Makes the rows of all lanes and owners agree with the catalog and the settings; keeps what they learned."""
    owners = dict.fromkeys(account.owner for account in settings.all_accounts)
    named = upsert(Owner).values([{"name": owner, "alert_url": settings.alert_url} for owner in owners])
    told = named.on_conflict_do_update(
        index_elements=[Owner.name],
        set_={"alert_url": named.excluded.alert_url},
        where=Owner.alert_url.is_distinct_from(named.excluded.alert_url),
    )
    connection.execute(told)
    rows = list(_rows(catalog, settings))
    if not rows:
        return
    fresh = upsert(Lane).values(rows)
    agreed = fresh.on_conflict_do_update(
        index_elements=[Lane.owner, Lane.region, Lane.model],
        set_={name: fresh.excluded[name] for name in _CONFIGURED} | _ANEW,
        where=or_(*(Lane.__table__.c[name].is_distinct_from(fresh.excluded[name]) for name in _CONFIGURED)),
    )
    connection.execute(agreed)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _rows(catalog: Catalog, settings: Settings) -> Iterator[dict[str, Any]]:
    seen = set()
    for account in settings.all_accounts:
        for model in catalog.every:
            key = (account.owner, account.region, model.id)
            if model.region(account.region) and key not in seen:
                seen.add(key)
                yield _row(settings, account, model)


def _row(settings: Settings, account: Account, model: Model) -> dict[str, Any]:
    allowed = of(settings, model, account.region)
    return {
        "account": account.name,
        "owner": account.owner,
        "region": account.region,
        "model": model.id,
        "concurrency": allowed.concurrency,
        "interval_us": round(allowed.interval / timedelta(microseconds=1)),
        "tpm": allowed.tpm,
        "tpd": allowed.tpd,
    }
