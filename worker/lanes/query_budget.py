"""When to look at tasks, and how many looks an account may take.

The provider limits the task queries of a main account by the second, all processes together. So each query is booked
on the owner's row before it leaves: the next free instant moves on by one interval. Throttled or failed queries halve
the owner's pace, and it recovers with time, from its time stamp. Nothing else slows down.

Looks follow the run times that were learned of a model and shape: the first when hardly any task has ended, close
together around the median, then ever further apart. They fall on a grid of whole seconds, so that the looks of many
jobs are due together and one page of the provider's list answers for a hundred of them (`steps/poll`).

A task that has ended keeps its slot until its end is seen. So looks are as close as half of the budget allows, each
second where the owner has few tasks; and a list begins only while nobody waits with a task that is known to have ended:
those are fetched first (`LISTS_AHEAD`).

A tick sets the run times anew each half minute, from the tasks' rows; each process reads them again as often.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Double,
    Engine,
    Interval,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import database, work
from worker.catalog import Catalog
from worker.claims import NOW
from worker.states import State
from worker.tables import Job, Lane, Owner, RunTime

WORTH = 8  # looks due together, from which on a list call is cheaper
AHEAD = timedelta(seconds=3)  # how far looks may be booked ahead; a worker waits that long on its thread
LISTS_AHEAD = timedelta(seconds=0.1)  # how far a list's first page may: whoever fetches ends has booked further
# How late a query may leave. What a thread slept through adds to the queries of the next second, and at 15 a second
# three tenths of one make fewer than five more.
LATE = timedelta(seconds=0.3)

_LOWEST = 1 / 16  # of the rate, however often the provider says no
_REGAINED, _EACH_SECONDS = 0.1, 3  # of the rate, that the pace regains in so many seconds
_ONE_BLOW = timedelta(seconds=2)  # within which refusals are one: they were on their way together
_PAGE = 100  # rows of the list, until it is known how many the provider gives
_SHARE = 0.5  # of the rate, that looks at all tasks may take
_COUNT_SECONDS = 2.0  # between two counts of an owner's tasks
_SIGHTING_SECONDS = 30.0  # between two notes that an owner's tasks can be seen

# Steps of the grid, seconds; each is a multiple of those before, so that a look of any step meets all shorter ones.
_STEPS = CLOSEST, *_, _FURTHEST = 1, 2, 4, 8, 16, 32, 64
_NEARLY = 0.1  # seconds
_FIRST = 3  # seconds, to the first look at a model that is not learned
_USUAL = 1.5  # medians: most have ended by then
_PARTS, _PARTS_WITH_ROOM = 8, 48  # of the wait for a task that is late, or whose run time is not learned

_REREAD_SECONDS = 30.0  # between two reads of the run times
_FROM, _AT_LEAST, _OVER = 300, 5, timedelta(days=7)  # tasks that run times are learned from: the last, and no older
_EARLY = 0.02  # the share of tasks that may have ended before their first look

T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """Seconds within which hardly any task of a model and shape has ended, and half of them have."""

    early: float
    median: float


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
        self._apart: dict[str, int] = {}
        self._counted_at = -math.inf

    def book(self, owner: str, count: int, ahead: timedelta) -> Booked | None:
        """Books as the function does, from Postgres's now."""
        return self._write(
            lambda connection: book(connection, owner, count, self._per_second, _now(connection), ahead), "queries"
        )

    def apart(self, owner: str) -> int:
        """Seconds between two looks at a task of the owner's that may have ended; counted every two seconds at most."""
        if time.monotonic() - self._counted_at > _COUNT_SECONDS:
            self._counted_at = time.monotonic()
            self._apart = self._read(lambda connection: apart(connection, self._per_second))
        return self._apart.get(owner, CLOSEST)

    def slow(self, owner: str) -> None:
        """Halves the owner's pace: its queries were throttled, or failed."""
        self._write(
            lambda connection: connection.execute(_SLOW, {"owner": owner, "now": _now(connection)}), "a slower pace"
        )

    def page_size(self, owner: str) -> int | None:
        """How many rows the provider puts on a page of the owner's list; None: not tried yet."""
        return self._read(lambda connection: connection.execute(_PAGE_SIZE, {"owner": owner}).scalar_one_or_none())

    def cut_pages(self, owner: str, size: int) -> None:
        """Keeps how many rows the provider puts on a page of the owner's list."""
        said = {"owner": owner, "size": size}
        self._write(lambda connection: connection.execute(_CUT_PAGES, said), "the size of pages")

    def sighted(self, owner: str) -> None:
        """Notes that a task of the owner's was seen, alive or ended: its key sees its tasks."""
        if time.monotonic() - self._sighted.get(owner, -math.inf) < _SIGHTING_SECONDS:
            return
        self._sighted[owner] = time.monotonic()
        self._write(lambda connection: connection.execute(_SIGHT, {"owner": owner}), "a sighting")

    def was_sighted_since(self, owner: str, since: datetime) -> bool:
        """Whether a task of the owner's was seen since then."""
        seen_at = self._read(lambda connection: connection.execute(_SEEN_AT, {"owner": owner}).scalar_one_or_none())
        return seen_at is not None and seen_at > since

    def _read(self, look: Callable[[Connection], T]) -> T:
        return database.read(self._engine, look, self._patience)

    def _write(self, change: Callable[[Connection], T], what: str) -> T:
        return database.write(self._engine, change, what, self._patience)


