"""A worker process of one life: takes one job that is due, runs its step, and dies by SIGKILL at a named point.

    python tests/killer.py JOB taken | made | recorded | answered | ended | storing

`taken`: before the step's first line; `made`: with its first move in hand; `recorded`: with that on record; `answered`:
with its last move in hand; `ended`: with that on record, and nobody told; `storing`: with the most of an output on its
way into the bucket. Settings come from the environment, as for any worker.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from worker import claims, context, settings, steps, tick, timeouts
from worker.context import Clock, Context
from worker.states import State
from worker.storage import Bucket
from worker.tables import Job

ENOUGH = 17 << 20  # bytes: the first parts of a large object are in the bucket by then


class Fatal(Bucket):
    """A bucket that kills whoever stores something in it, at 17 MB or at the last byte."""

    def put_stream(self, key: str, chunks: Iterable[bytes], *more: Any) -> Any:
        """Nothing: the process is dead."""
        return super().put_stream(key, _fatal(chunks), *more)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(job_id: str, point: str) -> None:
    ctx = context.make(settings.load())
    job, clock = taken(ctx, uuid.UUID(job_id))
    if point == "taken":
        die()
    if point == "storing":
        ctx = replace(ctx, bucket=Fatal(ctx.settings))
    step = steps.of(job)(ctx, job, clock)
    move = next(step)
    if point == "made":
        die()
    while True:
        is_call = move.to is State.SUBMITTING
        if point == "answered" and not is_call:
            die()
        job = ctx.record(job, move, clock)
        if point == "recorded" or (point == "ended" and not is_call):
            die()
        move = step.send(job)


def taken(ctx: Context, job_id: uuid.UUID) -> tuple[Job, Clock]:
    with ctx.engine.begin() as connection:
        messages = tick.run(connection)
    (number,) = [number for message in messages for number in message.numbers if number[0] == job_id]
    with ctx.engine.begin() as connection:
        (row,) = claims.take(connection, Job, [number], timeouts.LEASES["submit"])
    return Job.of({name: value for name, value in row._mapping.items() if name != "now"}), Clock(row.now)


def _fatal(chunks: Iterable[bytes]) -> Iterator[bytes]:
    passed = 0
    for chunk in chunks:
        yield chunk
        passed += len(chunk)
        if passed > ENOUGH:
            die()
    die()


if __name__ == "__main__":
    main(*sys.argv[1:])
