"""DashScope over HTTP, for one account.

DashScope has no idempotency key, so how a create call ends is a matter of money. There are four ends to it:
`Accepted`, `Refused` (the provider says no, in its own envelope: nothing was made), NotSent (nothing left
this machine), Ambiguous (everything else: a task may exist). A create is sent once: no retry, no redirect, no
kept connection. Queries and cancels may be repeated, so they keep their connections.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from worker import egress, spans
from worker.dashscope import answers
from worker.dashscope.answers import Accepted, Page, Refused, TaskSeen
from worker.egress import Answer, Bounds, Wire
from worker.settings import Account

BODY_CAP = 8 << 20  # bytes

# The provider's wall clock. A recorded task created at 09:38:24 GMT shows 17:38:24.
BEIJING = timezone(timedelta(hours=8))


class Request(Protocol):
    """A create call: the path under `/api/v1`, extra headers, and the body."""

    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> Mapping[str, Any]: ...


class Client:
    """One account. Safe for threads; wires may be shared between accounts."""

    def __init__(self, account: Account, queries: Wire, creates: Wire) -> None:
        """`queries` may keep its connections (`wires.keeping`), `creates` must not (`wires.single`)."""
        self._account = account
        self._queries = queries
        self._creates = creates
        self._root = f"{account.url.rstrip('/')}/api/v1"
        self._key = _read_key(account)

    def create(self, request: Request, deadline: float) -> Accepted | Refused:
        """Send a create call, once; `deadline` in seconds.

        Raises NotSent when nothing left, ServerTrouble for a failure in the provider's envelope, Ambiguous
        for everything else that is neither an acceptance nor a refusal. A key that is refused made nothing, so
        the call is sent once more, in what is left of the time, when the key file holds another by then.
        """
        ends = time.monotonic() + deadline
        key = self._key
        said = self._create(request, key, deadline)
        if isinstance(said, Refused) and said.http_status == 401 and self._has_other_key(key):
            said = self._create(request, self._key, max(0.0, ends - time.monotonic()))
        return said

    def task(self, task_id: str) -> TaskSeen | Refused:
        """What became of a task, whatever its fate; raises CallFailed when there was no readable answer."""
        return answers.task(self._query("GET", f"/tasks/{quote(task_id, safe='')}"))

    def tasks(
        self,
        start: datetime,
        end: datetime,
        page_no: int,
        page_size: int,
        model: str | None = None,
        status: str | None = None,
    ) -> Page | Refused:
        """A page, from 1, of the tasks created from `start` to `end`: aware times, at most 24 h apart.

        Raises CallFailed when there was no readable answer. (Alibaba docs, "Manage asynchronous tasks".)
        """
        asked = {
            "start_time": _wall_clock(start),
            "end_time": _wall_clock(end),
            "page_no": page_no,
            "page_size": page_size,
            "model_name": model,
            "status": status,
        }
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        return answers.page(self._query("GET", f"/tasks?{query}"))

    def cancel(self, task_id: str) -> Refused | None:
        """Cancel a task; None: it is canceled. May be sent again; raises CallFailed when there was no answer.

        Only a PENDING task can be: else the refusal is UnsupportedOperation. (Alibaba docs, "Manage
        asynchronous tasks".)
        """
        return answers.canceled(self._query("POST", f"/tasks/{quote(task_id, safe='')}/cancel"))

    def _create(self, request: Request, key: str, deadline: float) -> Accepted | Refused:
        headers = {**self._headers(key), "Content-Type": "application/json", **request.headers}
        if self._account.data_inspection:
            headers["X-DashScope-DataInspection"] = "enable"
        content = json.dumps(request.body, ensure_ascii=False, separators=(",", ":")).encode()
        url = f"{self._root}/{request.path.lstrip('/')}"
        return answers.created(egress.call(self._creates, "POST", url, Bounds(deadline, BODY_CAP), headers, content))

    def _query(self, method: str, path: str) -> Answer:
        """The answer to a call that may be repeated; it is, once, when the key file has changed."""
        bounds, key = Bounds(spans.QUERY.total_seconds(), BODY_CAP), self._key
        answer = egress.call(self._queries, method, self._root + path, bounds, self._headers(key))
        if answer.status == 401 and self._has_other_key(key):
            answer = egress.call(self._queries, method, self._root + path, bounds, self._headers(self._key))
        return answer

    def _headers(self, key: str) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if key:  # without one the provider says so itself, in the words that its other refusals have
            headers["Authorization"] = f"Bearer {key}"
        if self._account.workspace:
            headers["X-DashScope-WorkSpace"] = self._account.workspace
        return headers

    def _has_other_key(self, refused: str) -> bool:
        """Whether the key file holds another key than the refused one; it is used from now on."""
        self._key = _read_key(self._account) or self._key
        return self._key != refused  # another thread may have found it first


def _read_key(account: Account) -> str:
    """The account's key; empty when it has none, or when its file cannot be read this instant."""
    if account.key_file is None:
        return account.key.get_secret_value().strip() if account.key else ""
    try:
        return Path(account.key_file).read_text().strip()
    except OSError:
        return ""


def _wall_clock(moment: datetime) -> str:
    assert moment.tzinfo is not None, "the provider's clock is eight hours ahead: the zone must be known"
    return moment.astimezone(BEIJING).strftime("%Y%m%d%H%M%S")
