"""Messages that come again: whatever is claimed, or was, is published three times more, in any order and late."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from tests.chaos.torments import Scene
from worker import broker
from worker.states import Mode

_AWAY_SECONDS = 20.0  # for which the database may be away
_EVERY_SECONDS = 0.5
_POLLED = ("noria.poll", "provider")
_WORKED = "select id, claim, claimed, state, mode from jobs where claimed is not null"


@contextlib.contextmanager
def echoing(scene: Scene) -> Iterator[list[int]]:
    """Every claim that is on its way, or was, is published three times more; how many were, once it is over."""
    stop, count = threading.Event(), [0]

    def run() -> None:
        app = broker.celery_app(scene.settings)
        while not stop.wait(_EVERY_SECONDS):
            # The broker and the database are down now and then: that is the point.
            with contextlib.suppress(Exception):
                count[0] += _echo(scene, app)

    thread = threading.Thread(target=run, name="echo", daemon=True)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join(_AWAY_SECONDS)


def _echo(scene: Scene, app: Any) -> int:
    with scene.connection() as connection:
        rows = connection.execute(text(_WORKED)).all()
    for row in rows:
        task, queue = _message(row)
        sent = row.claim if row.claimed == "sent" else row.claim - 1  # the number that was spent
        for _ in range(3):
            broker.publish(app, task, queue, [[[str(row.id), sent]]])
    return 3 * len(rows)


def _message(row: Any) -> tuple[str, str]:
    """The task and the queue that the tick chose for such a row."""
    if row.state == "running" and row.mode != Mode.BATCH:
        return _POLLED
    is_long = row.state == "copying" or row.mode in (Mode.PARENT, Mode.BATCH)
    return "noria.work", "transfer" if is_long else "calls" if row.mode == Mode.CALL else "provider"
