"""What became of a create call whose answer was lost. It is looked for, never blindly made again.

The provider has no idempotency key; its list of tasks is the only witness, and carries no prompt. So, in this order:

1. The attempt's own row: a worker that lost its claim has written its answer there all the same.
2. A listed task with the request id that came with the headers, or with the provider's error: that is ours.
3. Candidates: tasks of our lane's model, created in the window, that no job has. One is ours when, finished, it
   repeats what we asked (prompt, size, duration), and nobody else's open request in the window would fit it as well;
   requests that are equal to the letter, in one project, may share their candidates out.
4. Absent: a complete listing that began after sent + settle, over a window that had ended, and nothing in it can be
   ours (a finished task that repeats no prompt can be). Only then may the call be made again, and once.
5. Otherwise a person decides (`held`), and the slot stays taken; so of a call that makes no task at all, and is too
   dear to be made again unasked (a picture).

A failed task cost nothing, so it is as good as absent. No candidate is judged while it runs, nor while another call
of the lane is out: its answer would beat our guess. Each of these shortcuts was tried in a model of the protocol, and
paid twice or handed one tenant another's output.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, or_, select

from worker import kinds, moves, timeouts
from worker.context import Clock, Context, Moves
from worker.dashscope.responses import Listed, TaskSeen
from worker.errors import CallFailed, NotTold
from worker.states import HeldFor, Mode, Move, State
from worker.steps import create, finish, task_list
from worker.steps.task_list import REACH, Asked
from worker.tables import Attempt, Job

SKEW = timedelta(minutes=6)  # between the provider's clock and Postgres's
_PATIENCE = timedelta(minutes=1)  # for a place in the query budget
_UNBILLED = frozenset({"FAILED", "CANCELED"})
_AGAIN = timedelta(seconds=3), timedelta(seconds=60)  # between two looks: the first, and the longest


@dataclass(frozen=True)
class _Rival:
    """Another attempt of the lane without a known task, whose call was out at about the same time."""

    job_id: uuid.UUID
    project_id: uuid.UUID
    state: str
    request_hash: bytes
    request_id: str | None
    echoes: dict[str, Any]


@dataclass(frozen=True)
class _Listing:
    """The unbound tasks of the window; `proves_absence` when nothing that may still come could be missing."""

    rows: tuple[Listed, ...]
    proves_absence: bool


def step(ctx: Context, job: Job, clock: Clock) -> Moves:
    """What became of the call, unless its answer is on record with the result in it, or it is cheap to make again."""
    attempt = ctx.answer_of(job)
    if attempt is not None and attempt.outcome == "accepted" and attempt.output and not attempt.task_id:
        made = TaskSeen("SUCCEEDED", attempt.output["output"], {}, attempt.request_id, attempt.output)
        yield finish.succeeded(ctx, job, made, clock, {})
    elif ctx.catalog.model(job.model).repeatable:
        yield create.repeated(ctx, job, "its call's answer was lost", {"outcome": "unknown"}, clock)
    else:
        yield from reconcile(ctx, job, clock)


def reconcile(ctx: Context, job: Job, clock: Clock) -> Moves:
    """One look for the task of a lost answer; ends in a find, in proved absence, in a wait, or with a person."""
    attempt = ctx.answer_of(job)
    assert attempt is not None, "no job is uncertain without an attempt"
    yield _on_record(job, attempt, clock) or _judged(ctx, job, attempt, clock)


def _on_record(job: Job, attempt: Attempt, clock: Clock) -> Move | None:
    """The move that the attempt's own row asks for, if an answer is on it."""
    if attempt.outcome == "accepted" and attempt.task_id:
        return _found(job, attempt.task_id, "the answer was on the attempt's row", {}, clock)
    if attempt.outcome in ("not_sent", "refused"):
        return Move(State.QUEUED, f"the attempt's row says {attempt.outcome}: nothing was made", clock(), _FREE)
    return None


def _judged(ctx: Context, job: Job, attempt: Attempt, clock: Clock) -> Move:
    began = clock()
    if job.mode == Mode.CALL:  # a list without it proves nothing, and another call would be paid for
        return _held("a call that answers with its result is in no list of tasks, so nobody can prove what it made")
    if began - attempt.sent_at > REACH - SKEW:
        return _held("the call is too old for the provider's list, so nobody can prove what became of it")
    try:
        listed = _list(ctx, job, attempt, began)
    except NotTold as error:
        return _later(ctx, job, attempt, clock, str(error))
    mine = [row for row in listed.rows if attempt.request_id and row.request_id == attempt.request_id]
    if mine:
        return _adopted(job, mine[0], "the task has the call's request id", clock)
    if (
        attempt.request_id and attempt.code
    ):  # the provider's own error named it, so the list has it, or nothing was made
        return _absent(ctx, job, attempt, listed, clock)
    # an id of headers alone may be a gateway's, of a page that says nothing of the call behind it
    return _by_likeness(ctx, job, attempt, listed, clock)


