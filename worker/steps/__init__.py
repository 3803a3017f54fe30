"""What is done for a job, by its mode and state: I/O only, no SQL. Each step is a file here.

A step yields moves, and its caller puts each on record before the step's next line runs: `submitting` is on record
before the create call leaves, so whoever finds the row later knows that the call may have been made. Most steps are one
move, and return it. A step that dies leaves its row to the lease; no exception handler undoes anything. Bounds on
trying are deadlines, never a count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from worker.context import Clock, Context, Moves
from worker.states import Mode, Move, State
from worker.steps import batch, copy, create, find, parent, poll
from worker.tables import Job

Step = Callable[[Context, Job, Clock], Moves]


def _one(act: Callable[[Context, Job, Clock], Move]) -> Step:
    """The step that is one move."""

    @wraps(act)
    def step(ctx: Context, job: Job, clock: Clock) -> Moves:
        yield act(ctx, job, clock)

    return step


STEPS: dict[tuple[Mode, State], Step] = {
    (Mode.TASK, State.ADMITTED): create.step,
    (Mode.TASK, State.SUBMITTING): _one(create.lapsed),
    (Mode.TASK, State.UNCERTAIN): _one(find.step),
    (Mode.TASK, State.RUNNING): poll.step,
    (Mode.TASK, State.COPYING): _one(copy.step),
    (Mode.CALL, State.ADMITTED): create.step,
    (Mode.CALL, State.SUBMITTING): _one(create.lapsed),
    (Mode.CALL, State.UNCERTAIN): _one(find.step),
    (Mode.CALL, State.RUNNING): poll.step,
    (Mode.CALL, State.COPYING): _one(copy.step),
    (Mode.BATCH, State.ADMITTED): batch.create,
    (Mode.BATCH, State.SUBMITTING): _one(create.lapsed),
    (Mode.BATCH, State.UNCERTAIN): _one(batch.find),
    (Mode.BATCH, State.RUNNING): _one(batch.look),
    (Mode.BATCH, State.COPYING): _one(batch.copy),
    (Mode.PARENT, State.QUEUED): _one(parent.begin),
    (Mode.PARENT, State.GATHERING): parent.gather,
    (Mode.PARENT, State.COPYING): _one(parent.assemble),
}


def of(job: Job) -> Step:
    """What is to be done for the job now."""
    return STEPS[Mode(job.mode), State(job.state)]


def name(job: Job) -> str:
    """What that is called: the file that it is in."""
    return of(job).__module__.rpartition(".")[2]
