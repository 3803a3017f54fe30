"""A process that makes a batch of five rows, and dies by SIGKILL at a named point.

    python tests/batch_killer.py PROJECT checking | copying | kept | drafted | made | told | committed

`checking`: at the third row; `copying`: with half of the rows on their way to Postgres; `kept`: before that is
committed; `drafted`: after; `made`: with all jobs made; `told`: before that is committed; `committed`: after.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

from worker import context, keys, settings
from worker.batches import checking, commit, draft
from worker.batches.checking import Options, Upload
from worker.errors import NoriaError
from worker.jobs import submission
from worker.jobs.submission import Prepared, Submission
from worker.moves import batch

HEADER = b"kind,model,prompt,custom_id\n"
ROWS = HEADER + b"".join(b"text-to-video,wan2.5-t2v-preview,a heron %c,%c\n" % (name, name) for name in b"abcde")


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly:
    """A spool whose reader dies in the middle."""

    def __init__(self, spool: Any) -> None:
        self._spool = spool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)

    def __iter__(self) -> Iterator[bytes]:
        for n, line in enumerate(self._spool):
            if n == 3:
                die()
            yield line


def main(name: str, point: str) -> None:
    ctx = context.make(settings.load())
    with ctx.engine.begin() as connection:
        (project,) = [found for found in keys.projects(connection) if found.name == name]
        now = connection.exec_driver_sql("select now()").scalar_one()
    seen = 0

    def check(body: dict[str, Any]) -> Prepared:
        nonlocal seen
        seen += 1
        if point == "checking" and seen == 3:
            die()
        return submission.prepare(ctx.catalog, ctx.settings, Submission(**body), now)

    upload = Upload(BytesIO(ROWS), "spring.csv", "text/csv")
    with checking.checked(ctx.engine, project.id, upload, Options(), check) as made:
        if point == "copying":
            vars(made)["spool"] = Deadly(made.spool)
        with ctx.engine.begin() as connection:
            kept, _ = draft.keep(connection, project.id, made, None, now)
            if point == "kept":
                die()
    if point == "drafted":
        die()
    if point == "made":
        batch.tell = die
    with suppress(NoriaError), ctx.engine.begin() as connection:
        commit.commit(connection, project, kept.id, False, now)
        if point == "told":
            die()
    die()


if __name__ == "__main__":
    main(*sys.argv[1:])
