"""Every call that leaves this machine: streamed, under a wall-clock deadline and a byte cap.

All calls go through `stream`. Its errors say what the caller may do: after NotSent the call may be made again, after
Ambiguous it may have been received. Messages hold a host and a cause, never a query, a key or a body. The transport
(`worker.egress.transports`) decides which addresses may be reached; none follows redirects, keeps cookies or reads
proxy variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urljoin

import httpx
from ssrfguard import BlockedAddressError, BlockedURLError, SSRFGuardError

from worker import timeouts
from worker.egress import transports
from worker.errors import Ambiguous, NotSent
from worker.settings import Settings

Transport = httpx.BaseTransport
Content = bytes | Iterable[bytes]  # of a request; chunks need a Content-Length header

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOPS = 3  # redirects that are followed

_NEVER_SENT = (
    httpx.ConnectError,  # the name look-up and the TLS handshake among it
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,  # a header that cannot be written
    UnicodeError,  # from getaddrinfo, for a name that no DNS can carry
)


@dataclass(frozen=True)
class Bounds:
    """The limits of one call: seconds by the wall clock, from the name look-up on, and bytes of body."""

    deadline: float
    cap: int
    idle: float | None = None  # seconds without a byte; None: the deadline alone


@dataclass(frozen=True)
class Answer:
    """A whole answer; `request_id` is its `x-request-id` header."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str | None


@dataclass(frozen=True)
class Streamed:
    """An answer whose body is still on its way; `chunks` can be read once, inside the `with`."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


class NotAllowed(NotSent):
    """The URL, or the address of its host, may not be called; trying again will not help."""

    code = "not_allowed"


class TooLarge(Ambiguous):
    """The body went over the cap."""

    code = "too_large"


def call(
    transport: Transport,
    method: str,
    url: str,
    bounds: Bounds,
    headers: Mapping[str, str],
    content: Content = b"",
) -> Answer:
    """The whole answer, whatever its status.

    Raises NotSent when provably nothing left (NotAllowed among it), else Ambiguous, with the answer's request
    id when its headers had come (TooLarge among it).
    """
    with stream(transport, method, url, bounds, headers, content) as answer:
        return whole(answer)


def whole(answer: Streamed) -> Answer:
    """The whole of a streamed answer; raises like its chunks."""
    body = b"".join(answer.chunks)
    return Answer(answer.status, answer.headers, body, answer.headers.get("x-request-id"))


def read_out(answer: Streamed, seconds: float, kept: int = 0) -> bytes:
    """Reads what is left of an answer that is not wanted, so that its connection can be kept; for that long at most.

    Returns how it began, so many bytes.
    """
    began = bytearray()
    with transports.until(seconds), suppress(Ambiguous):
        for chunk in answer.chunks:
            began += chunk[: kept - len(began)]
    return bytes(began)


@contextmanager
def stream(
    transport: Transport,
    method: str,
    url: str,
    bounds: Bounds,
    headers: Mapping[str, str],
    content: Content = b"",
) -> Iterator[Streamed]:
    """An answer chunk by chunk, its bytes as sent; raises like `call`, from the `with` and from the chunks.

    The caller's time between the chunks counts against the deadline too. The chunks must be read in the thread that
    opened the stream.
    """
    request = _request(method, url, bounds, headers, content)
    with transports.until(bounds.deadline):
        response = _send(transport, request)
        try:
            yield Streamed(response.status_code, response.headers, _chunks(response, request, bounds.cap))
        finally:
            response.close()


@contextmanager
def source(transport: Transport, url: str, bounds: Bounds, settings: Settings) -> Iterator[Streamed]:
    """The answer at the end of a source's redirects; a provider's http link is called over https, at each hop.

    Raises like `stream`; NotAllowed also for too many redirects.
    """
    with _followed(transport, url, bounds, lambda hop: _over_https(hop, settings)) as answer:
        yield answer


def fetch(transport: Transport, url: str, bounds: Bounds) -> Answer:
    """The answer at the end of a user's link, each redirect checked like the link; raises like `source`."""
    with _followed(transport, url, bounds, str) as answer:
        return whole(answer)


@cache
def user_agent() -> str:
    """`noria/<version>`."""
    try:
        return f"noria/{version('noria')}"
    except PackageNotFoundError:  # run from a checkout
        return "noria/0"


@contextmanager
def _followed(transport: Transport, url: str, bounds: Bounds, hop: Callable[[str], str]) -> Iterator[Streamed]:
    with transports.until(bounds.deadline):
        for _ in range(1 + _HOPS):
            with stream(transport, "GET", hop(url), bounds, {"Accept": "*/*"}) as answer:
                if answer.status not in _REDIRECTS:
                    yield answer
                    return
                url = _joined(url, answer.headers.get("location", ""))
    raise NotAllowed(f"more than {_HOPS} redirects")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise NotAllowed("it redirects to what is no URL") from None


def _over_https(url: str, settings: Settings) -> str:
    """The URL over https if its host is the provider's: links to speech come as http."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return url
    if parsed.scheme == "http" and transports.is_source_host(parsed, settings):
        return f"https{url[4:]}"
    return url


def _request(method: str, url: str, bounds: Bounds, headers: Mapping[str, str], content: Content) -> httpx.Request:
    # Compressed bodies are not asked for: a small one can unpack to gigabytes.
    plain = httpx.Headers({"User-Agent": user_agent(), "Accept-Encoding": "identity"})
    connect = timeouts.CONNECT.total_seconds()
    waits = {"connect": connect, "pool": connect, "read": bounds.idle, "write": bounds.idle}
    try:
        plain.update(headers)
        request = httpx.Request(method, url, headers=plain, content=content, extensions={"timeout": waits})
    except (httpx.InvalidURL, ValueError):
        raise NotAllowed("the URL or a header cannot be sent") from None  # the cause would show it
    exact = re.fullmatch(r"[^:/?#]+://[^/?#]*(/[!-~]*)", url.partition("#")[0])
    if exact:
        # A signature is over the very bytes of the link, and httpx may write an escape differently.
        request.extensions["target"] = exact[1].encode()
    return request


def _send(transport: Transport, request: httpx.Request) -> httpx.Response:
    host = request.url.host
    try:
        return transport.handle_request(request)
    except (BlockedURLError, BlockedAddressError) as blocked:
        raise NotAllowed(f"{host}: {blocked.reason}") from None  # its text has the whole URL
    except SSRFGuardError as refused:
        raise NotAllowed(f"{host}: {type(refused).__name__}") from None
    except _NEVER_SENT as error:
        raise NotSent(f"{host}: {type(error).__name__}") from error
    except httpx.HTTPError as error:
        raise Ambiguous(f"{host}: {type(error).__name__}") from error


def _chunks(response: httpx.Response, request: httpx.Request, cap: int) -> Iterator[bytes]:
    host, request_id = request.url.host, response.headers.get("x-request-id")
    seen = 0
    try:
        for chunk in _parts(response):
            seen += len(chunk)
            if seen > cap:
                raise TooLarge(f"{host}: more than {cap} bytes", request_id)
            yield chunk
    except httpx.HTTPError as error:
        raise Ambiguous(f"{host}: {type(error).__name__} in the body", request_id) from error


def _parts(response: httpx.Response) -> Iterable[bytes]:
    assert isinstance(response.stream, httpx.SyncByteStream), "our transports are synchronous"
    return response.stream