def _by_likeness(ctx: Context, job: Job, attempt: Attempt, listed: _Listing, clock: Clock) -> Move:
    rivals = _rivals(ctx, job, attempt)
    if any(rival.state == State.SUBMITTING for rival in rivals):
        return _later(ctx, job, attempt, clock, "another call of the lane is out")
    theirs = {rival.request_id for rival in rivals if rival.request_id}
    candidates = [row for row in listed.rows if row.status not in _UNBILLED and row.request_id not in theirs]
    if any(row.status != "SUCCEEDED" for row in candidates):
        return _later(ctx, job, attempt, clock, "a task that may be ours still runs")
    try:
        told = {row.task_id: _echoed(ctx, job, row) for row in candidates}
    except NotTold as error:
        return _later(ctx, job, attempt, clock, str(error))
    mine = _echoes(ctx, job)
    possible = [row for row in candidates if may_fit(mine, told[row.task_id])]
    others = [rival for rival in rivals if not _is_equal(job, attempt, rival)]
    for row in possible:
        contested = any(may_fit(rival.echoes, told[row.task_id]) for rival in others)
        if fits(mine, told[row.task_id]) and not contested:
            return _adopted(job, row, "the task repeats what this call asked, and fits no other", clock)
    if possible and listed.proves_absence:
        return _held(f"{len(possible)} tasks may be this call's, and nothing proves whose they are")
    return _absent(ctx, job, attempt, listed, clock)


def _list(ctx: Context, job: Job, attempt: Attempt, began: datetime) -> _Listing:
    """The tasks that the call may have made and that no job has; raises NotTold."""
    settled_at = attempt.sent_at + timedelta(seconds=ctx.settings.settle_seconds)
    start, end = attempt.sent_at - SKEW, min(settled_at, began) + SKEW
    rows, total = dict[str, Listed](), 0
    for page in task_list.pages(ctx, Asked(ctx.account(job).name, start, end, attempt.model), _PATIENCE):
        rows |= {row.task_id: row for row in page.rows}
        total = page.total
    complete = len(rows) == total
    with ctx.engine.connect() as connection:
        taken = bound(connection, attempt.owner, list(rows))
    unbound = tuple(sorted((row for row in rows.values() if row.task_id not in taken), key=_created))
    return _Listing(unbound, complete and began > settled_at)


def _created(row: Listed) -> float:
    return row.created_at.timestamp() if row.created_at else 0.0


def bound(connection: Connection, owner: str, task_ids: Sequence[str]) -> set[str]:
    """Those of the tasks that an attempt has."""
    statement = select(Attempt.task_id).where(Attempt.owner == owner, Attempt.task_id.in_(task_ids))
    return {task_id for task_id in connection.execute(statement).scalars() if task_id}


def _rivals(ctx: Context, job: Job, attempt: Attempt) -> list[_Rival]:
    """The other attempts of the lane that may have made one of the tasks in the window."""
    settle = timedelta(seconds=ctx.settings.settle_seconds) + SKEW
    statement = (
        select(*_RIVAL)
        .join(Job, Job.id == Attempt.job_id)
        .where(
            Attempt.owner == attempt.owner,
            Attempt.model == attempt.model,
            # what was called absent is a rival still: that verdict may have been wrong
            or_(Attempt.closed_at.is_(None), Attempt.outcome == "absent"),
            Attempt.task_id.is_(None),
            Attempt.id != attempt.id,
            Attempt.sent_at.between(attempt.sent_at - settle, attempt.sent_at + settle),
        )
    )
    with ctx.engine.connect() as connection:
        rows = connection.execute(statement).all()
    return [
        _Rival(
            job_id=row.id,
            project_id=row.project_id,
            state=row.state if row.closed_at is None else "",
            request_hash=row.request_hash,
            request_id=row.request_id,
            echoes=asked(ctx, row.kind, job.model, row.input),
        )
        for row in rows
    ]


def _echoes(ctx: Context, job: Job) -> dict[str, Any]:
    return asked(ctx, job.kind, job.model, job.input)


def asked(ctx: Context, kind_name: str, model: str, stored: dict[str, Any]) -> dict[str, Any]:
    """What a task of a stored input repeats of it."""
    kind = kinds.call(kind_name)
    return kind.echoes(ctx.catalog.model(model), kind.input.model_validate(stored))


