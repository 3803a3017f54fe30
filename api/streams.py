"""A job's history as it grows, as Server-Sent Events.

However many follow, one look a second asks for all followed jobs at once how far they have come; a stream that waits
holds no thread and no connection, only a place in that look.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import Engine, Row
from sqlalchemy.exc import SQLAlchemyError

from worker import log
from worker.jobs import reading
from worker.jobs.reading import JobEvent
from worker.states import TERMINAL, State
from worker.tables import Event, Job

HEARTBEAT = 15.0  # seconds; proxies close a silent connection, after thirty seconds at the earliest
_LOOK_SECONDS = 1.0
_PAGE = 500  # events in one read
_READS = 2  # at once: a thousand streams that wake together leave the other threads to requests

_log = log.get(__name__)


class Follower:
    """One stream: its job, how far it was read, and what wakes it."""

    def __init__(self, job_id: uuid.UUID, seen: int) -> None:
        self.job_id = job_id
        self.seen = seen
        self.moved = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Whether the job moved within that time."""
        try:
            await asyncio.wait_for(self.moved.wait(), seconds)
        except TimeoutError:
            return False
        self.moved.clear()
        return True


class Watch:
    """One query a second for all followers; it runs while there are any."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._followers: set[Follower] = set()
        self._looking: asyncio.Task[None] | None = None
        self.threads = CapacityLimiter(_READS)

    def __len__(self) -> int:
        return len(self._followers)

    @contextmanager
    def follow(self, job_id: uuid.UUID, seen: int) -> Iterator[Follower]:
        """Follows the job for as long as the block lasts."""
        follower = Follower(job_id, seen)
        self._followers.add(follower)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    async def _look(self) -> None:
        while self._followers:
            try:
                reached = await run_sync(
                    self._reached, {follower.job_id for follower in self._followers}, limiter=self.threads
                )
            except SQLAlchemyError as error:
                _log.warning("cannot look at followed jobs", cause=type(error).__name__)
                reached = {}
            for follower in self._followers:
                if reached.get(follower.job_id, 0) > follower.seen:
                    follower.moved.set()
            await asyncio.sleep(_LOOK_SECONDS)

    def _reached(self, job_ids: set[uuid.UUID]) -> dict[uuid.UUID, int]:
        with self._engine.connect() as connection:
            return reading.sequences(connection, job_ids)


async def stream(engine: Engine, watch: Watch, job: Job, after: int) -> AsyncIterator[bytes]:
    """The job's events after a sequence number, as they come; it ends when the job has.

    It also ends when the database goes away: a client comes back by itself, with the last number that it saw.
    """
    yield KEEPALIVE_COMMENT  # sends the headers, even if the job does not move
    with watch.follow(job.id, after) as follower:
        while True:
            try:
                events = await run_sync(_read, engine, job, follower.seen, limiter=watch.threads)
            except SQLAlchemyError as error:
                _log.warning("ended a stream", job=str(job.id), cause=type(error).__name__)
                return
            for event in events:
                yield _frame(event)
                follower.seen = event.sequence
            if events and len(events) < _PAGE and State(events[-1].entered) in TERMINAL:
                return
            while len(events) < _PAGE and not await follower.wait(HEARTBEAT):
                yield KEEPALIVE_COMMENT


def _read(engine: Engine, job: Job, after: int) -> Sequence[Row[tuple[Event]]]:
    with engine.connect() as connection:
        return reading.history(connection, job, after, _PAGE)


def _frame(event: Any) -> bytes:
    return format_sse_event(data_str=JobEvent.of(event).model_dump_json(), event=event.type, id=str(event.sequence))
