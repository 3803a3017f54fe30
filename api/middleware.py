"""What every request has: an id, a line in the log, headers for safety, and an answer whatever happens."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from worker import log

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_QUIET = frozenset({"/healthz", "/readyz"})  # asked every few seconds by machines

_log = log.get(__name__)


class Frame:
    """Innermost but for routing, so that what it says is true of every answer, refusals and failures too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        framed = _Framed(scope, send)
        try:
            await self._app(scope, receive, framed.send)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:  # noqa: BLE001 - the client gets an answer, and the log the cause
            answer = problems.answer(Request(scope), error)
            if not framed.status:
                await answer(scope, receive, framed.send)
        finally:
            framed.note()


class _Framed:
    """One request on its way."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        self._scope = scope
        self._send = send
        self._began = time.monotonic()
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        """Passes the answer on, with the headers that each has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update({"x-request-id": self.request_id, **_HEADERS})
            if self._scope["path"].startswith("/v1/"):
                headers.setdefault("cache-control", "no-store")
        await self._send(message)

    def note(self) -> None:
        """One line in the log: the route's template, never the address with its query."""
        route = getattr(self._scope.get("route"), "path", None)
        if route in _QUIET and self.status < 500:
            return
        state: dict[str, Any] = self._scope["state"]
        _log.info(
            "request",
            request=self.request_id,
            method=self._scope["method"],
            route=route,
            status=self.status or None,  # none: the client went away first
            ms=round((time.monotonic() - self._began) * 1000, 1),
            project=state.get("project"),
        )
