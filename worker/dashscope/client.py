"""DashScope over HTTP, for one account.

DashScope has no idempotency key, so how a create call ends decides what is paid. It ends in one of four ways:
`Accepted`, `Refused` (no, in the provider's own envelope, or it is not the provider that answers: nothing was made),
NotSent (nothing left this machine), Ambiguous (everything else: a task may exist). A create is sent once: no retry, no
redirect, no kept connection. Queries and cancels may be repeated, so they keep their connections.

A create goes to either of the provider's surfaces, and its answer may be streamed; what comes back is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from worker import egress, timeouts
from worker.catalog import Surface
from worker.dashscope import BODY_CAP, Session, query_time, responses, streams, uploads
from worker.dashscope.batches import Batches
from worker.dashscope.offers import Offers
from worker.dashscope.responses import Accepted, Page, Refused, TaskSeen
from worker.egress import Bounds, Streamed, Transport
from worker.settings import Account

STREAM_CAP = 64 << 20  # bytes: a frame has 300 of them for a word or two

_STREAMED = {"Accept": "text/event-stream", "X-DashScope-SSE": "enable"}


class Request(Protocol):
    """A create call: the path under its surface's root, extra headers, the body, and how its answer comes."""

    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> Mapping[str, Any]: ...
    @property
    def surface(self) -> Surface: ...
    @property
    def streams(self) -> bool: ...
    @property
    def reasoning(self) -> bool: ...


class Client:
    """One account. Safe for threads; transports may be shared between accounts."""

    def __init__(self, account: Account, queries: Transport, creates: Transport) -> None:
        """`queries` may keep its connections (`transports.keeping`), `creates` must not (`transports.single`)."""
        self._session = Session(account, queries, creates)
        self.url = account.url
        self.batches = Batches(self._session)
        self.offers = Offers(self._session)

    def create(self, request: Request, deadline: float) -> Accepted | Refused:
        """Send a create call, once; `deadline` in seconds. A model's reasoning is left out unless it was asked for.

        Raises NotSent when nothing left, ServerTrouble for a failure in the provider's envelope, Ambiguous
        for everything else that is neither an acceptance nor a refusal.
        """
        bounds = Bounds(deadline, STREAM_CAP if request.streams else BODY_CAP)
        headers = {**(_STREAMED if request.streams else {}), "Content-Type": "application/json", **request.headers}
        content = json.dumps(request.body, ensure_ascii=False, separators=(",", ":")).encode()
        with self._session.once(request.surface, request.path, bounds, headers, content) as answer:
            answer, is_json = streams.opened(answer)
            if request.streams and not is_json and _may_stream(answer):
                return streams.assembled(streams.events(answer), answer.headers.get("x-request-id"), request.reasoning)
            made = responses.created(egress.whole(answer))
        return made if request.reasoning or isinstance(made, Refused) else responses.without_reasoning(made)

    def task(self, task_id: str) -> TaskSeen | Refused:
        """What became of a task, whatever its fate; raises CallFailed when there was no readable answer."""
        return responses.task(self._session.query("GET", Surface.NATIVE, f"/tasks/{quote(task_id, safe='')}"))

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
            "start_time": query_time(start),
            "end_time": query_time(end),
            "page_no": page_no,
            "page_size": page_size,
            "model_name": model,
            "status": status,
        }
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        return responses.page(self._session.query("GET", Surface.NATIVE, f"/tasks?{query}"))

    def cancel(self, task_id: str) -> Refused | None:
        """Cancel a task; None: it is canceled. May be sent again; raises CallFailed when there was no answer.

        Only a PENDING task can be: else the refusal is UnsupportedOperation. (Alibaba docs, "Manage
        asynchronous tasks".)
        """
        return responses.canceled(
            self._session.query("POST", Surface.NATIVE, f"/tasks/{quote(task_id, safe='')}/cancel")
        )

    def upload(
        self,
        model: str,
        name: str,
        data: bytes | Iterable[bytes],
        content_type: str,
        length: int | None = None,
        deadline: float = timeouts.CREATE.total_seconds(),
    ) -> str:
        """Store a file with the provider for 48 h, for that model to read: its `oss://` address.

        `model` as the region spells it; `length` in bytes, where the data come in chunks. Raises CallFailed if the file
        is not there (FileRefused among it); then it may be sent again. (Alibaba docs, "Get a temporary file URL".)
        """
        return uploads.put(self._session, model, uploads.File(name, content_type, data, length), deadline)


def _may_stream(answer: Streamed) -> bool:
    """Whether the body may be events: always with a success, with a refusal only if its type says so."""
    return answer.status < 300 or answer.headers.get("content-type", "").lower().startswith("text/event-stream")
