"""Budgets: how much a project may spend in a day, in a month, or in all, and whether what would cost more is taken.

What is used is what the ledger has of the period: reservations that were not given back, and what was billed. Whoever
makes a job holds the rows of its project's budgets until the commit, and reads then what is used: so of jobs that are
submitted at once none is made that has no room. What only gives room back, or books a bill, waits for nobody.

The ledger is not read for it, but its sums by quarters of an hour (`LedgerSum`, ADR 0041).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Uuid,
    bindparam,
    exists,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)

from worker import claims
from worker.claims import NOW
from worker.errors import BudgetExhausted, Fault, InvalidInput, Spent
from worker.money import COUNTED, shown
from worker.states import HeldFor, State
from worker.tables import Budget, Duty, Event, Job, LedgerSum

THRESHOLDS = (50, 80, 100)  # percent; each is told of once a period
THRESHOLD, EXHAUSTED = "budget.threshold", "budget.exhausted"  # the events: of the last one, exhausted
# What a job is made with that waits for its project's budget.
HELD: dict[str, Any] = {"state": State.HELD, "held_for": HeldFor.BUDGET, "held_from": State.QUEUED, "run_at": None}

_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_NAMES = {"day": "the budget of the day", "month": "the budget of the month", "total": "the budget in all"}


class Over(StrEnum):
    """What happens to a job for which there is no room."""

    REFUSE = "refuse"
    HOLD = "hold"


@dataclass(frozen=True)
class Span:
    """A period: when it begins, and when it ends (None: never)."""

    begins_at: datetime
    ends_at: datetime | None


@dataclass
class Standing:
    """A budget, the period that it is in, and what is used of it, micro-CNY."""

    budget: Budget
    span: Span
    used: int

    @property
    def left(self) -> int:
        """What may still be reserved; less than nothing, where bills were higher than estimates."""
        return self.budget.micros - self.used

    def has_room(self, estimate: int) -> bool:
        """Whether a job fits that may cost so much; one that is free always does."""
        return estimate == 0 or estimate <= self.left

    def says(self) -> str:
        """Which budget it is, and what is left of it, for a person."""
        limit, left = shown(self.budget.micros), shown(max(0, self.left))
        return f"{_NAMES[self.budget.period]}: of {limit} CNY {left} CNY are left"


@dataclass(frozen=True)
class Told:
    """A threshold that was reached: how the budget stands, and the event's type, id and sequence."""

    standing: Standing
    type: str
    event_id: int
    sequence: int


@dataclass
class Room:
    """What a project's budgets leave room for, at `at`; what is taken of it is counted."""

    at: datetime
    standings: Sequence[Standing] = field(default_factory=list)
    is_waited_for: bool = False  # jobs are held for it, which were there first

    def holds(self, estimate: int | None, model: str) -> bool:
        """Whether a job is to be held; one that is not takes its room.

        Raises BudgetExhausted where it is to be refused, InvalidInput where its price is not known.
        """
        if not self.standings:
            return False
        if estimate is None:
            raise InvalidInput([price_unknown(model)])
        for standing in self.standings:
            if not standing.has_room(estimate) and _refuses(standing, estimate):
                raise exhausted(standing, estimate)
        holding = [standing for standing in self.standings if standing.budget.over == Over.HOLD]
        if holding and (self.is_waited_for or not self.fits(estimate)):
            return True
        self.take(estimate)
        return False

    def most(self, total: int, dearest: int) -> int | None:
        """What of many jobs, `total` together, may be taken in their order; None: all. Raises BudgetExhausted.

        Of those that are held each must fit by itself, in time.
        """
        for standing in self.standings:
            if not standing.has_room(total) and standing.budget.over == Over.REFUSE:
                raise exhausted(standing, total)
            if dearest > standing.budget.micros:
                raise exhausted(standing, dearest)
        if all(standing.budget.over == Over.REFUSE for standing in self.standings):
            return None
        return -1 if self.is_waited_for else max(0, min(standing.left for standing in self.standings))

    def fits(self, estimate: int) -> bool:
        """Whether each budget has room."""
        return all(standing.has_room(estimate) for standing in self.standings)

    def can_ever_fit(self, estimate: int) -> bool:
        """Whether it costs no more than the smallest of the budgets."""
        return all(estimate <= standing.budget.micros for standing in self.standings)

    def fullest(self) -> Standing | None:
        """The budget of which the least is left; None: there is none."""
        return min(self.standings, key=lambda standing: standing.left, default=None)

    def take(self, estimate: int) -> None:
        """Counts what is going to be reserved."""
        for standing in self.standings:
            standing.used += estimate


