"""A batch in people's hands."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Connection, case, update

from worker.tables import Batch


def reopen(connection: Connection, batch_id: uuid.UUID, now: datetime) -> None:
    """Lets a batch run on in which something is made again; whoever completes it now writes nothing."""
    again = update(Batch).where(Batch.id == batch_id, Batch.state != "draft")
    state = case((Batch.state == "completed", "running"), else_=Batch.state)
    connection.execute(again.values(state=state, run_at=None, claim=Batch.claim + 1, claimed=None, crashes=0))
