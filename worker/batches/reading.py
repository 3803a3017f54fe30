"""Reading batches: one, and how it looks to others."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select

from worker.batches.document import BatchDocument, Report, Rows, Source
from worker.errors import NotFound
from worker.tables import Batch


def one(connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID) -> Batch:
    """The project's batch; raises NotFound."""
    statement = select(*Batch.__table__.c).where(Batch.project_id == project_id, Batch.id == batch_id)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no batch {batch_id}")
    return Batch.of(row)


def documents(
    connection: Connection,
    project_name: str,
    batches: Sequence[Batch],
    now: datetime,
    whole: bool,
) -> list[BatchDocument]:
    """The batches as the API shows them, in their order."""
    return [
        BatchDocument(
            id=batch.id,
            name=batch.name,
            project=project_name,
            state=batch.state,
            source=Source(**batch.source),
            rows=Rows(total=batch.rows, good=0, bad=batch.bad, made=batch.made, existing=batch.existing, skipped=0),
            report=Report(**batch.report) if whole else None,
            jobs=None,
            cost=None,
            review=None,
            finish_at=None,
            webhook_url=batch.webhook_url,
            manifest=batch.manifest,
            created_at=batch.created_at,
            expires_at=None,
            committed_at=batch.committed_at,
            paused_at=batch.paused_at,
            canceled_at=batch.canceled_at,
            completed_at=batch.completed_at,
            urls={"self": f"/v1/batches/{batch.id}"},
        )
        for batch in batches
    ]
