"""A batch made by hand: its row, and jobs that have it; for tests of what is done to many jobs."""

from __future__ import annotations

import json
import uuid
from typing import Any

from sqlalchemy import Connection, text

_NO_REPORT: dict[str, Any] = {
    "faults": [], "faults_total": 0, "faults_by_code": {}, "groups": [], "cost": None, "unpriced": 0, "seconds": None,
    "existing": 0, "warnings": [],
}  # fmt: skip
_SOURCE = {"name": "spring.csv", "format": "csv", "encoding": "utf-8", "delimiter": ",", "bytes": 1, "sha256": ""}


def make_batch(connection: Connection, project_id: uuid.UUID, state: str = "running") -> uuid.UUID:
    """A batch of the project, without jobs."""
    made: uuid.UUID = connection.execute(
        text(
            "insert into batches (project_id, name, digest, source, report, rows, state, committed_at, paused_at)"
            " values (:project, 'spring', '', cast(:source as jsonb), cast(:report as jsonb), 0, :state,"
            "  case when :state <> 'draft' then now() end, case when :state = 'paused' then now() end) returning id"
        ),
        {"project": project_id, "state": state, "source": json.dumps(_SOURCE), "report": json.dumps(_NO_REPORT)},
    ).scalar_one()
    return made


def put(connection: Connection, batch_id: uuid.UUID, *job_ids: uuid.UUID) -> None:
    """Makes jobs the batch's."""
    connection.execute(
        text("update jobs set batch_id = :batch where id = any(:jobs)"), {"batch": batch_id, "jobs": list(job_ids)}
    )


def fill(connection: Connection, batch_id: uuid.UUID, jobs: int, state: str = "queued", **columns: Any) -> None:
    """Makes so many jobs in the batch, all in one state, each with the event and the reservation of its making."""
    more = "".join(f", {name}" for name in columns)
    values = "".join(f", :{name}" for name in columns)
    ended = state in ("succeeded", "rejected", "failed", "canceled", "expired")
    connection.execute(
        text(
            "with made as (insert into jobs (project_id, kind, model, input, estimate, sequence, batch_id, batch_row,"
            f" state, run_at, finished_at{more}) select project_id, 'text-to-video', 'wan2.5-t2v-preview',"
            ' \'{"prompt": "a cat", "size": "832*480", "duration": 5}\', 1500000, 1, id, row, :state,'
            f" case when :ended then null else now() end, case when :ended then now() end{values}"
            " from batches, generate_series(1, :many) as row where id = :batch returning id, project_id, created_at),"
            " told as (insert into events (job_id, project_id, sequence, type, entered)"
            "  select id, project_id, 1, 'job.queued', 'queued' from made)"
            " insert into ledger (project_id, job_id, entry, micros, reserved_at)"
            " select project_id, id, 'reserve', 1500000, created_at from made where not :ended"
        ),
        {"batch": batch_id, "many": jobs, "state": state, "ended": ended, **columns},
    )
