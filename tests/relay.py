"""A relay in front of a server that passes bytes on changed, or speaks TLS where the server does not."""

from __future__ import annotations

import asyncio
import re
import ssl
import struct
from collections.abc import Callable
from typing import Any

from ops.local.servers import HOST
from tests.chaos.lines import Line

Rewrite = Callable[[bytes, bool], bytes]  # (bytes, whether they come from the server) → what is passed on

# PostgreSQL docs, "Message formats": ErrorResponse, as PgBouncer 1.18 writes it.
_REFUSAL = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"


class Relay(Line):
    """A line that rewrites what passes. `passed`: all that clients sent, after TLS."""

    def __init__(self, target: int, rewrite: Rewrite = lambda data, _: data, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(target, lambda _data, _from_server: False)
        self.passed = b""
        self._rewrite = rewrite
        self._tls = tls

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._join, HOST, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _relay(self, reader: Any, writer: Any, ends: Any, *, from_server: bool) -> None:
        await super()._relay(_Rewriting(self, reader, from_server), writer, ends, from_server=from_server)  # type: ignore[arg-type]


class _Rewriting:
    def __init__(self, relay: Relay, reader: asyncio.StreamReader, from_server: bool) -> None:
        self._relay, self._reader, self._from_server = relay, reader, from_server

    async def read(self, size: int) -> bytes:
        data = await self._reader.read(size)
        self._relay.passed += b"" if self._from_server else data
        return self._relay._rewrite(data, self._from_server)


def drops_options(data: bytes, from_server: bool) -> bytes:
    """A pooler that is told to ignore the startup parameter `options`, and does."""
    if from_server or data[4:8] != b"\0\3\0\0":
        return data
    kept = re.sub(rb"\0options\0[^\0]*(?=\0)", b"", data)
    return struct.pack("!I", len(kept)) + kept[4:]


def refuses_options(data: bytes, from_server: bool) -> bytes:
    """A pooler as PgBouncer is by default."""
    if from_server:
        return b"E" + struct.pack("!I", len(_REFUSAL) + 4) + _REFUSAL if data[:1] == b"E" else data
    # The server is asked for a protocol that it does not speak, and hangs up at once.
    is_refused = data[4:8] == b"\0\3\0\0" and b"\0options\0" in data
    return data[:4] + b"\0\x09" + data[6:] if is_refused else data


def hides_the_process(data: bytes, from_server: bool) -> bytes:
    """A pooler that gives each session its settings, and clients a number of its own instead of the process's."""
    if not from_server or b"server_version" not in data:
        return data
    key = data.index(b"K\0\0\0\x0c") + 5  # PostgreSQL docs, "Message formats": BackendKeyData
    return data[:key] + b"\0\0\0\x07" + data[key + 4 :]


def older(version: int) -> Rewrite:
    """A server that says that it is PostgreSQL of that version."""
    return lambda data, _: re.sub(rb"(server_version\0)18", rb"\g<1>%d" % version, data)
