"""The statements that write `jobs.state`; no others do.

Each names the states that it leaves, asserts that `MOVES` allows the way, and counts the job's events. `one` moves one
job under its claim. `many` moves all jobs that fit, and writes their events in the same statement.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnClause,
    ColumnElement,
    Connection,
    DateTime,
    RowMapping,
    Text,
    bindparam,
    insert,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from worker.states import TERMINAL, State, may
from worker.tables import Event, Job

# What a job starts with that is made again: nothing is left of how it ended. Kept are what was asked for, what a parent
# has made (`round`, `note`), and `attempts`, which numbers the calls; stored outputs were paid for, and stay too.
FRESH: dict[str, Any] = {
    "held_from": None,  # an end that was reached from held may have left it
    "cancel_requested": False,
    "attempt_id": None,  # what is reserved now is settled or given back by the next call, not by the last
    "task_id": None,
    "task_status": None,
    "unproven": False,
    "polls": 0,
    "tokens": None,  # what its lane's day had left then is not what it has now
    "retries": 0,
    "unknown_since": None,
    "run_seconds": None,
    "shape": None,  # written with `run_seconds`
    "sources": None,
    "relinked": False,
    "links_expire_at": None,
    "submitted_at": None,
    "started_at": None,
    "finished_at": None,
    "deadline_at": None,
    "cost": None,  # the ledger keeps what the calls before cost
    "billed": "no",
    "usage": None,
    "result": None,
    "error": None,
}


def entered(left: Collection[State], to: State, now: Any) -> dict[str, Any]:
    """The columns that follow from a move between these states alone; `now` is a time, or a bound one."""
    assert all(may(state, to) for state in left), f"of {', '.join(left)} not all may become {to}"
    columns: dict[str, Any] = {"run_at": None if to in TERMINAL or to is State.HELD else now}
    columns |= {"claimed": None, "crashes": 0}
    if set(left) != {to}:
        columns |= {"state": to, "state_at": now}
    if to is State.QUEUED:
        columns |= {"lane_id": None, "account": None, "region": None}
    if TERMINAL.issuperset(left):
        return columns | (FRESH if to not in TERMINAL else {})
    if to in TERMINAL:
        columns |= {"finished_at": now, "sources": None}
    if State.HELD in left:
        columns |= {"held_for": None, "held_from": None}
    return columns


def one(connection: Connection, job: Job, to: State, columns: dict[str, Any], counts: bool) -> RowMapping | None:
    """Moves a job under its claim; None where the claim is lost, or the job is not in its state any more.

    To `submitting` it is not moved either where somebody has asked to cancel it. `counts`: the move has an event.
    """
    assert may(State(job.state), to), f"{job.state} may not become {to}"
    guard = {"the_id": job.id, "the_claim": job.claim, "the_state": job.state}
    bound = guard | {f"to_{name}": value for name, value in columns.items()}
    return connection.execute(_moving(tuple(columns), counts, to is State.SUBMITTING), bound).mappings().one_or_none()


def many(left: Collection[State], to: State, *which: ColumnElement[bool], **columns: Any) -> ReturningInsert[Any]:
    """The statement that moves all jobs that fit, and returns their ids; it binds `now`, and `the_why` if there is one.

    No bound name may be a column's: SQLAlchemy would set that column too.

    It takes the jobs' claims, so that nobody who works on one can write. It writes no deliveries: it is for children,
    which have no receivers, and for moves of which no receiver is told.
    """
    return events(moving(left, to, *which, **columns), to)


def moving(left: Collection[State], to: State, *which: ColumnElement[bool], **columns: Any) -> CTE:
    """The first half of `many`: the update, as `moved (id, project_id, sequence, was)`."""
    # literals, so that the planner can match the partial indexes
    states: list[ColumnClause[str]] = [literal_column(f"'{state}'") for state in sorted(left)]
    changed = entered(left, to, BOUND_NOW) | {"claim": Job.claim + 1, "sequence": Job.sequence + 1} | columns
    was: ColumnElement[str] = literal_column("old.state", Text).label("was")
    moved = update(Job).where(Job.state.in_(states), *which).values(changed)
    return moved.returning(Job.id, Job.project_id, Job.sequence, was).cte("moved")


def events(moved: CTE, to: State) -> ReturningInsert[Any]:
    """The other half: the events of what was moved."""
    why = bindparam("the_why", "", type_=Text)
    rows = select(moved.c.id, moved.c.project_id, moved.c.sequence, moved.c.was, *map(literal, (f"job.{to}", str(to))))
    named = ("job_id", "project_id", "sequence", "left", "type", "entered", "why", "at")
    return insert(Event).from_select(named, rows.add_columns(why, BOUND_NOW)).returning(Event.job_id)


BOUND_NOW: ColumnElement[Any] = bindparam("now", type_=DateTime(timezone=True))


# Built once for each set of columns: to build a statement costs more than to run it.
@cache
def _moving(columns: tuple[str, ...], counts: bool, begins: bool) -> ReturningUpdate[Any]:
    table = Job.__table__
    changed: dict[str, Any] = {name: bindparam(f"to_{name}", type_=table.c[name].type) for name in columns}
    if counts:
        changed["sequence"] = Job.sequence + 1
    guard = [Job.id == bindparam("the_id"), Job.claim == bindparam("the_claim"), Job.state == bindparam("the_state")]
    if begins:
        guard.append(~Job.cancel_requested)
    return update(Job).where(*guard).values(changed).returning(*table.c)
