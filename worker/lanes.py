"""What the provider's limits apply to: (owner, region, model). Who may create now, and who waits.

Slots in use are counted from the rows of `jobs`, never kept in a counter, so they cannot drift or outlive a crash.
Rates are spent on the wire: each create moves the lane's next free instant on by one interval (GCRA at 90 % of the
published rate), in the commit that puts the create on record.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Exists,
    Interval,
    Row,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import throttle
from worker.catalog import Catalog, Model
from worker.claims import moment
from worker.models import Job, Lane, Owner, Project
from worker.settings import Account, Limit, Settings
from worker.states import SLOTTED, State

_SHARE = 0.9  # of a published rate: the provider counts in windows that we cannot see
_AHEAD = timedelta(seconds=1)  # how far a create may be booked ahead; the worker waits that long on its thread
_MICROSECOND = literal_column("interval '1 microsecond'", Interval)
_CONFIGURED = ("account", "concurrency", "interval_us")


@dataclass(frozen=True)
class Booking:
    """When a create may leave. `at` None: not now; try at `again_at`, or, None too, give the slot back: it is closed.

    It closes when a person pauses the lane, the project or all, when a quota parks it, when its account is stopped,
    and when the provider takes fewer tasks at once than were admitted.
    """

    at: datetime | None
    again_at: datetime | None = None


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
    rows = list(_configured(catalog, settings))
    if not rows:
        return
    fresh = upsert(Lane).values(rows)
    agreed = fresh.on_conflict_do_update(
        index_elements=[Lane.owner, Lane.region, Lane.model],
        set_={name: fresh.excluded[name] for name in _CONFIGURED},
        where=or_(*(Lane.__table__.c[name] != fresh.excluded[name] for name in _CONFIGURED)),
    )
    connection.execute(agreed)


def reserve(connection: Connection, job: Job, now: datetime) -> Booking:
    """Books the next free instant of the admitted job's lane for its create.

    It has to wait when the lane is booked further ahead than a worker may wait, and while a call of the lane is out
    and another's answer is lost: one at a time then, or nobody could tell whose a task is.
    """
    whose = {"lane": job.lane_id, "job": job.id, "project": job.project_id, "now": now}
    row = connection.execute(_RESERVE, whose).one_or_none()
    if row:
        return Booking(row.at)
    lane = connection.execute(_MAY_CREATE, whose).one()
    return Booking(None, max(lane.next_at, now + _AHEAD) if lane.may_create else None)


def listed(connection: Connection, now: datetime, project_id: uuid.UUID | None = None) -> Sequence[Row[Any]]:
    """Every lane with what it is allowed, what is in use and waits, and what stops it; of one project, or of all."""
    counted = [Job.project_id == project_id] if project_id else []
    in_use = select(func.count()).where(Job.lane_id == Lane.id, holds_slot(), *counted).scalar_subquery()
    queued = (
        select(func.count())
        .where(Job.state == State.QUEUED, ~Job.fans_out, Job.model == Lane.model, *counted)
        .scalar_subquery()
    )
    at = moment(now)
    statement: Select[Any] = (
        select(
            *Lane.__table__.c,
            throttle.concurrency(at).label("allowed"),
            throttle.pace(at).label("pace_now"),
            in_use.label("in_use"),
            queued.label("queued"),
            Owner.paused_at.label("owner_paused_at"),
            Owner.stopped_at,
            Owner.stopped_until,
            Owner.stopped_why,
        )
        .join(Owner, Owner.name == Lane.owner)
        .order_by(Lane.model, Lane.region, Lane.owner)
    )
    return connection.execute(statement).all()


def limits(settings: Settings, model: Model, region: str) -> tuple[int, timedelta]:
    """A model's concurrent tasks in a region, and the time between two creates: settings first, then the catalog."""
    there = model.region(region)
    assert there is not None, "lanes are made for the regions that a model is in"
    said = settings.limits.get(model.id, Limit.model_construct())
    concurrency = _first(said.concurrency, there.concurrency, settings.calls_concurrency)
    # both are kept evenly on the wire, so the lower one counts
    per_second = min((rate for rate in (said.rps, said.rpm and said.rpm / 60) if rate), default=there.rps or 1.0)
    return int(concurrency), timedelta(seconds=1 / (per_second * _SHARE))


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _configured(catalog: Catalog, settings: Settings) -> Iterable[dict[str, object]]:
    seen = set()
    for account in settings.all_accounts:
        for model in catalog.every:
            key = (account.owner, account.region, model.id)
            if model.region(account.region) and key not in seen:
                seen.add(key)
                yield _row(settings, account, model)


def _row(settings: Settings, account: Account, model: Model) -> dict[str, object]:
    concurrency, interval = limits(settings, model, account.region)
    return {
        "account": account.name,
        "owner": account.owner,
        "region": account.region,
        "model": model.id,
        "concurrency": concurrency,
        "interval_us": round(interval / timedelta(microseconds=1)),
    }


def used() -> ColumnElement[int]:
    """A lane's slots in use."""
    return select(func.count()).where(Job.lane_id == Lane.id, holds_slot()).scalar_subquery()


def holds_slot() -> ColumnElement[bool]:
    """Whether a job uses a slot: by its state, or held with a call whose outcome nobody knows."""
    return or_(Job.state.in_(SLOTTED), and_(Job.state == State.HELD, Job.held_from == State.UNCERTAIN))


# Built once: to build a statement costs more than to run it.


def _in(state: State) -> Exists:
    """Whether the lane has a job in that state."""
    return exists().where(Job.lane_id == Lane.id, text(f"jobs.state = '{state}'"))


_NOW = bindparam("now", type_=DateTime(timezone=True))
_INTERVAL = (Lane.interval_us / throttle.pace(_NOW)) * _MICROSECOND
_IN_FLIGHT = select(func.count()).where(Job.lane_id == Lane.id, throttle.in_flight()).scalar_subquery()
_OPEN = and_(
    throttle.is_open(_NOW),
    exists().where(
        Owner.name == Lane.owner,
        Owner.paused_at.is_(None),
        or_(Owner.stopped_at.is_(None), Owner.probe == bindparam("job")),
    ),
    exists().where(Project.id == bindparam("project"), Project.paused_at.is_(None)),
    or_(Lane.ceiling.is_(None), throttle.concurrency(_NOW) > _IN_FLIGHT),
)
_RESERVE = (
    update(Lane)
    .where(
        Lane.id == bindparam("lane"),
        Lane.next_at <= _NOW + _AHEAD,
        ~and_(_in(State.UNCERTAIN), _in(State.SUBMITTING)),
        _OPEN,
    )
    .values(next_at=func.greatest(Lane.next_at, _NOW) + _INTERVAL, passed=Lane.passed + 1)
    .returning((Lane.next_at - _INTERVAL).label("at"))
)
_MAY_CREATE = select(Lane.next_at, _OPEN.label("may_create")).where(Lane.id == bindparam("lane"))
