"""Batches for tests: rows and jobs as a commit leaves them, or made by hand in statements of their own."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, text
from stage import CLIP, Stage

from worker import moves
from worker.batches.document import Report, Source
from worker.jobs import submission
from worker.jobs.submission import Submission
from worker.tables import Batch, BatchRow, Job

ASKED = ("kind", "model", "input", "labels", "estimate")  # of a row that has no job yet
SOURCE = Source(name="spring.csv", format="csv", encoding="utf-8", delimiter=",", bytes=1, sha256="")
REPORT = Report(
    faults=[],
    faults_total=0,
    faults_by_code={},
    groups=[],
    cost=None,
    unpriced=0,
    seconds=None,
    existing=0,
    warnings=[],
)


def committed(play: Stage, rows: Sequence[dict[str, Any]], **columns: Any) -> Batch:
    """A batch that runs, a job for each row; a row may say what its job is to be, or `outcome` and `job_id` itself."""
    made = sum("outcome" not in row for row in rows)
    said = {
        "project_id": play.project.id,
        "name": "spring",
        "digest": b"",
        "source": SOURCE.as_json(),
        "report": REPORT.as_json(),
        "rows": len(rows),
        "made": made,
        "state": "running",
        "committed_at": play.now(),
    }
    with play.ctx.engine.begin() as connection:
        inserted = insert(Batch).values(said | columns).returning(*Batch.__table__.c)
        batch = Batch.of(connection.execute(inserted).mappings().one())
        for n, row in enumerate(rows, start=1):
            kept = {"outcome": "made", "custom_id": row.get("custom_id")} | {
                name: row[name] for name in ("outcome", "job_id", "faults", *ASKED) if name in row and "outcome" in row
            }
            if "outcome" not in row:
                kept["job_id"] = _job(play, connection, batch, n, row).id
            connection.execute(insert(BatchRow).values(batch_id=batch.id, n=n, line=n + 1, **kept))
    return batch


def now(play: Stage, batch: Batch) -> Batch:
    """The batch's row as it is now."""
    with play.ctx.engine.connect() as connection:
        found = connection.execute(select(*Batch.__table__.c).where(Batch.id == batch.id))
        return Batch.of(found.mappings().one())


def jobs(play: Stage, batch: Batch) -> list[Job]:
    """The batch's jobs in the order of their rows."""
    return [Job.of(row) for row in play.sql("select * from jobs where batch_id = :b order by batch_row", b=batch.id)]


def ended(play: Stage, batch: Batch) -> Batch:
    """The batch, driven until it is complete."""
    found: Batch = play.drive(lambda: now(play, batch), lambda it: it.state == "completed")
    return found


def events(play: Stage, batch: Batch) -> list[Any]:
    return list(play.sql("select * from events where batch_id = :b order by sequence", b=batch.id))


def manifest(play: Stage, batch: Batch) -> list[dict[str, Any]]:
    """The lines of the batch's manifest in the bucket."""
    written = b"".join(play.ctx.bucket.chunks(f"{batch.project_id}/batches/{batch.id}/manifest.jsonl"))
    return [json.loads(line) for line in written.decode().split("\n")[:-1]]


def finish(play: Stage, batch: Batch, state: str = "canceled") -> None:
    """Ends the batch's jobs, without their work."""
    play.sql(
        "update jobs set state = :s, finished_at = now(), run_at = null, claimed = null"
        " where batch_id = :b and finished_at is null",
        s=state,
        b=batch.id,
    )


def make_batch(connection: Connection, project_id: uuid.UUID, state: str = "running") -> uuid.UUID:
    """A batch of the project, without jobs."""
    made: uuid.UUID = connection.execute(
        text(
            "insert into batches (project_id, name, digest, source, report, rows, state, committed_at, paused_at)"
            " values (:project, 'spring', '', cast(:source as jsonb), cast(:report as jsonb), 0, :state,"
            "  case when :state <> 'draft' then now() end, case when :state = 'paused' then now() end) returning id"
        ),
        {"project": project_id, "state": state, "source": SOURCE.model_dump_json(), "report": REPORT.model_dump_json()},
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


def _job(play: Stage, connection: Connection, batch: Batch, n: int, row: dict[str, Any]) -> Job:
    said = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": CLIP} | row
    prepared = submission.prepare(play.ctx.catalog, play.ctx.settings, Submission(**said), play.now())
    asked = submission.asked(prepared) | {"project_id": play.project.id, "batch_id": batch.id, "batch_row": n}
    return moves.make(connection, asked, None)
