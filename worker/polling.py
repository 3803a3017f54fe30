"""When to look at tasks, and how many looks an account may take.

The provider counts task queries a main account makes in a second, all processes together, so each query is booked
on the owner's row before it leaves: the next free instant moves on by one interval. Throttled or failed queries halve
the owner's pace, which recovers by itself, from its time stamp: nothing else slows down, and nobody has to put it back.

Looks follow what was learned of a model's run times: the first when hardly any task has ended, close together around
the median, then ever further apart. They fall on a grid of whole seconds, so that those of many jobs come together,
and one page of the provider's list answers for a hundred of them (`looks`); the budget spreads what is asked singly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, DateTime, Double, Engine, Interval, bindparam, case, func, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker.catalog import Catalog
from worker.claims import NOW, Now
from worker.models import Job, Lane, Owner, RunTime

AHEAD = timedelta(seconds=3)  # how far looks may be booked ahead; a worker waits that long on its thread
# How late a query may leave. What a thread slept through adds to the queries of the next second, and at 15 a second
# three tenths of one make fewer than five more.
LATE = timedelta(seconds=0.3)

_LOWEST = 1 / 16  # of the rate, however often the provider says no
_REGAINED, _EACH_SECONDS = 0.1, 3  # of the rate, that the pace regains in so many seconds
_ONE_BLOW = timedelta(seconds=2)  # within which refusals are one: they were on their way together
_SIGHTING_SECONDS = 30.0  # between two notes that an owner's tasks can be seen
_REREAD_SECONDS = 30.0

_LEARNED_FROM, _LEARNED_AT_LEAST, _LEARNED_OVER = 300, 5, timedelta(days=7)
_EARLY = 0.02  # the share of tasks that may have ended before their first look

# Steps of the grid, seconds; each is a multiple of those before, so that a look of any step meets all shorter ones.
_STEPS = _CLOSEST, _CLOSE, *_, _FURTHEST = 1, 3, 6, 12, 24, 48
_FIRST = 3  # seconds, to the first look at a model that is not learned
_PARTS_OF_MEDIAN, _PARTS_OF_WAIT = 48, 8


@dataclass(frozen=True)
class Booked:
    """Queries that may leave: the first `at`, the others `apart`; it was `now` when they were booked."""

    now: datetime
    at: datetime
    apart: timedelta


@dataclass(frozen=True)
class Times:
    """Seconds within which hardly any task of a model and shape has ended, and half of them have."""

    early: float
    median: float


def book(
    connection: Connection, owner: str, count: int, per_second: float, now: datetime, ahead: timedelta = AHEAD
) -> Booked | None:
    """Books `count` queries of the owner's budget; None when it is spent further ahead than `ahead`."""
    said = {"owner": owner, "now": now, "seconds": count / per_second, "latest": now + ahead}
    row = connection.execute(_BOOK, said).one_or_none()
    return Booked(now, row.at, timedelta(seconds=1 / per_second / row.pace)) if row else None


def is_trouble(http_status: int) -> bool:
    """Whether a query that was refused so says that there should be fewer of them."""
    return http_status in (401, 403, 429) or http_status >= 500


class Budget:
    """The query budget as steps use it: each call is a short transaction of its own."""

    def __init__(self, engine: Engine, per_second: float) -> None:
        self._engine = engine
        self._per_second = per_second
        self._sighted: dict[str, float] = {}

    def book(self, owner: str, count: int, ahead: timedelta) -> Booked | None:
        """Books as the function does, from Postgres's now."""
        with self._engine.begin() as connection:
            now: datetime = connection.execute(select(NOW)).scalar_one()
            return book(connection, owner, count, self._per_second, now, ahead)

    def slow(self, owner: str) -> None:
        """Halves the owner's pace: its queries were throttled, or failed."""
        with self._engine.begin() as connection:
            connection.execute(_SLOW, {"owner": owner, "now": connection.execute(select(NOW)).scalar_one()})

    def page_size(self, owner: str) -> int | None:
        """How many rows the provider puts on a page of the owner's list; None: not tried yet."""
        with self._engine.connect() as connection:
            return connection.execute(select(Owner.page_size).where(Owner.name == owner)).scalar_one_or_none()

    def cut_pages(self, owner: str, size: int) -> None:
        """Keeps how many rows the provider puts on a page of the owner's list."""
        with self._engine.begin() as connection:
            connection.execute(update(Owner).where(Owner.name == owner).values(page_size=size))

    def sighted(self, owner: str) -> None:
        """Notes that a task of the owner's was seen, alive or ended: its key sees its tasks."""
        if time.monotonic() - self._sighted.get(owner, -math.inf) < _SIGHTING_SECONDS:
            return
        self._sighted[owner] = time.monotonic()
        with self._engine.begin() as connection:
            connection.execute(update(Owner).where(Owner.name == owner).values(seen_at=NOW))

    def was_sighted_since(self, owner: str, since: datetime) -> bool:
        """Whether a task of the owner's was seen since then."""
        with self._engine.connect() as connection:
            seen_at = connection.execute(select(Owner.seen_at).where(Owner.name == owner)).scalar_one_or_none()
        return seen_at is not None and seen_at > since


