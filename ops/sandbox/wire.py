"""Answers as they leave: the native envelope and headers, the object store's XML, and lines that break.

A broken answer reaches below HTTP, to the connection that uvicorn holds; under another server, which gives no
such hold, it raises ConnectionResetError instead.
"""

import asyncio
import gzip
import json
import socket
import struct
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from xml.sax.saxutils import escape

from fastapi import Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ops.sandbox.links import Denial
from ops.sandbox.refusals import Refusal

GZIP_FROM = 256  # bytes
RST_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time
EVENT_STREAM = "text/event-stream;charset=UTF-8"
GATEWAY_PAGE = "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center><hr>istio-envoy</body></html>"


class Reply:
    """How one native request is answered: under one request id, timed from its arrival."""

    def __init__(self, request: Request, *, is_query: bool, allow_gzip: bool) -> None:
        self.request_id = str(uuid.uuid4())
        self._arrived_at = time.time()
        self._is_query = is_query
        self._gzips = allow_gzip and "gzip" in request.headers.get("accept-encoding", "")

    def json(self, payload: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """Return a payload with the native headers; its request id must stand in it already."""
        content = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        sent = self.headers() | (headers or {})
        if self._gzips and len(content) >= GZIP_FROM:
            content = gzip.compress(content, 1, mtime=0)
            sent |= {"content-encoding": "gzip", "vary": "Accept-Encoding"}
        return Response(content, status, sent)

    def refusal(self, refusal: Refusal, retry_after_seconds: int | None) -> Response:
        """Return the native error envelope; a 429 says when to come back only if the sandbox is set to."""
        payload = {"code": refusal.code, "message": refusal.message, "request_id": self.request_id}
        throttled = refusal.status == 429 and retry_after_seconds is not None
        return self.json(payload, refusal.status, {"retry-after": str(retry_after_seconds)} if throttled else None)

    def stream(self, frames: AsyncIterator[bytes]) -> Response:
        """Return server-sent events, under the headers of a stream; it is never packed."""
        sent = self.headers() | {"content-type": EVENT_STREAM, "x-dashscope-finished": "false"}
        return StreamingResponse(frames, 200, sent)

    def refused_stream(self, refusal: Refusal) -> Response:
        """Return the one event that an error on a stream is, under HTTP 200, as recorded."""
        payload = {"code": refusal.code, "message": refusal.message, "request_id": self.request_id}
        sent = self.headers() | {"content-type": EVENT_STREAM}
        return Response(event(1, payload, refusal.status, "error"), 200, sent)

    def headers(self) -> dict[str, str]:
        """Return the headers of the native interface, timed up to now."""
        answered_at = time.time()
        own = {
            "content-type": "application/json;charset=UTF-8" if self._is_query else "application/json",
            "x-request-id": self.request_id,
            "req-arrive-time": str(int(self._arrived_at * 1000)),
            "resp-start-time": str(int(answered_at * 1000)),
            "req-cost-time": str(int((answered_at - self._arrived_at) * 1000)),
            "server": "istio-envoy",
        }
        inference = {
            "x-dashscope-call-gateway": "true",
            "x-dashscope-timeout": "298",
            "x-dashscope-finished": "true",
        }
        return own if self._is_query else own | inference


def event(number: int, payload: dict[str, Any], status: int = 200, name: str = "result") -> bytes:
    """Return one server-sent event in the native framing: the status is a comment."""
    data = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return f"id:{number}\nevent:{name}\n:HTTP_STATUS/{status}\ndata:{data}\n\n".encode()


def gateway_page(status: int) -> Response:
    """Return what a gateway says when nothing answers behind it: HTML, no request id."""
    return HTMLResponse(GATEWAY_PAGE.format(f"{status} Bad Gateway"), status)


def store_headers() -> dict[str, str]:
    """Return what the object store puts on every answer."""
    return {"Server": "AliyunOSS", "x-oss-request-id": _store_request_id()}


def denial(denied: Denial, host: str, with_body: bool) -> Response:
    """Return the object store's error in its XML; a HEAD gets the status alone."""
    request_id = _store_request_id()
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{denied.code}</Code><Message>{escape(denied.message)}</Message>"
        f"<RequestId>{request_id}</RequestId><HostId>{escape(host)}</HostId>{denied.details}"
        f"<EC>{denied.ec}</EC><RecommendDoc>https://api.aliyun.com/troubleshoot?q={denied.ec}</RecommendDoc></Error>"
    )
    headers = {"Server": "AliyunOSS", "x-oss-request-id": request_id, "x-oss-ec": denied.ec}
    return Response(xml if with_body else None, denied.status, headers, "application/xml")


class Cut(Response):
    """No answer at all: the connection ends, with a reset."""

    async def __call__(self, _scope: Scope, receive: Receive, _send: Send) -> None:
        transport = _transport(receive)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
        transport.abort()
        await _until_gone(receive)


class CutShort(Response):
    """An answer whose headers promise all of it, and whose body ends after a share of it."""

    def __init__(self, whole: Response, content: bytes, share: float) -> None:
        super().__init__(content, whole.status_code, dict(whole.headers))
        if "content-length" not in whole.headers:
            del self.headers["content-length"]  # a stream promises no length: its last chunk is what is missing
        self._sent = content[: int(len(content) * share)]

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._sent, "more_body": True})
        _transport(receive).close()
        await _until_gone(receive)


class Silence(Response):
    """No answer: the connection stays open until the client gives up."""

    async def __call__(self, _scope: Scope, receive: Receive, _send: Send) -> None:
        await _until_gone(receive)


def drip(whole: Response, content: bytes, bytes_per_second: int) -> Response:
    """Return the same answer, so many bytes a second."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), bytes_per_second):
            yield content[start : start + bytes_per_second]
            await asyncio.sleep(1)

    return StreamingResponse(pieces(), whole.status_code, dict(whole.headers))


async def content_of(whole: Response) -> bytes:
    """Return an answer's whole body."""
    if isinstance(whole, StreamingResponse):
        return b"".join([bytes(piece) async for piece in whole.body_iterator])  # type: ignore[arg-type]
    return bytes(whole.body)


def streamed(pieces: Iterator[bytes], status: int, headers: dict[str, str]) -> Response:
    """Return an answer whose body is made as it is sent."""
    return StreamingResponse(pieces, status, headers)


def _store_request_id() -> str:
    return uuid.uuid4().hex[:24].upper()


def _transport(receive: Receive) -> asyncio.Transport:
    cycle = getattr(receive, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if transport is None:
        raise ConnectionResetError("the sandbox cuts the line here")
    return transport  # type: ignore[no-any-return]


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
