"""How long jobs take at today's limits."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import Connection


def spans(
    connection: Connection, counts: Mapping[tuple[str, str], int], project_id: uuid.UUID, now: datetime
) -> dict[tuple[str, str], timedelta | None]:
    """The time that jobs of each kind and model take, behind what waits already; None: not known."""
    return {group: timedelta(minutes=count) if count else None for group, count in counts.items()}
