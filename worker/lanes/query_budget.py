"""When to look at tasks, and how many looks an account may take.

The provider counts task queries a main account makes in a second, all processes together, so each query is booked
on the owner's row before it leaves: the next free instant moves on by one interval. Throttled or failed queries halve
the owner's pace, which recovers by itself, from its time stamp: nothing else slows down, and nobody has to put it back.

Looks follow what was learned of a model's run times: the first when hardly any task has ended, close together around
the median, then ever further apart. They fall on a grid of whole seconds, so that those of many jobs come together,
and one page of the provider's list answers for a hundred of them (`steps/poll`); the budget spreads what is asked
singly.
While half of the budget is enough for a look at each of an owner's tasks every second, each gets that: a slot whose
task has ended is empty until that is seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, DateTime, Double, Engine, Interval, bindparam, case, func, or_, select, text, update

from worker import database
from worker.claims import NOW
from worker.lanes.run_times import Times
from worker.tables import Job, Lane, Owner

WORTH = 8  # looks due together, from which on a list call is cheaper
AHEAD = timedelta(seconds=3)  # how far looks may be booked ahead; a worker waits that long on its thread
# How late a query may leave. What a thread slept through adds to the queries of the next second, and at 15 a second
# three tenths of one make fewer than five more.
LATE = timedelta(seconds=0.3)

_LOWEST = 1 / 16  # of the rate, however often the provider says no
_REGAINED, _EACH_SECONDS = 0.1, 3  # of the rate, that the pace regains in so many seconds
_ONE_BLOW = timedelta(seconds=2)  # within which refusals are one: they were on their way together
_PAGE = 100  # rows of the list, until it is known how many the provider gives
_ROOM = 0.5  # of the rate, that looks each second may take
_ROOM_SECONDS = 2.0  # between two counts of an owner's tasks
_SIGHTING_SECONDS = 30.0  # between two notes that an owner's tasks can be seen

# Steps of the grid, seconds; each is a multiple of those before, so that a look of any step meets all shorter ones.
_STEPS = _CLOSEST, _CLOSE, *_, _FURTHEST = 1, 3, 6, 12, 24, 48
_NEARLY = 0.1  # seconds
_FIRST = 3  # seconds, to the first look at a model that is not learned
_PARTS_OF_MEDIAN = 48
_USUAL = 1.5  # medians: most have ended by then
_PARTS, _PARTS_WITH_ROOM = 8, 48  # of the wait for a task that is late, or whose run time is not learned

T = TypeVar("T")


@dataclass(frozen=True)
class Booked:
    """Queries that may leave: the first `at`, the others `apart`; it was `now` when they were booked."""

    now: datetime
    at: datetime
    apart: timedelta


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

    def __init__(self, engine: Engine, per_second: float, patience: timedelta) -> None:
        self._engine = engine
        self._patience = patience
        self._per_second = per_second
        self._sighted: dict[str, float] = {}
        self._roomy: frozenset[str] = frozenset()
        self._counted_at = -math.inf

    def book(self, owner: str, count: int, ahead: timedelta) -> Booked | None:
        """Books as the function does, from Postgres's now."""

        def booked(connection: Connection) -> Booked | None:
            now = connection.execute(select(NOW)).scalar_one()
            return book(connection, owner, count, self._per_second, now, ahead)

        return self._write(booked, "queries")

    def has_room(self, owner: str) -> bool:
        """Whether each of the owner's tasks may be looked at every second; counted every two seconds at the most."""
        if time.monotonic() - self._counted_at > _ROOM_SECONDS:
            self._counted_at = time.monotonic()
            self._roomy = self._read(lambda connection: roomy(connection, self._per_second))
        return owner in self._roomy

    def slow(self, owner: str) -> None:
        """Halves the owner's pace: its queries were throttled, or failed."""

        def slow(connection: Connection) -> None:
            connection.execute(_SLOW, {"owner": owner, "now": connection.execute(select(NOW)).scalar_one()})

        self._write(slow, "a slower pace")

    def page_size(self, owner: str) -> int | None:
        """How many rows the provider puts on a page of the owner's list; None: not tried yet."""
        size = select(Owner.page_size).where(Owner.name == owner)
        return self._read(lambda connection: connection.execute(size).scalar_one_or_none())

    def cut_pages(self, owner: str, size: int) -> None:
        """Keeps how many rows the provider puts on a page of the owner's list."""
        cut = update(Owner).where(Owner.name == owner).values(page_size=size)
        self._write(lambda connection: connection.execute(cut), "the size of pages")

    def sighted(self, owner: str) -> None:
        """Notes that a task of the owner's was seen, alive or ended: its key sees its tasks."""
        if time.monotonic() - self._sighted.get(owner, -math.inf) < _SIGHTING_SECONDS:
            return
        self._sighted[owner] = time.monotonic()
        sighted = update(Owner).where(Owner.name == owner).values(seen_at=NOW)
        self._write(lambda connection: connection.execute(sighted), "a sighting")

    def was_sighted_since(self, owner: str, since: datetime) -> bool:
        """Whether a task of the owner's was seen since then."""
        statement = select(Owner.seen_at).where(Owner.name == owner)
        seen_at = self._read(lambda connection: connection.execute(statement).scalar_one_or_none())
        return seen_at is not None and seen_at > since

    def _read(self, look: Callable[[Connection], T]) -> T:
        return database.read(self._engine, look, self._patience)

    def _write(self, change: Callable[[Connection], T], what: str) -> T:
        return database.write(self._engine, change, what, self._patience)


