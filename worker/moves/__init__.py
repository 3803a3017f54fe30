"""Moves on record: the one way to make a job and to move it.

`record` names the state and the claim that it leaves, and writes everything that belongs to the move (its event, the
attempt's answer, outputs, ledger lines, deliveries) in the same transaction. `fair_queue` admits jobs and `children`
moves a parent's children, many at a time; the statements of all three are `transition`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Row,
    Text,
    Uuid,
    and_,
    bindparam,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.dml import ReturningUpdate

from worker import claims, document, money, text, webhooks, work
from worker.errors import ClaimLost
from worker.lanes import slots, throttle
from worker.moves import children, transition
from worker.states import TERMINAL, HeldFor, Mode, Move, State, may
from worker.tables import Attempt, Event, Job, Output, Project

_NO_ANSWER = frozenset({"unknown", "not_sent"})
_ANSWERS = frozenset({"accepted", "refused", "not_sent"})  # that settle what became of a lost call
_UNANSWERED = ("sent", "unknown")  # outcomes that any finding is worth more than
_CANCELED = {
    "no": "canceled, and nothing was made",
    "unknown": "canceled; a call for it went without an answer, and may be billed",
    "yes": "canceled; a call for it was answered too late, and is billed",
}
_TYPES = {State.SUBMITTING: "job.submitted"}  # the event's type where it is not the state's own name


class AlreadyRecorded(Exception):  # not an error: the commit held and its answer was lost
    """The move is on record already; `job` is the row."""

    def __init__(self, job: Job) -> None:
        super().__init__(str(job.id))
        self.job = job


def make(connection: Connection, row: dict[str, Any], now: datetime) -> Job:
    """Makes a job, as its first event says; `row` is what was asked for."""
    born = {"sequence": 1, "created_at": now, "state_at": now, "run_at": now}
    job = Job.of(connection.execute(_MAKE, row | born).mappings().one())
    tell(connection, job, None, "", now)
    return job


def record(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    """Puts a move on record; the job as it is then.

    For a move to `submitting` look at what came back: it is `admitted` still when the lane's rate makes it wait,
    and `canceled` when somebody asked for that. It is `uncertain` when what was inferred of a lost call came later
    than the call's own answer. Raises ClaimLost when the row is no longer ours; what `move.attempt` says is written and
    booked all the same, so commit. Raises AlreadyRecorded when it is called again after a commit that held.
    """
    left = State(job.state)
    assert may(left, move.to), f"{left} may not become {move.to}"
    if move.to is State.SUBMITTING:
        return _begin(connection, job, move, now)
    if move.attempt is not None and not _answer(connection, job, move, now):
        return record(connection, job, Move(State.UNCERTAIN, "the call's own answer has come meanwhile", now), now)
    if job.mode == Mode.PARENT and move.to in TERMINAL:
        move = replace(move, columns={**move.columns, **children.paid(connection, job.id)})
    try:
        moved = _update(connection, job, move, now)
    except ClaimLost:
        _tell_late(connection, job, move, now)
        _free(connection, job, move, now)
        raise
    if move.outputs:
        rows = [{**output, "job_id": job.id, "project_id": job.project_id} for output in move.outputs]
        connection.execute(_OUTPUT, rows)
    for effect in move.effects:
        effect.carry_out(connection, job, now)
    if move.to is not left or move.why:
        tell(connection, moved, left, move.why, now)
    if move.to is State.RUNNING and moved.cancel_requested:
        # asked for while the create call was out: the provider drops only what has not started, so now or never
        connection.execute(_HURRY, {"the_id": job.id, "now": now})
    _release(connection, moved, left, move, now)
    if move.to is State.QUEUED and moved.cancel_requested:
        return record(connection, moved, canceled(moved), now)
    return moved


def note(connection: Connection, job: Job, columns: dict[str, Any], why: str, now: datetime) -> Job:
    """Changes columns of a job that stays in its state, under its claim, and writes an event that says why."""
    mine = update(Job).where(Job.id == job.id, Job.state == job.state, Job.claim == job.claim)
    noted = mine.values(columns | {"sequence": Job.sequence + 1}).returning(*Job.__table__.c)
    changed = Job.of(connection.execute(noted).mappings().one())
    tell(connection, changed, State(job.state), why, now)
    return changed


def canceled(job: Job) -> Move:
    """The end of a job that is to be canceled, while no call of its is out: what it may have cost is said."""
    return Move(State.CANCELED, _CANCELED[job.billed])


def record_waits(connection: Connection, waits: Sequence[tuple[Job, Move]], now: datetime) -> int:
    """Puts many waits of `running` jobs on record at once; of how many. Rows that are no longer ours are left alone."""
    if not waits:
        return 0
    looks = zip(*(_look(job, move, now) for job, move in waits), strict=True)
    return connection.execute(_WAITED, dict(zip(_LOOKS.c.keys(), map(list, looks), strict=True))).rowcount


def tell(connection: Connection, job: Job, left: State | None, why: str, now: datetime) -> None:
    """Writes the event of a move, and its delivery where the job's receiver wants it."""
    event_type = _TYPES.get(State(job.state), f"job.{job.state}") if left != job.state else "job.noted"
    said = {
        "job_id": job.id,
        "project_id": job.project_id,
        "sequence": job.sequence,
        "type": event_type,
        "left": left,
        "entered": job.state,
        "why": why,
        "claim": job.claim,
        "at": now,
    }
    event_id = connection.execute(_EVENT, said).scalar_one()
    if job.webhook_url and webhooks.wanted(event_type, job.webhook_events):
        body = _webhook_body(connection, job, event_type, now)
        webhooks.enqueue(connection, job.project_id, job.id, event_id, job.webhook_url, body)


