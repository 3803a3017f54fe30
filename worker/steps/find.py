"""What became of a create call whose answer was lost: it is looked for, never blindly made again.

The provider has no idempotency key; its list of tasks is the only witness, and carries no prompt. So, in this order:

1. The attempt's own row: a worker that lost its claim has written its answer there all the same.
2. A listed task with the request id that came with the headers, or with the provider's error: that is ours.
3. Candidates: tasks of our lane's model, created in the window, that no job has. One is ours when, finished, it
   repeats what we asked (prompt, size, duration), and fits nobody else's open request in the window; requests of one
   project that are equal to the letter may share their candidates out.
4. Absent: a complete listing that began after sent + settle, over a window that had ended, and nothing in it can be
   ours (a finished task that repeats no prompt can be). Only then may the call be made again, and once.
5. Otherwise a person decides (`held`), and the slot stays taken. So it is of a call that makes no task at all, and is
   too dear to be made again unasked (a picture).

A failed task cost nothing, so it counts as absent. No candidate is judged while it runs, nor while another call of the
lane is out: its answer would be worth more than our guess. Each of these shortcuts was tried in a model of the
protocol, and paid twice or gave one tenant another's output.

Each hour the account's list of the last day is held against all attempts (`sweep`), for tasks that the provider made
and bills, and no job waits for: somebody else made them with our key, or a call that we took for lost. They are kept
with what they cost, for `noria doctor` and whoever reads the log.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from worker import log, money, timeouts
from worker.catalog import UnknownModel
from worker.context import Clock, Context
from worker.dashscope.responses import Listed, TaskSeen
from worker.errors import CallFailed, NotTold
from worker.kinds import KINDS, CallKind
from worker.moves import attempts
from worker.settings import Account
from worker.states import HeldFor, Mode, Move, State
from worker.steps import create, finish, poll
from worker.steps.poll import REACH, Asked
from worker.tables import Attempt, Job

SKEW = timedelta(minutes=6)  # between the provider's clock and Postgres's
_PATIENCE = timedelta(minutes=1)  # for a place in the query budget
_AGAIN = timedelta(seconds=3), timedelta(seconds=60)  # between two looks: the first, and the longest
_PRICED = 20  # finished tasks of one sweep whose price is asked for; that of the others is estimated
_FREE = {"billed": "no"}

_log = log.get(__name__)


@dataclass(frozen=True)
class _Rival:
    """Another attempt of the lane without a known task, whose call was out at about the same time."""

    project_id: uuid.UUID
    is_out: bool
    request_hash: bytes
    request_id: str | None
    echoes: dict[str, Any]


@dataclass(frozen=True)
class _Listing:
    """The unbound tasks of the window; `proves_absence` when nothing that may still come could be missing."""

    rows: tuple[Listed, ...]
    proves_absence: bool


@dataclass(frozen=True)
class Swept:
    """What one sweep found: tasks that nobody owns and were not known to be so, and what they cost, micro-CNY."""

    tasks: int
    micros: int


def step(ctx: Context, job: Job, clock: Clock) -> Move:
    """What became of the call, unless its answer is on record with the result in it, or it is cheap to make again."""
    attempt = ctx.answer_of(job)
    if attempt is not None and attempt.outcome == "accepted" and attempt.output and not attempt.task_id:
        made = TaskSeen("SUCCEEDED", attempt.output["output"], {}, attempt.request_id, attempt.output)
        return finish.succeeded(ctx, job, made, clock)
    if ctx.catalog.model(job.model).repeatable:
        return create.repeated(ctx, job, "its call's answer was lost", {"outcome": "unknown"}, clock)
    assert attempt is not None, "no job is uncertain without an attempt"
    return _on_record(job, attempt, clock) or _judged(ctx, job, attempt, clock)


def sweep(ctx: Context) -> Swept:
    """Sweeps every account whose hour has come; one whose list does not come is swept again soon."""
    found = [_swept(ctx, account, clock) for account, clock in _due(ctx)]
    return Swept(sum(one.tasks for one in found), sum(one.micros for one in found))


def listed(ctx: Context, asked: Asked) -> tuple[list[Listed], bool]:
    """The provider's tasks that are asked for, and whether these are all of them; raises NotTold."""
    rows, total = dict[str, Listed](), 0
    for page in poll.pages(ctx, asked, _PATIENCE):
        rows |= {row.task_id: row for row in page.rows}
        total = page.total
    return list(rows.values()), len(rows) == total


def answer(ctx: Context, account: Account, row: Listed) -> Mapping[str, Any]:
    """What a finished task answers, which repeats some of its request; raises NotTold."""
    ctx.spend_query(account.owner)
    try:
        seen = ctx.clients[account.name].task(row.task_id)
    except CallFailed as error:
        raise NotTold(f"a candidate could not be looked at: {error}") from error
    if not isinstance(seen, TaskSeen) or seen.status != "SUCCEEDED":
        raise NotTold("a candidate could not be looked at")
    return seen.body


