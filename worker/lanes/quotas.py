"""What the provider tells of an account's lanes: their limits, and when their models end.

The settings count before the told limits, the catalog after them. What was told stands in the lanes' rows, so a process
that starts knows it, and a provider that says nothing for a while changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from worker.catalog import Catalog, Model, Variant
from worker.dashscope.offers import Offer, Quota
from worker.lanes import slots
from worker.settings import Settings
from worker.tables import Lane


def keep(
    connection: Connection,
    known: tuple[Catalog, Settings],
    place: tuple[str, str],
    offers: Iterable[Offer] | None,
    quotas: Iterable[Quota] | None,
) -> int:
    """Writes what was told on the lanes of an owner in a region (`place`): of how many the limits changed.

    None of either: nothing was told of it, and what was told before stands.
    """
    ends = {offer.model: offer.ends_at for offer in offers} if offers is not None else None
    told = {quota.model: quota for quota in quotas} if quotas is not None else None
    owner, region = place
    lanes = list(_of_catalog(connection, known[0], owner, region))
    if ends is not None:
        changed = [(lane.id, ends.get(spelled)) for lane, _, spelled in lanes if lane.ends_at != ends.get(spelled)]
        _carry_out(connection, _END, [{"lane": lane_id, "ends_at": at} for lane_id, at in changed])
    if told is None:
        return 0
    rows = [
        {"lane": lane.id, "quota": quota and as_row(quota), **slots.limits(known[1], model, region, quota)}
        for lane, model, spelled in lanes
        if (quota := _of(model, told.get(spelled))) != (of_row(spelled, lane.quota))
    ]
    _carry_out(connection, _LIMIT, rows)
    return len(rows)


def ends_at(connection: Connection, lane_id: int | None) -> datetime | None:
    """When the provider ends the lane's model, if it told."""
    return connection.execute(_ENDS, {"lane": lane_id}).scalar_one_or_none()


def as_row(quota: Quota) -> dict[str, Any]:
    """The quota as a lane's row keeps it."""
    return {name: value for name, value in asdict(quota).items() if name != "model" and value is not None}


def of_row(model: str, row: dict[str, Any] | None) -> Quota | None:
    """The quota in a lane's row."""
    return Quota(model, **row) if row else None


def _of(model: Model, quota: Quota | None) -> Quota | None:
    """What of a quota counts for the model: batches are outside of it, and one that says nothing is none."""
    is_outside = model.variant in (Variant.BATCH, Variant.CHAT)
    return quota if quota and as_row(quota) and not is_outside else None


def _of_catalog(
    connection: Connection, catalog: Catalog, owner: str, region: str
) -> Iterator[tuple[Row[Any], Model, str]]:
    """The lanes whose model the catalog has there, in the order in which rows are locked, with the model's id there."""
    models = {model.id: model for model in catalog.every}
    for lane in connection.execute(_LANES, {"the_owner": owner, "the_region": region}):
        there = models[lane.model].region(region) if lane.model in models else None
        if there is not None:
            yield lane, models[lane.model], there.id


def _carry_out(connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


# Statements are built once: to build one costs more than to run it.

_LANES = (
    select(Lane.id, Lane.model, Lane.quota, Lane.ends_at)
    .where(Lane.owner == bindparam("the_owner"), Lane.region == bindparam("the_region"))
    .order_by(Lane.id)
)
# when a lane's model ends
_ENDS = select(Lane.ends_at).where(Lane.id == bindparam("lane"))
# what was told of that
_END = update(Lane).where(Lane.id == bindparam("lane"))
# a lane's limits as they were told
_LIMIT = update(Lane).where(Lane.id == bindparam("lane")).values(slots.FORGOTTEN)
