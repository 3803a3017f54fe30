"""What the provider's answers say, as values; pure, and lenient, since unknown words and fields do come.

Nothing here decides what to do: what the codes mean is `faults`' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.egress import Answer
from worker.errors import Ambiguous

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNSETTLED = frozenset({408, 499})  # refusals by the number, but the request may have gone through


@dataclass(frozen=True)
class Accepted:
    """The provider took the request: `task_id` of its task, or None when `output` is the finished result."""

    task_id: str | None
    status: str
    request_id: str | None
    output: dict[str, Any]
    usage: dict[str, Any]
    body: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """The provider said no. `code` is empty where a query's answer had no envelope."""

    http_status: int
    code: str
    message: str
    request_id: str | None
    retry_after: float | None = None  # seconds


@dataclass(frozen=True)
class TaskSeen:
    """A task as a query shows it; `status` in the provider's words, "UNKNOWN" for an id it does not know."""

    status: str
    output: dict[str, Any]
    usage: dict[str, Any]
    request_id: str | None
    body: dict[str, Any]


@dataclass(frozen=True)
class Listed:
    """A row of the task list; `request_id` is that of the create call."""

    task_id: str
    request_id: str | None
    model: str
    status: str
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    api_key_id: str | None


@dataclass(frozen=True)
class Page:
    """One page of the task list; `total` rows and `pages` as the provider counts them."""

    rows: tuple[Listed, ...]
    total: int
    pages: int


class ServerTrouble(Ambiguous):
    """The provider failed over a create call and said so; its request id finds the task, if it made one."""

    code = "server_trouble"

    def __init__(self, message: str, refused: Refused) -> None:
        super().__init__(message, refused.request_id)
        self.refused = refused


def created(answer: Answer) -> Accepted | Refused:
    """What a create call's answer means.

    A refusal is definite: a 4xx in the provider's envelope, or a 200 with a code at its top, which the
    official SDK looks for too. Raises ServerTrouble for other statuses in that envelope, Ambiguous for what
    proves nothing.
    """
    body = _object(answer)
    no = refused(answer, body)
    output, succeeded = _dict(body, "output"), _is_success(answer)
    task_id = _word(output, "task_id") or None
    if succeeded and (task_id or (output and not no.code)):
        status = _word(output, "task_status")
        return Accepted(task_id, status, no.request_id, output, _dict(body, "usage"), body)
    if not no.code:
        raise Ambiguous(f"HTTP {answer.status} without the provider's envelope", no.request_id)
    if succeeded or (400 <= answer.status < 500 and answer.status not in UNSETTLED):
        return no
    raise ServerTrouble(f"HTTP {answer.status} {no.code}", no)


def task(answer: Answer) -> TaskSeen | Refused:
    """What a task query's answer says; raises Ambiguous for a success that cannot be read."""
    body = _object(answer)
    no, output = refused(answer, body), _dict(body, "output")
    if not _is_success(answer) or (no.code and not output):
        return no
    if not output:
        raise Ambiguous("the answer to a task query is not readable", no.request_id)
    return TaskSeen(_word(output, "task_status"), output, _dict(body, "usage"), no.request_id, body)


def page(answer: Answer) -> Page | Refused:
    """What a task list's answer says; raises Ambiguous for a success that cannot be read."""
    body = _object(answer)
    no, rows = refused(answer, body), body.get("data")
    if not _is_success(answer) or (no.code and rows is None):
        return no
    if not isinstance(rows, list):
        raise Ambiguous("the answer to a task list is not readable", no.request_id)
    listed = tuple(_listed(row) for row in rows if isinstance(row, dict) and row.get("task_id"))
    return Page(listed, _number(body, "total"), _number(body, "total_page"))


def canceled(answer: Answer) -> Refused | None:
    """The refusal in a cancel's answer; None: the task is canceled."""
    no = refused(answer, _object(answer))
    return None if _is_success(answer) and not no.code else no


def refused(answer: Answer, body: Mapping[str, Any]) -> Refused:
    """The answer as a refusal, by the native envelope or OpenAI's, which some native paths use too."""
    error = _dict(body, "error") or body
    return Refused(
        http_status=answer.status,
        code=_word(error, "code") or _word(error, "type"),
        message=_word(error, "message"),
        request_id=_word(body, "request_id") or answer.request_id,
        retry_after=_seconds(answer.headers.get("retry-after", "")),
    )


def _is_success(answer: Answer) -> bool:
    return 200 <= answer.status < 300


def _object(answer: Answer) -> dict[str, Any]:
    """The body, if it is a JSON object, else an empty one."""
    try:
        body = _storable(json.loads(answer.body))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _storable(value: Any) -> Any:
    """The same without what Postgres refuses in text: NUL, and halves of characters that a cut left behind."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_storable(part) for part in value]
    if isinstance(value, dict):
        return {_storable(name): _storable(part) for name, part in value.items()}
    return value


def _dict(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _word(body: Mapping[str, Any], name: str) -> str:
    """A field as text; empty when it is missing, null or no scalar."""
    value = body.get(name)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _number(body: Mapping[str, Any], name: str) -> int:
    word = _word(body, name)
    return int(word) if word.isdecimal() else 0


def _seconds(value: str) -> float | None:
    return float(value) if value.isdecimal() else None


def _moment(row: Mapping[str, Any], name: str) -> datetime | None:
    """A time of the task list, which counts milliseconds since 1970 where a task's own times are text."""
    milliseconds = _number(row, name)
    return EPOCH + timedelta(milliseconds=milliseconds) if 0 < milliseconds < 1e14 else None


def _listed(row: Mapping[str, Any]) -> Listed:
    return Listed(
        task_id=_word(row, "task_id"),
        request_id=_word(row, "request_id") or None,
        model=_word(row, "model_name"),
        status=_word(row, "status"),
        created_at=_moment(row, "gmt_create"),
        started_at=_moment(row, "start_time"),
        ended_at=_moment(row, "end_time"),
        api_key_id=_word(row, "api_key_id") or None,
    )