def is_free(project: ColumnElement[uuid.UUID]) -> ColumnElement[bool]:
    """Whether a project has no budget, so that nothing is asked of it."""
    return ~exists().where(Budget.project_id == project, Budget.removed_at.is_(None))


def locked(connection: Connection, project_id: uuid.UUID, now: datetime | None = None) -> Room:
    """What there is room for, at `now` or Postgres's time; nobody else takes of it until the transaction ends."""
    rows = connection.execute(_LOCK, {"the_project": project_id}).mappings().all()
    return _room(connection, rows, now)


def unlocked(connection: Connection, project_id: uuid.UUID, now: datetime) -> Room | None:
    """As `locked`, without a wait; None where somebody takes of it at the moment."""
    rows = connection.execute(_LOCK_FREE, {"the_project": project_id}).mappings().all()
    every = connection.execute(_ALL_OF, {"the_project": project_id}).all()
    return _room(connection, rows, now) if len(rows) == len(every) else None


def seen(connection: Connection, project_id: uuid.UUID, now: datetime | None = None) -> Room:
    """What there is room for now; somebody else may take it."""
    rows = connection.execute(_ALL_OF, {"the_project": project_id}).mappings().all()
    return _room(connection, rows, now)


def standings(connection: Connection, budgets: Sequence[Budget], now: datetime) -> list[Standing]:
    """What is used of each, in the period that `now` is in."""
    if not budgets:
        return []
    spans = [span(budget.period, budget.time_zone, now) for budget in budgets]
    asked = {
        "ids": [budget.id for budget in budgets],
        "projects": [budget.project_id for budget in budgets],
        "begins": [it.begins_at for it in spans],
        "ends": [it.ends_at for it in spans],
    }
    used = {row.ids: int(row.used) for row in connection.execute(_USED, asked)}
    return [Standing(budget, it, used[budget.id]) for budget, it in zip(budgets, spans, strict=True)]


def of_all(connection: Connection, now: datetime) -> list[Standing]:
    """What is used of each project's budgets."""
    return standings(connection, [Budget.of(row) for row in connection.execute(_ALL).mappings()], now)


def span(period: str, time_zone: str, now: datetime) -> Span:
    """The period that an instant is in; days begin at midnight in the zone, or when clocks that skip it go on."""
    if period == "total":
        return Span(_FIRST, None)
    zone = ZoneInfo(time_zone)
    first = now.astimezone(zone).date()
    if period == "day":
        after = first + timedelta(days=1)
    else:
        first = first.replace(day=1)
        after = (first + timedelta(days=31)).replace(day=1)
    begins, ends = (datetime.combine(day, time.min, zone).astimezone(UTC) for day in (first, after))
    return Span(begins, ends)


def exhausted(standing: Standing, estimate: int) -> BudgetExhausted:
    """Why a job is refused."""
    budget, ends_at = standing.budget, standing.span.ends_at
    message = f"{standing.says()}; this may cost {shown(estimate)} CNY"
    return BudgetExhausted(message, Spent(budget.id, budget.period, budget.micros, standing.used, estimate, ends_at))


def price_unknown(model: str) -> Fault:
    """Why a job is refused whose price nobody knows, in a project with a budget."""
    message = f"the price of {model} is not known, so it cannot be counted in the project's budget"
    return Fault("/model", "price_unknown", message)


def tell_thresholds(connection: Connection, now: datetime) -> Iterator[Told]:
    """Writes the events of the thresholds that have been reached since the last look; each once a period."""
    for standing in of_all(connection, now):
        budget, reached = standing.budget, _reached(standing)
        already = budget.told if budget.told_of == standing.span.begins_at else 0
        if reached <= already:
            continue
        told = {"the_budget": budget.id, "of": standing.span.begins_at, "reached": reached}
        if not connection.execute(_TOLD, told).rowcount:
            continue  # somebody holds it: the next look tells
        for percent in (it for it in THRESHOLDS if already < it <= reached):
            yield _told(connection, standing, percent, now)


def wake(connection: Connection) -> None:
    """Lets the next tick look at what is held for budgets."""
    connection.execute(_WAKE)


def add_up(connection: Connection, now: datetime) -> None:
    """Adds up the parts of the sums: of each quarter of an hour, and of each day and what its usage was for."""
    connection.execute(_ADD_UP)
    connection.execute(_ADD_UP_USAGE)


