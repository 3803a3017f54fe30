"""Peers on loopback that speak HTTP byte by byte, well or badly, and keep what they were sent."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[socket.socket, bytes], None]


class Peer:
    """A server that answers each request of each connection by its script, until the script closes."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", port))
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and hang up; whatever a script still does fails."""
        # A mere close would leave the thread in accept, and the port taken.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for sock in (self._listener, *self._open):
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self._listener.accept()
                self.connections += 1
                self._open.append(conn)
                threading.Thread(target=self._converse, args=(conn,), daemon=True).start()

    def _converse(self, conn: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls:
                conn = self._tls.wrap_socket(conn, server_side=True)
                self._open.append(conn)
            while request := _read(conn):
                self.requests.append(request)
                self._script(conn, request)


@contextmanager
def peer(script: Script, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Peer]:
    """A peer for the length of the block."""
    made = Peer(script, tls, port)
    try:
        yield made
    finally:
        made.close()


def answers(status: int, body: bytes, **headers: str) -> Script:
    """A whole answer with its length; `x_request_id="r"` is the header `x-request-id: r`."""
    return sends(whole(status, body, **headers))


def whole(status: int, body: bytes, **headers: str) -> bytes:
    """The bytes of an answer."""
    named = {"content-length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} Because\r\n{lines}\r\n".encode() + body


def sends(data: bytes) -> Script:
    """Those bytes and nothing else; the connection stays."""

    def script(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(data)

    return script


def breaks(data: bytes = b"") -> Script:
    """Those bytes, then a reset."""

    def script(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(data)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        conn.close()

    return script


def ends(data: bytes) -> Script:
    """Those bytes, then an orderly end."""

    def script(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(data)
        conn.close()

    return script


def drips(data: bytes, dripped: bytes) -> Script:
    """Some bytes at once, the others one by one, twenty a second."""

    def script(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(data)
        for byte in dripped:
            conn.sendall(bytes([byte]))
            time.sleep(0.05)

    return script


def hangs(conn: socket.socket, _request: bytes) -> None:
    """Nothing, until somebody hangs up."""
    conn.recv(1)


def _read(conn: socket.socket) -> bytes:
    """A request with its body; empty when the other side has ended."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = conn.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += conn.recv(65536)
    return head + b"\r\n\r\n" + body