def first_look(began: datetime, times: Times | None, has_room: bool) -> datetime:
    """When to look first at a task: when hardly any of its like has ended; soon, when that is not learned."""
    if times is None:
        return _on_grid(began + timedelta(seconds=_FIRST), _CLOSEST)
    early = began + timedelta(seconds=times.early)
    # with room not even on the grid: the next tick is the grid
    return early if has_room else _on_grid(early, _close(times, has_room))


def next_look(began: datetime, now: datetime, times: Times | None, has_room: bool) -> datetime:
    """When to look again at a task that still runs; `has_room`: the budget is enough to look at all each second."""
    late = _late((now - began).total_seconds(), times)
    step = _step(late / (_PARTS_WITH_ROOM if has_room else _PARTS), _close(times, has_room), _FURTHEST)
    # not the instant that is nearly here; a whole step of a second later still, looks would be two seconds apart
    soon = _on_grid(now + timedelta(seconds=step / 2 if step > _CLOSEST else _NEARLY), step)
    return max(soon, first_look(began, times, has_room)) if times else soon


def roomy(connection: Connection, per_second: float) -> frozenset[str]:
    """The owners whose tasks may all be looked at every second."""
    rows = connection.execute(_AT_WORK, {"now": connection.execute(select(NOW)).scalar_one()})
    share = _ROOM * per_second
    return frozenset(row.name for row in rows if _each_second(row.tasks, row.page_size) <= share * row.pace)


def _each_second(tasks: int, page_size: int | None) -> int:
    """Queries that a look at so many tasks takes: singly, or by pages of those that run and of those that wait."""
    return tasks if tasks < WORTH else 2 * math.ceil(tasks / (page_size or _PAGE))


def _close(times: Times | None, has_room: bool) -> int:
    """The step around the end that is expected."""
    if has_room:
        return _CLOSEST
    return _step(times.median / _PARTS_OF_MEDIAN, _CLOSEST, _CLOSE) if times else _CLOSE


def _late(ran: float, times: Times | None) -> float:
    """Seconds that a task has run beyond what is usual; all of them, where that is not learned."""
    if times is None:
        return ran
    return ran - times.median if ran >= _USUAL * times.median else 0.0


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
_AT_WORK = select(
    Owner.name,
    Owner.page_size,
    _PACE.label("pace"),
    select(func.count())
    # a literal, so that the planner can match the partial index
    .where(Job.lane_id == Lane.id, Lane.owner == Owner.name, text("jobs.state = 'running'"))
    .scalar_subquery()
    .label("tasks"),
)
_SLOW = (
    update(Owner)
    .where(Owner.name == bindparam("owner"), or_(Owner.slowed_at.is_(None), Owner.slowed_at < _NOW - _ONE_BLOW))
    .values(query_pace=func.greatest(_LOWEST, _PACE / 2), slowed_at=_NOW)
)