class Learned:
    """What was learned of run times, read every half minute at the most."""

    def __init__(self, engine: Engine, catalog: Catalog, patience: timedelta) -> None:
        self._engine = engine
        self._patience = patience
        self._catalog = catalog
        self._times: dict[tuple[str, str], Times] = {}
        self._read_at = -math.inf

    def times(self, job: Job) -> Times | None:
        """The run times of tasks such as the job's; None where they are not learned."""
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            self._read_at = time.monotonic()
            self._times = database.read(self._engine, _run_times, self._patience)
        return self._times.get((job.model, self.shape(job)))

    def shape(self, job: Job) -> str:
        """What of the job's request its run time depends on."""
        return shape(self._catalog, job.input)


def shape(catalog: Catalog, wanted: Mapping[str, Any]) -> str:
    """What of an input a task's run time depends on: "720P 5" for five seconds of clip, "1280*1280 2" for pictures."""
    size = str(wanted.get("size") or "")
    parts = (wanted.get("resolution") or catalog.tier(size) or size, wanted.get("duration"), wanted.get("n"))
    return " ".join(str(part) for part in parts if part)


def first_look(began: datetime, times: Times | None, apart: int) -> datetime:
    """When to look first at a task: when hardly any of its like has ended; soon, when that is not learned.

    `apart`: seconds between two looks, as the budget allows.
    """
    if times is None:
        return _on_grid(began + timedelta(seconds=_FIRST), apart)
    early = began + timedelta(seconds=times.early)
    # each second not even on the grid: the next tick is the grid
    return early if apart == CLOSEST else _on_grid(early, apart)


def next_look(began: datetime, now: datetime, times: Times | None, apart: int) -> datetime:
    """When to look again at a task that still runs: `apart` seconds later at the closest, as the budget allows."""
    late = _late((now - began).total_seconds(), times)
    step = _step(late / (_PARTS_WITH_ROOM if apart == CLOSEST else _PARTS), apart)
    # not the instant that is nearly here; a whole step of a second later still, looks would be two seconds apart
    soon = _on_grid(now + timedelta(seconds=step / 2 if step > CLOSEST else _NEARLY), step)
    return max(soon, first_look(began, times, apart)) if times else soon


def learn(connection: Connection, now: datetime) -> None:
    """Sets the run times of each model and shape to the quantiles of its last tasks, where there are enough to tell."""
    connection.execute(_LEARN, {"since": now - _OVER})


def apart(connection: Connection, per_second: float) -> dict[str, int]:
    """By owner, seconds between two looks at a task: a step of the grid that keeps all looks within their share."""
    share = _SHARE * per_second
    rows = connection.execute(_LOOKED_AT, {"now": _now(connection)})
    return {row.name: _step_for(_queries(row.tasks, row.page_size) / (share * row.pace)) for row in rows}


def _queries(tasks: int, page_size: int | None) -> int:
    """Queries that a look at so many tasks takes: singly, or by pages of those that run and of those that wait."""
    return tasks if tasks < WORTH else 2 * math.ceil(tasks / (page_size or _PAGE))


def _step_for(seconds: float) -> int:
    """The shortest step of the grid that is no shorter than so many seconds, if there is one."""
    return next((step for step in _STEPS if step >= seconds), _FURTHEST)


def _late(ran: float, times: Times | None) -> float:
    """Seconds that a task has run beyond what is usual; all of them, where that is not learned."""
    if times is None:
        return ran
    return ran - times.median if ran >= _USUAL * times.median else 0.0


