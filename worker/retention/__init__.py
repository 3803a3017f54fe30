"""Retention: what a project wants forgotten goes, in small batches, and never what something still needs.

A short transaction deletes or marks rows and writes down their objects, which are deleted after it (`objects`). Outputs
of succeeded and rejected jobs go after days of their own: such a job is never retried, so no retry can miss one.
Outputs of other jobs go with the job's rows. A legal hold that is being added waits for the portion under way
(`portion`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine

from worker import storage
from worker.retention import events, objects, portion, rows, statements
from worker.storage import Bucket
from worker.tables import Job

# what may have days of its own, in the order in which it goes
CLASSES = ("outputs", "inputs", "deliveries", "events", "rows")
# what may not have fewer days than these
AFTER = {"events": ("deliveries",), "rows": ("outputs", "deliveries", "events")}
MOST_DAYS = 36_500
DUTY = "prune"
_OF_JOBS = {"events": events.due, "rows": rows.due}  # how many would go
_NIGHT, _ZONE = 3, ZoneInfo("Asia/Shanghai")  # the hour from which a night's run goes on, and where it is so late
LEAST_ROWS = rows.LEAST
_ROWS = {"outputs": 100, "inputs": 100, "deliveries": 500}  # a portion


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
    """Some seconds of a night's run; it is done where they are more than enough, or nothing was found to go."""
    deadline = time.monotonic() + seconds
    went = prune(engine, bucket, None, now, seconds)
    if time.monotonic() < deadline or not any(each.rows for each in went):
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
    objects.delete(engine, bucket, deadline)  # what a run before has left
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
    values = {"project": project["id"], "before": before, "rows": _ROWS[what]}
    while True:
        began = time.monotonic()
        with portion.begun(engine, project["id"]) as connection:
            found, went = _TAKES[what](connection, values)
        objects.delete(engine, bucket, deadline)
        count, size = count + len(went), size + sum(went)
        if found < _ROWS[what] or time.monotonic() > deadline:
            return Pruned(project["name"], what, count, size)
        portion.rest(began)


def _take_outputs(connection: Connection, values: dict[str, Any]) -> tuple[int, list[int]]:
    """How many were looked at, and the bytes of each that goes; of the others the same.

    What a parent worked with goes with its outputs: it will not be made again.
    """
    went = connection.execute(statements.PRUNE_OUTPUTS, values).all()
    parents = connection.execute(statements.PARENTS, {"jobs": [row.job_id for row in went]}).mappings()
    worked_with = [f"{storage.stem(Job.of(parent))}/work/" for parent in parents]  # texts of users, say
    connection.execute(statements.DELETE_LATER, {"keys": worked_with, "is_prefix": True})
    return len(went), [row.bytes for row in went]


def _take_inputs(connection: Connection, values: dict[str, Any]) -> tuple[int, list[int]]:
    locked = connection.execute(statements.LOCK_INPUTS, values).scalars().all()
    gone = connection.execute(statements.PRUNE_INPUTS, values | {"files": locked})
    return len(locked), [row.bytes for row in gone]


def _take_deliveries(connection: Connection, values: dict[str, Any]) -> tuple[int, list[int]]:
    went = [0 for _ in connection.execute(statements.DELETE_DELIVERIES, values)]
    return len(went), went


_TAKES = {"outputs": _take_outputs, "inputs": _take_inputs, "deliveries": _take_deliveries}