def reread(connection: Connection, job: Job) -> Job:
    """The job's row as it is now."""
    return Job.of(connection.execute(_REREAD, {"the_id": job.id}).mappings().one())


def _begin(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    """Admitted to submitting: an attempt on record, an instant of the lane's rate booked; or a wait, or canceled."""
    assert move.attempt is not None, "a create call is an attempt"
    booking = slots.reserve(connection, job, move.attempt.get("tokens"), now)
    if booking.at is None:
        return _wait(connection, job, booking, now)
    columns = {
        "state": State.SUBMITTING,
        "state_at": now,
        "crashes": 0,
        "submitted_at": booking.at,
        "attempt_id": move.attempt["id"],
        "attempts": move.attempt["number"],
        "unproven": False,
        # a whole lease for the call: what came before it may have used this one up
        "run_at": now + work.of_create(job.mode),
    }
    row = transition.one(connection, job, State.SUBMITTING, columns, counts=True)
    if row is None:
        if booking.tokens and job.lane_id:
            throttle.settle_tokens(connection, job.lane_id, -booking.tokens, now, now)
        return _not_begun(connection, job, move, now)
    moved = Job.of(row)
    sent = {"job_id": job.id, "project_id": job.project_id, "sent_at": booking.at, "tokens": booking.tokens}
    connection.execute(_ATTEMPT, move.attempt | sent)
    tell(connection, moved, State.ADMITTED, move.why, now)
    return moved


def _wait(connection: Connection, job: Job, booking: slots.Booking, now: datetime) -> Job:
    """Keeps the slot until the lane's rate allows the create; gives it back where the lane has closed."""
    if booking.again_at is not None:
        return _update(connection, job, Move(State.ADMITTED, run_at=booking.again_at), now)
    if reread(connection, job).cancel_requested:
        return record(connection, job, canceled(job), now)
    back = Move(State.QUEUED, "gave its slot back: nothing may be sent now", columns={"tokens": booking.short})
    return record(connection, job, back, now)


def _not_begun(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    assert move.attempt is not None
    found = reread(connection, job)
    if found.state == State.SUBMITTING and found.attempt_id == move.attempt["id"]:
        return found  # our own commit, whose answer was lost
    if found.claim != job.claim or found.state != State.ADMITTED:
        raise ClaimLost(f"job {job.id} is {found.state} under claim {found.claim}")
    return record(connection, job, canceled(job), now)


def _answer(connection: Connection, job: Job, move: Move, now: datetime) -> bool:
    """Writes what a move says of the open attempt, and books its verdict; False: it was only inferred, and came late.

    By the attempt's id and whatever has become of the claim: an answer is never dropped, nor what it cost.
    """
    said = move.attempt or {}
    columns, guard = {"answered_at": now, **said}, _guard(job, said)
    bound = {f"to_{name}": value for name, value in columns.items()} | {"the_id": job.attempt_id}
    if guard == "unanswered":
        bound |= {"the_outcome": said.get("outcome"), "the_task": said.get("task_id")}
    elif guard == "its_task":
        bound |= {"the_task": job.task_id}
    row = connection.execute(_answering(tuple(columns), guard), bound).one_or_none()
    if row is None:  # what others found out meanwhile is worth more
        return guard != "unanswered"
    if "tokens" in columns:
        _settle_tokens(connection, job, row, columns["tokens"], now)
    if said.get("closed_at"):
        cost = move.columns.get("cost", job.cost)
        money.book(connection, job, job.attempt_id, said.get("billed", "no"), cost, now)
    return True


def _guard(job: Job, said: dict[str, Any]) -> str:
    """What an attempt's row must say still, for this to be written over it; the word is a key of `_GUARDS`."""
    if job.state == State.RUNNING:
        return "its_task" if "task_id" in said else "any"
    if job.state == State.HELD or (job.state == State.UNCERTAIN and "outcome" in said):
        return "unanswered"
    return "sent" if said.get("outcome") in _NO_ANSWER else "any"


def _settle_tokens(connection: Connection, job: Job, attempt: Row[Any], used: int, now: datetime) -> None:
    """Where the lane's tokens are limited; told a second time, an answer makes no difference."""
    if attempt.booked is not None and attempt.booked != used and job.lane_id:
        throttle.settle_tokens(connection, job.lane_id, used - attempt.booked, attempt.sent_at, now)


def _update(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    columns = _columns(job, move, now)
    row = transition.one(connection, job, move.to, columns, counts=move.to != job.state or bool(move.why))
    if row is not None:
        return Job.of(row)
    found = reread(connection, job)
    if found.claim == job.claim and found.state == move.to and found.sequence == job.sequence + 1:
        raise AlreadyRecorded(found)
    raise ClaimLost(f"job {job.id} is {found.state} under claim {found.claim}")


def _columns(job: Job, move: Move, now: datetime) -> dict[str, Any]:
    left = State(job.state)
    columns = {**move.columns, **transition.entered({left}, move.to, now)}
    if columns["run_at"] is not None:
        columns["run_at"] = None if move.rests else move.run_at or now
    if move.to is State.HELD:
        columns |= {"held_from": left, "held_for": move.columns.get("held_for", HeldFor.UNCERTAIN)}
    return columns


def _release(connection: Connection, job: Job, left: State, move: Move, now: datetime) -> None:
    """Gives back what was reserved, once the job's call is paid for, or it has ended and no verdict is missing."""
    if job.parent_id is not None:
        return
    said = move.attempt or {}
    is_paid = bool(said.get("closed_at")) and said.get("billed") == "yes"
    # what is copied was paid for, and its reservation given back, before
    has_ended = move.to in TERMINAL and (left is not State.COPYING or bool(said))
    if is_paid or (move.to in TERMINAL and job.mode == Mode.PARENT) or (has_ended and not _is_open(connection, job)):
        money.release(connection, job, now)


def _is_open(connection: Connection, job: Job) -> bool:
    """Whether the verdict on the job's last call is missing."""
    if job.billed != "unknown":
        return False
    closed_at = select(Attempt.closed_at).where(Attempt.id == job.attempt_id)
    return connection.execute(closed_at).scalar_one_or_none() is None


def _tell_late(connection: Connection, job: Job, move: Move, now: datetime) -> None:
    """The job's row says what a verdict said that came after the claim was lost, if it is of its last call still."""
    said = move.attempt or {}
    if not said.get("closed_at") or said.get("billed") not in ("yes", "no"):
        return
    cost = move.columns.get("cost", job.cost) if said["billed"] == "yes" else None
    told = update(Job).where(Job.id == job.id, Job.attempt_id == job.attempt_id, Job.billed != said["billed"])
    row = connection.execute(told.values(billed=said["billed"], cost=cost).returning(Job.finished_at)).one_or_none()
    if job.parent_id is not None or (row and row.finished_at):
        close(connection, job, now)


def _free(connection: Connection, job: Job, move: Move, now: datetime) -> None:
    """Lets a job go on that is held since nobody knew of its call: the answer is on the attempt's row now."""
    if (move.attempt or {}).get("outcome") not in _ANSWERS:
        return
    found = reread(connection, job)
    if found.held_for == HeldFor.UNCERTAIN and found.attempt_id == job.attempt_id:
        record(connection, found, Move(State.UNCERTAIN, "its call's own answer has come", now), now)


def close(connection: Connection, job: Job, now: datetime) -> None:
    """Closes the books of a job that has ended: gives back what was reserved, or tells its parent, once that ended."""
    if job.parent_id is None:
        money.release(connection, job, now)
    else:
        children.tell_paid(connection, job.parent_id)


def _webhook_body(connection: Connection, job: Job, event_type: str, now: datetime) -> str:
    name = connection.execute(select(Project.name).where(Project.id == job.project_id)).scalar_one()
    stored, made_of = document.outputs(connection, [job])[job.id], document.parts(connection, [job]).get(job.id)
    shown = document.shown(name, job, stored, document.request_ids(connection, [job]).get(job.id), None, made_of)
    data = shown.model_dump(mode="json", exclude={"input"})
    said = {"type": event_type, "timestamp": text.moment(now), "sequence": job.sequence, "data": data}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def _look(job: Job, move: Move, now: datetime) -> tuple[Any, ...]:
    status = move.columns.get("task_status", job.task_status)
    return (job.id, job.claim, move.run_at or now, status, move.columns.get("unknown_since"))


# Statements are built once for each set of columns: to build one costs more than to run it.

_LOOKS = claims.unnested(
    "looks",
    ids=Uuid(),
    numbers=BigInteger(),
    run_ats=DateTime(timezone=True),
    statuses=Text(),
    unknown_since=DateTime(timezone=True),
)
# puts waits of running jobs on record
_WAITED = (
    update(Job)
    .where(Job.id == _LOOKS.c.ids, Job.claim == _LOOKS.c.numbers, Job.state == State.RUNNING)
    .values(
        run_at=_LOOKS.c.run_ats,
        claimed=None,
        crashes=0,
        polls=Job.polls + 1,
        task_status=_LOOKS.c.statuses,
        unknown_since=_LOOKS.c.unknown_since,
    )
)
_MAKE = insert(Job).returning(*Job.__table__.c)
_EVENT = insert(Event).returning(Event.id)
_ATTEMPT = insert(Attempt)
_OUTPUT = upsert(Output).on_conflict_do_nothing()
_HURRY = update(Job).where(Job.id == bindparam("the_id"), Job.claimed.is_(None)).values(run_at=bindparam("now"))
_REREAD = select(*Job.__table__.c).where(Job.id == bindparam("the_id"))


_GUARDS: dict[str, ColumnElement[bool]] = {
    "any": true(),
    "sent": Attempt.outcome == "sent",
    # or what was written before, by a commit whose answer was lost
    "unanswered": or_(
        Attempt.outcome.in_(_UNANSWERED),
        and_(
            Attempt.outcome == bindparam("the_outcome", type_=Text),
            Attempt.task_id.is_not_distinct_from(bindparam("the_task", type_=Text)),
        ),
    ),
    "its_task": Attempt.task_id == bindparam("the_task", type_=Text),
}


@cache
def _answering(columns: tuple[str, ...], guard: str) -> ReturningUpdate[Any]:
    table = Attempt.__table__
    changed = {name: bindparam(f"to_{name}", type_=table.c[name].type) for name in columns}
    booked: ColumnElement[Any] = literal_column("old.tokens", BigInteger).label("booked")
    answering = update(Attempt).where(Attempt.id == bindparam("the_id"), _GUARDS[guard]).values(changed)
    return answering.returning(booked, Attempt.sent_at.expression)
