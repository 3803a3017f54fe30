"""A worker process of one life: takes a batch whose end is due, and dies by SIGKILL at a named point.

    python tests/completion_killer.py BATCH taken | writing | written | committed

`taken`: before the manifest; `writing`: with most of it on its way into the bucket; `written`: with it in the bucket
and nothing on record; `committed`: with the end on record, and nobody told. Settings come from the environment.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

from worker import context, settings, tick
from worker.batches import completion
from worker.context import Context
from worker.storage import Bucket


class Fatal(Bucket):
    """A bucket that kills whoever stores something in it, at the point."""

    point = ""

    def put_stream(self, key: str, chunks: Iterable[bytes], *more: Any) -> Any:
        """Nothing, unless it is to live on."""
        if self.point == "taken":
            die()
        stored = super().put_stream(key, _fatal(chunks) if self.point == "writing" else chunks, *more)
        if self.point == "written":
            die()
        return stored


class Last(Context):
    """Its first write is its last."""

    def write(self, change: Callable[..., Any], what: str) -> Any:
        """Nothing: it is on record, and the process is dead."""
        super().write(change, what)
        die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(batch_id: str, point: str) -> None:
    made = context.make(settings.load())
    parts = {field.name: getattr(made, field.name) for field in fields(made)}
    bucket = Fatal(made.settings)
    bucket.point = point
    ctx = (Last if point == "committed" else Context)(**parts | {"bucket": bucket})
    with ctx.engine.begin() as connection:
        messages = tick.run(connection)
    numbers = [number for message in messages for number in message.numbers if number[0] == uuid.UUID(batch_id)]
    assert numbers, "the batch is not due"
    completion.complete(ctx, numbers)


def _fatal(chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield from chunks
    die()


if __name__ == "__main__":
    main(*sys.argv[1:])