class Learned:
    """What was learned of run times, read every half minute at the most."""

    def __init__(self, engine: Engine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog
        self._times: dict[tuple[str, str], Times] = {}
        self._read_at = -math.inf

    def times(self, job: Job) -> Times | None:
        """The run times of tasks such as the job's; None where they are not learned."""
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            self._read_at = time.monotonic()
            with self._engine.connect() as connection:
                self._times = run_times(connection)
        return self._times.get((job.model, self.shape(job)))

    def shape(self, job: Job) -> str:
        """What of the job's request its run time depends on."""
        return shape(self._catalog, job.input)


def shape(catalog: Catalog, wanted: Mapping[str, Any]) -> str:
    """What of an input a task's run time depends on: "720P 5" for five seconds of clip, "1280*1280 2" for pictures."""
    size = str(wanted.get("size") or "")
    parts = (wanted.get("resolution") or catalog.tier(size) or size, wanted.get("duration"), wanted.get("n"))
    return " ".join(str(part) for part in parts if part)


def first_look(began: datetime, times: Times | None) -> datetime:
    """When to look first at a task: when hardly any of its like has ended; soon, when that is not learned."""
    wait, step = (times.early, _close(times)) if times else (_FIRST, _CLOSEST)
    return _on_grid(began + timedelta(seconds=wait), step)


def next_look(began: datetime, now: datetime, times: Times | None) -> datetime:
    """When to look again at a task that still runs."""
    ran = (now - began).total_seconds()
    if times is None:
        step = _step(ran / _PARTS_OF_WAIT, _CLOSE, _FURTHEST)
    elif ran < 1.5 * times.median:
        step = _close(times)
    else:
        step = _step((ran - times.median) / _PARTS_OF_WAIT, _close(times), _FURTHEST)
    soon = _on_grid(now + timedelta(seconds=step / 2), step)
    return max(soon, first_look(began, times)) if times else soon


def learn(connection: Connection, now: Now) -> None:
    """Sets the run times of each model and shape to the quantiles of its last tasks, where there are enough to tell."""
    last = (
        select(Job.shape, Job.run_seconds)
        .where(Job.lane_id == Lane.id, Job.run_seconds.is_not(None), Job.created_at > now - _LEARNED_OVER)
        # Not by id: then the planner may read all jobs, backwards, for each lane that has few.
        .order_by(Job.created_at.desc())
        .limit(_LEARNED_FROM)
        .correlate(Lane)
        .lateral("last")
    )
    early, median = (func.percentile_cont(share).within_group(last.c.run_seconds) for share in (_EARLY, 0.5))
    learned = (
        select(Lane.model, last.c.shape, early, median)
        .join(last, true())
        .where(last.c.shape.is_not(None))
        .group_by(Lane.model, last.c.shape)
        .having(func.count() >= _LEARNED_AT_LEAST)
    )
    fresh = upsert(RunTime).from_select(["model", "shape", "early", "median"], learned)
    told = fresh.on_conflict_do_update(
        index_elements=[RunTime.model, RunTime.shape],
        set_={"early": fresh.excluded.early, "median": fresh.excluded.median},
    )
    connection.execute(told)


def run_times(connection: Connection) -> dict[tuple[str, str], Times]:
    """What was learned, by model and shape."""
    rows = connection.execute(select(*RunTime.__table__.c))
    return {(row.model, row.shape): Times(row.early, row.median) for row in rows}


def _close(times: Times) -> int:
    return _step(times.median / _PARTS_OF_MEDIAN, _CLOSEST, _CLOSE)


def _step(seconds: float, least: int, most: int) -> int:
    """The longest step of the grid that is no longer than so many seconds, within bounds."""
    return max(step for step in _STEPS if step <= min(max(seconds, least), most))


def _on_grid(moment: datetime, step: int) -> datetime:
    return datetime.fromtimestamp(math.ceil(moment.timestamp() / step) * step, UTC)


# Built once: to build a statement costs more than to run it.

_NOW = bindparam("now", type_=DateTime(timezone=True))
_REGAINING = func.floor(func.extract("epoch", _NOW - Owner.slowed_at) / _EACH_SECONDS) * _REGAINED
_PACE = case((Owner.slowed_at.is_(None), 1.0), else_=func.least(1.0, Owner.query_pace + _REGAINING))
_LENGTH = func.make_interval(0, 0, 0, 0, 0, 0, bindparam("seconds", type_=Double) / _PACE, type_=Interval)
_BOOK = (
    update(Owner)
    .where(Owner.name == bindparam("owner"), Owner.next_query_at <= bindparam("latest", type_=DateTime(timezone=True)))
    .values(next_query_at=func.greatest(Owner.next_query_at, _NOW) + _LENGTH)
    .returning((Owner.next_query_at - _LENGTH).label("at"), _PACE.label("pace"))
)
_SLOW = (
    update(Owner)
    .where(Owner.name == bindparam("owner"), or_(Owner.slowed_at.is_(None), Owner.slowed_at < _NOW - _ONE_BLOW))
    .values(query_pace=func.greatest(_LOWEST, _PACE / 2), slowed_at=_NOW)
)
