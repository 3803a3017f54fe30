"""The Batch API: a file of conversations, answered within a day or more at half the price.

Files and batches belong to the compatible surface. A batch is created like a task: once, and the call ends in one of
the same four ways; if its answer is lost, the batch is found by its name (`ds_name`). (Alibaba docs, "OpenAI compatible
- Batch".)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from worker import egress, timeouts
from worker.catalog import Surface
from worker.dashscope import BODY_CAP, Session, query_time, responses, uploads
from worker.dashscope.responses import Refused, field, listed, number, read, word
from worker.dashscope.uploads import FileRefused
from worker.egress import Answer, Bounds
from worker.errors import Ambiguous

ENDPOINT = "/v1/chat/completions"  # of every line, unless another is named
NAME_LIMIT, DESCRIPTION_LIMIT = 100, 200  # characters
_FILE_CAP = 600 << 20  # bytes: answers are longer than what was asked, which is 500 MB at most

_PAGE = 100
_PAGES = 100  # 10,000 batches in a month
# A batch is looked for from so long before it was created: no document names the time zone of the list's clock.
_EARLIER = timedelta(days=1)


@dataclass(frozen=True)
class Batch:
    """A batch as the provider shows it; `status` in its words: validating, in_progress, completed, expired, …

    `errors` are those of the input file; where there are any, no line was done. The counts are of lines.
    """

    id: str
    status: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    total: int
    completed: int
    failed: int
    errors: tuple[dict[str, Any], ...]
    created_at: datetime | None
    request_id: str | None
    body: dict[str, Any]


class Batches:
    """One account's files and batches."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def upload(self, data: bytes | Iterable[bytes], name: str, deadline: float, length: int | None = None) -> str:
        """Store a file of lines: its id. `length` in bytes, where the data come in chunks; `deadline` in seconds.

        Raises CallFailed when it is unknown whether the file is there (FileRefused: it is not); it may be sent again.
        """
        file = uploads.File(name, "application/jsonl", data, length)
        form = uploads.form({"purpose": "batch"}, "file", file)
        bounds = Bounds(deadline, BODY_CAP)
        with self._session.once(Surface.COMPATIBLE, "/files", bounds, form.headers, form.content) as answer:
            whole = egress.whole(answer)
        body = read(whole.body)
        if whole.status >= 300 or not word(body, "id"):
            raise FileRefused("a file was not taken", responses.refused(whole, body))
        return word(body, "id")

    def create(
        self,
        file_id: str,
        window: str,
        name: str,
        description: str = "",
        endpoint: str = ENDPOINT,
        deadline: float = timeouts.CREATE.total_seconds(),
    ) -> Batch | Refused:
        """Begin a batch, once; `window` is "24h" to "336h", `endpoint` of each line. Raises as Client.create."""
        asked = {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": window,
            "metadata": {"ds_name": name[:NAME_LIMIT], "ds_description": description[:DESCRIPTION_LIMIT]},
        }
        content, headers = json.dumps(asked, ensure_ascii=False).encode(), {"Content-Type": "application/json"}
        bounds = Bounds(deadline, BODY_CAP)
        with self._session.once(Surface.COMPATIBLE, "/batches", bounds, headers, content) as answer:
            seen = _seen(egress.whole(answer))
        return responses.denied(seen) if isinstance(seen, Refused) else seen

    def find(self, name: str, since: datetime) -> Batch | Refused | None:
        """The batch of that name that was created since; None: there is none, by a complete listing.

        Raises CallFailed when there was no readable answer, or no end to the list.
        """
        after = ""
        for _ in range(_PAGES):
            answer = self._session.query("GET", Surface.COMPATIBLE, f"/batches?{_query(name, since, after)}")
            body = read(answer.body)
            if answer.status >= 300 or "data" not in body:
                return _unreadable(answer, body)
            rows = listed(body, "data")
            named = [row for row in rows if word(field(row, "metadata"), "ds_name") == name[:NAME_LIMIT]]
            if named:
                return _batch(named[0], answer.request_id)
            if body.get("has_more") is not True or not rows or word(rows[-1], "id") == after:
                return None
            after = word(rows[-1], "id")
        raise Ambiguous("the list of batches has no end")

    def get(self, batch_id: str) -> Batch | Refused:
        """How a batch stands; raises CallFailed when there was no readable answer."""
        return self._one("GET", f"/batches/{quote(batch_id, safe='')}")

    def cancel(self, batch_id: str) -> Batch | Refused:
        """Ask a batch to stop; lines that are done stay done and are billed. May be sent again; raises like `get`."""
        return self._one("POST", f"/batches/{quote(batch_id, safe='')}/cancel")

    def delete(self, file_id: str) -> Refused | None:
        """Delete a file; None: it is gone. May be sent again; raises CallFailed when there was no answer."""
        answer = self._session.query("DELETE", Surface.COMPATIBLE, f"/files/{quote(file_id, safe='')}")
        return None if answer.status < 300 else responses.refused(answer, read(answer.body))

    @contextmanager
    def content(self, file_id: str, deadline: float) -> Iterator[Iterator[bytes]]:
        """A file's bytes as they come, inside the `with`; raises CallFailed from it and from them."""
        path = f"/files/{quote(file_id, safe='')}/content"
        with self._session.fetch("GET", Surface.COMPATIBLE, path, Bounds(deadline, _FILE_CAP)) as answer:
            if answer.status != 200:
                whole = egress.whole(answer)
                raise FileRefused("a file was not given", responses.refused(whole, read(whole.body)))
            yield answer.chunks

    def _one(self, method: str, path: str) -> Batch | Refused:
        answer = self._session.query(method, Surface.COMPATIBLE, path)
        seen = _seen(answer)
        return seen if isinstance(seen, Batch) else _unreadable(answer, read(answer.body))


def _seen(answer: Answer) -> Batch | Refused:
    body = read(answer.body)
    refusal = responses.refused(answer, body)
    is_batch = answer.status < 300 and word(body, "id") and word(body, "status")
    return _batch(body, refusal.request_id) if is_batch else refusal


def _unreadable(answer: Answer, body: Mapping[str, Any]) -> Refused:
    """The refusal in a query's answer; raises Ambiguous for a success that cannot be read."""
    refusal = responses.refused(answer, body)
    if answer.status < 300 and not refusal.code:
        raise Ambiguous("the answer about a batch is not readable", refusal.request_id)
    return refusal


def _query(name: str, since: datetime, after: str) -> str:
    asked = {"ds_name": name[:NAME_LIMIT], "create_after": query_time(since - _EARLIER), "limit": _PAGE}
    return urlencode({**asked, "after": after} if after else asked)


def _batch(body: Mapping[str, Any], request_id: str | None) -> Batch:
    counts, created = field(body, "request_counts"), number(body, "created_at")
    return Batch(
        id=word(body, "id"),
        status=word(body, "status"),
        input_file_id=word(body, "input_file_id"),
        output_file_id=word(body, "output_file_id") or None,
        error_file_id=word(body, "error_file_id") or None,
        total=number(counts, "total"),
        completed=number(counts, "completed"),
        failed=number(counts, "failed"),
        errors=tuple(listed(field(body, "errors"), "data")),
        created_at=datetime.fromtimestamp(created, UTC) if 0 < created < 1e11 else None,
        request_id=request_id,
        body=dict(body),
    )
