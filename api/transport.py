"""How the client asks: its connections, what it asks again, and what it makes of refusals.

What only looks, and what may be done twice, is asked again for half a minute when no answer came, or one that says
"later". Any other POST is asked again only where it did nothing for certain: it was not sent, or the server says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import httpx
import stamina
from httpx_sse import ServerSentEvent
from httpx_sse._decoders import SSEDecoder  # its own loop would not let us look at the clock

TIMEOUT = httpx.Timeout(20, connect=5)
UPLOAD_TIMEOUT = httpx.Timeout(120, connect=5)  # until the file is in the bucket
STREAM_TIMEOUT = httpx.Timeout(45, connect=5)  # three of the server's heartbeats
CHUNK = 1 << 20
_PATIENCE = 30.0  # seconds

# The POSTs that do the same when they come twice, by their meaning. All others are sent once, but with an
# Idempotency-Key, or as a dry run: what is new here is not repeated by mistake.
_REPEATABLE = re.compile(
    r"/v1/(?:"
    r"files"  # the same bytes under the same name are one file
    r"|schedules"  # the same fields find the schedule that was made
    r"|schedules/[^/]+/(?:pause|resume)"
    r"|batches/[^/]+/(?:commit|pause|resume|cancel)"
    r"|jobs/[^/]+/(?:cancel|approve|reject)"  # a rejected job has one next take at the most
    r")"
)
_LATER = frozenset({429, 502, 503, 504})
# The codes of a 503 that a request gets before anything is done for it; a 429 always is one.
_NOT_BEGUN = re.compile("too_many_.*")
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)

stamina.instrumentation.set_on_retry_hooks([])  # they would write to standard output, which is the command's


class ApiError(Exception):
    """The API refused or failed; `problem` is its answer (RFC 9457), whose `code` is stable."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None) -> None:
        super().__init__(f"{problem.get('code', status)}: {problem.get('detail', problem.get('title', ''))}")
        self.status = status
        self.problem = dict(problem)
        self.retry_after = retry_after  # seconds

    @property
    def code(self) -> str:
        """What to decide on."""
        return str(self.problem.get("code", self.status))

    @property
    def faults(self) -> list[str]:
        """Every wrong field that the API names, as `input.size: …`; the error itself where it names none."""
        return [fault_in_words(fault) for fault in self.problem.get("errors", [])] or [str(self)]


class Transport:
    """Requests to the API at `url`. Raises ApiError, and httpx's TransportError when nobody answers."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._http = client_for(url, base_url=url, headers=headers, timeout=TIMEOUT)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def call(self, method: str, path: str, **said: Any) -> httpx.Response:
        """The answer, which is no refusal; `said` is what httpx takes. A file in it is read from its beginning."""
        headers, params = said.get("headers") or {}, said.get("params") or {}
        again = later if is_repeatable(method, path, headers, params) else _not_begun
        for attempt in stamina.retry_context(on=again, attempts=None, timeout=_PATIENCE, wait_initial=0.2):
            with attempt:
                for _, file in said.get("files", {}).values():
                    file.seek(0)
                answer = self._http.request(method, path, **said)
                if attempt.num > 1 and method == "DELETE" and answer.status_code == httpx.codes.NOT_FOUND:
                    return answer  # the one before did it, and its answer was lost
                refuse(answer)
        return answer

    def pages(self, path: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Every item of a list; pages are fetched as they are needed."""
        said = dict(params)
        while True:
            page = self.call("GET", path, params=said).json()
            yield from page["data"]
            if not page["has_more"]:
                return
            said["cursor"] = page["next_cursor"]

    @contextmanager
    def stream(self, path: str, timeout: httpx.Timeout, **headers: str) -> Iterator[httpx.Response]:
        """One answer as it comes, asked for once; the names of `headers` have _ for -."""
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        with self._http.stream("GET", path, headers=said, timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
            refuse(answer)
            yield answer


def events(answer: httpx.Response) -> Iterator[ServerSentEvent | None]:
    """The events of a stream as they come; None for a heartbeat, so that whoever waits may look at the clock."""
    decoder, rest = SSEDecoder(), ""
    for text in answer.iter_text():
        # not by `iter_lines`, for which half a dozen characters of a prompt would end a line
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            event = decoder.decode(line.removesuffix("\r"))
            if event is not None and event.data:  # the decoder takes the empty line after a heartbeat for an event
                yield event
            elif line.startswith(":"):
                yield None


def is_repeatable(method: str, path: str, headers: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    """Whether a request may be sent again that may have been carried out."""
    if method != "POST" or "idempotency-key" in headers or params.get("dry_run") == "true":
        return True
    return _REPEATABLE.fullmatch(path) is not None


def later(error: Exception) -> bool | float:
    """Whether what may be repeated is asked again after that error, or after how many seconds."""
    if isinstance(error, ApiError):
        return error.status in _LATER and (error.retry_after or True)
    return isinstance(error, httpx.TransportError)


def _not_begun(error: Exception) -> bool | float:
    """The same of what must not be done twice."""
    if isinstance(error, ApiError):
        is_sure = error.status == 429 or (error.status == 503 and _NOT_BEGUN.fullmatch(error.code))
        return bool(is_sure) and (error.retry_after or True)
    return isinstance(error, _NOT_SENT)


def refuse(answer: httpx.Response) -> None:
    """Raises ApiError for a refusal."""
    if not answer.is_error:
        return
    try:
        problem = answer.json()
    except ValueError:  # a proxy's page
        problem = {}
    retry_after = answer.headers.get("retry-after", "")
    raise ApiError(
        answer.status_code,
        problem if isinstance(problem, dict) else {},
        float(retry_after) if retry_after.isdecimal() else None,
    )


def fault_in_words(fault: Mapping[str, Any]) -> str:
    """`line 3, column Size: …` or `line 3, input.size: …` of a file's row, else `input.size: …`."""
    if line := fault.get("line"):
        field = fault["pointer"].strip("/").replace("/", ".")  # of JSON, or of the defaults
        where = f", column {fault['column']}" if fault.get("column") else f", {field}" if field else ""
        return f"line {line}{where}: {fault['message']}"
    return f"{fault['pointer'].strip('/').replace('/', '.') or 'body'}: {fault['message']}"


def client_for(url: str, **said: Any) -> httpx.Client:
    """A client for that address, through the environment's proxy; ProxyError where that can be none."""
    is_near = _is_loopback(url)
    try:
        return httpx.Client(trust_env=not is_near, **said)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        found = [name for name in os.environ if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]
        advice = "make it http://host:port, unset it, or for SOCKS: pip install 'httpx[socks]'"
        raise httpx.ProxyError(f"no proxy is what {', '.join(sorted(found))} names: {advice}") from error


def _is_loopback(url: str) -> bool:
    """Whether it is on this machine, where no proxy of the environment is asked, or even read."""
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
