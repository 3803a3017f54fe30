"""Batches as they are read. Every query carries the project: another's batch does not exist."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, select

from worker.batches import progress
from worker.batches.document import BatchDocument, Report, Rows, Source
from worker.batches.progress import Progress
from worker.errors import NotFound
from worker.moves import batch as moves
from worker.tables import Batch

KEPT = timedelta(hours=24)  # how long a draft waits to be committed

DRAFT = "draft"
_ACTIONS = ("pause", "resume", "cancel", "retry-failed")


def one(connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID) -> Batch:
    """The project's batch; raises NotFound."""
    row = connection.execute(_ONE, {"project": project_id, "batch": batch_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no batch {batch_id}")
    return Batch.of(row)


def page(
    connection: Connection, project_id: uuid.UUID, states: Collection[str], before: uuid.UUID | None, limit: int
) -> list[Batch]:
    """At most `limit` batches, the newest first; `before` is the last id of the page before."""
    statement = select(*Batch.__table__.c).where(Batch.project_id == project_id)
    if states:
        statement = statement.where(Batch.state.in_(states))
    if before is not None:
        statement = statement.where(Batch.id < before)
    rows = connection.execute(statement.order_by(Batch.id.desc()).limit(limit))
    return [Batch.of(row) for row in rows.mappings()]


def documents(
    connection: Connection, project: str, batches: Sequence[Batch], now: datetime, whole: bool
) -> list[BatchDocument]:
    """The batches of a project as the API shows them, in their order; `whole`: with their reports."""
    begun = [batch for batch in batches if batch.state != DRAFT]
    found = progress.of(connection, begun, now) if begun else {}
    return [_shown(project, batch, found.get(batch.id), _report(connection, batch, now, whole)) for batch in batches]


def _shown(project: str, batch: Batch, made: Progress | None, report: Report | None) -> BatchDocument:
    return BatchDocument(
        id=batch.id,
        name=batch.name,
        project=project,
        state=batch.state,
        source=Source.model_validate(batch.source),
        rows=_rows(batch),
        report=report,
        jobs=made.jobs if made else None,
        cost=made.cost if made else None,
        review=made.review if made else None,
        finish_at=made.finish_at if made else None,
        webhook_url=batch.webhook_url,
        manifest=batch.manifest,
        created_at=batch.created_at,
        expires_at=batch.created_at + KEPT if batch.state == DRAFT else None,
        committed_at=batch.committed_at,
        paused_at=batch.paused_at,
        canceled_at=batch.canceled_at,
        completed_at=batch.completed_at,
        urls=_urls(batch),
    )


def _report(connection: Connection, batch: Batch, now: datetime, whole: bool) -> Report | None:
    if not whole:
        return None
    is_draft = batch.state == DRAFT
    why = moves.obstacle(connection, batch.project_id, batch.id, now) if is_draft else None
    return Report.model_validate(batch.report | {"budget": why})


def _rows(batch: Batch) -> Rows:
    is_draft = batch.state == DRAFT
    return Rows(
        total=batch.rows,
        good=batch.rows - batch.bad if is_draft else 0,
        bad=batch.bad if is_draft else 0,
        made=batch.made,
        existing=batch.existing,
        skipped=0 if is_draft else batch.bad,
    )


def _urls(batch: Batch) -> dict[str, str]:
    path = f"/v1/batches/{batch.id}"
    urls = {"self": path, "items": f"{path}/items", "errors": f"{path}/errors.jsonl", "report": f"{path}/report.csv"}
    if batch.state == DRAFT:
        return urls | {"commit": f"{path}/commit"}
    return urls | {"results": f"{path}/results.jsonl"} | {name: f"{path}/{name}" for name in _ACTIONS}


_ONE = select(*Batch.__table__.c).where(Batch.project_id == bindparam("project"), Batch.id == bindparam("batch"))
