"""What the provider's limits apply to: (owner, region, model). Who may create now, and who waits.

Slots in use are counted from the rows of `jobs`, never kept in a counter, so they cannot drift or outlive a crash.
Rates are spent on the wire: each create, and each message of task queries, moves the lane's (the owner's) next free
instant on by one interval (GCRA at 90 % of the published rate), in the commit that puts the create on record.
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
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from worker.catalog import Catalog, Model
from worker.claims import Now, moment
from worker.models import Event, Job, Lane, Owner
from worker.settings import Account, Limit, Settings
from worker.states import SLOTTED, State

_SHARE = 0.9  # of a published rate: the provider counts in windows that we cannot see
_AHEAD = timedelta(seconds=1)  # how far a create may be booked ahead; the worker waits that long on its thread
_LOOK_AHEAD = timedelta(seconds=3)
_MICROSECOND = literal_column("interval '1 microsecond'", Interval)
_LEARNED_FROM, _LEARNED_AT_LEAST, _LEARNED_OVER = 100, 5, timedelta(days=7)
_CONFIGURED = ("account", "concurrency", "interval_us")


@dataclass(frozen=True)
class Waiting:
    """Why nothing is sent for a job now, in a code, a sentence, and the instant it may change (None: unknown)."""

    code: str
    detail: str
    until: datetime | None = None
    position: int | None = None


def sync(connection: Connection, catalog: Catalog, settings: Settings) -> None:
    """Makes the rows of all lanes and owners agree with the catalog and the settings; keeps what they learned."""
    owners = [{"name": account.owner} for account in settings.all_accounts]
    connection.execute(upsert(Owner).values(owners).on_conflict_do_nothing())
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


def reserve(connection: Connection, lane_id: int, now: datetime) -> tuple[datetime | None, datetime]:
    """Books the lane's next free instant for a create: (the instant, when the next one is free).

    The instant is None when the lane is booked further ahead than a worker may wait: try again at the second. So it
    is while a call of the lane is out and another's answer is lost: one at a time then, or nobody could tell whose
    a task is.
    """
    row = connection.execute(_RESERVE, {"lane": lane_id, "now": now}).one_or_none()
    if row:
        return row.at, row.next_at
    free = connection.execute(select(Lane.next_at).where(Lane.id == lane_id)).scalar_one()
    return None, max(free, now + _AHEAD)


def reserve_queries(
    connection: Connection, owner: str, count: int, per_second: float, now: datetime
) -> datetime | None:
    """Books `count` task queries of the owner's budget: when the first may leave, the others evenly after it.

    None when the budget is spent further ahead than a worker may wait.
    """
    length = timedelta(seconds=count / per_second)
    said = {"owner": owner, "now": now, "length": length}
    at: datetime | None = connection.execute(_RESERVE_QUERIES, said).scalar_one_or_none()
    return at


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


def learn(connection: Connection, now: Now) -> None:
    """Sets each lane's run times to the quantiles of its last tasks, where there are enough to tell."""
    last = (
        select(Job.run_seconds)
        .where(Job.lane_id == Lane.id, Job.run_seconds.is_not(None), Job.created_at > now - _LEARNED_OVER)
        # Not by id: then the planner may read all jobs, backwards, for each lane that has few.
        .order_by(Job.created_at.desc())
        .limit(_LEARNED_FROM)
        .correlate(Lane)
        .lateral("last")
    )
    early, median = (func.percentile_cont(share).within_group(last.c.run_seconds) for share in (0.1, 0.5))
    learned = (
        select(Lane.id, early.label("early"), median.label("median"))
        .join(last, true())
        .group_by(Lane.id)
        .having(func.count() >= _LEARNED_AT_LEAST)
        .cte("learned")
    )
    told = update(Lane).where(Lane.id == learned.c.id).values(run_early=learned.c.early, run_median=learned.c.median)
    connection.execute(told)


def run_times(connection: Connection) -> dict[int, tuple[float, float]]:
    """What was learned: lane → (a tenth of its tasks end within, half of them end within), seconds."""
    statement = select(Lane.id, Lane.run_early, Lane.run_median).where(Lane.run_early.is_not(None))
    return {row.id: (row.run_early, row.run_median) for row in connection.execute(statement)}


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
    per_second = _first(said.rps, said.rpm and said.rpm / 60, there.rps, 1.0)
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
_INTERVAL = Lane.interval_us * _MICROSECOND
_LENGTH = bindparam("length", type_=Interval)
_RESERVE = (
    update(Lane)
    .where(
        Lane.id == bindparam("lane"), Lane.next_at <= _NOW + _AHEAD, ~and_(_in(State.UNCERTAIN), _in(State.SUBMITTING))
    )
    .values(next_at=func.greatest(Lane.next_at, _NOW) + _INTERVAL)
    .returning((Lane.next_at - _INTERVAL).label("at"), Lane.next_at)
)
_RESERVE_QUERIES = (
    update(Owner)
    .where(Owner.name == bindparam("owner"), Owner.next_query_at <= _NOW + _LOOK_AHEAD)
    .values(next_query_at=func.greatest(Owner.next_query_at, _NOW) + _LENGTH)
    .returning((Owner.next_query_at - _LENGTH).label("at"))
)
