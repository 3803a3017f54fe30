"""What a person decides where nobody can prove what became of a create call, or where workers died on a job.

A task that matches the job is adopted as its own, or the call is declared to have made nothing, or the job is given
up. Each decision is a move like any other, with the key that decided in its history. It takes the job's claim, so a
worker that looks for the task at that moment writes nothing. A task that is adopted while it runs is compared with the
request once it has ended, before anything is copied.

A job that has ended may have calls of which nobody knows whether they were billed: the provider forgot the task, or
never told of its end, or never answered a call that cannot be looked up. Until a person decides, such a call stays
charged; and where a task may live, the job is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, or_, select, update
from sqlalchemy.exc import IntegrityError

from worker import claims, money, moves, timeouts
from worker.context import Context
from worker.dashscope.responses import Listed, Refused, TaskSeen
from worker.errors import CallFailed, Conflict, ErrorClass, Failure, NotTold
from worker.moves import attempts
from worker.states import TERMINAL, HeldFor, Mode, Move, State
from worker.steps import batch, find, poll
from worker.steps.poll import Asked
from worker.tables import Attempt, Job

_PATIENCE = timedelta(seconds=10)  # for a place in the query budget
_LOOKED_AT = 20  # candidates, of which each costs a query
_BILLED = ("yes", "no")
_SAY_BILLED = "the call may have cost money: say whether it did, as billed yes or no"

# Where a job goes back to on which workers died: what had a slot waits for one again.
_BACK_TO = {
    State.QUEUED: State.QUEUED,
    State.ADMITTED: State.QUEUED,
    State.UNCERTAIN: State.UNCERTAIN,
    State.GATHERING: State.GATHERING,
    State.COPYING: State.COPYING,
}


class Action(StrEnum):
    """What may be decided."""

    ADOPT = "adopt"  # this task is the job's
    REQUEUE = "requeue"  # its call made nothing: make it again; or work on it again, where workers died
    GIVE_UP = "give_up"  # the job has failed; or it has ended already, and nobody else will say what its call cost


@dataclass(frozen=True)
class Decision:
    """An action, by whom; `task_id` for adopt, `billed` ("yes", "no") for what is given up and may have cost money."""

    action: Action
    by: str
    task_id: str | None = None
    billed: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A task that no job has, of the call's model and time. `differs`: what it repeats of another request.

    None is not known: it has not ended, or repeats nothing.
    """

    task_id: str
    request_id: str | None
    status: str
    created_at: datetime | None
    differs: tuple[str, ...] | None


def candidates(ctx: Context, job: Job) -> list[Candidate]:
    """The tasks that the job's open call may have made, oldest first; raises Conflict, NotTold."""
    if job.state in TERMINAL:
        _check_unbilled(ctx, job)
        return []
    _check_resolvable(job)
    attempt = _open_attempt(ctx, job)
    if attempt is None:
        return []
    rows = _unbound(ctx, job, attempt)
    return [_candidate(ctx, job, row, n < _LOOKED_AT) for n, row in enumerate(rows)]


def decide(ctx: Context, job: Job, decision: Decision) -> Move:
    """The move that a decision asks for, checked; nothing is done. Raises Conflict with why not, NotTold."""
    why = f"{decision.action} decided by {decision.by}"
    if job.state in TERMINAL:
        return _verdict(ctx, job, decision, why)
    _check_resolvable(job)
    attempt = _open_attempt(ctx, job)
    if decision.action is not Action.ADOPT and _is_answered(ctx, job):
        return Move(State.UNCERTAIN, f"{why}, but its call's own answer has come meanwhile")
    match decision.action:
        case Action.ADOPT:
            return _adopted(ctx, job, attempt, decision.task_id or "", why)
        case Action.REQUEUE:
            return _requeued(job, attempt, why)
        case Action.GIVE_UP:
            _check_parts(ctx, job)
            return _given_up(job, attempt, decision.billed, why)


def carry_out(ctx: Context, job: Job, move: Move) -> Job:
    """Puts the decision on record; raises Conflict when the job has moved since it was read."""
    try:
        with ctx.engine.begin() as connection:
            now: datetime = connection.execute(select(claims.NOW)).scalar_one()
            mine = claims.seize(connection, job)
            if mine is None:
                raise Conflict("moved_on", "the job has moved since: look again")
            if job.state in TERMINAL:
                return _close(connection, mine, (move.attempt or {})["billed"], move.why, now)
            return moves.record(connection, mine, _at(job, move, now), now)
    except IntegrityError as error:
        if not attempts.is_taken(error):
            raise
        raise Conflict("task_taken", "the task is another job's") from error


