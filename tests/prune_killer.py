"""A process that prunes all that is due in a year, and dies by SIGKILL at a named point of its second portion of jobs.

    python tests/prune_killer.py deleted | committed

`deleted`: before its deletes are committed; `committed`: after.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from typing import Any

from sqlalchemy import event

from worker import context, retention, settings


def main(point: str) -> None:
    ctx = context.make(settings.load())
    with ctx.engine.begin() as connection:
        now = connection.exec_driver_sql("select now()").scalar_one()
    deletes = 0

    def count(_: Any, __: Any, statement: str, *___: Any) -> None:
        nonlocal deletes
        deletes += "delete from jobs" in statement
        if point == "deleted":
            die()

    def die(*_: Any) -> None:
        if deletes == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(ctx.engine, "after_cursor_execute", count)
    if point == "committed":
        event.listen(ctx.engine.pool, "checkin", die)  # the connection comes back once its transaction is over
    retention.prune(ctx.engine, ctx.bucket, None, now + timedelta(days=365), 60)


if __name__ == "__main__":
    main(*sys.argv[1:])
