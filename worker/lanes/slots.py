"""A lane's slots: what the provider allows in it, who may create now, and what holds the others up.

A lane is (owner, region, model): what the provider's limits apply to. The limits come from the catalog, overridden by
what the provider told the account, and that by the settings, and stand in the rows of `lanes`; where they change, what
was booked and parked under the old ones is forgotten, and what the lane learned stays.

Slots in use are counted from the rows of `jobs`, never kept in a counter, so they cannot drift or outlive a crash.
Rates are spent on the wire: each create moves the lane's next free instant on by one interval (GCRA at 90 % of the
published rate), in the commit that puts the create on record; so do tokens, where a call takes any.

What is asked of lanes and jobs in several places is said here once: `holds_slot`, `in_line`, `is_near`, `obstacles`,
and in `throttle`: `is_open`, `in_flight`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Interval,
    Row,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.dml import ReturningUpdate

from worker import work
from worker.catalog import Catalog, Model
from worker.claims import moment
from worker.dashscope.offers import Quota
from worker.lanes import account_stops, throttle
from worker.settings import Limit, Settings
from worker.states import State
from worker.tables import Job, Lane, Owner, Project

_AHEAD = timedelta(seconds=1)  # how far a create may be booked ahead; the worker waits that long on its thread
_NEAR = timedelta(minutes=1)  # how far a lane may be booked ahead and admit; an admitted job asks again within that
_MICROSECOND = literal_column("interval '1 microsecond'", Interval)
_SETTLING = timedelta(seconds=5)  # between looks at a day's tokens, while calls are out that may give some back
_SMALL = 0.01  # the share of a day's tokens, of which so little is left that the lane is closed
_CONFIGURED = ("account", "accounts", "concurrency", "interval_us", "tpm", "tpd")
# of a lane whose limits change
FORGOTTEN: dict[str, Any] = {
    "next_at": func.least(Lane.next_at, func.now()),
    "tokens_at": func.least(Lane.tokens_at, func.now()),
    "parked_until": None,
    "parked_why": None,
}


Reserving = ReturningUpdate[int, datetime, bool]


@dataclass(frozen=True)
class Wait:
    """For what a create waits: until `again_at`, or, None, its slot is given back: the lane is closed.

    No wait is longer than a minute, since the lane may be free before the instant that it is booked until.

    It closes when a person pauses the lane, the project or all, when a quota parks it, when its account is stopped,
    when the provider takes fewer tasks at once than were admitted, and while it is booked further ahead than a minute.
    `short`: so many tokens are wanted, and the day has fewer left.
    """

    again_at: datetime | None = None
    short: int | None = None


def limits(settings: Settings, model: Model, region: str, quota: Quota | None) -> dict[str, Any]:
    """A model's limits in a region, as columns of its lane: the settings first, then the quota, then the catalog."""
    there = model.region(region)
    assert there is not None, "lanes are made for the regions that a model is in"
    said = settings.limits.get(model.id, Limit.model_construct())
    told = quota or Quota(there.id)
    at_once = (said.concurrency, told.concurrency, there.concurrency, settings.calls_concurrency)
    # both are kept evenly on the wire, so the lower one counts
    per_second = min(
        (rate for rate in (said.rps, said.rpm and said.rpm / 60) if rate), default=told.rps or there.rps or 1.0
    )
    return {
        "concurrency": next(int(most) for most in at_once if most is not None),
        "interval_us": round(1e6 / (per_second * throttle.SHARE)),
        "tpm": said.tpm or told.tpm or there.tpm,
        "tpd": said.tpd or there.tpd,
    }


def sync(connection: Connection, catalog: Catalog, settings: Settings) -> None:
    """Makes the rows of all lanes and owners agree with the catalog and the settings; keeps what they learned."""
    owners = dict.fromkeys(account.owner for account in settings.all_accounts)
    connection.execute(_SYNC_OWNER, [{"name": owner, "alert_url": settings.alert_url} for owner in owners])
    told = {(lane.owner, lane.region, lane.model): lane.quota for lane in connection.execute(_TOLD)}
    if rows := list(_rows(catalog, settings, told)):
        connection.execute(_SYNC_LANE, rows)
    places = {(account.owner, account.region) for account in settings.all_accounts}
    connection.execute(_CLOSE_LANES, {"places": list(places)})


def reserving(connection: Connection, job: Job, wanted: int | None, now: datetime) -> tuple[Reserving, dict[str, Any]]:
    """The statement that books the next free instant of the admitted job's lane for its create, and what it binds.

    `wanted` tokens are booked too: so many the call may take. It returns the instant `at` and whether tokens are
    counted (`is_counted`); no row where the create has to wait, and `obstacle` says for what. It has to when the lane
    is booked further ahead than a worker may wait, and while a call of the lane is out and another's answer is lost:
    one at a time then, or nobody could tell whose a task is.

    The lane's row is locked here, so that the statement sees what other calls of the lane have put on record.
    """
    if job.lane_id is not None:
        throttle.lock(connection, job.lane_id)
    return _RESERVE if wanted is None else _RESERVE_TOKENS, _asked(job, wanted, now)


