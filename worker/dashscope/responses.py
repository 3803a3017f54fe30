"""The provider's answers as values, read leniently: unknown words and fields do come.

A field of another type than ours counts as missing. Nothing here decides what to do: `errors` says what codes mean.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from worker import text
from worker.egress import Answer
from worker.errors import Ambiguous

# Statuses of a server that is not the provider: without the provider's envelope nobody took the request.
WRONG_ADDRESS = frozenset({301, 308, 404, 405})
_UNSETTLED = frozenset({408, 499})  # 4xx by the number, but the request may have gone through
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_WAIT = 3600.0  # seconds: a longer Retry-After is not obeyed
_DIGITS = 18  # of a number that a bigint holds, whatever they are
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
    """The provider said no. `code` is empty without an envelope: in a query's answer, or from a wrong address."""

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


@dataclass(frozen=True)
class Page:
    """One page of the task list; `total` rows and `pages` as the provider counts them."""

    rows: tuple[Listed, ...]
    total: int
    pages: int


class ServerTrouble(Ambiguous):
    """The provider said that a create call failed on its side; the request id finds the task, if one was made."""

    code = "server_trouble"

    def __init__(self, message: str, refused: Refused) -> None:
        super().__init__(message, refused.request_id)
        self.refused = refused


def created(answer: Answer) -> Accepted | Refused:
    """What a create call's answer means.

    A refusal is definite: a 4xx in the provider's envelope, a 200 with a code at its top (the official SDK looks for
    that too), or one of WRONG_ADDRESS without the envelope. Raises ServerTrouble for other statuses in the envelope,
    Ambiguous for what proves nothing.
    """
    body = _native(read(answer.body))
    refusal, output = refused(answer, body), field(body, "output")
    task_id = word(output, "task_id") or None
    if _is_success(answer) and (task_id or (output and not refusal.code)):
        status = word(output, "task_status")
        return Accepted(task_id, status, refusal.request_id, output, field(body, "usage"), body)
    return denied(refusal)


def denied(refusal: Refused) -> Refused:
    """The definite refusal in a create call's answer; raises as `created` when it is none.

    A 429 needs no code: none is documented for a spent budget ('Budget management').
    """
    if not refusal.code and refusal.http_status in WRONG_ADDRESS:
        return refusal
    if not refusal.code and not (refusal.http_status == 429 and refusal.message and refusal.request_id):
        raise Ambiguous(f"HTTP {refusal.http_status} without the provider's envelope", refusal.request_id)
    if not is_definite(refusal):
        raise ServerTrouble(f"HTTP {refusal.http_status} {refusal.code}", refusal)
    return refusal


def is_definite(refusal: Refused) -> bool:
    """Whether nothing was made: a 4xx, a code in a 200, or an inspection's refusal, whatever its status."""
    is_client_error = 400 <= refusal.http_status < 500 and refusal.http_status not in _UNSETTLED
    return refusal.http_status < 300 or is_client_error or _INSPECTED.search(refusal.code) is not None


def task(answer: Answer) -> TaskSeen | Refused:
    """What a task query's answer says; raises Ambiguous for a success that cannot be read."""
    body = read(answer.body)
    refusal, output = refused(answer, body), field(body, "output")
    if not _is_success(answer) or (refusal.code and not output):
        return refusal
    if not output:
        raise Ambiguous("the answer to a task query is not readable", refusal.request_id)
    return TaskSeen(word(output, "task_status"), output, field(body, "usage"), refusal.request_id, body)


def page(answer: Answer) -> Page | Refused:
    """What a task list's answer says; raises Ambiguous for a success that cannot be read."""
    body = read(answer.body)
    refusal, rows = refused(answer, body), body.get("data")
    if not _is_success(answer) or (refusal.code and rows is None):
        return refusal
    if not isinstance(rows, list):
        raise Ambiguous("the answer to a task list is not readable", refusal.request_id)
    tasks = tuple(_row(row) for row in rows if isinstance(row, dict) and row.get("task_id"))
    return Page(tasks, number(body, "total"), number(body, "total_page"))


def canceled(answer: Answer) -> Refused | None:
    """The refusal in a cancel's answer; None: the task is canceled."""
    refusal = refused(answer, read(answer.body))
    return None if _is_success(answer) and not refusal.code else refusal


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


def without_reasoning(accepted: Accepted) -> Accepted:
    """The same answer without the model's reasoning."""
    messages = [field(choice, "message") for choice in listed(accepted.output, "choices")]
    for message in messages:
        message.pop("reasoning_content", None)
    return accepted


def read(data: bytes | str) -> dict[str, Any]:
    """The body, if it is a JSON object, else an empty one; whatever it holds can be stored."""
    try:
        body = _storable(json.loads(data, parse_int=_whole))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def field(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A field that is an object; empty when it is missing or anything else."""
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def word(body: Mapping[str, Any], name: str) -> str:
    """A field as text; empty when it is missing, null or no scalar."""
    value = body.get(name)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def words(body: Mapping[str, Any], name: str) -> str:
    """A field as text; of a list, as the multimodal path has it, the texts of its parts."""
    return "".join(word(part, "text") for part in listed(body, name)) or word(body, name)


def listed(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in a field that is a list; none when it is missing or anything else."""
    value = body.get(name)
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def number(body: Mapping[str, Any], name: str) -> int:
    """A field as a whole number; 0 when it is missing or none."""
    digits = word(body, name)
    return int(digits) if digits.isdecimal() and len(digits) <= _DIGITS else 0


def _native(body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion as the native interface would give it; other bodies as they are."""
    if "output" in body or not listed(body, "choices"):
        return body
    request_id = word(body, "request_id") or word(body, "id").removeprefix("chatcmpl-")
    return {"output": {"choices": body["choices"]}, "usage": field(body, "usage"), "request_id": request_id}


def _whole(digits: str) -> int | float:
    """A whole number that a bigint holds; else the float nearest to it: Python reads no more than 4,300 digits."""
    return int(digits) if len(digits) <= _DIGITS else float(digits)


def _storable(value: Any) -> Any:
    """The value as Postgres takes it: texts as `text.storable`, null for NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return text.storable(value)
    if isinstance(value, list):
        return [_storable(part) for part in value]
    if isinstance(value, dict):
        return {_storable(name): _storable(part) for name, part in value.items()}
    return value


def _is_success(answer: Answer) -> bool:
    return 200 <= answer.status < 300


def _seconds(value: str) -> float | None:
    return min(float(value), _LONGEST_WAIT) if value.isdecimal() else None


def _created_at(row: Mapping[str, Any]) -> datetime | None:
    """The task list has milliseconds since 1970, where a task's own times are text."""
    milliseconds = number(row, "gmt_create")
    return _EPOCH + timedelta(milliseconds=milliseconds) if 0 < milliseconds < 1e14 else None


def _row(row: Mapping[str, Any]) -> Listed:
    return Listed(
        task_id=word(row, "task_id"),
        request_id=word(row, "request_id") or None,
        model=word(row, "model_name"),
        status=word(row, "status"),
        created_at=_created_at(row),
    )