def _step(seconds: float, least: int) -> int:
    """The longest step of the grid that is no longer than so many seconds, and no shorter than `least`."""
    return max(step for step in _STEPS if step <= max(seconds, least))


def _on_grid(at: datetime, step: int) -> datetime:
    return datetime.fromtimestamp(math.ceil(at.timestamp() / step) * step, UTC)


def _now(connection: Connection) -> datetime:
    now: datetime = connection.execute(select(NOW)).scalar_one()
    return now


def _run_times(connection: Connection) -> dict[tuple[str, str], Times]:
    """What was learned, by model and shape."""
    return {(row.model, row.shape): Times(row.early, row.median) for row in connection.execute(_RUN_TIMES)}


# Statements are built once: to build one costs more than to run it.

_NOW = bindparam("now", type_=DateTime(timezone=True))
_REGAINING = func.floor(func.extract("epoch", _NOW - Owner.slowed_at) / _EACH_SECONDS) * _REGAINED
_PACE = case((Owner.slowed_at.is_(None), 1.0), else_=func.least(1.0, Owner.query_pace + _REGAINING))
_LENGTH = func.make_interval(0, 0, 0, 0, 0, 0, bindparam("seconds", type_=Double) / _PACE, type_=Interval)
# books queries of an owner, where the budget is not spent too far ahead
_BOOK = (
    update(Owner)
    .where(Owner.name == bindparam("owner"), Owner.next_query_at <= bindparam("latest", type_=DateTime(timezone=True)))
    .values(next_query_at=func.greatest(Owner.next_query_at, _NOW) + _LENGTH)
    .returning((Owner.next_query_at - _LENGTH).label("at"), _PACE.label("pace"))
)
# each owner's pace, and how many of its tasks were looked at and run still
_LOOKED_AT = select(
    Owner.name,
    Owner.page_size,
    _PACE.label("pace"),
    select(func.count())
    .where(Job.lane_id == Lane.id, Lane.owner == Owner.name, work.in_states(State.RUNNING), Job.polls > 0)
    .scalar_subquery()
    .label("tasks"),
)
# halves an owner's pace, once for all refusals of one blow
_SLOW = (
    update(Owner)
    .where(Owner.name == bindparam("owner"), or_(Owner.slowed_at.is_(None), Owner.slowed_at < _NOW - _ONE_BLOW))
    .values(query_pace=func.greatest(_LOWEST, _PACE / 2), slowed_at=_NOW)
)
# of an owner: the rows on a page of its list, and when one of its tasks was last seen
_OWNER = Owner.name == bindparam("owner")
_PAGE_SIZE, _SEEN_AT = select(Owner.page_size).where(_OWNER), select(Owner.seen_at).where(_OWNER)
_CUT_PAGES = update(Owner).where(_OWNER).values(page_size=bindparam("size"))
_SIGHT = update(Owner).where(_OWNER).values(seen_at=NOW)
_LAST = (
    select(Job.shape, Job.run_seconds)
    .where(Job.lane_id == Lane.id, Job.run_seconds.is_not(None))
    .where(Job.created_at > bindparam("since", type_=DateTime(timezone=True)))
    # Not by id: then the planner may read all jobs, backwards, for each lane that has few.
    .order_by(Job.created_at.desc())
    .limit(_FROM)
    .correlate(Lane)
    .lateral("last")
)
_LEARNED = upsert(RunTime).from_select(
    ["model", "shape", "early", "median"],
    select(
        Lane.model,
        _LAST.c.shape,
        *(func.percentile_cont(share).within_group(_LAST.c.run_seconds) for share in (_EARLY, 0.5)),
    )
    .join(_LAST, true())
    .where(_LAST.c.shape.is_not(None))
    .group_by(Lane.model, _LAST.c.shape)
    .having(func.count() >= _AT_LEAST),
)
# the quantiles of each model's and shape's last tasks
_LEARN = _LEARNED.on_conflict_do_update(
    index_elements=[RunTime.model, RunTime.shape],
    set_={"early": _LEARNED.excluded.early, "median": _LEARNED.excluded.median},
)
_RUN_TIMES = select(*RunTime.__table__.c)
_SHAPED_BY = ("size", "resolution", "duration", "n")
# a job's input, of which only what `shape` reads
INPUT: ColumnElement[Any] = func.jsonb_build_object(
    *(part for name in _SHAPED_BY for part in (literal_column(f"'{name}'"), Job.input[name])), type_=JSONB
).label("input")