def obstacle(connection: Connection, job: Job, wanted: int | None, now: datetime) -> Wait:
    """What a create that could not be booked waits for.

    A call that wants more than is left of the day's tokens waits until there are as many; the lane is parked only where
    hardly any are left, since smaller calls may fit.
    """
    statement = _MAY_CREATE if wanted is None else _MAY_CREATE_TOKENS
    lane = connection.execute(statement, _asked(job, wanted, now)).one()
    if lane.may_create and lane.is_spent:
        return _spent(connection, lane, wanted, now)
    return Wait(max(lane.free_at, now + _AHEAD) if lane.may_create and lane.is_near else None)


def listed(connection: Connection, now: datetime, project_id: uuid.UUID | None = None) -> Sequence[Row[Any]]:
    """Every lane with what it is allowed, what is in use and waits, and its `obstacles`; of one project, or of all."""
    of_project = [Job.project_id == project_id] if project_id else []
    queued = select(func.count()).where(in_line(), Job.model == Lane.model, *of_project).scalar_subquery()
    at = moment(now)
    statement: Select[Any] = (
        select(
            *Lane.__table__.c,
            throttle.concurrency(at).label("allowed"),
            throttle.pace(at).label("pace_now"),
            used(*of_project).label("in_use"),
            queued.label("queued"),
            throttle.tokens_ahead(at).label("tokens_ahead"),
            throttle.tokens_today(now).label("tokens_today"),
            *obstacles(at),
        )
        .join(Owner, Owner.name == Lane.owner)
        .order_by(Lane.model, Lane.region, Lane.owner)
    )
    return connection.execute(statement).all()


def obstacles(now: ColumnElement[datetime]) -> tuple[ColumnElement[Any], ...]:
    """What may hold up all creates of a lane, as columns of it and its owner; `jobs.waiting` puts them into words.

    `booked_until` is set where the lane is not near; whether an account's stop lets a job through to try is not told.
    """
    return (
        Owner.paused_at.is_not(None).label("all_paused"),
        throttle.paused_by_person().label("lane_paused"),
        Owner.stopped_at.expression,
        Owner.stopped_until.expression,
        Owner.stopped_why.expression,
        throttle.is_parked(now).label("is_parked"),
        case((~is_near(now), throttle.FREE_AT)).label("booked_until"),
    )


def accounts() -> ColumnElement[list[str]]:
    """The accounts that may create in a lane."""
    return func.coalesce(Lane.accounts, array([Lane.account.expression]))


def known_accounts(connection: Connection) -> list[str]:
    """The accounts that are set up, by the lanes that they have."""
    named = select(func.unnest(accounts()).label("name")).distinct().subquery()
    return list(connection.execute(select(named.c.name).order_by(named.c.name)).scalars())


def used(*of: ColumnElement[bool]) -> ColumnElement[int]:
    """A lane's slots in use; by the jobs of which `of` is true."""
    return select(func.count()).where(Job.lane_id == Lane.id, holds_slot(), *of).scalar_subquery()


def holds_slot() -> ColumnElement[bool]:
    """Whether a job uses a slot: it is admitted, or the provider may have a task for it."""
    return or_(work.in_states(State.ADMITTED), throttle.in_flight())


def in_line(job: Any = Job) -> ColumnElement[bool]:
    """Whether a job waits in its model's line for a slot, as a parent never does; literals, for the partial index."""
    return and_(job.state == literal_column("'queued'"), job.mode != literal_column("'parent'"))


def is_near(now: ColumnElement[datetime], free_at: ColumnElement[datetime] = throttle.FREE_AT) -> ColumnElement[bool]:
    """Whether the lane is booked no further ahead than a minute: who is admitted beyond that would wait in vain."""
    return now + _NEAR >= free_at


def _asked(job: Job, wanted: int | None, now: datetime) -> dict[str, Any]:
    said: dict[str, Any] = {"lane": job.lane_id, "job": job.id, "project": job.project_id, "now": now}
    return said | ({"the_tokens": wanted, "on_day": throttle.day(now)} if wanted is not None else {})


def _spent(connection: Connection, lane: Row[Any], wanted: int | None, now: datetime) -> Wait:
    """The day's tokens are booked, and perhaps not all of them will be used."""
    if lane.calls_out:
        return Wait(now + _SETTLING)
    if lane.left > lane.tpd * _SMALL:
        return Wait(short=wanted)
    why = f"of the model's {lane.tpd} tokens a day too few are left"
    throttle.park(connection, lane.id, throttle.renewal(now), why)
    return Wait()


