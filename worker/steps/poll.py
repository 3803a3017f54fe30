"""Looks at tasks: one by itself, and many at once, where one list call tells which still run.

The list call asks for those that are RUNNING, so that the finished ones, of which a day has thousands, fill no page.
What is not among them has ended, or is told of late, and is looked at by itself: the list never has the last word, and
carries no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from worker.context import Clock, Context, Moves
from worker.dashscope.responses import Refused
from worker.errors import CallFailed
from worker.lanes import query_budget
from worker.states import Move, State
from worker.steps import finish, task_list
from worker.steps.find import disowned, give_up_task
from worker.steps.task_list import Asked
from worker.tables import Job

_ENDS = frozenset({"SUCCEEDED", "FAILED", "CANCELED"})  # of a task, in the provider's words
_SKEW = timedelta(seconds=30)  # between the provider's clock and Postgres's; what lies further apart is asked singly
_PATIENCE = timedelta(seconds=10)  # for a place in the query budget
_LONGEST = timedelta(seconds=30)  # of a listing, which the message's lease has to outlast


@dataclass(frozen=True)
class Sorted:
    """What a listing says of jobs: their tasks run (each with its status), or they are to be looked at singly."""

    running: tuple[tuple[Job, str], ...]
    singly: tuple[Job, ...]


def step(ctx: Context, job: Job, clock: Clock) -> Moves:
    """One look at the task; a wait until the next one while it runs."""
    # of what may be another's task, nobody is asked to cancel it
    if job.cancel_requested and not job.unproven and (move := _cancel(ctx, job, clock)):
        yield move
        return
    try:
        told = ctx.client(job).task(job.task_id or "")
    except CallFailed as error:
        ctx.queries.slow(ctx.owner(job))
        yield finish.look_again(job, clock, f"no answer: {error}")
        return
    if isinstance(told, Refused):
        yield finish.not_told(ctx, job, told, clock)
        return
    if told.status != "UNKNOWN":
        ctx.queries.sighted(ctx.owner(job))
    if job.unproven and told.status in _ENDS and (why := disowned(ctx, job, told)):
        yield from give_up_task(job, why)
        return
    yield finish.move(ctx, job, told, clock)


def sort(ctx: Context, jobs: Sequence[Job], clock: Clock) -> Sorted:
    """Sorts the running jobs of one account by the provider's list; raises NotTold.

    Tasks that wait at the provider are asked for too, where it said of many, when it last did, that they wait.
    """
    shown: dict[str, str] = {}
    listed = [job for job in jobs if _is_listed(job, clock)]
    for status in ("RUNNING", "PENDING"):
        unseen = [job for job in listed if job.task_id not in shown]
        if len([job for job in unseen if status in ("RUNNING", job.task_status)]) < query_budget.WORTH:
            break
        shown |= _shown(ctx, unseen, status, clock)
    running = tuple((job, shown[job.task_id or ""]) for job in listed if job.task_id in shown)
    told = {job.id for job, _ in running}
    return Sorted(running, tuple(job for job in jobs if job.id not in told))


def _is_listed(job: Job, clock: Clock) -> bool:
    """Whether a list may show the job's task; one that is to be canceled wants a call of its own."""
    reach = task_list.REACH - 2 * _SKEW
    return job.submitted_at is not None and clock() - job.submitted_at < reach and not job.cancel_requested


def _shown(ctx: Context, jobs: Sequence[Job], status: str, clock: Clock) -> dict[str, str]:
    """Those of the jobs' tasks that are listed as unfinished: task id → status."""
    wanted, shown = {job.task_id for job in jobs}, dict[str, str]()
    until = clock() + _LONGEST
    for number, page in enumerate(task_list.pages(ctx, _asked(ctx, jobs, status), _PATIENCE), 1):
        ours = {row.task_id: row.status for row in page.rows if row.task_id in wanted}
        if ours:
            ctx.queries.sighted(ctx.owner(jobs[0]))
        shown |= {task_id: said for task_id, said in ours.items() if said in ("RUNNING", "PENDING")}
        # what is left is cheaper asked singly than by the pages that are left
        pages_left = page.pages - number
        if pages_left >= len(wanted - shown.keys()) or clock() > until:
            break
    return shown


def _asked(ctx: Context, jobs: Sequence[Job], status: str) -> Asked:
    sent = [job.submitted_at for job in jobs if job.submitted_at]
    models = {job.model for job in jobs}
    region = jobs[0].region or ""
    there = ctx.catalog.model(jobs[0].model).region(region) if len(models) == 1 else None
    return Asked(ctx.account(jobs[0]).name, min(sent) - _SKEW, max(sent) + _SKEW, there.id if there else None, status)


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
