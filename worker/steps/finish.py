"""What becomes of a job by a look at its task: the move that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from worker import log, timeouts
from worker.context import Clock, Context
from worker.dashscope import errors
from worker.dashscope.errors import Verdict
from worker.dashscope.responses import Refused, TaskSeen
from worker.errors import ErrorClass, Failure
from worker.kinds import KINDS, Source, Usage
from worker.lanes import query_budget
from worker.states import Move, State
from worker.tables import Job

_LONGEST = timedelta(days=7)  # that a link may live
_LAST_LOOKS = timedelta(seconds=60)  # between looks that tell nothing

_log = log.get(__name__)


def move(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Move:
    """What follows from a task as it was seen."""
    return _SEEN.get(seen.status, _still_running)(ctx, job, seen, clock)


def succeeded(ctx: Context, job: Job, seen: TaskSeen, clock: Clock, said: dict[str, Any] | None = None) -> Move:
    model, kind = ctx.catalog.model(job.model), KINDS[job.kind]
    asked = kind.input.model_validate(job.input)
    sources, usage = kind.outputs(seen.output), kind.usage(asked, seen.body)
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
    to = State.SUCCEEDED if result is not None and job.parent_id else State.COPYING
    return Move(to, columns=columns, attempt=attempt)


def _failed(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Move:
    """Failed tasks are not billed (Alibaba docs, model pricing), so one more is made where that may help."""
    code, message = str(seen.output.get("code") or ""), str(seen.output.get("message") or "")
    row = errors.classify(200, code, message)
    failure = errors.failure(row, code, message, seen.request_id)
    attempt = {"billed": "no", "closed_at": clock(), "code": code, "message": failure.message}
    columns: dict[str, Any] = {"task_status": seen.status, "error": failure.as_json(), "billed": "no"}
    if row.verdict in (Verdict.RETRY, Verdict.WAIT) and job.retries == 0:
        columns |= {"retries": 1, "task_id": None, "task_status": None}
        return Move(
            State.QUEUED, f"the task failed: {code}", timeouts.create_again(job.attempts, clock()), columns, attempt
        )
    return Move(State.FAILED, failure.message, columns=columns, attempt=attempt)


def _canceled(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Move:
    columns = {"task_status": seen.status, "billed": "no"}
    return Move(
        State.CANCELED, "canceled at the provider", columns=columns, attempt={"billed": "no", "closed_at": clock()}
    )


def _unknown_task(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Move:
    """UNKNOWN is an expired task, a foreign key, or an instant's confusion.

    It is believed after ten minutes of looks, and only if other tasks of the account were seen since: a key that sees
    none is of another account. What nobody is seen beside is given up at the job's deadline.
    """
    now = clock()
    since = job.unknown_since or now
    is_believed = now - since >= timeouts.UNKNOWN_BELIEVED and ctx.queries.was_sighted_since(ctx.owner(job), since)
    if not is_believed and not _is_overdue(job, now):
        columns = {"task_status": seen.status, "unknown_since": since}
        return Move(State.RUNNING, run_at=now + _LAST_LOOKS, columns=columns)
    message = "the provider does not know the task any more; it may have been billed"
    failure = Failure("task_unknown", ErrorClass.PROVIDER, message, billed="unknown", hint=_UNKNOWN_HINT)
    columns = {"task_status": seen.status, "error": failure.as_json()}
    return Move(State.EXPIRED, message, columns=columns, attempt={"message": message})


def _still_running(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Move:
    """PENDING, RUNNING, SUSPENDED, and whatever else the provider may say: not an end."""
    if seen.status not in _USUAL and seen.status not in ctx.strange:
        ctx.strange.add(seen.status)
        _log.warning("the provider says of a task what we do not know: it is waited on", status=seen.status)
    return still_runs(ctx, job, seen.status, clock())


def still_runs(ctx: Context, job: Job, status: str, now: datetime) -> Move:
    """The wait until the next look at a task that has not ended; the end of the job, when that is long overdue."""
    if _is_overdue(job, now):
        message = f"the provider still says {status} long after its own limit of three hours"
        failure = Failure("task_overdue", ErrorClass.DEADLINE, message, billed="unknown")
        return Move(State.FAILED, message, columns={"error": failure.as_json()})
    again = query_budget.next_look(
        job.started_at or now, now, ctx.learned.times(job), ctx.queries.has_room(ctx.owner(job))
    )
    return Move(State.RUNNING, run_at=again, columns={"task_status": status, "unknown_since": None})


def not_told(ctx: Context, job: Job, refused: Refused, clock: Clock) -> Move:
    """A query that was refused: the task lives on. Only a bad key or account stops anything, and then creates."""
    if query_budget.is_trouble(refused.http_status):
        ctx.queries.slow(ctx.owner(job))
    row = errors.classify(refused.http_status, refused.code, refused.message)
    return look_again(job, clock, f"HTTP {refused.http_status} {refused.code}", row)


def look_again(job: Job, clock: Clock, why: str, row: errors.Meaning | None = None) -> Move:
    now = clock()
    if job.deadline_at and now > job.deadline_at + timeouts.LINKS:
        message = f"the provider has told nothing of the task for a day after its end: {why}"
        failure = Failure("task_unseen", ErrorClass.PROVIDER, message, billed="unknown", hint=_UNKNOWN_HINT)
        return Move(State.EXPIRED, message, columns={"error": failure.as_json()})
    stops = row is not None and row.verdict is Verdict.STOP_ACCOUNT
    stop = (now + timedelta(minutes=5), why) if stops else None
    return Move(
        State.RUNNING, run_at=min(clock() + timeouts.backoff(clock() - job.state_at), now + _LAST_LOOKS), stop=stop
    )


def tokens(usage: Usage) -> int | None:
    """What a call counts against limits by the token; None: nothing does."""
    found = [usage.units[name] for name in ("input_tokens", "output_tokens") if name in usage.units]
    return int(sum(found)) if found else None


def _is_overdue(job: Job, now: datetime) -> bool:
    return job.deadline_at is not None and now > job.deadline_at


def links_expire(sources: Iterable[Source], now: datetime) -> datetime:
    """The first of the links' `Expires` (Unix seconds), or 24 h from now; what lies far off either way is no time."""
    stamps = [_stamp(source.url) for source in sources]
    known = [datetime.fromtimestamp(int(stamp), UTC) for stamp in stamps if stamp.isdecimal() and len(stamp) < 12]
    return min((at for at in known if now - timeouts.LINKS < at < now + _LONGEST), default=now + timeouts.LINKS)


def _stamp(url: str) -> str:
    try:
        return parse_qs(urlsplit(url).query).get("Expires", [""])[0]
    except ValueError:  # of brackets that do not match, and the like
        return ""


def _took(output: dict[str, Any]) -> float | None:
    """Seconds from the submission to the end by the provider's own stamps, which have no zone; None: no task's."""
    try:
        began, ended = (datetime.fromisoformat(str(output[name])) for name in ("submit_time", "end_time"))
        took = ended - began
    except (KeyError, ValueError, TypeError):  # the last where one of the two has a zone
        return None
    return took.total_seconds() if timedelta(0) <= took <= timeouts.RUNNING else None


_SEEN: dict[str, Callable[[Context, Job, TaskSeen, Clock], Move]] = {
    "SUCCEEDED": succeeded,
    "FAILED": _failed,
    "CANCELED": _canceled,
    "UNKNOWN": _unknown_task,
}
_USUAL = frozenset({"PENDING", "RUNNING"})
_UNKNOWN_HINT = "look the task up in the console of the account that made it; a key of another account cannot see it"