def _rows(
    catalog: Catalog, settings: Settings, told: Mapping[tuple[str, str, str], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The lanes of all accounts, one of each owner, region and model: the provider counts by owner."""
    places: dict[tuple[str, str], list[str]] = {}
    for account in settings.all_accounts:
        places.setdefault((account.owner, account.region), []).append(account.name)
    for (owner, region), names in places.items():
        for model in catalog.every:
            if model.region(region):
                lane = {"owner": owner, "region": region, "model": model.id, "account": names[0], "accounts": names}
                key = (owner, region, model.id)
                quota = Quota(model.id, **told[key]) if key in told else None
                yield lane | limits(settings, model, region, quota)


def _in(state: State) -> ColumnElement[bool]:
    """Whether the lane has a job in that state."""
    return exists().where(Job.lane_id == Lane.id, work.in_states(state))


# Statements are built once: to build one costs more than to run it.

# makes an owner, and tells where its alarms go: while creates are paused everywhere, a new one does not begin
_OWNER = upsert(Owner).values(
    name=bindparam("name"),
    alert_url=bindparam("alert_url"),
    paused_at=select(func.min(Owner.paused_at)).having(func.bool_and(Owner.paused_at.is_not(None))).scalar_subquery(),
)
_SYNC_OWNER = _OWNER.on_conflict_do_update(
    index_elements=[Owner.name],
    set_={"alert_url": _OWNER.excluded.alert_url},
    where=Owner.alert_url.is_distinct_from(_OWNER.excluded.alert_url),
)
# limits that were told, which a start keeps
_TOLD = select(Lane.owner, Lane.region, Lane.model, Lane.quota).where(Lane.quota.is_not(None))
_LANE = upsert(Lane)
# makes a lane, or sets its limits anew: what was booked and parked under others is forgotten
_SYNC_LANE = _LANE.on_conflict_do_update(
    index_elements=[Lane.owner, Lane.region, Lane.model],
    set_={name: _LANE.excluded[name] for name in _CONFIGURED} | FORGOTTEN,
    where=or_(*(Lane.__table__.c[name].is_distinct_from(_LANE.excluded[name]) for name in _CONFIGURED)),
)

# nothing is created where no account is set up any more
_CLOSE_LANES = (
    update(Lane)
    .where(tuple_(Lane.owner, Lane.region).not_in(bindparam("places", expanding=True)))
    .where(Lane.accounts.is_distinct_from([]))
    .values(accounts=[])
)

_NOW = bindparam("now", type_=DateTime(timezone=True))
_INTERVAL = (Lane.interval_us / throttle.pace(_NOW)) * _MICROSECOND
_IN_FLIGHT = select(func.count()).where(Job.lane_id == Lane.id, throttle.in_flight()).scalar_subquery()
# whether an admitted job's call may be made in the lane now
_OPEN = and_(
    throttle.is_open(_NOW),
    exists().where(Owner.name == Lane.owner, account_stops.lets_through(bindparam("job"))),
    exists().where(Project.id == bindparam("project"), Project.paused_at.is_(None)),
    or_(Lane.ceiling.is_(None), throttle.concurrency(_NOW) > _IN_FLIGHT),
)


def _reserving(free_at: ColumnElement[datetime], *fits: ColumnElement[bool]) -> Reserving:
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
        .returning(
            Lane.id.label("lane_id"), (Lane.next_at - _INTERVAL).label("at"), throttle.COUNTS_TOKENS.label("is_counted")
        )
    )


def _asking(free_at: ColumnElement[datetime], is_spent: ColumnElement[bool], left: ColumnElement[Any]) -> Select[Any]:
    """What kept a create from being booked."""
    said: list[ColumnElement[Any]] = [
        *(Lane.id.expression, Lane.tpd.expression, free_at.label("free_at"), is_near(_NOW, free_at).label("is_near")),
        *(_OPEN.label("may_create"), is_spent.label("is_spent"), left.label("left")),
        _in(State.SUBMITTING).label("calls_out"),
    ]
    return select(*said).where(Lane.id == bindparam("lane"))


_RESERVE = _reserving(Lane.next_at.expression)
_RESERVE_TOKENS = _reserving(throttle.FREE_AT, ~throttle.IS_SPENT).values(throttle.BOOKED)
_MAY_CREATE = _asking(Lane.next_at.expression, literal(False), literal(0))
_MAY_CREATE_TOKENS = _asking(throttle.FREE_AT, throttle.IS_SPENT, throttle.LEFT)
