"""A worker process of one life: takes a job that is due, runs its step, and dies by SIGKILL at a named point.

    python tests/crasher.py taken | answered | recorded | copied

`taken`: before the step's first line; `answered`: with the move in hand that the step ends in, not on record;
`recorded`: right after the first move is on record. Settings come from the environment, as for any worker.
"""

from __future__ import annotations

import os
import signal
import sys

from worker import claims, context, settings, steps, tick, timeouts
from worker.context import Clock
from worker.states import State
from worker.tables import Job


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(point: str) -> None:
    ctx = context.make(settings.load())
    with ctx.engine.begin() as connection:
        (message,) = tick.run(connection)
    with ctx.engine.begin() as connection:
        (row,) = claims.take(connection, Job, message.numbers, timeouts.LEASES["submit"])
    job = Job.of({name: value for name, value in row._mapping.items() if name != "now"})
    if point == "taken":
        die()
    clock = Clock(row.now)
    step = steps.of(job)(ctx, job, clock)
    move = next(step)
    if job.state == State.ADMITTED:
        job = ctx.record(job, move, clock)
        if point == "recorded":
            die()
        move = step.send(job)
    if point == "answered":
        die()
    ctx.record(job, move, clock)
    die()


if __name__ == "__main__":
    main(sys.argv[1])
