"""The API as the console asks it: calls of the same app, in this process, with the session's own key.

So the console may do what its key may, and nothing else: scopes, projects, limits and gates are the API's, and whatever
a page shows, `curl` shows too.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from starlette.datastructures import UploadFile
from starlette.types import ASGIApp, Message

from api.sessions import Session

_CAP = 64 << 20  # bytes of an answer
_CHUNK = 1 << 16
_UNQUOTED = '"\r\n'  # what a browser writes another way in a file's name


class ApiRefused(Exception):
    """The API said no: its problem document."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or status))
        self.status = status
        self.problem = problem


class Api:
    """The API, as one session may use it."""

    def __init__(self, app: ASGIApp, session: Session | None, **headers: str) -> None:
        """`headers` go with every call, by names with underscores."""
        self._app, self.session = app, session
        signed = {"authorization": f"Session {session.token}"} if session else {}
        said = signed | {name.replace("_", "-"): value for name, value in headers.items()}
        self._headers = [(name.encode(), value.encode()) for name, value in said.items()]

    async def get(self, path: str, **query: Any) -> Any:
        """What GET answers; raises ApiRefused. Of the query, what is None or empty is left out."""
        return await self.call("GET", path, query=query)

    async def post(self, path: str, body: Any = None, *, once: str = "", **query: Any) -> Any:
        """What POST answers; raises ApiRefused. `once`: under that word it is done one time only."""
        return await self.call("POST", path, body, query=query, once=once)

    async def sent(self, path: str, file: UploadFile, options: Mapping[str, Any]) -> Any:
        """What POST answers to a file and its options, which is read from the disk piece by piece."""
        boundary = uuid4().hex
        named = "".join(f"%{ord(letter):02X}" if letter in _UNQUOTED else letter for letter in file.filename or "")
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="options"\r\n\r\n{json.dumps(options)}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{named}"\r\n'
            f"Content-Type: {file.content_type or 'application/octet-stream'}\r\n\r\n"
        )

        async def content() -> AsyncIterator[bytes]:
            yield head.encode()
            while chunk := await file.read(_CHUNK):
                yield chunk
            yield f"\r\n--{boundary}--\r\n".encode()

        kind = f"multipart/form-data; boundary={boundary}"
        return await self.call("POST", path, content(), content_type=kind)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        once: str = "",
    ) -> Any:
        """What the API answers, read as JSON; a body that comes in pieces is sent as it is. Raises ApiRefused."""
        content = body if isinstance(body, AsyncIterator) else _whole(body)
        said = [(name, value) for name, value in (query or {}).items() if value not in (None, "", [])]
        more = {} if body is None else {"content-type": content_type, "transfer-encoding": "chunked"}
        more |= {"idempotency-key": once} if once else {}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": urlencode(said, doseq=True).encode(),
            "headers": [*self._headers, *((name.encode(), value.encode()) for name, value in more.items())],
            "client": ("console", 0),
            "server": ("console", 0),
            "state": {},
        }
        answer = _Answer(content)
        await self._app(scope, answer.receive, answer.send)
        read = json.loads(answer.body) if answer.body else None
        if answer.status >= 400:
            raise ApiRefused(answer.status, read if isinstance(read, Mapping) else {})
        return read


async def _whole(body: Any) -> AsyncIterator[bytes]:
    if body is not None:
        yield json.dumps(body).encode()


class _Answer:
    """One call's two ends: the body that is sent, and the answer as it comes."""

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        self._content = content
        self.status = 0
        self.body = bytearray()

    async def receive(self) -> Message:
        """The next piece of the body."""
        piece = await anext(self._content, b"")
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def send(self, message: Message) -> None:
        """Keeps the status, and the body up to a bound."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if len(self.body) > _CAP:
                raise ApiRefused(500, {"detail": "the answer is too long"})
