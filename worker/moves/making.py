"""What is written for a job that is made: its columns, its first event and its reservation, for one job or for many.

`moves.make` makes one and `moves.batch` those of a batch; both are of these pieces, so that they cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import CTE, ColumnElement, FromClause, Select, func, insert, literal_column, select

from worker import money, text
from worker.document import JobDocument
from worker.moves import fair_queue
from worker.tables import Event, Job, Project


def columns(born: FromClause, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a new job: `asked` what was asked for, `born` its `id` and when it is made, `at`."""
    at: ColumnElement[datetime] = born.c.at.expression
    written = {
        "id": born.c.id,
        "sequence": literal_column("1"),
        "created_at": at,
        "state_at": at,
        "run_at": at,
        **asked,
    }
    written |= {"rank_at": fair_queue.rank(at, asked["priority"])} if "priority" in asked else {}
    return written | ({"cache_days": _cache_days(asked)} if "cache_days" in asked else {})


def _cache_days(asked: Mapping[str, Any]) -> ColumnElement[int]:
    """What the job says, else what its project does."""
    of_project = select(Project.cache_days).where(Project.id == asked["project_id"])
    return func.coalesce(asked["cache_days"], of_project.scalar_subquery())


def told(made: CTE) -> CTE:
    """The first events of the jobs that are made, as `told (id, job_id)`."""
    first = select(made.c.id, made.c.project_id, made.c.sequence, literal_column("'job.' || state"), made.c.state)
    named = ("job_id", "project_id", "sequence", "type", "entered", "claim", "at")
    event = insert(Event).from_select(named, first.add_columns(made.c.claim, made.c.created_at))
    return event.returning(Event.id, Event.job_id).cte("told")


def reserved(made: CTE) -> CTE:
    """Their reservations."""
    return money.reserving(made).cte("reserved")


def inserted(written: Mapping[str, Any], given: Select[Any]) -> CTE:
    """The jobs of the rows in `given`, made, as `made`, with all their columns."""
    table = Job.__table__
    return insert(Job).from_select(list(written), given).returning(*table.c).cte("made")


def body(event_type: str, job: Job, shown: JobDocument, at: datetime) -> str:
    """What a job's receiver is told of an event: everything but the input."""
    data = shown.model_dump(mode="json", exclude={"input"})
    said = {"type": event_type, "timestamp": text.moment(at), "sequence": job.sequence, "data": data}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))
