"""Many looks at once: one list call tells which tasks still run.

It asks for those that are RUNNING, so that the finished ones, of which a day has thousands, fill no page. What is not
among them has ended, or is told of late, and is looked at by itself: the list never has the last word, and carries
no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from worker.context import Clock, Context
from worker.lanes import query_budget
from worker.steps import task_list
from worker.steps.task_list import Asked
from worker.tables import Job

_SKEW = timedelta(seconds=30)  # between the provider's clock and Postgres's; what lies further apart is asked singly
_PATIENCE = timedelta(seconds=10)  # for a place in the query budget
_LONGEST = timedelta(seconds=30)  # of a listing, which the message's lease has to outlast


@dataclass(frozen=True)
class Sorted:
    """What a listing says of jobs: their tasks run (each with its status), or they are to be looked at singly."""

    running: tuple[tuple[Job, str], ...]
    singly: tuple[Job, ...]


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
