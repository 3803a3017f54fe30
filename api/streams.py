"""Events as they are written, as Server-Sent Events: a job's history, or the feed of a project.

However many follow, one thread looks how far all that is followed has come: each second, and at once when the tick
says that there are events (`worker.webhooks.feed`). A stream that waits holds no thread and no connection, only a
place in that look; one whose client reads slowly holds the page that it was last given.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi.responses import Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from worker import log
from worker.document import Answer
from worker.jobs import reading
from worker.webhooks import feed
from worker.webhooks.feed import Place

HEARTBEAT = 15.0  # seconds; proxies close a silent connection, after thirty seconds at the earliest
PAGE = 100  # events in one read, some 50 kB; each of a thousand slow readers may hold as much
_LOOK_SECONDS = 1.0  # at the latest: a hint may be lost, or come before its events may be read
_SPACING = 0.1  # seconds between two looks at the least
_READS = 2  # at once: a thousand streams that wake together leave the other threads to requests
# a proxy that buffers answers would not pass the events on
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

_log = log.get(__name__)

Seen = int | Place  # how far a job's history or a project's feed was read


@dataclass(frozen=True)
class Part:
    """What one read found, as SSE: up to where, whether there is more now, and whether nothing can come after it."""

    frames: Sequence[bytes]
    seen: Seen
    has_more: bool
    is_last: bool = False


@dataclass(frozen=True)
class Followed:
    """What a stream follows, a job or a project: how it is read on, and whether its client still may."""

    subject: uuid.UUID
    read: Callable[[Connection, Any], Part]
    may_stay: Callable[[], Awaitable[bool]]


class Follower:
    """One stream: what it follows, how far it was read, and what wakes it."""

    def __init__(self, subject: uuid.UUID, seen: Seen) -> None:
        self.subject = subject
        self.seen: Any = seen
        self.moved = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Whether there was news within that time."""
        try:
            await asyncio.wait_for(self.moved.wait(), seconds)
        except TimeoutError:
            return False
        self.moved.clear()
        return True


class Watch:
    """One thread and one connection that look for all followers; they are there while there are any."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._followers: set[Follower] = set()
        self._looking: asyncio.Task[None] | None = None
        self._thread, self.threads = CapacityLimiter(1), CapacityLimiter(_READS)

    def __len__(self) -> int:
        return len(self._followers)

    @contextmanager
    def follow(self, subject: uuid.UUID, seen: Seen) -> Iterator[Follower]:
        """Follows the job or the project for as long as the block lasts."""
        follower = Follower(subject, seen)
        self._followers.add(follower)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    async def read(self, read: Callable[[Connection, Any], Part], seen: Seen) -> Part:
        """What a stream's read finds; raises SQLAlchemyError."""
        return await run_sync(self._read, read, seen, limiter=self.threads)

    def _read(self, read: Callable[[Connection, Any], Part], seen: Seen) -> Part:
        with self._engine.connect() as connection:
            return read(connection, seen)

    async def _look(self) -> None:
        # again, where a stream began while the thread was about to end
        while self._followers:
            await run_sync(self._look_on, asyncio.get_running_loop(), limiter=self._thread)

    def _look_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks until there are no followers, on a new connection whenever one is lost."""
        while self._followers:
            try:
                with feed.listening(self._engine) as connection:
                    while followers := list(self._followers):
                        loop.call_soon_threadsafe(self._wake, _reached(connection, followers))
                        connection.rollback()  # costs nothing; through a pooler the look is a transaction
                        time.sleep(_SPACING)
                        feed.wait(connection, _LOOK_SECONDS - _SPACING)
            except (SQLAlchemyError, psycopg.Error) as error:
                _log.warning("cannot look for events", cause=type(error).__name__)
                time.sleep(_LOOK_SECONDS)

    def _wake(self, reached: Mapping[uuid.UUID, Any]) -> None:
        for follower in self._followers:
            if reached.get(follower.subject, follower.seen) > follower.seen:
                follower.moved.set()


def answer(watch: Watch, followed: Followed, seen: Seen) -> Response:
    """The events after that place, as a stream."""
    return EventSourceResponse(_stream(watch, followed, seen), headers=HEADERS)


def frame(event: Answer, kind: str, place: object) -> bytes:
    """One event as SSE; `place` is what a client gives as Last-Event-ID to go on after it."""
    return format_sse_event(data_str=event.model_dump_json(), event=kind, id=str(place))


async def _stream(watch: Watch, followed: Followed, seen: Seen) -> AsyncIterator[bytes]:
    """The events as they come, until the last one, or until the client's key has ended.

    It also ends when the database goes away: a client comes back by itself, with the last id that it saw.
    """
    yield KEEPALIVE_COMMENT  # sends the headers, even if nothing happens
    with watch.follow(followed.subject, seen) as follower:
        try:
            while await followed.may_stay():
                part = await watch.read(followed.read, follower.seen)
                follower.seen = part.seen
                if part.frames or part.has_more:
                    yield b"".join(part.frames) or KEEPALIVE_COMMENT
                if part.is_last:
                    return
                while not part.has_more and not await follower.wait(HEARTBEAT) and await followed.may_stay():
                    yield KEEPALIVE_COMMENT
        except SQLAlchemyError as error:
            _log.warning("ended a stream", subject=str(followed.subject), cause=type(error).__name__)


def _reached(connection: Connection, followers: Sequence[Follower]) -> dict[uuid.UUID, Any]:
    """How far the jobs and the projects of these followers have come."""
    projects = {follower.subject for follower in followers if isinstance(follower.seen, Place)}
    jobs = {follower.subject for follower in followers} - projects
    found: dict[uuid.UUID, Any] = feed.ends(connection, projects) if projects else {}
    return found | (reading.sequences(connection, jobs) if jobs else {})
