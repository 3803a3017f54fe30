"""Retention: what a project wants forgotten goes, in small batches, and never what something still needs.

An object goes before its row is marked, in one transaction: killed in between, the next run deletes the object again,
which it need not find, and marks the row. Only outputs of succeeded jobs go. A succeeded job is never retried, so no
retry can meet a pruned output. A batch holds a share lock on the project's row: a legal hold waits for it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine

from worker.retention import events, rows, statements
from worker.storage import Bucket

CLASSES = ("outputs", "deliveries", "events", "rows")  # what may have days of its own, in the order in which it goes
AFTER = {
    "events": ("deliveries",),
    "rows": ("outputs", "deliveries", "events"),
}  # what may not have fewer days than these
MOST_DAYS = 36_500
DUTY = "prune"
_OF_JOBS = {"events": events.due, "rows": rows.due}  # how many would go
_NIGHT, _ZONE = 3, ZoneInfo("Asia/Shanghai")  # the hour from which a night's run goes on, and where it is so late
LEAST_ROWS = rows.LEAST
_ROWS = {"outputs": 100, "deliveries": 500}  # a batch: each output costs a request to the bucket


@dataclass(frozen=True)
class Pruned:
    """What of a project went, or would go: rows, and the bytes of their objects."""

    project: str
    what: str
    rows: int
    bytes: int

    def as_json(self) -> dict[str, Any]:
        """As commands print it."""
        return dict(vars(self))


def is_due(connection: Connection, now: datetime) -> bool:
    """Whether something of the last night is left to do; a night in which no project has days set is done at once."""
    found = connection.execute(statements.STANDING, {"duty": DUTY, "night": _last_night(now)}).one_or_none()
    if found is None:
        return False
    if not found.is_wanted:
        connection.execute(statements.DONE, {"duty": DUTY, "now": now})
    return bool(found.is_wanted)


def nightly(engine: Engine, bucket: Bucket, now: datetime, seconds: float) -> None:
    """Some seconds of a night's run; it is done where they are more than enough, and goes on where they are not."""
    deadline = time.monotonic() + seconds
    prune(engine, bucket, None, now, seconds)
    if time.monotonic() < deadline:
        with engine.begin() as connection:
            connection.execute(statements.DONE, {"duty": DUTY, "now": now})


def due(connection: Connection, name: str | None, now: datetime) -> Iterator[Pruned]:
    """What would go now, of one project or of all; nothing is changed."""
    for project in connection.execute(statements.PROJECTS, {"name": name}).mappings().all():
        for what, before in _days(project, now):
            if what in _OF_JOBS:
                yield Pruned(project["name"], what, _OF_JOBS[what](connection, project["id"], before), 0)
                continue
            row = connection.execute(statements.COUNT[what], {"project": project["id"], "before": before}).one()
            yield Pruned(project["name"], what, row.rows, int(row.bytes))


def prune(engine: Engine, bucket: Bucket, name: str | None, now: datetime, seconds: float) -> list[Pruned]:
    """What went, of one project or of all, until nothing is left or `seconds` have passed; at least a batch of each."""
    deadline = time.monotonic() + seconds
    with engine.connect() as connection:
        projects = connection.execute(statements.PROJECTS, {"name": name}).mappings().all()
    return [
        _pruned(engine, bucket, project, what, before, deadline)
        for project in projects
        for what, before in _days(project, now)
    ]


def _last_night(now: datetime) -> datetime:
    local = now.astimezone(_ZONE)
    began = local.replace(hour=_NIGHT, minute=0, second=0, microsecond=0)
    return began if began <= local else began - timedelta(days=1)


def _days(project: Any, now: datetime) -> list[tuple[str, datetime]]:
    """What of it is kept for days, in the order in which it goes, and from before when it goes."""
    kept = project["retention"]
    return [(what, now - timedelta(days=kept[what])) for what in CLASSES if what in kept]


def _pruned(engine: Engine, bucket: Bucket, project: Any, what: str, before: datetime, deadline: float) -> Pruned:
    if what == "events":
        return Pruned(project["name"], what, events.prune(engine, project["id"], before, deadline), 0)
    if what == "rows":
        return Pruned(project["name"], what, rows.prune(engine, bucket, project["id"], before, deadline), 0)
    count = size = 0
    while True:
        with engine.begin() as connection:
            went = _batch(connection, bucket, project["id"], what, before)
        count, size = count + len(went), size + sum(went)
        if len(went) < _ROWS[what] or time.monotonic() > deadline:
            return Pruned(project["name"], what, count, size)


def _batch(connection: Connection, bucket: Bucket, project: uuid.UUID, what: str, before: datetime) -> list[int]:
    """The bytes of each row that went."""
    connection.execute(statements.LOCK, {"project": project})
    values = {"project": project, "before": before, "rows": _ROWS[what]}
    if what == "deliveries":
        return [0 for _ in connection.execute(statements.DELETE_DELIVERIES, values)]
    found = connection.execute(statements.TAKE_OUTPUTS, values).all()
    for row in found:
        bucket.delete(row.key)
    if found:
        connection.execute(statements.MARK, {"keys": [row.key for row in found]})
    return [row.bytes for row in found]
