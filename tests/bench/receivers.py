"""Receivers of webhooks on loopback: any number of ports, each of which answers at once, or never."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

HOST = "127.0.0.1"
_ANSWER = b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb"webhook-id: *(\S+)", re.IGNORECASE)


@dataclass
class Receivers:
    """The addresses, and when each message came first, by its id: monotonic seconds."""

    urls: list[str]
    came: dict[str, float] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, seconds: float) -> bool:
        """Whether so many messages came within that time."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.came) >= count, seconds)

    def take(self, message_id: str) -> None:
        """Note a message; the same one again is not another."""
        with self.changed:
            self.came.setdefault(message_id, time.monotonic())
            self.changed.notify_all()


@contextlib.contextmanager
def receiving(count: int = 1, dead: int = 0) -> Iterator[Receivers]:
    """So many receivers that answer, then so many that take connections and requests and say nothing."""
    made = Receivers([])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="receivers", daemon=True)
    thread.start()
    serving = asyncio.run_coroutine_threadsafe(_serve(made, count, dead), loop).result()
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(_stop(serving), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve(made: Receivers, count: int, dead: int) -> list[asyncio.Server]:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: _Receiver(made), HOST, 0) for _ in range(count)]
    servers += [await loop.create_server(asyncio.Protocol, HOST, 0) for _ in range(dead)]
    made.urls += [f"http://{HOST}:{server.sockets[0].getsockname()[1]}/hooks" for server in servers]
    return servers


async def _stop(servers: list[asyncio.Server]) -> None:
    for server in servers:
        server.close()
        if hasattr(server, "close_clients"):
            server.close_clients()
    await asyncio.sleep(0)


class _Receiver(asyncio.Protocol):
    """A connection that is kept: each whole request is noted and answered."""

    def __init__(self, made: Receivers) -> None:
        self._made = made
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (head := self._data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._data, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._data) < end:
                return
            message_id = _ID.search(self._data, 0, head)
            self._made.take(message_id[1].decode() if message_id else str(len(self._made.came)))
            self._data = self._data[end:]
            assert self._transport is not None, "data come over a connection"
            self._transport.write(_ANSWER)
