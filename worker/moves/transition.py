"""The statements that write `jobs.state`; no others do.

Each names the states that it leaves, asserts that `MOVES` allows the way, counts the job's events, and writes the event
itself. `one` moves one job under its claim, and writes the answer on its attempt; `begin` does so for a create that is
about to leave. `many` moves all jobs that fit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnClause,
    ColumnElement,
    Connection,
    DateTime,
    Executable,
    Row,
    Text,
    Update,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from worker.states import AT_REST, DONE, TERMINAL, State, may
from worker.tables import Attempt, Event, Job
from worker.webhooks import endpoints

Telling = ReturningInsert[Any, int]  # the ids of jobs that are moved, and of their events

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
    "cached_from": None,
    "cache_days": None,  # whoever wants it again wants another answer
    "error": None,
    "not_after": None,  # a person asks for it now
}


def entered(left: Collection[State], to: State, now: Any) -> dict[str, Any]:
    """The columns that follow from a move between these states alone; `now` is a time, or a bound one."""
    assert all(may(state, to) for state in left), f"of {', '.join(left)} not all may become {to}"
    columns: dict[str, Any] = {"run_at": None if to in AT_REST else now}
    columns |= {"claimed": None, "crashes": 0}
    if set(left) != {to}:
        columns |= {"state": to, "state_at": now}
    if to is State.QUEUED:
        columns |= {"lane_id": None, "account": None, "region": None}
    if TERMINAL.issuperset(left):
        return columns | (FRESH if to not in TERMINAL else {})
    if to in TERMINAL:
        columns |= {"finished_at": now}
    if to in DONE:
        columns |= {"sources": None}
    if State.HELD in left:
        columns |= {"held_for": None, "held_from": None}
    return columns


@dataclass(frozen=True)
class Told:
    """The event of a move."""

    type: str
    why: str
    at: datetime


@dataclass(frozen=True)
class Answer:
    """What a move says of the open attempt, and what that row must say still; `guard` is a key of `_GUARDS`.

    `bound` is what the guard compares with. What was only inferred ("unanswered") moves the job only if it is written.
    """

    columns: dict[str, Any]
    guard: str
    bound: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """The job as it is now, None where the claim is lost or the job is not in its state any more; its event.

    `listens`: whether an endpoint of its project wants the event.
    `attempt`: what the attempt's row had `booked`, and `sent_at`; None where nothing was written there.
    """

    job: Job | None
    event_id: int | None = None
    listens: bool = False
    attempt: Row[Any] | None = None


def one(
    connection: Connection,
    job: Job,
    to: State,
    columns: dict[str, Any],
    told: Told | None = None,
    answer: Answer | None = None,
) -> Written:
    """Moves a job under its claim, tells of it, and writes an answer on its attempt, in one statement.

    The answer is written whatever has become of the claim: it is never dropped, nor what it cost.
    """
    assert may(State(job.state), to), f"{job.state} may not become {to}"
    bound = _bound(job, columns, told)
    if answer is not None:
        bound |= {f"said_{name}": value for name, value in answer.columns.items()} | answer.bound
        bound["the_attempt"] = job.attempt_id
    said = (tuple(answer.columns), answer.guard) if answer is not None else None
    row = connection.execute(_moving(tuple(columns), told is not None, said), bound).one_or_none()
    if row is None:
        return Written(None)
    attempt = row if said is not None and row.is_written else None
    if told is None:
        return Written(_moved(job, columns, row), attempt=attempt)
    return Written(_moved(job, columns, row), row.event_id, bool(row.listens), attempt)


def begin(
    connection: Connection,
    job: Job,
    columns: dict[str, Any],
    told: Told,
    reserving: ReturningUpdate[*tuple[Any, ...]],
    reserved: dict[str, Any],
    attempt: dict[str, Any],
) -> tuple[Row[Any] | None, Written]:
    """Admitted to submitting, with its attempt, at the instant that `reserving` books; all in one statement.

    The first is what was booked (`at`, `is_counted`), None: nothing, and the job stays. It stays too where somebody has
    asked to cancel it, and where the instant is after its `not_after`.
    """
    bound = _bound(job, columns, told) | reserved | {f"of_{name}": value for name, value in attempt.items()}
    beginning = _beginning(reserving, tuple(columns), tuple(attempt))
    row = connection.execute(beginning, bound).one_or_none()
    if row is None:
        return None, Written(None)
    return row, Written(_moved(job, {**columns, "submitted_at": row.at}, row), row.event_id, bool(row.listens))


def many(left: Collection[State], to: State, *which: ColumnElement[bool], **columns: Any) -> Telling:
    """The statement that moves all jobs that fit, and returns their ids, each with its event's.

    It binds `now`, and `the_why` if there is one.

    No bound name may be a column's: SQLAlchemy would set that column too.

    It takes the jobs' claims, so that nobody who works on one can write. It writes no deliveries: children have no
    receivers, and `bulk` writes those of the jobs that it moves.
    """
    # locked before they are read: only PostgreSQL 18 can return what a row was before its update
    found = select(Job.id, Job.state).where(_is_in(left), *which).with_for_update(key_share=True).cte("found")
    return events(moving(left, to, found.c.state, Job.id == found.c.id, **columns), to)


def moving(
    left: Collection[State], to: State, was: ColumnElement[str], *which: ColumnElement[bool], **columns: Any
) -> CTE:
    """The first half of `many`: the update, as `moved (id, project_id, sequence, was)`."""
    changed = entered(left, to, BOUND_NOW) | {"claim": Job.claim + 1, "sequence": Job.sequence + 1} | columns
    moved = update(Job).where(_is_in(left), *which).values(changed)
    return moved.returning(Job.id, Job.project_id, Job.sequence, was.label("was")).cte("moved")


def events(moved: CTE, to: State) -> Telling:
    """The other half: the events of what was moved."""
    why = bindparam("the_why", "", type_=Text)
    rows = select(moved.c.id, moved.c.project_id, moved.c.sequence, moved.c.was, *map(literal, (f"job.{to}", str(to))))
    named = ("job_id", "project_id", "sequence", "left", "type", "entered", "why", "at")
    return insert(Event).from_select(named, rows.add_columns(why, BOUND_NOW)).returning(Event.job_id, Event.id)


BOUND_NOW: ColumnElement[Any] = bindparam("now", type_=DateTime(timezone=True))


_GUARDS: dict[str, ColumnElement[bool]] = {
    "any": true(),
    "sent": Attempt.outcome == "sent",
    # or what was written before, by a commit whose answer was lost
    "unanswered": or_(
        Attempt.outcome.in_(("sent", "unknown")),  # that any finding is worth more than
        and_(
            Attempt.outcome == bindparam("the_outcome", type_=Text),
            Attempt.task_id.is_not_distinct_from(bindparam("the_task", type_=Text)),
        ),
    ),
    "its_task": Attempt.task_id == bindparam("the_task", type_=Text),
}


def _is_in(states: Collection[State]) -> ColumnElement[bool]:
    # literals, so that the planner can match the partial indexes
    said: list[ColumnClause[str]] = [literal_column(f"'{state}'") for state in sorted(states)]
    return Job.state.in_(said)


def _moved(job: Job, columns: dict[str, Any], row: Row[Any]) -> Job | None:
    """The job as it is now: what the move wrote, and what others may write under its claim; None: it was not moved."""
    if row.id is None:
        return None
    return job.changed({**columns, "sequence": row.sequence, "cancel_requested": row.cancel_requested})


def _bound(job: Job, columns: dict[str, Any], told: Told | None) -> dict[str, Any]:
    bound = {"the_id": job.id, "the_claim": job.claim, "the_state": job.state}
    bound |= {f"to_{name}": value for name, value in columns.items()}
    return bound | {"the_type": told.type, "the_why": told.why, "now": told.at} if told is not None else bound


# Built once for each set of columns: to build a statement costs more than to run it.


@cache
def _moving(columns: tuple[str, ...], tells: bool, said: tuple[tuple[str, ...], str] | None) -> Executable:
    if said is None and not tells:
        return _move(columns, tells).returning(*_KEPT)
    if said is None:
        moved = _move(columns, tells).returning(*_KEPT, *_OF_EVENT).cte("moved")
        event = _event(moved)
        return select(*_kept(moved), *_told(event)).join_from(moved, event, true())
    answered = _answering(*said).cte("answered")
    move = _move(columns, tells)
    if said[1] == "unanswered":
        move = move.where(select(answered.c.booked).exists())
    moved = move.returning(*_KEPT, *_OF_EVENT).cte("moved")
    written = [answered.c.is_written, answered.c.booked, answered.c.sent_at.label("was_sent_at")]
    whole = _ONE.outerjoin(answered, true()).outerjoin(moved, true())
    if not tells:
        return select(*_kept(moved), *written).select_from(whole)
    event = _event(moved)
    return select(*_kept(moved), *written, *_told(event)).select_from(whole.outerjoin(event, true()))


@cache
def _beginning(
    reserving: ReturningUpdate[*tuple[Any, ...]], columns: tuple[str, ...], attempt: tuple[str, ...]
) -> Executable:
    reserved = reserving.cte("reserved")
    at, tokens = reserved.c.at, case((reserved.c.is_counted, bindparam("the_tokens", None, type_=BigInteger)))
    # a job that is to be canceled is not moved, nor one whose time has passed
    in_time = func.coalesce(at <= Job.not_after, true())
    move = _move(columns, True).values(submitted_at=at)
    move = move.where(~Job.cancel_requested, in_time, Job.lane_id == reserved.c.lane_id)
    moved = move.returning(*_KEPT, *_OF_EVENT).cte("moved")
    table = Attempt.__table__
    given = {name: bindparam(f"of_{name}", type_=table.c[name].type) for name in attempt}
    row = given | {"job_id": moved.c.id, "project_id": moved.c.project_id, "sent_at": at, "tokens": tokens}
    made = insert(Attempt).from_select(list(row), select(*row.values()).join_from(moved, reserved, true())).cte("made")
    event = _event(moved)
    found = select(at, reserved.c.is_counted, *_kept(moved), *_told(event)).add_cte(made)
    return found.select_from(reserved.outerjoin(moved, true()).outerjoin(event, true()))


def _move(columns: tuple[str, ...], tells: bool) -> Update:
    table = Job.__table__
    changed: dict[str, Any] = {name: bindparam(f"to_{name}", type_=table.c[name].type) for name in columns}
    if tells:
        changed["sequence"] = Job.sequence + 1
    guard = (Job.id == bindparam("the_id"), Job.claim == bindparam("the_claim"), Job.state == bindparam("the_state"))
    return update(Job).where(*guard).values(changed)


def _event(moved: CTE) -> CTE:
    """The event of what was moved, as `told (id, project_id, type)`."""
    given = {"type": "the_type", "left": "the_state", "why": "the_why"}
    row: dict[str, Any] = {column: bindparam(name, type_=Text) for column, name in given.items()}
    row |= {"job_id": moved.c.id, "project_id": moved.c.project_id, "sequence": moved.c.sequence}
    row |= {"entered": moved.c.state, "claim": moved.c.claim, "at": BOUND_NOW}
    told = insert(Event).from_select(list(row), select(*row.values()))
    return told.returning(Event.id, Event.project_id, Event.type).cte("told")


def _told(event: CTE) -> list[ColumnElement[Any]]:
    """What is read of an event: its number, and whether an endpoint wants it; of what happens to children none does."""
    return [event.c.id.label("event_id"), endpoints.listens(event.c.project_id, event.c.type).label("listens")]


def _answering(columns: tuple[str, ...], guard: str) -> ReturningUpdate[Any]:
    table = Attempt.__table__
    changed = {name: bindparam(f"said_{name}", type_=table.c[name].type) for name in columns}
    which = Attempt.id == bindparam("the_attempt"), _GUARDS[guard]
    # locked before it is read, as the jobs of `many`
    found = (
        select(Attempt.id, Attempt.tokens.label("booked")).where(*which).with_for_update(key_share=True).cte("found")
    )
    answering = update(Attempt).where(Attempt.id == found.c.id).values(changed)
    return answering.returning(true().label("is_written"), found.c.booked, Attempt.sent_at.expression)


def _kept(moved: CTE) -> list[ColumnElement[Any]]:
    return [moved.c[column.name] for column in _KEPT]


# What is read of a job that was moved, for itself and for its event. Not its whole row: that is at hand.
_KEPT = (Job.__table__.c.id, Job.__table__.c.sequence, Job.__table__.c.cancel_requested)
_OF_EVENT = (Job.__table__.c.project_id, Job.__table__.c.state, Job.__table__.c.claim)
_ONE = select(literal_column("1")).subquery("one")