def repeated(ctx: Context, job: Job, body: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished answer repeats of its request, read as one to the job's."""
    return kinds.call(job.kind).echoed(ctx.catalog.model(job.model), body)


def _echoed(ctx: Context, job: Job, row: Listed) -> dict[str, Any]:
    """What a finished task repeats of its request; raises NotTold."""
    ctx.spend_query(ctx.owner(job))
    try:
        seen = ctx.client(job).task(row.task_id)
    except CallFailed as error:
        raise NotTold(f"a candidate could not be looked at: {error}") from error
    if not isinstance(seen, TaskSeen) or seen.status != "SUCCEEDED":
        raise NotTold("a candidate could not be looked at")
    return repeated(ctx, job, seen.body)


def fits(asked: dict[str, Any], echoed: dict[str, Any]) -> bool:
    """Whether a task repeats a request: the prompt at least, and nothing that differs."""
    return "orig_prompt" in asked.keys() & echoed.keys() and may_fit(asked, echoed)


def may_fit(asked: dict[str, Any], echoed: dict[str, Any]) -> bool:
    """Whether a task contradicts nothing that was asked: some models repeat no prompt, and some calls have none."""
    return not differences(asked, echoed)


def differences(asked: Mapping[str, Any], echoed: Mapping[str, Any]) -> tuple[str, ...]:
    """In which words a task repeats another request."""
    shared = [name for name in sorted(asked.keys() & echoed.keys()) if asked[name] is not None]
    return tuple(name for name in shared if asked[name] != echoed[name])


def disowned(ctx: Context, job: Job, seen: TaskSeen) -> str | None:
    """Why a task that a person adopted is not the job's, now that it has ended; None: it may be, as far as it tells."""
    if seen.status in _UNBILLED:
        return f"the task that was adopted is {seen.status}, so it cost nothing and tells not whose it was"
    differ = differences(_echoes(ctx, job), repeated(ctx, job, seen.body))
    return f"the task that was adopted was made for another request: {', '.join(differ)} differ" if differ else None


def give_up_task(job: Job, why: str) -> Iterator[Move]:
    """The moves of a job whose task is another's: its call is lost as before, and a person has to look again."""
    said = {"outcome": "unknown", "task_id": None, "answered_at": None}
    columns = {"task_id": None, "task_status": None, "unproven": False, "deadline_at": None}
    yield Move(State.UNCERTAIN, why, columns=columns, attempt=said)
    yield _held(why)


def _is_equal(job: Job, attempt: Attempt, rival: _Rival) -> bool:
    return rival.project_id == job.project_id and rival.request_hash == attempt.request_hash


def _absent(ctx: Context, job: Job, attempt: Attempt, listed: _Listing, clock: Clock) -> Move:
    """Nothing in the list is ours: the call may be made again when that proves something, and once."""
    if not listed.proves_absence:
        return _later(ctx, job, attempt, clock, "no task of ours is listed yet")
    said = {"outcome": "absent", "billed": "no", "closed_at": clock()}
    if job.cancel_requested:
        return Move(State.CANCELED, "no task was made, and it was to be canceled", columns=_FREE, attempt=said)
    with ctx.engine.connect() as connection:
        again = moves.absences(connection, job)
    if again:
        return _held("two calls were lost and no task of theirs is listed: a person should look before a third")
    return Move(State.QUEUED, "proved absent by a complete listing: nothing was made", clock(), _FREE, said)


def _adopted(job: Job, row: Listed, why: str, clock: Clock) -> Move:
    said = {"outcome": "accepted", "task_id": row.task_id, "request_id": row.request_id}
    return _found(job, row.task_id, why, said, clock)


def _found(job: Job, task_id: str, why: str, said: dict[str, Any], clock: Clock) -> Move:
    columns = {
        "task_id": task_id,
        "started_at": job.submitted_at,
        "deadline_at": clock() + timeouts.RUNNING,
        "billed": "unknown",
    }
    return Move(State.RUNNING, f"found: {why}", clock(), columns, said or None)


def _held(why: str) -> Move:
    return Move(State.HELD, why, columns={"held_for": HeldFor.UNCERTAIN})


def _later(ctx: Context, job: Job, attempt: Attempt, clock: Clock, why: str) -> Move:
    """Looks again soon, then less often; and at the instant from which a listing proves something."""
    now = clock()
    settled_at = attempt.sent_at + timedelta(seconds=ctx.settings.settle_seconds + 1)
    again = now + min(max((now - job.state_at) / 4, _AGAIN[0]), _AGAIN[1])
    return Move(State.UNCERTAIN, run_at=min(again, settled_at) if settled_at > now else again)


_FREE = {"billed": "no"}
_RIVAL = (
    Attempt.request_hash,
    Attempt.request_id,
    Attempt.closed_at,
    Job.id,
    Job.project_id,
    Job.state,
    Job.kind,
    Job.input,
)
