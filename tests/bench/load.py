"""Requests by one thread that waits for all its connections at once, so that the clients take little CPU."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.bench.asking import Door, Request

_CHUNK = 65536
_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length: "


@dataclass
class _Line:
    """A connection, when what is under way on it was due, and what of the answer has come."""

    socket: socket.socket
    due: float = 0.0
    answer: bytes = b""


def press(door: Door, requests: Sequence[Request], at_once: int, per_second: float | None = None) -> list[float]:
    """The seconds that each request took, in the order of the answers; so many are under way at once.

    `per_second` sends each at its own time, from which it is counted, not as fast as can be.
    """
    waiting, took = deque(_bytes(door, request) for request in requests), list[float]()
    free, began = deque(_Line(_connected(door)) for _ in range(at_once)), time.monotonic()
    with selectors.DefaultSelector() as selector:
        for line in free:
            selector.register(line.socket, selectors.EVENT_READ, line)
        while len(took) < len(requests):
            due = began + (len(requests) - len(waiting)) / per_second if per_second else 0.0
            while waiting and free and due <= time.monotonic():
                _send(free.popleft(), waiting.popleft(), due or time.monotonic())
                due += 1 / per_second if per_second else 0.0
            pause = max(0.0, due - time.monotonic()) if waiting and free else None
            for key, _ in selector.select(pause):
                if _has_ended(key.data):
                    took.append(time.monotonic() - key.data.due)
                    free.append(key.data)
    for line in free:
        line.socket.close()
    return took


def _connected(door: Door) -> socket.socket:
    parts = urlsplit(door.url)
    made = socket.create_connection((parts.hostname, parts.port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _bytes(door: Door, request: Request) -> bytes:
    method, path, body = request
    content = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {door.key}\r\naccept: */*\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


def _send(line: _Line, request: bytes, due: float) -> None:
    line.due, line.answer = due, b""
    line.socket.sendall(request)


def _has_ended(line: _Line) -> bool:
    """Reads what has come; whether that is the whole answer."""
    line.answer += line.socket.recv(_CHUNK)
    head, end, content = line.answer.partition(_END)
    if not end:
        return False
    assert head.startswith(b"HTTP/1.1 20"), line.answer
    length = int(head.lower().partition(_LENGTH)[2].partition(b"\r\n")[0])
    return len(content) >= length