def _check_resolvable(job: Job) -> None:
    is_held = job.state == State.HELD and job.held_for in (HeldFor.UNCERTAIN, HeldFor.CRASHES)
    if not is_held and job.state != State.UNCERTAIN:
        why = f"held for {job.held_for}" if job.state == State.HELD else job.state
        raise Conflict("nothing_to_resolve", f"the job is {why}: only uncertain jobs and those that are held")


def _check_unbilled(ctx: Context, job: Job) -> None:
    last = and_(Attempt.id == job.attempt_id, Attempt.closed_at.is_(None))
    missing = select(Attempt.id).where(or_(last, _unknown(job)) if job.billed == "unknown" else last)
    with ctx.engine.connect() as connection:
        is_missing = connection.execute(missing.limit(1)).first() is not None
    if not is_missing:
        raise Conflict("nothing_to_resolve", f"the job is {job.state}, and whether its call cost money is known")


def _check_parts(ctx: Context, job: Job) -> None:
    if job.mode == Mode.PARENT and ctx.children(job).unfinished:
        raise Conflict("has_parts", "its parts are at work, and may be billed: cancel it instead")


def _open_attempt(ctx: Context, job: Job) -> Attempt | None:
    """The call of which nobody knows what became."""
    attempt = ctx.answer_of(job) if job.attempt_id else None
    return attempt if attempt and attempt.closed_at is None and attempt.task_id is None else None


def _is_answered(ctx: Context, job: Job) -> bool:
    """Whether a call is accepted, by an answer that came late: nobody needs to decide any more."""
    attempt = ctx.answer_of(job) if job.attempt_id and job.held_for != HeldFor.CRASHES else None
    return attempt is not None and attempt.outcome == "accepted"


def _unbound(ctx: Context, job: Job, attempt: Attempt) -> list[Listed]:
    """What the provider lists that the call may have made, and no job has; raises NotTold."""
    if job.mode == Mode.BATCH:
        return _named(ctx, job, attempt)
    settled = attempt.sent_at + timedelta(seconds=ctx.settings.settle_seconds)
    asked = Asked(ctx.account(job).name, attempt.sent_at - find.SKEW, settled + find.SKEW, attempt.model)
    rows = [row for page in poll.pages(ctx, asked, _PATIENCE) for row in page.rows]
    unbound = find.unbound(ctx, attempt.owner, rows)
    return sorted(unbound, key=lambda row: (str(row.created_at), row.task_id))


def _named(ctx: Context, job: Job, attempt: Attempt) -> list[Listed]:
    """The batch of the call's name, which no other has."""
    try:
        found = ctx.client(job).batches.find(str(attempt.id), attempt.sent_at)
    except CallFailed as error:
        raise NotTold(f"the list of batches did not come: {error}") from error
    if isinstance(found, Refused):
        raise NotTold(f"the list of batches was refused: HTTP {found.http_status} {found.code}")
    if found is None:
        return []
    return [Listed(found.id, attempt.request_id, attempt.model, found.status, found.created_at)]


def _candidate(ctx: Context, job: Job, row: Listed, is_looked_at: bool) -> Candidate:
    differs = _differs(ctx, job, row) if is_looked_at else None
    return Candidate(row.task_id, row.request_id, row.status, row.created_at, differs)


def _differs(ctx: Context, job: Job, row: Listed) -> tuple[str, ...] | None:
    """In which words the task repeats another request; None when it has not ended, or repeats no prompt.

    Raises NotTold. A batch is found by its name, which differs in nothing.
    """
    if job.mode == Mode.BATCH:
        return ()
    if row.status != "SUCCEEDED":
        return None
    ctx.spend_query(ctx.owner(job))
    try:
        seen = ctx.client(job).task(row.task_id)
    except CallFailed as error:
        raise NotTold(f"the task could not be looked at: {error}") from error
    if not isinstance(seen, TaskSeen):
        raise NotTold(f"the task could not be looked at: HTTP {seen.http_status} {seen.code}")
    asked = poll.echoes(ctx, job.kind, job.model, job.input)
    echoed = poll.repeated(ctx, job, seen.body)
    differ = poll.differences(asked, echoed)
    return differ if differ or "orig_prompt" in echoed else None


