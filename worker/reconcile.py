"""What became of a create call whose answer was lost.

The provider has no idempotency key, so the call is never blindly made again. What the attempt's row says is looked
at first: a worker that lost its claim has written its answer there all the same. Otherwise nobody here knows, and
the job is held for a person, with its slot: the task may exist, and be billed.
"""

from __future__ import annotations

from collections.abc import Generator

from worker.context import Clock, Context
from worker.models import Attempt, Job
from worker.spans import RUNNING
from worker.states import HeldFor, Move, State


def reconcile(ctx: Context, job: Job, clock: Clock) -> Generator[Move, Job, None]:
    """One look: the task if the answer is on record, else held."""
    attempt = ctx.answer_of(job)
    if attempt is not None and attempt.outcome == "accepted" and attempt.task_id:
        yield found(job, attempt, clock)
        return
    if attempt is not None and attempt.outcome in ("not_sent", "refused"):
        yield Move(State.QUEUED, f"the attempt's row says {attempt.outcome}: nothing was made", clock())
        return
    why = "the answer of the create call was lost, so the provider may have made a task"
    yield Move(State.HELD, why, columns={"held_for": HeldFor.UNCERTAIN, "billed": "unknown"})


def found(job: Job, attempt: Attempt, clock: Clock) -> Move:
    """The move of a job whose task is known after all."""
    columns = {
        "task_id": attempt.task_id,
        "started_at": job.submitted_at,
        "deadline_at": clock() + RUNNING,
        "billed": "unknown",
    }
    return Move(State.RUNNING, "the task of the lost answer was found", columns=columns)