def unbound(ctx: Context, owner: str, rows: list[Listed]) -> list[Listed]:
    """The listed tasks that no attempt has."""
    with ctx.engine.connect() as connection:
        taken = attempts.bound(connection, owner, [row.task_id for row in rows])
    return [row for row in rows if row.task_id not in taken]


def _on_record(job: Job, attempt: Attempt, clock: Clock) -> Move | None:
    """The move that the attempt's own row asks for, if an answer is on it."""
    if attempt.outcome == "accepted" and attempt.task_id:
        return _found(job, attempt.task_id, "the answer was on the attempt's row", {}, clock)
    if attempt.outcome in ("not_sent", "refused"):
        return Move(State.QUEUED, f"the attempt's row says {attempt.outcome}: nothing was made", clock(), _FREE)
    return None


def _judged(ctx: Context, job: Job, attempt: Attempt, clock: Clock) -> Move:
    """What the provider's list says of the call."""
    began = clock()
    if job.mode == Mode.CALL:  # a list without it proves nothing, and another call would be paid for
        return _held("a call that answers with its result is in no list of tasks, so nobody can prove what it made")
    if began - attempt.sent_at > REACH - SKEW:
        return _held("the call is too old for the provider's list, so nobody can prove what became of it")
    try:
        listed = _list(ctx, job, attempt, began)
    except NotTold:
        return _later(ctx, job, attempt, clock)
    mine = [row for row in listed.rows if attempt.request_id and row.request_id == attempt.request_id]
    if mine:
        return _adopted(job, mine[0], "the task has the call's request id", clock)
    if attempt.request_id and attempt.code:
        # the provider's own error named it, so the list has it, or nothing was made
        return _absent(ctx, job, attempt, listed, clock)
    # an id of headers alone may be a gateway's, which knows nothing of the call behind it
    return _by_likeness(ctx, job, attempt, listed, clock)


def _by_likeness(ctx: Context, job: Job, attempt: Attempt, listed: _Listing, clock: Clock) -> Move:
    """What the candidates say of the call, by what they repeat of their requests."""
    rivals = _rivals(ctx, job, attempt)
    if any(rival.is_out for rival in rivals):
        return _later(ctx, job, attempt, clock)  # another call of the lane is out
    theirs = {rival.request_id for rival in rivals if rival.request_id}
    candidates = [row for row in listed.rows if row.status not in finish.UNBILLED and row.request_id not in theirs]
    if any(row.status != "SUCCEEDED" for row in candidates):
        return _later(ctx, job, attempt, clock)  # a task that may be ours still runs
    try:
        told = {row.task_id: _echoed(ctx, job, row) for row in candidates}
    except NotTold:
        return _later(ctx, job, attempt, clock)
    mine = poll.echoes(ctx, job.kind, job.model, job.input)
    possible = [row for row in candidates if _may_fit(mine, told[row.task_id])]
    others = [rival for rival in rivals if not _is_equal(job, attempt, rival)]
    for row in possible:
        contested = any(_may_fit(rival.echoes, told[row.task_id]) for rival in others)
        if _fits(mine, told[row.task_id]) and not contested:
            return _adopted(job, row, "the task repeats what this call asked, and fits no other", clock)
    if possible and listed.proves_absence:
        return _held(f"{len(possible)} tasks may be this call's, and nothing proves whose they are")
    return _absent(ctx, job, attempt, listed, clock)


def _list(ctx: Context, job: Job, attempt: Attempt, began: datetime) -> _Listing:
    """The tasks that the call may have made and that no job has; raises NotTold."""
    settled_at = attempt.sent_at + timedelta(seconds=ctx.settings.settle_seconds)
    start, end = attempt.sent_at - SKEW, min(settled_at, began) + SKEW
    rows, is_complete = listed(ctx, Asked(ctx.account(job).name, start, end, attempt.model))
    may_be_ours = unbound(ctx, attempt.owner, rows)
    return _Listing(tuple(sorted(may_be_ours, key=_created)), is_complete and began > settled_at)


def _created(row: Listed) -> float:
    return row.created_at.timestamp() if row.created_at else 0.0


def _rivals(ctx: Context, job: Job, attempt: Attempt) -> list[_Rival]:
    """The other attempts of the lane that may have made one of the tasks in the window."""
    settle = timedelta(seconds=ctx.settings.settle_seconds) + SKEW
    with ctx.engine.connect() as connection:
        rows = attempts.rivals(connection, attempt, settle)
    return [
        _Rival(
            project_id=row.project_id,
            is_out=row.closed_at is None and row.state == State.SUBMITTING,
            request_hash=row.request_hash,
            request_id=row.request_id,
            echoes=poll.echoes(ctx, row.kind, job.model, row.input),  # the lane's model, as the catalog names it
        )
        for row in rows
    ]


