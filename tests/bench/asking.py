"""Requests to the API over connections that stay, many at once, each with the time it took."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT = 30.0  # seconds
_KEPT = 2.0  # seconds that a connection is kept idle: uvicorn closes it after five


@dataclass(frozen=True)
class Door:
    """Where the API listens, and a key to it."""

    url: str
    key: str


@dataclass(frozen=True)
class Answer:
    """What was said, when it was asked (monotonic seconds), and how long it took, in seconds."""

    status: int
    body: Any
    asked_at: float
    seconds: float


Request = tuple[str, str, Mapping[str, Any] | None]  # method, path, body


def ask(door: Door, request: Request) -> Answer:
    """One request, on a connection that belongs to this thread."""
    method, path, body = request
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {door.key}", "content-type": "application/json"}
    asked_at = time.monotonic()
    connection = _connection(door)
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    content = answer.read()
    seconds = time.monotonic() - asked_at
    assert answer.status < 400, f"{method} {path}: {answer.status} {content[:300]!r}"
    return Answer(answer.status, json.loads(content or b"null"), asked_at, seconds)


def ask_all(door: Door, requests: Sequence[Request], at_once: int = 8, per_second: float | None = None) -> list[Answer]:
    """All of them, in their order, so many at once; `per_second` sends each at its own time, not as fast as can be.

    The time of a request that is sent at its own time counts from then, whatever held it up.
    """
    began = time.monotonic()

    def paced(n: int) -> Answer:
        due = began + n / per_second if per_second else time.monotonic()
        time.sleep(max(0.0, due - time.monotonic()))
        answer = ask(door, requests[n])
        return Answer(answer.status, answer.body, due, time.monotonic() - due) if per_second else answer

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(paced, range(len(requests))))


def clips(count: int, model: str, size: str = "832*480", **more: Any) -> list[Request]:
    """Submissions of clips that can be told apart."""
    return [
        (
            "POST",
            "/v1/jobs",
            {"kind": "text-to-video", "model": model, "input": {"prompt": f"a heron, {n}", "size": size}, **more},
        )
        for n in range(count)
    ]


def until(look: Callable[[], bool], seconds: float, pause: float = 0.1) -> bool:
    """Whether `look` came true within that time."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


_mine = threading.local()


def _connection(door: Door) -> http.client.HTTPConnection:
    """This thread's connection; a new one where the old may have been closed for its idleness."""
    found: tuple[str, http.client.HTTPConnection, float] | None = getattr(_mine, "connection", None)
    now = time.monotonic()
    if found is None or found[0] != door.url or now - found[2] > _KEPT:
        parts = urlsplit(door.url)
        assert parts.hostname, "an address has a host"
        found = (door.url, http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT), now)
    _mine.connection = (door.url, found[1], now)
    return found[1]
