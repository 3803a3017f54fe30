"""What the provider's limits apply to: (owner, region, model). Who may create now, and who waits.

Slots in use are counted from the rows of `jobs`, never kept in a counter, so they cannot drift or outlive a crash.
Rates are spent on the wire: each create moves the lane's next free instant on by one interval (GCRA at 90 % of the
published rate), in the commit that puts the create on record; and so are `tokens`, where a call takes any.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
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
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from worker.claims import moment
from worker.lanes import throttle, tokens
from worker.states import SLOTTED, Mode, State
from worker.tables import Job, Lane, Owner, Project

_AHEAD = timedelta(seconds=1)  # how far a create may be booked ahead; the worker waits that long on its thread
NEAR = timedelta(minutes=1)  # how far a lane may be booked ahead and admit; an admitted job asks again within that
_MICROSECOND = literal_column("interval '1 microsecond'", Interval)
_SETTLING = timedelta(seconds=5)  # between looks at a day's tokens, while calls are out that may give some back
_SMALL = 0.01  # the share of a day's tokens, of which so little is left that the lane is closed


@dataclass(frozen=True)
class Booking:
    """When a create may leave. `at` None: not now; try at `again_at`, or, None too, give the slot back: it is closed.

    No wait is longer than a minute, since the lane may be free before the instant that it is booked until.

    It closes when a person pauses the lane, the project or all, when a quota parks it, when its account is stopped,
    when the provider takes fewer tasks at once than were admitted, and while it is booked further ahead than `NEAR`.
    `tokens` that were booked, where the lane's are limited. `short`: so many are wanted, and the day has fewer left.
    """

    at: datetime | None
    again_at: datetime | None = None
    tokens: int | None = None
    short: int | None = None


def reserve(connection: Connection, job: Job, wanted: int | None, now: datetime) -> Booking:
    """Books the next free instant of the admitted job's lane for its create, and the tokens that the call may take.

    It has to wait when the lane is booked further ahead than a worker may wait, and while a call of the lane is out
    and another's answer is lost: one at a time then, or nobody could tell whose a task is. A call that wants more
    than is left of the day's tokens waits until there are as many; the lane is parked only where hardly any are left,
    since smaller calls may fit.
    """
    said: dict[str, Any] = {"lane": job.lane_id, "job": job.id, "project": job.project_id, "now": now}
    said |= {"tokens": wanted, "on_day": tokens.day(now)} if wanted is not None else {}
    if job.lane_id is not None:
        throttle.lock(connection, job.lane_id)  # then look: other calls of the lane are on record by now
    row = connection.execute(_RESERVE if wanted is None else _RESERVE_TOKENS, said).one_or_none()
    if row:
        return Booking(row.at, tokens=wanted if row.is_counted else None)
    lane = connection.execute(_MAY_CREATE if wanted is None else _MAY_CREATE_TOKENS, said).one()
    if lane.may_create and lane.is_spent:
        return _spent(connection, lane, wanted, now)
    is_near = lane.may_create and lane.free_at <= now + NEAR
    return Booking(None, max(lane.free_at, now + _AHEAD) if is_near else None)


def listed(connection: Connection, now: datetime, project_id: uuid.UUID | None = None) -> Sequence[Row[Any]]:
    """Every lane with what it is allowed, what is in use and waits, and what stops it; of one project, or of all."""
    counted = [Job.project_id == project_id] if project_id else []
    in_use = select(func.count()).where(Job.lane_id == Lane.id, holds_slot(), *counted).scalar_subquery()
    queued = (
        select(func.count())
        .where(Job.state == State.QUEUED, Job.mode != Mode.PARENT, Job.model == Lane.model, *counted)
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
            tokens.ahead(at).label("tokens_ahead"),
            tokens.today(now).label("tokens_today"),
            Owner.paused_at.label("owner_paused_at"),
            Owner.stopped_at,
            Owner.stopped_until,
            Owner.stopped_why,
        )
        .join(Owner, Owner.name == Lane.owner)
        .order_by(Lane.model, Lane.region, Lane.owner)
    )
    return connection.execute(statement).all()


def used() -> ColumnElement[int]:
    """A lane's slots in use."""
    return select(func.count()).where(Job.lane_id == Lane.id, holds_slot()).scalar_subquery()


def holds_slot() -> ColumnElement[bool]:
    """Whether a job uses a slot: by its state, or held with a call whose outcome nobody knows."""
    return or_(Job.state.in_(SLOTTED), and_(Job.state == State.HELD, Job.held_from == State.UNCERTAIN))


def is_near(now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether the lane is booked no further ahead than a minute: who is admitted beyond that would wait in vain."""
    return now + NEAR >= tokens.FREE_AT


def _spent(connection: Connection, lane: Row[Any], wanted: int | None, now: datetime) -> Booking:
    """The day's tokens are booked, and perhaps not all of them will be used."""
    if lane.calls_out:
        return Booking(None, now + _SETTLING)
    if lane.left > lane.tpd * _SMALL:
        return Booking(None, short=wanted)
    why = f"of the model's {lane.tpd} tokens a day too few are left"
    throttle.park(connection, lane.id, tokens.renewal(now), why)
    return Booking(None)


def _in(state: State) -> Exists:
    """Whether the lane has a job in that state."""
    return exists().where(Job.lane_id == Lane.id, text(f"jobs.state = '{state}'"))


# Built once: to build a statement costs more than to run it.

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


def _reserving(free_at: ColumnElement[datetime], *fits: ColumnElement[bool]) -> ReturningUpdate[datetime, bool]:
    """Books the instant at which the lane is free, if that is near and nothing else forbids it."""
    return (
        update(Lane)
        .where(
            Lane.id == bindparam("lane"),
            free_at <= _NOW + _AHEAD,
            ~and_(_in(State.UNCERTAIN), _in(State.SUBMITTING)),
            _OPEN,
            *fits,
        )
        .values(next_at=func.greatest(free_at, _NOW) + _INTERVAL, passed=Lane.passed + 1)
        .returning((Lane.next_at - _INTERVAL).label("at"), tokens.IS_COUNTED.label("is_counted"))
    )


def _asking(free_at: ColumnElement[datetime], is_spent: ColumnElement[bool], left: ColumnElement[Any]) -> Select[Any]:
    """What kept a create from being booked."""
    said: list[ColumnElement[Any]] = [
        *(Lane.id.expression, Lane.tpd.expression, free_at.label("free_at")),
        *(_OPEN.label("may_create"), is_spent.label("is_spent"), left.label("left")),
        _in(State.SUBMITTING).label("calls_out"),
    ]
    return select(*said).where(Lane.id == bindparam("lane"))


_RESERVE = _reserving(Lane.next_at.expression)
_RESERVE_TOKENS = _reserving(tokens.FREE_AT, ~tokens.IS_SPENT).values(tokens.BOOKED)
_MAY_CREATE = _asking(Lane.next_at.expression, literal(False), literal(0))
_MAY_CREATE_TOKENS = _asking(tokens.FREE_AT, tokens.IS_SPENT, tokens.LEFT)
