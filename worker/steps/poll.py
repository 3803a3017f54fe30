"""Polls: what follows from a look at a task, one by itself or many at once by the provider's list.

The list is asked for tasks that are RUNNING, so that the finished ones, of which a day has thousands, fill no page.
A task that is not among them has ended, or is listed late, and is fetched by itself: the list carries no result, and
its word is never final. A list waits for the fetching of what is known to have ended (`query_budget.LISTS_AHEAD`).

The documents name no largest page of the list (Alibaba docs, "Manage asynchronous tasks"), so a large one is asked for.
A first page that is shorter than asked, though there are more tasks, has the size that is accepted; it is kept for the
owner. Each page is paid for from the account's query budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from worker import kinds, log, timeouts
from worker.context import Clock, Context, Moves
from worker.dashscope import errors
from worker.dashscope.errors import Verdict
from worker.dashscope.responses import Listed, Page, Refused, TaskSeen
from worker.errors import CallFailed, ErrorClass, Failure, NotTold
from worker.lanes import query_budget
from worker.states import HeldFor, Move, State
from worker.steps import create, finish
from worker.tables import Job

REACH = timedelta(hours=24)  # how far back the list goes, and how long a window may be

_SKEW = timedelta(seconds=30)  # between the provider's clock and Postgres's; what lies further apart is asked singly
_DRIFT = timedelta(seconds=2)  # more or less than the skew that the last listing showed
_ENOUGH = 20  # tasks that tell the skew
_PATIENCE = timedelta(seconds=10)  # for a place in the query budget
_LONGEST = timedelta(seconds=30)  # of a listing, which the message's lease has to outlast
_PAUSE = 0.1  # seconds, until there may be a place in the query budget
_THROTTLED = timedelta(seconds=3)  # between a look that was throttled and the next
_LAST_LOOKS = timedelta(seconds=60)  # between looks that tell nothing
_SIZES = (100, 50, 20, 10)  # rows of a page, tried in this order where the provider refuses; 10 is its own default
_PAGES = 200  # at most; a list that needs more is not complete

_log = log.get(__name__)


class NoRoom(NotTold):
    """The account's query budget is spent."""


@dataclass(frozen=True)
class Asked:
    """Which tasks: an account's, created from `start` to `end` (at most 24 h apart), of a model as spelled there.

    With a `status` they are asked for to be looked at, which can wait.
    """

    account: str
    start: datetime
    end: datetime
    model: str | None = None
    status: str | None = None


@dataclass(frozen=True)
class Sorted:
    """What a listing says of jobs: their tasks run (each with its status), are to be fetched, or were not come to.

    Those to be fetched are in the order in which their tasks were made, so the links that die first are fetched first.
    """

    running: tuple[tuple[Job, str], ...]
    ended: tuple[Job, ...]
    unseen: tuple[Job, ...]


def step(ctx: Context, job: Job, clock: Clock) -> Moves:
    """One look at the task; a wait until the next one while it runs."""
    # the provider is not asked to cancel a task that may be another's
    if job.cancel_requested and not job.unproven and (move := _cancel(ctx, job, clock)):
        yield move
        return
    try:
        seen = ctx.client(job).task(job.task_id or "")
    except CallFailed as error:
        ctx.queries.slow(ctx.owner(job))
        yield _look_again(job, clock, f"no answer: {error}")
        return
    if isinstance(seen, Refused):
        yield _refused(ctx, job, seen, clock)
    elif seen.status == "UNKNOWN":
        yield _unknown(ctx, job, seen, clock)
    else:
        ctx.queries.sighted(ctx.owner(job))
        yield from _seen(ctx, job, seen, clock)


