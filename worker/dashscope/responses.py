"""What the provider's answers say, as values; pure, and lenient, since unknown words and fields do come.

Nothing here decides what to do: what the codes mean is `faults`' business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.dashscope.bodies import field, listed, number, read, word
from worker.egress import Answer
from worker.errors import Ambiguous

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Said by whoever answers at a wrong address. Without the provider's envelope nobody took the request.
WRONG_ADDRESS = frozenset({301, 308, 404, 405})
_LONGEST_WAIT = 3600.0  # seconds, that a refusal's Retry-After is obeyed
UNSETTLED = frozenset({408, 499})  # refusals by the number, but the request may have gone through
_INSPECTED = re.compile(r"data_?inspection", re.IGNORECASE)


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
    """The provider said no. `code` is empty where a query's answer, or one from a wrong address, had no envelope."""

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

    A refusal is definite: a 4xx in the provider's envelope, a 200 with a code at its top, which the official SDK
    looks for too, or a status that only a wrong address gives, without the envelope. Raises ServerTrouble for other
    statuses in that envelope, Ambiguous for what proves nothing.
    """
    body = _native(read(answer.body))
    no, output = refused(answer, body), field(body, "output")
    task_id = word(output, "task_id") or None
    if _is_success(answer) and (task_id or (output and not no.code)):
        status = word(output, "task_status")
        return Accepted(task_id, status, no.request_id, output, field(body, "usage"), body)
    return denied(no)


def denied(no: Refused) -> Refused:
    """A create call's answer that is no acceptance, if it is a definite refusal; raises what it is instead.

    A 429 is one without a code too: none is documented for a spent budget ('Budget management').
    """
    if not no.code and no.http_status in WRONG_ADDRESS:
        return no
    if not no.code and not (no.http_status == 429 and no.message and no.request_id):
        raise Ambiguous(f"HTTP {no.http_status} without the provider's envelope", no.request_id)
    if not is_definite(no):
        raise ServerTrouble(f"HTTP {no.http_status} {no.code}", no)
    return no


def is_definite(no: Refused) -> bool:
    """Whether nothing was made: by a 4xx, by a code in a 200, or because an inspection refused it by any status."""
    is_client_error = 400 <= no.http_status < 500 and no.http_status not in UNSETTLED
    return no.http_status < 300 or is_client_error or _INSPECTED.search(no.code) is not None


def task(answer: Answer) -> TaskSeen | Refused:
    """What a task query's answer says; raises Ambiguous for a success that cannot be read."""
    body = read(answer.body)
    no, output = refused(answer, body), field(body, "output")
    if not _is_success(answer) or (no.code and not output):
        return no
    if not output:
        raise Ambiguous("the answer to a task query is not readable", no.request_id)
    return TaskSeen(word(output, "task_status"), output, field(body, "usage"), no.request_id, body)


def page(answer: Answer) -> Page | Refused:
    """What a task list's answer says; raises Ambiguous for a success that cannot be read."""
    body = read(answer.body)
    no, rows = refused(answer, body), body.get("data")
    if not _is_success(answer) or (no.code and rows is None):
        return no
    if not isinstance(rows, list):
        raise Ambiguous("the answer to a task list is not readable", no.request_id)
    listed = tuple(_row(row) for row in rows if isinstance(row, dict) and row.get("task_id"))
    return Page(listed, number(body, "total"), number(body, "total_page"))


def canceled(answer: Answer) -> Refused | None:
    """The refusal in a cancel's answer; None: the task is canceled."""
    no = refused(answer, read(answer.body))
    return None if _is_success(answer) and not no.code else no


def refused(answer: Answer, body: Mapping[str, Any]) -> Refused:
    """The answer as a refusal, by the native envelope or OpenAI's, which some native paths use too."""
    error = field(body, "error") or body
    return Refused(
        http_status=answer.status,
        code=word(error, "code") or word(error, "type"),
        message=word(error, "message"),
        request_id=word(body, "request_id") or answer.request_id,
        retry_after=_seconds(answer.headers.get("retry-after", "")),
    )


def without_reasoning(said: Accepted) -> Accepted:
    """The same answer without what the model thought."""
    messages = [field(choice, "message") for choice in listed(said.output, "choices")]
    for message in messages:
        message.pop("reasoning_content", None)
    return said


def _native(body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion as the native interface would give it; other bodies as they are."""
    if "output" in body or not listed(body, "choices"):
        return body
    request_id = word(body, "request_id") or word(body, "id").removeprefix("chatcmpl-")
    return {"output": {"choices": body["choices"]}, "usage": field(body, "usage"), "request_id": request_id}


def _is_success(answer: Answer) -> bool:
    return 200 <= answer.status < 300


def _seconds(value: str) -> float | None:
    return min(float(value), _LONGEST_WAIT) if value.isdecimal() else None


def _moment(row: Mapping[str, Any], name: str) -> datetime | None:
    """A time of the task list, which counts milliseconds since 1970 where a task's own times are text."""
    milliseconds = number(row, name)
    return EPOCH + timedelta(milliseconds=milliseconds) if 0 < milliseconds < 1e14 else None


def _row(row: Mapping[str, Any]) -> Listed:
    return Listed(
        task_id=word(row, "task_id"),
        request_id=word(row, "request_id") or None,
        model=word(row, "model_name"),
        status=word(row, "status"),
        created_at=_moment(row, "gmt_create"),
        started_at=_moment(row, "start_time"),
        ended_at=_moment(row, "end_time"),
        api_key_id=word(row, "api_key_id") or None,
    )
