"""What one caller may take: requests a second of a key, and unfinished jobs of a project. Kept in this process.

Requests are spaced as a token bucket would: each pushes a key's `free_at` by 1/rate, and may come while that is less
than a burst ahead. Unfinished jobs are counted from the rows, once a second at the most while there is room, since
counting a hundred thousand for each submission would cost more than the submission; a project is never refused
before it was counted anew.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from api.problems import problem
from worker.tables import Job

_BURST_SECONDS = 2.0  # of its rate that a key may use at once
_COUNTED_SECONDS = 1.0
_ROOM_SECONDS = 10  # after which a project that is full may ask again


class Rates:
    """When each key may ask next."""

    def __init__(self, per_second: int) -> None:
        self._interval = 1 / per_second
        self._free_at: dict[uuid.UUID, float] = {}
        self._lock = threading.Lock()

    def spend(self, key: uuid.UUID) -> None:
        """Takes one request of the key's rate; raises a problem, 429, when there is none."""
        now = time.monotonic()
        with self._lock:
            free_at = max(self._free_at.get(key, 0.0), now) + self._interval
            if free_at - now <= _BURST_SECONDS:
                self._free_at[key] = free_at
                return
        wait = math.ceil(free_at - now - _BURST_SECONDS)
        rate = round(1 / self._interval)
        raise problem(429, "too_many_requests", f"this key may make {rate} requests a second", retry_after=wait)


@dataclass
class _Count:
    jobs: int
    at: float


class Waiting:
    """How many unfinished jobs each project has, nearly."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[uuid.UUID, _Count] = {}

    def is_full(self, connection: Connection, project_id: uuid.UUID) -> bool:
        """Whether the project may not submit now; if it may, the job that it is about to submit is counted."""
        count = self._counts.get(project_id)
        if count is None or count.jobs >= self._most or time.monotonic() - count.at > _COUNTED_SECONDS:
            count = self._counts[project_id] = _Count(_unfinished(connection, project_id), time.monotonic())
        if count.jobs >= self._most:
            return True
        count.jobs += 1
        return False

    def refuse(self) -> Exception:
        """The problem of a project that is full."""
        detail = f"this project has {self._most} unfinished jobs, as many as it may"
        return problem(429, "too_many_waiting", detail, retry_after=_ROOM_SECONDS)


def _unfinished(connection: Connection, project_id: uuid.UUID) -> int:
    statement = select(func.count()).where(Job.project_id == project_id, Job.finished_at.is_(None))
    return int(connection.execute(statement).scalar_one())