def sort(ctx: Context, jobs: Sequence[Job], clock: Clock) -> Sorted:
    """Sorts the running jobs of one account by the provider's list; raises NotTold, though not for want of room.

    Tasks that wait at the provider are asked for too, where the last looks found many of them waiting.
    """
    shown: dict[str, str] = {}
    listed, is_complete = [job for job in jobs if _is_listed(job, clock)], True
    for status in ("RUNNING", "PENDING"):
        left = [job for job in listed if job.task_id not in shown]
        if len([job for job in left if status in ("RUNNING", job.task_status)]) < query_budget.WORTH:
            break
        found, is_complete = _shown(ctx, left, status, clock)
        shown |= found
        if not is_complete:
            break
    running = tuple((job, shown[job.task_id or ""]) for job in listed if job.task_id in shown)
    unseen = () if is_complete else tuple(job for job in listed if job.task_id not in shown)
    told = {job.id for job, _ in running} | {job.id for job in unseen}
    ended = sorted((job for job in jobs if job.id not in told), key=_made_at)
    return Sorted(running, tuple(ended), unseen)


def still_runs(ctx: Context, job: Job, status: str, now: datetime) -> Move:
    """The wait until the next look at a task that has not ended; the end of the job, when that is long overdue."""
    if _is_overdue(job, now):
        message = f"the provider still says {status} long after its own limit of three hours"
        failure = Failure("task_overdue", ErrorClass.DEADLINE, message, billed="unknown")
        return Move(State.FAILED, message, columns={"error": failure.as_json()})
    again = query_budget.next_look(
        job.started_at or now, now, ctx.learned.times(job), ctx.queries.apart(ctx.owner(job))
    )
    return Move(State.RUNNING, run_at=again, columns={"task_status": status, "unknown_since": None})


def pages(ctx: Context, asked: Asked, patience: timedelta) -> Iterator[Page]:
    """Every page, as far as the caller reads on; raises NotTold, also when the budget is spent beyond `patience`."""
    page, size = _first(ctx, asked, patience)
    yield page
    if asked.status:
        # From the last on: tasks leave the list by and by, and those behind them move to a page that is still to come.
        last = min(math.ceil(page.total / size), _PAGES)
        yield from (_told(_page(ctx, asked, number, size, patience)) for number in range(last, 1, -1))
        return
    for number in range(2, _PAGES + 1):
        if (number - 1) * size >= page.total:
            return
        page = _told(_page(ctx, asked, number, size, patience))
        yield page


def echoes(ctx: Context, kind_name: str, model: str, stored: dict[str, Any]) -> dict[str, Any]:
    """What a task of a stored input repeats of it."""
    kind = kinds.call(kind_name)
    return kind.echoes(ctx.catalog.model(model), kind.input.model_validate(stored))