def _echoed(ctx: Context, job: Job, row: Listed) -> dict[str, Any]:
    """What a finished task repeats of its request; raises NotTold."""
    return poll.repeated(ctx, job, answer(ctx, ctx.account(job), row))


def _fits(asked: dict[str, Any], echoed: dict[str, Any]) -> bool:
    """Whether a task repeats a request: the prompt at least, and nothing that differs."""
    return "orig_prompt" in asked.keys() & echoed.keys() and _may_fit(asked, echoed)


def _may_fit(asked: dict[str, Any], echoed: dict[str, Any]) -> bool:
    """Whether a task contradicts nothing that was asked: some models repeat no prompt, and some calls have none."""
    return not poll.differences(asked, echoed)


def _is_equal(job: Job, attempt: Attempt, rival: _Rival) -> bool:
    return rival.project_id == job.project_id and rival.request_hash == attempt.request_hash


def _absent(ctx: Context, job: Job, attempt: Attempt, listed: _Listing, clock: Clock) -> Move:
    """Nothing in the list is ours: the call may be made again when that proves something, and once."""
    if not listed.proves_absence:
        return _later(ctx, job, attempt, clock)  # no task of ours is listed yet
    said = {"outcome": "absent", "billed": "no", "closed_at": clock()}
    if job.cancel_requested:
        return Move(State.CANCELED, "no task was made, and it was to be canceled", columns=_FREE, attempt=said)
    with ctx.engine.connect() as connection:
        again = attempts.absences(connection, job)
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


def _later(ctx: Context, job: Job, attempt: Attempt, clock: Clock) -> Move:
    """Looks again soon, then less often; and at the instant from which a listing proves something."""
    now = clock()
    settled_at = attempt.sent_at + timedelta(seconds=ctx.settings.settle_seconds + 1)
    again = now + min(max((now - job.state_at) / 4, _AGAIN[0]), _AGAIN[1])
    return Move(State.UNCERTAIN, run_at=min(again, settled_at) if settled_at > now else again)


def _due(ctx: Context) -> list[tuple[Account, Clock]]:
    """The accounts to be swept now: all of an owner, since a key may not see another workspace's tasks."""
    with ctx.engine.begin() as connection:
        due = {owner: Clock(now) for owner, now in attempts.take_sweeps(connection).items()}
    return [(account, due[account.owner]) for account in ctx.settings.all_accounts if account.owner in due]


def _swept(ctx: Context, account: Account, clock: Clock) -> Swept:
    try:
        rows = _nobodys(ctx, account, clock)
        priced = [_row(ctx, account, row, n < _PRICED, clock) for n, row in enumerate(rows)]
    except NotTold as error:
        _log.warning("the account could not be looked through for unowned tasks", owner=account.owner, why=str(error))
        with ctx.engine.begin() as connection:
            attempts.put_sweep_off(connection, account.owner)
        return Swept(0, 0)
    with ctx.engine.begin() as connection:
        new = attempts.keep_unowned(connection, account.owner, priced)
    found = Swept(len(new), sum(new))
    if found.tasks:
        spent = money.shown(found.micros)
        _log.warning("tasks that no job owns", owner=account.owner, region=account.region, tasks=found.tasks, cny=spent)
    return found


def _nobodys(ctx: Context, account: Account, clock: Clock) -> list[Listed]:
    """The listed tasks of the last day, old enough to be settled, that no attempt has."""
    settled = clock() - timedelta(seconds=ctx.settings.settle_seconds) - SKEW
    asked = Asked(account.name, clock() - REACH + timedelta(minutes=1), settled)
    return unbound(ctx, account.owner, listed(ctx, asked)[0])


def _row(ctx: Context, account: Account, row: Listed, is_asked: bool, clock: Clock) -> dict[str, Any]:
    return {
        "owner": account.owner,
        "task_id": row.task_id,
        "region": account.region,
        "model": row.model,
        "status": row.status,
        "created_at": row.created_at,
        "micros": _price(ctx, account, row, is_asked, clock().date()),
    }


def _price(ctx: Context, account: Account, row: Listed, is_asked: bool, on: date) -> int | None:
    """What the task cost, by its own answer, or as the model's default would; None when no price is known."""
    if row.status in finish.UNBILLED:
        return 0
    try:
        model = ctx.catalog.model(row.model)
    except UnknownModel:
        return None
    kind = next(kind for name in model.kinds if isinstance(kind := KINDS[name], CallKind))
    wanted = kind.input.model_construct(**model.default)
    billed: Mapping[str, Any] = {}  # what its own answer says is billed, where that comes
    if is_asked and row.status == "SUCCEEDED":
        with suppress(NotTold):
            billed = answer(ctx, account, row)
    return model.price(kind.usage(model, wanted, billed), account.region, on)