def _adopted(ctx: Context, job: Job, attempt: Attempt | None, task_id: str, why: str) -> Move:
    if attempt is None:
        raise Conflict("no_open_call", "no call of the job's is open, so no task can be its own")
    with ctx.engine.connect() as connection:
        if attempts.bound(connection, attempt.owner, [task_id]):
            raise Conflict("task_taken", "the task is another job's")
    row = next((row for row in _unbound(ctx, job, attempt) if row.task_id == task_id), None)
    if row is None:
        window = f"within {find.SKEW} of the call at {attempt.sent_at:%Y-%m-%d %H:%M:%S} UTC"
        raise Conflict("task_not_listed", f"the provider lists no such task of {attempt.model}, made {window}")
    if row.status in ("FAILED", "CANCELED"):
        raise Conflict("task_failed", f"the task is {row.status} and cost nothing: requeue the job instead")
    if differs := _differs(ctx, job, row):
        raise Conflict("task_differs", f"the task was made for another request: {', '.join(differs)} differ")
    is_compared = job.mode == Mode.BATCH or row.status == "SUCCEEDED"  # else once it has ended
    columns = {"task_id": task_id, "started_at": job.submitted_at, "billed": "unknown", "unproven": not is_compared}
    # of what may be another's task the request id is not kept: the call's own is looked for still
    said = {"outcome": "accepted", "task_id": task_id} | ({"request_id": row.request_id} if is_compared else {})
    return Move(State.RUNNING, f"{why}: task {task_id}", columns=columns, attempt=said)


def _requeued(job: Job, attempt: Attempt | None, why: str) -> Move:
    if job.held_for == HeldFor.CRASHES:
        return Move(_BACK_TO[State(job.held_from or "")], why)
    said = {"outcome": "absent", "billed": "no", "message": why} if attempt else None
    return Move(State.QUEUED, f"{why}: its call made nothing", columns={"billed": "no"}, attempt=said)


def _given_up(job: Job, attempt: Attempt | None, billed: str | None, why: str) -> Move:
    if attempt is None:
        return Move(State.FAILED, why, columns={"error": _failure(why, job.billed)})
    if billed not in _BILLED:
        raise Conflict("billed_required", _SAY_BILLED)
    # with an outcome, since it is inferred: an answer that comes first is worth more
    said = {"outcome": "unknown", "billed": billed}
    return Move(State.FAILED, why, columns={"billed": billed, "error": _failure(why, billed)}, attempt=said)


def _verdict(ctx: Context, job: Job, decision: Decision, why: str) -> Move:
    """What the last call of a job cost that has ended, so that it can be made again."""
    _check_unbilled(ctx, job)
    if decision.action is not Action.GIVE_UP:
        raise Conflict("has_ended", f"the job is {job.state}: give its call up, billed or not, and retry the job")
    if decision.billed not in _BILLED:
        raise Conflict("billed_required", _SAY_BILLED)
    return Move(State(job.state), f"{why}: billed {decision.billed}", attempt={"billed": decision.billed})


def _close(connection: Connection, job: Job, billed: str, why: str, now: datetime) -> Job:
    """Closes the calls of a job that has ended as billed ("yes", "no"), and books them; the job stays in its state."""
    close = update(Attempt).where(_unknown(job)).values(billed=billed, closed_at=now).returning(Attempt.id)
    closed = connection.execute(close).scalars().all()
    if not closed:
        raise Conflict("moved_on", "its call's own answer has come meanwhile: look again")
    for attempt_id in closed:
        is_last = attempt_id == job.attempt_id
        bill = money.Bill(billed, job.cost, job.usage) if is_last else money.Bill(billed)
        money.book(connection, job, attempt_id, bill, now)
    ended = moves.note(connection, job, {"billed": billed}, why, now)
    moves.close(connection, ended, now)
    return ended


def _unknown(job: Job) -> ColumnElement[bool]:
    """The job's calls of which it is not known whether they were billed."""
    return and_(Attempt.job_id == job.id, or_(Attempt.closed_at.is_(None), Attempt.billed == "unknown"))


def _failure(why: str, billed: str) -> dict[str, Any]:
    return Failure("given_up", ErrorClass.INTERNAL, why, billed=billed).as_json()


def _at(job: Job, move: Move, now: datetime) -> Move:
    """The move with what depends on the instant."""
    if move.to is State.RUNNING and job.mode == Mode.BATCH:
        return batch.accepted(job, move, now)
    columns, attempt = dict(move.columns), dict(move.attempt) if move.attempt else None
    if move.to is State.RUNNING:
        columns["deadline_at"] = now + timeouts.RUNNING
    elif attempt is not None:
        attempt["closed_at"] = now
    return Move(move.to, move.why, now, columns, attempt)
