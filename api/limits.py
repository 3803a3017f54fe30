"""Limits of one caller, so that it delays nobody else: requests a second, unfinished jobs, and places.

The requests of a key are counted in the broker's Redis, over all processes of the API and some at a time, and in this
process alone while Redis does not answer. The unfinished jobs of a project are counted from the rows. A place is needed
for whatever may be slow: a request waits for one in its project's line, holds no thread and no connection meanwhile,
and is refused when that takes too long. Places are counted in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from sqlalchemy import Connection, func, select

from api.problems import problem
from worker import broker, log
from worker.settings import Settings
from worker.tables import Job

_WINDOW = 2  # seconds over which a key's requests are counted: it may use the rate of both at once
_SHARE = 20  # a process takes a twentieth of what is allowed at once, and asks Redis so much less often
_REDIS_SECONDS = 0.2  # that a request waits for Redis before it counts as away
_AWAY_SECONDS = 3.0  # between two looks whether Redis answers again
_COUNTED_SECONDS = 1.0  # for which a count of unfinished jobs is used while there is room
_ROOM_SECONDS = 10  # after which a project that is full may ask again
_SPOOL = 400 << 20  # bytes of uploads on the disk at once; in a container /tmp is memory

_log = log.get(__name__)


@dataclass
class _Taken:
    """Requests of a key that are counted, and not made yet; and when they were taken, by the monotonic clock."""

    left: int
    at: float

    def has_some(self) -> bool:
        """Whether any is left, and the window in which they were taken has not passed."""
        return self.left > 0 and time.monotonic() - self.at <= _WINDOW


class Rates:
    """How many requests each key has made lately.

    The first request that Redis does not answer in time ends the counting there. A thread then looks every few seconds
    whether Redis answers again, so that no other request waits for it.
    """

    def __init__(self, settings: Settings) -> None:
        self._rate = settings.api_rate
        self._at_once = max(1, settings.api_rate * _WINDOW // _SHARE)
        self._taken: dict[uuid.UUID, _Taken] = {}
        self._limit = RateLimitItemPerSecond(settings.api_rate * _WINDOW, _WINDOW, "requests")
        pool = broker.client(settings, _REDIS_SECONDS).connection_pool
        self._shared = SlidingWindowCounterRateLimiter(RedisStorage("redis://", pool, key_prefix="noria:api"))
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._is_away = False
        self._lock = threading.Lock()

    def take(self, key: uuid.UUID) -> bool:
        """Takes one of the requests that were counted before; False: there is none, so `spend` one."""
        with self._lock:
            taken = self._taken.get(key)
            if taken is None or not taken.has_some():
                return False
            taken.left -= 1
            return True

    def spend(self, key: uuid.UUID) -> None:
        """Takes one request of the key's rate, and counts more of them at once; raises a problem, 429, without any."""
        if not self.take(key) and (wait := self._spend(key)) is not None:
            detail = f"this key may make {self._rate} requests a second"
            raise problem(429, "too_many_requests", detail, retry_after=max(1, math.ceil(wait)))

    def _spend(self, key: uuid.UUID) -> float | None:
        """How many seconds the key has to wait; None: the request was taken."""
        if not self._is_away:
            try:
                return self._hit(self._shared, key)
            except Exception as error:  # noqa: BLE001 - no fault of Redis, whatever it answers, may refuse a request
                self._leave(error)
        return self._hit(self._own, key)

    def _hit(self, limiter: SlidingWindowCounterRateLimiter, key: uuid.UUID) -> float | None:
        for many in dict.fromkeys((self._at_once, 1)):
            if limiter.hit(self._limit, str(key), cost=many):
                self._keep(key, many - 1)
                return None
        return limiter.get_window_stats(self._limit, str(key)).reset_time - time.time()

    def _keep(self, key: uuid.UUID, more: int) -> None:
        """Adds to what others have counted meanwhile: each thread that found nothing left counts some at once."""
        with self._lock:
            taken = self._taken.get(key)
            if taken is not None and taken.has_some():
                taken.left += more
            else:
                self._taken[key] = _Taken(more, time.monotonic())

    def _leave(self, error: Exception) -> None:
        """Counts in this process from now on, until Redis answers."""
        with self._lock:
            if self._is_away:
                return
            self._is_away = True
        _log.warning("counts requests in this process: redis does not answer", cause=type(error).__name__)
        threading.Thread(target=self._come_back, name="rates", daemon=True).start()

    def _come_back(self) -> None:
        while self._is_away:
            time.sleep(_AWAY_SECONDS)
            self._is_away = not self._answers()

    def _answers(self) -> bool:
        """Whether Redis counts: one that is full answers a ping all the same."""
        with contextlib.suppress(Exception):
            self._shared.hit(self._limit, "probe")
            return True
        return False


