"""One account's way to the provider's HTTP API: its key, its headers, and the transports that its calls take.

A call that may make something goes out once; any other may be repeated, and the two take different transports. A call
whose key is refused made nothing, so it is sent again, in what is left of its time, when the key file holds a new key.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

from worker import egress, timeouts
from worker.catalog import Surface
from worker.egress import Answer, Bounds, Content, Streamed, Transport
from worker.errors import NotSent
from worker.settings import Account

BODY_CAP = 8 << 20  # bytes

# The provider's wall clock. A recorded task created at 09:38:24 GMT shows 17:38:24.
BEIJING = timezone(timedelta(hours=8))
_GUARDED = '{"input":"cip","output":"cip"}'  # Alibaba docs, 'Content security'; the SDK's `enable` asks for nothing
_ROOTS = {
    Surface.NATIVE: "/api/v1",
    Surface.COMPATIBLE: "/compatible-mode/v1",
    Surface.BATCH_CHAT: "/compatible-mode/v1",
}


def query_time(at: datetime) -> str:
    """A time as the provider's queries take it, by its own clock: `20261121020000`."""
    assert at.tzinfo is not None, "the provider's clock is eight hours ahead: the zone must be known"
    return at.astimezone(BEIJING).strftime("%Y%m%d%H%M%S")


class Session:
    """One account. Safe for threads; transports may be shared between accounts."""

    def __init__(self, account: Account, queries: Transport, creates: Transport) -> None:
        """`queries` may keep its connections (`transports.keeping`), `creates` must not (`transports.single`)."""
        self._account = account
        self._queries = queries
        self._creates = creates
        self._key = _read_key(account)

    @contextmanager
    def once(
        self, surface: Surface, path: str, bounds: Bounds, headers: Mapping[str, str], content: Content
    ) -> Iterator[Streamed]:
        """The answer to a POST that may make something; raises like `egress.stream`."""
        inspected = {"X-DashScope-DataInspection": _GUARDED} if self._account.data_inspection else {}
        with self._open(self._creates, "POST", surface, path, bounds, {**headers, **inspected}, content) as answer:
            yield answer

    def query(self, method: str, surface: Surface, path: str, bounds: Bounds | None = None) -> Answer:
        """The answer to a call that may be repeated."""
        bounds = bounds or Bounds(timeouts.QUERY.total_seconds(), BODY_CAP)
        with self.fetch(method, surface, path, bounds) as answer:
            return egress.whole(answer)

    @contextmanager
    def fetch(self, method: str, surface: Surface, path: str, bounds: Bounds) -> Iterator[Streamed]:
        """The same, chunk by chunk."""
        with self._open(self._queries, method, surface, path, bounds, {}, b"") as answer:
            yield answer

    def elsewhere(self, url: str, bounds: Bounds, headers: Mapping[str, str], content: Content) -> Answer:
        """The answer to a POST to an address that the provider named; without our key, since it is not its API."""
        return egress.call(self._creates, "POST", url, bounds, headers, content)

    @contextmanager
    def _open(
        self,
        transport: Transport,
        method: str,
        surface: Surface,
        path: str,
        bounds: Bounds,
        headers: Mapping[str, str],
        content: Content,
    ) -> Iterator[Streamed]:
        ends, key = time.monotonic() + bounds.deadline, self._key
        host = self._account.batch_chat if surface is Surface.BATCH_CHAT else self._account.url
        if host is None:  # another account of the owner there has one
            raise NotSent(f"the account {self._account.name} has no host for Batch Chat")
        url = f"{host.rstrip('/')}{_ROOTS[surface]}/{path.lstrip('/')}"
        with egress.stream(transport, method, url, bounds, {**self._headers(key), **headers}, content) as answer:
            # A body that came in chunks was used up by the first try.
            if answer.status != 401 or not isinstance(content, bytes) or not self._has_new_key(key):
                yield answer
                return
        left = dataclasses.replace(bounds, deadline=max(0.0, ends - time.monotonic()))
        with egress.stream(transport, method, url, left, {**self._headers(self._key), **headers}, content) as answer:
            yield answer

    def _headers(self, key: str) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if key:  # without one the provider refuses the call in its usual envelope
            headers["Authorization"] = f"Bearer {key}"
        if self._account.workspace:
            headers["X-DashScope-WorkSpace"] = self._account.workspace
        return headers

    def _has_new_key(self, refused: str) -> bool:
        """Whether the key file holds another key than the refused one; it is used from now on."""
        self._key = _read_key(self._account) or self._key
        return self._key != refused  # another thread may have found it first


def _read_key(account: Account) -> str:
    """The account's key; empty when it has none, or when its file cannot be read now."""
    if account.key_file is None:
        return account.key.get_secret_value().strip() if account.key else ""
    try:
        return Path(account.key_file).read_text().strip()
    except OSError:
        return ""
