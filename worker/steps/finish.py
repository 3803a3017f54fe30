"""What the end of a task means for its job: what it made and cost, or why it failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from worker import kinds, timeouts
from worker.context import Clock, Context
from worker.dashscope import errors
from worker.dashscope.errors import Verdict
from worker.dashscope.responses import TaskSeen
from worker.kinds import Source, Usage
from worker.states import Move, State
from worker.tables import Job

ENDS = frozenset({"SUCCEEDED", "FAILED", "CANCELED"})  # of a task, in the provider's words
UNBILLED = ENDS - {"SUCCEEDED"}  # Alibaba docs, 'Model pricing'

_LONGEST = timedelta(days=7)  # that a link may live


def ended(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Move:
    """What follows from a task that has ended, as it was seen."""
    if seen.status == "SUCCEEDED":
        return succeeded(ctx, job, seen, clock)
    if seen.status == "FAILED":
        return _failed(job, seen, clock())
    columns, attempt = {"task_status": seen.status, "billed": "no"}, {"billed": "no", "closed_at": clock()}
    return Move(State.CANCELED, "canceled at the provider", columns=columns, attempt=attempt)


def succeeded(ctx: Context, job: Job, seen: TaskSeen, clock: Clock, said: dict[str, Any] | None = None) -> Move:
    """The move of a job whose task, or call, made what it asked for; `said` of the attempt is put on record too."""
    model, kind = ctx.catalog.model(job.model), kinds.call(job.kind)
    asked = kind.input.model_validate(job.input)
    sources, usage = kind.outputs(seen.output), kind.usage(model, asked, seen.body)
    now = clock()
    columns = {
        "task_status": seen.status,
        "usage": {**usage.units, **({"failed": list(missing)} if (missing := kind.failures(seen.output)) else {})},
        "cost": model.price(usage, job.region or "", now.date()),
        "billed": "yes",
        "run_seconds": _took(seen.output),
        "shape": ctx.learned.shape(job),
        "sources": [asdict(source) for source in sources],
        "links_expire_at": links_expire(sources, now),
        "deadline_at": links_expire(sources, now),
        "error": None,
    }
    attempt = {**(said or {}), "billed": "yes", "closed_at": now}
    if (used := tokens(usage)) is not None:
        attempt["tokens"] = used
    if (result := kind.result(asked, seen.output)) is not None:
        columns |= {"result": result, "deadline_at": None, "links_expire_at": None}
    is_done = result is not None and job.parent_id and not kind.is_bulky
    to = State.SUCCEEDED if is_done else State.COPYING
    return Move(to, columns=columns, attempt=attempt)


def stored(job: Job, columns: dict[str, Any], outputs: Iterable[dict[str, Any]]) -> Move:
    """The move of a job whose outputs are all in the bucket: its end, or where a person is to look at them first."""
    if job.review is None:  # parts have none
        return Move(State.SUCCEEDED, columns={"error": None, **columns}, outputs=tuple(outputs))
    columns = {"error": None, "deadline_at": None, **columns}
    return Move(State.AWAITING_REVIEW, columns=columns, outputs=tuple(outputs))


def tokens(usage: Usage) -> int | None:
    """What a call counts against limits by the token; None: nothing does."""
    found = [usage.units[name] for name in ("input_tokens", "output_tokens") if name in usage.units]
    return int(sum(found)) if found else None


def links_expire(sources: Iterable[Source], now: datetime) -> datetime:
    """The first of the links' `Expires` (Unix seconds), or 24 h from now; a time far off either way is not believed."""
    stamps = [_stamp(source.url) for source in sources]
    known = [datetime.fromtimestamp(int(stamp), UTC) for stamp in stamps if stamp.isdecimal() and len(stamp) < 12]
    return min((at for at in known if now - timeouts.LINKS < at < now + _LONGEST), default=now + timeouts.LINKS)


def _failed(job: Job, seen: TaskSeen, now: datetime) -> Move:
    """A failed task is not billed (Alibaba docs, 'Model pricing'), so one more is made where that may help."""
    code, message = str(seen.output.get("code") or ""), str(seen.output.get("message") or "")
    row = errors.classify(200, code, message)
    failure = errors.failure(row, code, message, seen.request_id)
    attempt = {"billed": "no", "closed_at": now, "code": code, "message": failure.message}
    columns: dict[str, Any] = {"task_status": seen.status, "error": failure.as_json(), "billed": "no"}
    if row.verdict in (Verdict.RETRY, Verdict.WAIT) and job.retries == 0:
        columns |= {"retries": 1, "task_id": None, "task_status": None}
        again_at = timeouts.create_again(job.attempts, now)
        return Move(State.QUEUED, f"the task failed: {code}", again_at, columns, attempt)
    return Move(State.FAILED, failure.message, columns=columns, attempt=attempt)


def _stamp(url: str) -> str:
    try:
        return parse_qs(urlsplit(url).query).get("Expires", [""])[0]
    except ValueError:  # brackets that do not match, and the like
        return ""


def _took(output: dict[str, Any]) -> float | None:
    """Seconds from the submission to the end by the provider's own stamps, which have no zone; None: no task's."""
    try:
        began, ended = (datetime.fromisoformat(str(output[name])) for name in ("submit_time", "end_time"))
        took = ended - began
    except (KeyError, ValueError, TypeError):  # the last where one of the two has a zone
        return None
    return took.total_seconds() if timedelta(0) <= took <= timeouts.RUNNING else None