def _told(connection: Connection, standing: Standing, percent: int, now: datetime) -> Told:
    budget, event_type = standing.budget, EXHAUSTED if percent == THRESHOLDS[-1] else THRESHOLD
    sequence = connection.execute(_COUNT, {"the_budget": budget.id}).scalar_one()
    said = {"budget_id": budget.id, "project_id": budget.project_id, "sequence": sequence, "type": event_type}
    row = said | {"entered": f"{percent} %", "why": standing.says(), "at": now}
    return Told(standing, event_type, connection.execute(_EVENT, row).scalar_one(), sequence)


def _room(connection: Connection, rows: Sequence[Any], now: datetime | None) -> Room:
    if not rows:
        return Room(now or _FIRST)
    at = now or rows[0]["moment"]
    budgets = [Budget.of({name: value for name, value in row.items() if name != "moment"}) for row in rows]
    waited = connection.execute(_IS_WAITED_FOR, {"the_project": budgets[0].project_id}).scalar_one()
    return Room(at, standings(connection, budgets, at), waited)


def _refuses(standing: Standing, estimate: int) -> bool:
    """One that holds refuses only what it could never let go."""
    return standing.budget.over == Over.REFUSE or estimate > standing.budget.micros


def _reached(standing: Standing) -> int:
    """The highest threshold that is reached, percent."""
    return max((it for it in THRESHOLDS if standing.used * 100 >= standing.budget.micros * it), default=0)


# Statements are built once: to build one costs more than to run it.

_MINE = (Budget.project_id == bindparam("the_project", type_=Uuid), Budget.removed_at.is_(None))
_ALL = select(*Budget.__table__.c).where(Budget.removed_at.is_(None)).order_by(Budget.id)
_ALL_OF = select(*Budget.__table__.c, NOW.label("moment")).where(*_MINE).order_by(Budget.id)
# not against those who only refer to it
_LOCK = _ALL_OF.with_for_update(key_share=True, of=Budget)
_LOCK_FREE = _ALL_OF.with_for_update(key_share=True, of=Budget, skip_locked=True)
_ASKED = claims.unnested(
    "asked",
    ids=Uuid(),
    projects=Uuid(),
    begins=DateTime(timezone=True),
    ends=DateTime(timezone=True),
)
_USED = select(
    _ASKED.c.ids,
    select(func.coalesce(func.sum(LedgerSum.micros), 0))
    .where(
        LedgerSum.project_id == _ASKED.c.projects,
        LedgerSum.quarter >= _ASKED.c.begins,
        LedgerSum.quarter < func.coalesce(_ASKED.c.ends, literal_column("'infinity'::timestamptz")),
    )
    .scalar_subquery()
    .label("used"),
)
_IS_HELD = Job.held_for == literal_column(f"'{HeldFor.BUDGET}'")
_IS_WAITED_FOR = select(exists().where(Job.project_id == bindparam("the_project", type_=Uuid), _IS_HELD))
_COUNT = (
    update(Budget)
    .where(Budget.id == bindparam("the_budget"))
    .values(sequence=Budget.sequence + 1)
    .returning(Budget.sequence)
)
_EVENT = insert(Event).returning(Event.id)
_FREE = select(Budget.id).where(Budget.id == bindparam("the_budget")).with_for_update(key_share=True, skip_locked=True)
_TOLD = (
    update(Budget)
    .where(Budget.id.in_(_FREE.scalar_subquery()))
    .values(told_of=bindparam("of", type_=DateTime(timezone=True)), told=bindparam("reached"))
)
_WAKE = update(Duty).where(Duty.name == "budgets").values(due_at=NOW)
_ADD_UP = text(
    """
    with parts as (
        delete from ledger_sums using (select distinct project_id, quarter from ledger_sums where not is_whole) as due
         where ledger_sums.project_id = due.project_id and ledger_sums.quarter = due.quarter
        returning ledger_sums.project_id, ledger_sums.quarter, micros
    )
    insert into ledger_sums (project_id, quarter, micros, is_whole)
    select project_id, quarter, sum(micros), true from parts group by 1, 2 having sum(micros) <> 0
    """
)
_GROUP = "project_id, day, kind, model, batch_id, schedule_id, labels"
_AMOUNTS = ("jobs", "calls", "settled", "unknown", "reserved", *COUNTED)
_ADD_UP_USAGE = text(
    f"""
    with parts as (delete from usage_sums where not is_whole returning *)
    insert into usage_sums ({_GROUP}, {", ".join(_AMOUNTS)}, is_whole)
    select {_GROUP}, {", ".join(f"sum({name})" for name in _AMOUNTS)}, true from parts group by {_GROUP}
    on conflict ({_GROUP}) where is_whole do update
       set {", ".join(f"{name} = usage_sums.{name} + excluded.{name}" for name in _AMOUNTS)}
    """  # noqa: S608 - names of columns
)
