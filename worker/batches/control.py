"""What people do with a batch as a whole."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import Connection, text

# The row is locked whichever its state, so that a completion under way looks again once this has committed.
_LOCKED = text("select state from batches where id = :batch for update")
_REOPENED = text("update batches set state = 'running', run_at = null where id = :batch")


def reopen(connection: Connection, batch_id: uuid.UUID, now: datetime) -> None:
    """A completed batch in which something is made again is running again."""
    if connection.execute(_LOCKED, {"batch": batch_id}).scalar_one() == "completed":
        connection.execute(_REOPENED, {"batch": batch_id})
