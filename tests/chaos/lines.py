"""TCP lines that break: a proxy in front of a server, which cuts a connection instead of passing some bytes on.

A line in front of Postgres that drops the answer to a COMMIT makes the worst case of a database: the commit held,
and nobody knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence

from ops.local.servers import HOST

Cuts = Callable[[bytes, bool], bool]  # (bytes, whether they come from the server) → whether to hang up instead

COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"  # PostgreSQL docs, "Message formats": CommandComplete
_CHUNK = 65_536


class Line:
    """A port on loopback that leads to another. `cuts` decides over every piece; `is_down`: nobody gets through."""

    def __init__(self, target: int, cuts: Cuts) -> None:
        self.port = 0
        self.broken = 0  # connections that were cut
        self.is_down = False
        self._target = target
        self._cuts = cuts
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Take connections from now on, at `port`."""
        self._server = await asyncio.start_server(self._join, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.is_down:
                raise ConnectionError
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = (writer.transport, far_writer.transport)
        await asyncio.gather(
            self._relay(reader, far_writer, ends, from_server=False),
            self._relay(far_reader, writer, ends, from_server=True),
        )

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: tuple[asyncio.WriteTransport, ...],
        *,
        from_server: bool,
    ) -> None:
        try:
            while data := await reader.read(_CHUNK):
                if self.is_down or self._cuts(data, from_server):
                    self.broken += 1
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            for end in ends:
                end.abort()


@contextlib.contextmanager
def running(*lines: Line) -> Iterator[None]:
    """The lines, open, on one thread, as long as the block lasts."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="lines", daemon=True)
    thread.start()
    try:
        for line in lines:
            asyncio.run_coroutine_threadsafe(line.listen(), loop).result()
        yield
    finally:
        asyncio.run_coroutine_threadsafe(_close(lines), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(lines: Sequence[Line]) -> None:
    for line in lines:
        if line._server:
            line._server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Chance:
    """Says yes so often; nothing is left to chance once `of` is 0."""

    def __init__(self, of: float, seed: int) -> None:
        self.of = of
        self._random = random.Random(seed)

    def __call__(self) -> bool:
        return self.of > 0 and self._random.random() < self.of


def loses_commits(chance: Chance) -> Cuts:
    """Drops the answer to a commit."""
    return lambda data, from_server: from_server and COMMITTED in data and chance()


def breaks_off(chance: Chance) -> Cuts:
    """Drops any piece, of a request or of an answer."""
    return lambda _data, _from_server: chance()