@dataclass
class _Count:
    jobs: int
    at: float


class Waiting:
    """About how many unfinished jobs each project has.

    While there is room they are counted at most once a second: to count a hundred thousand for each submission
    would cost more than the submission. A project is never refused before it was counted anew.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[uuid.UUID, _Count] = {}

    def is_full(self, connection: Connection, project_id: uuid.UUID) -> bool:
        """Whether the project is full; if not, the job that it is about to submit is counted."""
        count = self._counts.get(project_id)
        if count is None or count.jobs >= self._most or time.monotonic() - count.at > _COUNTED_SECONDS:
            count = self._counts[project_id] = _Count(_unfinished(connection, project_id), time.monotonic())
        if count.jobs >= self._most:
            return True
        count.jobs += 1
        return False

    def room(self, connection: Connection, project_id: uuid.UUID) -> int:
        """How many more unfinished jobs the project may have, counted now."""
        return max(0, self._most - _unfinished(connection, project_id))

    def is_over(self, connection: Connection, project_id: uuid.UUID) -> bool:
        """Whether the project has more than it may, counted now: jobs among them that its transaction has made."""
        self._counts.pop(project_id, None)
        return _unfinished(connection, project_id) > self._most

    def refuse(self) -> Exception:
        """The problem for a project that is full."""
        detail = f"this project has {self._most} unfinished jobs, as many as it may"
        return problem(429, "too_many_waiting", detail, retry_after=_ROOM_SECONDS)


def _unfinished(connection: Connection, project_id: uuid.UUID) -> int:
    statement = select(func.count()).where(Job.project_id == project_id, Job.finished_at.is_(None))
    return int(connection.execute(statement).scalar_one())


class Gate:
    """At most `each` of `what` at once for a project, and `most` for all.

    A request that gets no place within `patience`, in seconds, is refused.
    """

    def __init__(self, what: str, each: int, most: int, patience: float) -> None:
        self.what, self.each, self.most, self.patience = what, each, most, patience
        self._own: dict[uuid.UUID | None, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(each))
        self._all = asyncio.Semaphore(most)

    @asynccontextmanager
    async def place(self, project_id: uuid.UUID | None) -> AsyncIterator[None]:
        """A place for as long as the block lasts; raises a problem: 429 over `each`, 503 over `most`."""
        own = f"this project has {self.each} {self.what} under way, as many as it may"
        others = f"this server has {self.most} {self.what} under way, as many as it takes"
        async with AsyncExitStack() as held:
            for places, status, detail in ((self._own[project_id], 429, own), (self._all, 503, others)):
                await self._take(places, status, detail)
                held.callback(places.release)
            yield

    async def _take(self, places: asyncio.Semaphore, status: int, detail: str) -> None:
        try:
            async with asyncio.timeout(self.patience) if places.locked() else nullcontext():
                await places.acquire()
        except TimeoutError:
            code = f"too_many_{self.what.replace(' ', '_')}"
            raise problem(status, code, detail, retry_after=max(1, math.ceil(self.patience / 2))) from None


@dataclass(frozen=True)
class Gates:
    """Each request passes one of them, by what it may hold up: threads and connections, the bucket, the provider."""

    requests: Gate
    reads: Gate
    searches: Gate
    files: Gate
    lookups: Gate
    streams: Gate
    exports: Gate
    bodies: Gate
    bulk: Gate
    uploads: Gate
    console: Gate
    drafts: Gate
    commits: Gate


def gates(max_input_bytes: int) -> Gates:
    """The gates of this process; together they leave some of its threads free to look up keys."""
    files = max(1, min(8, _SPOOL // max_input_bytes))
    return Gates(
        requests=Gate("requests", each=6, most=14, patience=10),
        reads=Gate("reads", each=4, most=8, patience=10),
        searches=Gate("searches", each=2, most=6, patience=5),
        files=Gate("file transfers", each=max(1, files // 2), most=files, patience=10),
        lookups=Gate("lookups at the provider", each=2, most=4, patience=5),
        streams=Gate("streams", each=100, most=1000, patience=0),
        exports=Gate("exports", each=4, most=40, patience=5),  # they hold threads as streams do
        bodies=Gate("bodies on their way", each=4, most=40, patience=5),  # of bulk requests, 1 MiB of memory each
        bulk=Gate("bulk requests", each=1, most=2, patience=10),
        uploads=Gate("uploads of batches", each=2, most=6, patience=30),  # 64 MiB of the disk each
        console=Gate("uploads by the console", each=2, most=6, patience=30),  # as much again, before they are those
        # each takes the disk for its rows, and a share of this process's one interpreter
        drafts=Gate("batches being checked", each=1, most=2, patience=30),
        commits=Gate("batches being committed", each=1, most=2, patience=30),
    )
