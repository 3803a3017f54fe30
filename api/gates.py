"""How much of what is scarce one project may have at once, and how much there is for all: for all that may be slow.

A request waits for a place in its own project's line, and holds no thread and no connection meanwhile; it is refused
when that takes too long. So a project that asks for more than its share delays itself and nobody else. The counts are
this process's own.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from api.problems import problem

_SPOOL = 400 << 20  # bytes of uploads that may lie on the disk at once; in a container that is its memory


@dataclass(frozen=True)
class Gate:
    """At most `each` of `what` at once for a project, and `most` for all; whoever finds no place in time is refused."""

    what: str
    each: int
    most: int
    patience: float  # seconds
    _own: dict[uuid.UUID | None, asyncio.Semaphore] = field(init=False, repr=False)
    _all: asyncio.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_own", defaultdict(lambda: asyncio.Semaphore(self.each)))
        object.__setattr__(self, "_all", asyncio.Semaphore(self.most))

    @asynccontextmanager
    async def place(self, project_id: uuid.UUID | None) -> AsyncIterator[None]:
        """A place for as long as the block lasts; raises a problem: 429 over the project's share, 503 over all's."""
        own = f"this project has {self.each} {self.what} under way, as many as it may"
        others = f"this server has {self.most} {self.what} under way, as many as it takes"
        async with AsyncExitStack() as held:
            for places, status, detail in ((self._own[project_id], 429, own), (self._all, 503, others)):
                await self._take(places, status, detail)
                held.callback(places.release)
            yield

    async def _take(self, places: asyncio.Semaphore, status: int, detail: str) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await places.acquire()
        except TimeoutError:
            code = f"too_many_{self.what.replace(' ', '_')}"
            raise problem(status, code, detail, retry_after=max(1, math.ceil(self.patience / 2))) from None


@dataclass(frozen=True)
class Gates:
    """What each request passes one of, by what it holds up: threads and connections, the bucket, the provider."""

    requests: Gate
    searches: Gate
    files: Gate
    lookups: Gate
    streams: Gate


def gates(max_input_bytes: int) -> Gates:
    """The gates of this process; together they leave some of its threads to looking up keys."""
    files = max(1, min(8, _SPOOL // max_input_bytes))
    return Gates(
        requests=Gate("requests", each=8, most=20, patience=10),
        searches=Gate("searches", each=2, most=6, patience=5),
        files=Gate("file transfers", each=max(1, files // 2), most=files, patience=10),
        lookups=Gate("lookups at the provider", each=2, most=4, patience=5),
        streams=Gate("streams", each=100, most=1000, patience=0),
    )