def repeated(ctx: Context, job: Job, body: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished answer repeats of its request, read as one to the job's."""
    return kinds.call(job.kind).echoed(ctx.catalog.model(job.model), body)


def differences(asked: Mapping[str, Any], echoed: Mapping[str, Any]) -> tuple[str, ...]:
    """In which words a task repeats another request."""
    shared = [name for name in sorted(asked.keys() & echoed.keys()) if asked[name] is not None]
    return tuple(name for name in shared if asked[name] != echoed[name])


def _cancel(ctx: Context, job: Job, clock: Clock) -> Move | None:
    """Asks the provider, which drops only tasks that have not started; None: no answer, ask at the next look."""
    try:
        refused = ctx.client(job).cancel(job.task_id or "")
    except CallFailed:
        return None
    if refused is None:
        attempt = {"billed": "no", "closed_at": clock()}
        return Move(State.CANCELED, "canceled at the provider", columns={"billed": "no"}, attempt=attempt)
    if refused.http_status != 400:
        return None
    why = "too late to cancel: the provider has started it, and bills it"
    return Move(State.RUNNING, why, clock(), columns={"cancel_requested": False})


def _seen(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Moves:
    """What follows from a task that the provider knows."""
    if seen.status not in finish.ENDS:
        if seen.status not in ("PENDING", "RUNNING") and seen.status not in ctx.strange:
            ctx.strange.add(seen.status)
            _log.warning("the provider names an unknown status of a task: it is waited on", status=seen.status)
        yield still_runs(ctx, job, seen.status, clock())
    elif job.unproven and (why := _disowned(ctx, job, seen)):
        # the call is lost as before, and a person has to look again
        said = {"outcome": "unknown", "task_id": None, "answered_at": None}
        columns = {"task_id": None, "task_status": None, "unproven": False, "deadline_at": None}
        yield Move(State.UNCERTAIN, why, columns=columns, attempt=said)
        yield Move(State.HELD, why, columns={"held_for": HeldFor.UNCERTAIN})
    else:
        yield finish.ended(ctx, job, seen, clock)


def _disowned(ctx: Context, job: Job, seen: TaskSeen) -> str | None:
    """Why a task that a person adopted is not the job's, now that it has ended; None: nothing in it says so."""
    if seen.status != "SUCCEEDED":
        return f"the task that was adopted is {seen.status}: it cost nothing, and does not tell whose it was"
    differ = differences(echoes(ctx, job.kind, job.model, job.input), repeated(ctx, job, seen.body))
    return f"the task that was adopted was made for another request: {', '.join(differ)} differ" if differ else None


def _unknown(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Move:
    """UNKNOWN is said of an expired task, to a key of another account, and for an instant by mistake.

    The job ends after ten minutes of such looks, if another task of the account was seen in that time: a key that sees
    no task is of another account. Otherwise it ends at its deadline.
    """
    now = clock()
    since = job.unknown_since or now
    is_believed = now - since >= timeouts.UNKNOWN_BELIEVED and ctx.queries.was_sighted_since(ctx.owner(job), since)
    if not is_believed and not _is_overdue(job, now):
        columns = {"task_status": seen.status, "unknown_since": since}
        return Move(State.RUNNING, run_at=now + _LAST_LOOKS, columns=columns)
    message = "the provider does not know the task any more; it may have been billed"
    failure = Failure("task_unknown", ErrorClass.PROVIDER, message, billed="unknown", hint=_UNKNOWN_HINT)
    columns = {"task_status": seen.status, "error": failure.as_json()}
    return Move(State.EXPIRED, message, columns=columns, attempt={"message": message})


def _refused(ctx: Context, job: Job, refused: Refused, clock: Clock) -> Move:
    """A query that was refused: the task lives on. Only a bad key or account stops anything, and then creates."""
    if query_budget.is_trouble(refused.http_status):
        ctx.queries.slow(ctx.owner(job))
    row = errors.classify(refused.http_status, refused.code, refused.message)
    why = f"HTTP {refused.http_status} {refused.code}"
    move = _look_again(job, clock, why, row)
    if row.verdict is Verdict.STOP_ACCOUNT and move.to is State.RUNNING:
        return replace(move, effects=(create.stopping(ctx, job, row, clock() + timeouts.PROBE, why),))
    return move


def _look_again(job: Job, clock: Clock, why: str, row: errors.Meaning | None = None) -> Move:
    """The wait after a look that told nothing; the end of the job, a day after its task must have ended."""
    now = clock()
    if job.deadline_at and now > job.deadline_at + timeouts.LINKS:
        message = f"the provider has told nothing of the task for a day after its end: {why}"
        failure = Failure("task_unseen", ErrorClass.PROVIDER, message, billed="unknown", hint=_UNKNOWN_HINT)
        return Move(State.EXPIRED, message, columns={"error": failure.as_json()})
    # the slower pace is enough of a wait for a query that was one too many
    wait = _THROTTLED if row is not None and row.verdict is Verdict.WAIT else timeouts.backoff(now - job.state_at)
    again_at = now + min(wait, _LAST_LOOKS)
    return Move(State.RUNNING, run_at=again_at)


def _is_overdue(job: Job, now: datetime) -> bool:
    return job.deadline_at is not None and now > job.deadline_at


def _is_listed(job: Job, clock: Clock) -> bool:
    """Whether a list may show the job's task; one that is to be canceled needs a call of its own."""
    reach = REACH - 2 * _SKEW
    return job.submitted_at is not None and clock() - job.submitted_at < reach and not job.cancel_requested


def _made_at(job: Job) -> float:
    return job.submitted_at.timestamp() if job.submitted_at else 0.0


def _shown(ctx: Context, jobs: Sequence[Job], status: str, clock: Clock) -> tuple[dict[str, str], bool]:
    """Those of the jobs' tasks that are listed as unfinished, task id → status; whether the others may be fetched."""
    wanted, shown = {job.task_id: job for job in jobs}, dict[str, str]()
    until, drifts = clock() + _LONGEST, list[timedelta]()
    try:
        for number, page in enumerate(pages(ctx, _asked(ctx, jobs, status), _PATIENCE), 1):
            ours = [row for row in page.rows if row.task_id in wanted]
            if ours:
                ctx.queries.sighted(ctx.owner(jobs[0]))
            shown |= {row.task_id: row.status for row in ours if row.status in ("RUNNING", "PENDING")}
            drifts += [_drift(wanted[row.task_id], row) for row in ours if row.created_at]
            if page.pages - number >= len(wanted) - len(shown):
                break  # fewer tasks than pages are left: it is cheaper to ask for them singly
            if clock() > until:
                return shown, False
    except NoRoom:
        return shown, False
    if len(drifts) >= _ENOUGH:
        ctx.drifts[jobs[0].account or ""] = (max(min(drifts) - _DRIFT, -_SKEW), min(max(drifts) + _DRIFT, _SKEW))
    return shown, page.pages <= _PAGES


def _drift(job: Job, row: Listed) -> timedelta:
    assert job.submitted_at, "what is listed was submitted"
    assert row.created_at, "only rows with a time are compared"
    return row.created_at - job.submitted_at


def _asked(ctx: Context, jobs: Sequence[Job], status: str) -> Asked:
    sent = [job.submitted_at for job in jobs if job.submitted_at]
    models = {job.model for job in jobs}
    region = jobs[0].region or ""
    there = ctx.catalog.model(jobs[0].model).region(region) if len(models) == 1 else None
    # A window that is wide by a minute holds many tasks beside those that are wanted.
    least, most = ctx.drifts.get(jobs[0].account or "", (-_SKEW, _SKEW))
    return Asked(ctx.account(jobs[0]).name, min(sent) + least, max(sent) + most, there.id if there else None, status)


def _first(ctx: Context, asked: Asked, patience: timedelta) -> tuple[Page, int]:
    """The first page, and the size of all."""
    owner = ctx.owners[asked.account]
    known = ctx.queries.page_size(owner)
    for size in [known] if known else _SIZES:
        answer = _page(ctx, asked, 1, size, patience)
        if isinstance(answer, Refused) and answer.http_status == 400:  # perhaps for its size
            continue
        page = _told(answer)
        cut = len(page.rows) if 0 < len(page.rows) < min(size, page.total) else size
        if cut != (known or _SIZES[0]):
            ctx.queries.cut_pages(owner, cut)
        return page, cut
    return _told(answer), size


def _page(ctx: Context, asked: Asked, number: int, size: int, patience: timedelta) -> Page | Refused:
    owner = ctx.owners[asked.account]
    _wait(ctx, owner, patience, gives_way=number == 1 and asked.status is not None)
    try:
        answer = ctx.clients[asked.account].tasks(asked.start, asked.end, number, size, asked.model, asked.status)
    except CallFailed as error:
        ctx.queries.slow(owner)
        raise NotTold(f"the task list did not come: {error}") from error
    if isinstance(answer, Refused) and query_budget.is_trouble(answer.http_status):
        ctx.queries.slow(owner)
    return answer


def _wait(ctx: Context, owner: str, patience: timedelta, gives_way: bool) -> None:
    """Waits for a place among the owner's queries, until nobody is ahead where it gives way; raises NoRoom."""
    until, ahead = time.monotonic() + patience.total_seconds(), query_budget.LISTS_AHEAD if gives_way else patience
    while True:
        booked = ctx.queries.book(owner, 1, ahead)
        if booked:
            clock = Clock(booked.now)
            clock.wait_until(booked.at)
            if clock() < booked.at + query_budget.LATE:
                return
        elif not gives_way or time.monotonic() > until:
            raise NoRoom("the account's query budget is spent")
        else:
            time.sleep(_PAUSE)


def _told(answer: Page | Refused) -> Page:
    if isinstance(answer, Refused):
        raise NotTold(f"the task list was refused: HTTP {answer.http_status} {answer.code}")
    return answer


_UNKNOWN_HINT = "look the task up in the console of the account that made it; a key of another account cannot see it"
