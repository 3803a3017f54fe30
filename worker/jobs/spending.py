"""What a project spends: its budgets, set and read, and the lines of its ledger.

Every query carries the project, so another's budgets do not exist. What the budgets do is `money.budgets`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Connection, Uuid, bindparam, func, insert, select, tuple_, update

from worker import money, text
from worker.document import Amount, Answer, Moment
from worker.errors import Conflict, NotFound
from worker.money import budgets
from worker.money.budgets import Standing
from worker.states import HeldFor
from worker.tables import Budget, Entry, Job, Project
from worker.webhooks import endpoints

MOST = 10  # budgets of a project: each submission looks at all of them


class BudgetDocument(Answer):
    """How much a project may spend in a period, and what is used of it; amounts in CNY."""

    id: uuid.UUID
    object: Literal["budget"] = "budget"
    period: Literal["day", "month", "total"]
    limit: Amount
    used: Amount = Field(description="in this period: what is reserved, and what was billed")
    left: Amount = Field(description="less than nothing where bills were higher than estimates")
    currency: Literal["CNY"] = "CNY"
    over: Literal["refuse", "hold"] = Field(description="what happens to a job that it has no room for")
    time_zone: str
    begins_at: Moment | None = Field(description="this period; null: of all time")
    ends_at: Moment | None
    held: int = Field(description="jobs of the project that wait for room in its budgets")
    created_at: Moment
    updated_at: Moment


class LedgerLine(Answer):
    """A line of the ledger: `reserve` when a job is made, `settle` what a call cost, `release` what is given back."""

    object: Literal["ledger_line"] = "ledger_line"
    id: int
    job_id: uuid.UUID
    attempt_id: uuid.UUID | None
    entry: Literal["reserve", "settle", "release"]
    amount: Amount
    currency: Literal["CNY"] = "CNY"
    at: Moment
    reserved_at: Moment = Field(description="of which period it is")


@dataclass(frozen=True)
class Wanted:
    """A budget to make; `micros` is the limit. `time_zone` None: the project's."""

    period: str
    micros: int
    over: str
    time_zone: str | None


def make(connection: Connection, project: Project, wanted: Wanted) -> Budget:
    """Makes a budget, which counts what the ledger has of its period already; raises Conflict for too many."""
    connection.execute(_LOCK_PROJECT, {"the_project": project.id})
    if len(every(connection, project.id)) >= MOST:
        raise Conflict("too_many_budgets", f"the project has {MOST} budgets, as many as it may")
    row = vars(wanted) | {"time_zone": wanted.time_zone or project.time_zone, "project_id": project.id}
    return Budget.of(connection.execute(_MAKE, row).mappings().one())


def every(connection: Connection, project_id: uuid.UUID) -> list[Budget]:
    """The project's budgets, in the order in which they were made."""
    rows = connection.execute(_EVERY, {"the_project": project_id}).mappings()
    return [Budget.of(row) for row in rows]


def change(
    connection: Connection, project_id: uuid.UUID, budget_id: uuid.UUID, columns: dict[str, Any], now: datetime
) -> Budget:
    """The budget, changed; what waits for it is looked at by the next tick. Raises NotFound."""
    mine = {"the_project": project_id, "the_budget": budget_id}
    changed = update(Budget).where(*_MINE).values(**columns, updated_at=now).returning(*Budget.__table__.c)
    row = connection.execute(changed, mine).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no budget {budget_id}")
    budgets.wake(connection)
    return Budget.of(row)


def remove(connection: Connection, project_id: uuid.UUID, budget_id: uuid.UUID, now: datetime) -> None:
    """Takes a budget away; what waits for it alone goes on. Raises NotFound."""
    change(connection, project_id, budget_id, {"removed_at": now}, now)


def tell_thresholds(connection: Connection, now: datetime) -> None:
    """Tells of the thresholds of budgets that have been reached since the last look, endpoints too."""
    for told in budgets.tell_thresholds(connection, now):
        said = {"type": told.type, "timestamp": text.moment(now), "sequence": told.sequence}
        data = _document(told.standing, 0).model_dump(mode="json", exclude={"held"})
        body = json.dumps(said | {"data": data}, ensure_ascii=False, separators=(",", ":"))
        endpoints.enqueue_all(connection, told.standing.budget.project_id, told.type, [(None, told.event_id, body)])


def documents(
    connection: Connection, project_id: uuid.UUID, some: Sequence[Budget], now: datetime
) -> list[BudgetDocument]:
    """Budgets of the project as the API shows them."""
    held = connection.execute(_HELD, {"the_project": project_id}).scalar_one() if some else 0
    return [_document(standing, held) for standing in budgets.standings(connection, some, now)]


def lines(
    connection: Connection,
    project_id: uuid.UUID,
    job: uuid.UUID | None,
    since: datetime | None,
    until: datetime | None,
    before: int | None,
    limit: int,
) -> list[LedgerLine]:
    """At most `limit` lines of the project's ledger, the newest first; `before` is the last id of the page before."""
    wanted = select(*Entry.__table__.c).where(Entry.project_id == project_id)
    if job is not None:
        wanted = wanted.where(Entry.job_id == job)
    if since is not None:
        wanted = wanted.where(Entry.at >= since)
    if until is not None:
        wanted = wanted.where(Entry.at < until)
    if before is not None:
        last = select(Entry.at).where(Entry.id == before, Entry.project_id == project_id).scalar_subquery()
        wanted = wanted.where(tuple_(Entry.at, Entry.id) < tuple_(last, before))
    rows = connection.execute(wanted.order_by(Entry.at.desc(), Entry.id.desc()).limit(limit)).mappings()
    return [_line(Entry.of(row)) for row in rows]


def _document(standing: Standing, held: int) -> BudgetDocument:
    budget, span = standing.budget, standing.span
    return BudgetDocument(
        id=budget.id,
        period=budget.period,
        limit=money.shown(budget.micros),
        used=money.shown(standing.used),
        left=money.shown(standing.left),
        over=budget.over,
        time_zone=budget.time_zone,
        begins_at=span.begins_at if span.ends_at else None,
        ends_at=span.ends_at,
        held=held,
        created_at=budget.created_at,
        updated_at=budget.updated_at,
    )


def _line(entry: Entry) -> LedgerLine:
    return LedgerLine(
        id=entry.id,
        job_id=entry.job_id,
        attempt_id=entry.attempt_id,
        entry=entry.entry,
        amount=money.shown(entry.micros),
        at=entry.at,
        reserved_at=entry.reserved_at,
    )


# Statements are built once: to build one costs more than to run it.

_OF_PROJECT = (Budget.project_id == bindparam("the_project", type_=Uuid), Budget.removed_at.is_(None))
_MINE = (*_OF_PROJECT, Budget.id == bindparam("the_budget", type_=Uuid))
_EVERY = select(*Budget.__table__.c).where(*_OF_PROJECT).order_by(Budget.id)
_MAKE = insert(Budget).returning(*Budget.__table__.c)
_LOCK_PROJECT = select(Project.id).where(Project.id == bindparam("the_project")).with_for_update(key_share=True)
_HELD = select(func.count()).where(
    Job.project_id == bindparam("the_project", type_=Uuid), Job.held_for == HeldFor.BUDGET
)
