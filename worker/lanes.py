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
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import throttle
from worker.catalog import Catalog, Model
from worker.claims import Now, moment
from worker.models import Event, Job, Lane, Owner, Project
from worker.settings import Account, Limit, Settings
from worker.states import SLOTTED, State

_SHARE = 0.9  # of a published rate: the provider counts in windows that we cannot see
_AHEAD = timedelta(seconds=1)  # how far a create may be booked ahead; the worker waits that long on its thread
_MICROSECOND = literal_column("interval '1 microsecond'", Interval)
_CONFIGURED = ("account", "concurrency", "interval_us")


@dataclass(frozen=True)
class Waiting:
    """Why nothing is sent for a job now, in a code, a sentence, and the instant it may change (None: unknown)."""

    code: str
    detail: str
    until: datetime | None = None
    position: int | None = None


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


def admit(connection: Connection, now: Now) -> int:
    """Gives each lane's free slots to its queued jobs, by priority and age; returns how many it gave."""
    return sum(_fill(connection, lane, now) for lane in connection.execute(_with_room(now)).all())


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


def park(connection: Connection, lane_id: int, until: datetime, why: str) -> None:
    """Admits nothing to the lane before `until`; a later time that is already set stays."""
    parked = (
        update(Lane)
        .where(Lane.id == lane_id, or_(Lane.parked_until.is_(None), Lane.parked_until < until))
        .values(parked_until=until, parked_why=why)
    )
    connection.execute(parked)


def stop(connection: Connection, owner: str, until: datetime, why: str) -> None:
    """Stops all creates of an account until then, when one more is tried."""
    stopped = update(Owner).where(Owner.name == owner).values(stopped_until=until, stopped_why=why)
    connection.execute(stopped)


def waiting_on(connection: Connection, job: Job, now: datetime) -> Waiting | None:
    """What an unfinished job waits for; None when it is being worked on or has ended."""
    match State(job.state):
        case State.QUEUED:
            return _queued_for(connection, job, now)
        case State.HELD:
            return Waiting("held", f"held for {job.held_for}: a person has to decide")
        case State.ADMITTED:
            return Waiting("rate", "has a slot, and waits for the lane's request rate", job.run_at)
        case State.UNCERTAIN:
            return Waiting("uncertain", "the create call's answer was lost; the task is being looked for", job.run_at)
        case State.RUNNING:
            return Waiting("provider", f"the provider says {job.task_status or 'nothing yet'}", job.run_at)
        case State.COPYING if job.claimed is None:
            return Waiting("storage", "waits to be copied into the bucket", job.run_at)
    return None


def listed(connection: Connection) -> Sequence[Row[Any]]:
    """Every lane with its limits, the slots in use and what stops it, for the API and the command line."""
    used = _used().label("in_use")
    queued = select(func.count()).where(Job.state == State.QUEUED, Job.model == Lane.model).scalar_subquery()
    statement = (
        select(Lane, used, queued.label("queued"), Owner.stopped_until, Owner.stopped_why)
        .join(Owner, Owner.name == Lane.owner)
        .order_by(Lane.model, Lane.region)
    )
    return connection.execute(select(statement.subquery())).all()


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
        for model in catalog.models():
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


def _used() -> ColumnElement[int]:
    """Slots in use: the states that hold one, and what is held with a call whose outcome nobody knows."""
    holds = or_(Job.state.in_(SLOTTED), and_(Job.state == State.HELD, Job.held_from == State.UNCERTAIN))
    return select(func.count()).where(Job.lane_id == Lane.id, holds).scalar_subquery()


def _with_room(now: Now) -> Select[Any]:
    free = (Lane.concurrency - _used()).label("free")
    wanted = exists().where(Job.state == State.QUEUED, Job.model == Lane.model, Job.run_at <= now)
    inner = (
        select(Lane.id, Lane.account, Lane.owner, Lane.region, Lane.model, free)
        .join(Owner, Owner.name == Lane.owner)
        .where(
            wanted,
            or_(Owner.stopped_until.is_(None), Owner.stopped_until <= now),
            or_(Lane.parked_until.is_(None), Lane.parked_until <= now),
        )
        .subquery()
    )
    return select(inner).where(inner.c.free > 0)


def _fill(connection: Connection, lane: Row[Any], now: Now) -> int:
    picked = (
        select(Job.id)
        .where(Job.state == State.QUEUED, Job.model == lane.model, Job.run_at <= now)
        .order_by(Job.priority.desc(), Job.id)
        .limit(lane.free)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    admitted = (
        update(Job)
        .where(Job.id.in_(select(picked.c.id)), Job.state == State.QUEUED)
        .values(
            state=State.ADMITTED,
            state_at=now,
            run_at=now,
            lane_id=lane.id,
            account=lane.account,
            region=lane.region,
            sequence=Job.sequence + 1,
        )
        .returning(Job.id, Job.project_id, Job.sequence)
        .cte("admitted")
    )
    told = insert(Event).from_select(
        ["job_id", "project_id", "sequence", "type", "left", "entered", "at"],
        select(
            admitted.c.id,
            admitted.c.project_id,
            admitted.c.sequence,
            literal("job.admitted"),
            literal(State.QUEUED),
            literal(State.ADMITTED),
            moment(now),
        ),
    )
    return connection.execute(told).rowcount


def _queued_for(connection: Connection, job: Job, now: datetime) -> Waiting:
    if job.run_at is not None and job.run_at > now:
        return Waiting("backoff", "waits before it is tried again", job.run_at)
    lane = connection.execute(
        select(Lane.parked_until, Lane.parked_why, Owner.stopped_until, Owner.stopped_why)
        .join(Owner, Owner.name == Lane.owner)
        .where(Lane.model == job.model)
        .order_by(Owner.stopped_until.nulls_first(), Lane.parked_until.nulls_first())
        .limit(1)
    ).one_or_none()
    if lane is not None and lane.stopped_until and lane.stopped_until > now:
        return Waiting("account", f"the provider's account is stopped: {lane.stopped_why}", lane.stopped_until)
    if lane is not None and lane.parked_until and lane.parked_until > now:
        return Waiting("quota", f"the lane is parked: {lane.parked_why}", lane.parked_until)
    before = select(func.count()).where(
        Job.state == State.QUEUED,
        Job.model == job.model,
        or_(Job.priority > job.priority, and_(Job.priority == job.priority, Job.id < job.id)),
    )
    position: uuid.UUID | int = connection.execute(before).scalar_one()
    return Waiting("slot", "waits for one of the model's concurrent tasks", None, int(position) + 1)


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
