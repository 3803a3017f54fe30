"""What is done for a job in each state: I/O only, no SQL.

A step yields moves, and its caller puts each on record before the step's next line runs: `submitting` is on record
before the create call leaves, so whoever finds the row later knows that the call may have been made. A step that
dies leaves its row to the lease; nothing is undone by an exception handler. Bounds on trying are deadlines, never
a count.

    admitted    submit      the create call
    submitting  lapsed      its worker died in the middle of it
    uncertain   uncertain   what became of the call
    running     poll        one look at the task
    copying     copy        its outputs into the bucket

A job whose children do the work goes another way: `fanout`.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

from worker import fanout, jobs, log, polling, spans, storage
from worker.context import Clock, Context
from worker.dashscope import faults
from worker.dashscope.answers import Accepted, Refused, ServerTrouble, TaskSeen
from worker.dashscope.faults import Scope, Verdict
from worker.errors import Ambiguous, CallFailed, ErrorClass, Failure, NoriaError, NotSent
from worker.kinds import KINDS, Source, Usage
from worker.models import Job
from worker.reconcile import reconcile
from worker.states import Move, State

Moves = Generator[Move, Job, None]

_LAST_LOOKS = timedelta(seconds=60)  # between looks that tell nothing
_SHANGHAI = ZoneInfo("Asia/Shanghai")
_REPEATS = 5  # calls without an answer, of a kind that is made again

_log = log.get(__name__)

# What a refused create holds back, and for how long, until the next one is tried.
_FINAL = frozenset({Verdict.FAIL, Verdict.MISCONFIGURED, Verdict.EXPECTED})
_PAUSES = {
    Scope.RATE: timedelta(seconds=5),
    Scope.BURST: timedelta(seconds=10),
    Scope.ALLOCATION: timedelta(seconds=30),
    Scope.CAPACITY: timedelta(seconds=30),
}


@dataclass(frozen=True)
class Step:
    """How a state's step is run: its lease, the queue of its messages, and how many rows travel in one."""

    run: Callable[[Context, Job, Clock], Moves]
    lease: timedelta
    rows: int


def submit(ctx: Context, job: Job, clock: Clock) -> Moves:
    """Makes the create call, once, and tells what came of it."""
    if job.cancel_requested:
        yield Move(State.CANCELED, "canceled before anything was sent")
        return
    model, kind = ctx.catalog.model(job.model), KINDS[job.kind]
    wanted = kind.input.model_validate(job.input)
    request = kind.request(model, job.region or "", wanted)
    job = yield Move(State.SUBMITTING, attempt=_attempt(ctx, job, request, _tokens(kind.estimate(model, wanted))))
    if job.state != State.SUBMITTING:  # the lane's rate makes it wait, or it was canceled
        return
    sent_at = job.submitted_at or clock()
    clock.wait_until(sent_at)
    if clock() > sent_at + spans.SEND:
        # The process was stopped here. Others may have proved by now that nothing was made, and made the call again.
        yield _again(job, clock, "not sent: the worker woke too late for it", {"outcome": "not_sent", "billed": "no"})
        return
    deadline = spans.CALL if model.sync else spans.CREATE
    try:
        answer = ctx.client(job).create(request, deadline.total_seconds())
    except NotSent as error:
        yield _again(job, clock, f"not sent: {error}", {"outcome": "not_sent", "billed": "no", "message": str(error)})
    except ServerTrouble as error:
        yield _unknown(ctx, job, error, asdict(error.refused), clock)
    except Ambiguous as error:
        yield _unknown(ctx, job, error, {"request_id": error.request_id}, clock)
    else:
        yield _refused(ctx, job, answer, clock) if isinstance(answer, Refused) else _accepted(ctx, job, answer, clock)


def lapsed(ctx: Context, job: Job, clock: Clock) -> Moves:
    """The worker that made the call is gone, and its answer with it, unless it is on the attempt's row."""
    why = "the worker stopped while the create call was out"
    yield Move(State.UNCERTAIN, why, columns={"billed": "unknown"})


def uncertain(ctx: Context, job: Job, clock: Clock) -> Moves:
    """What became of the call: `reconcile`, unless its answer is on record with the result in it."""
    attempt = ctx.answer_of(job)
    if attempt is not None and attempt.outcome == "accepted" and attempt.output and not attempt.task_id:
        made = TaskSeen("SUCCEEDED", attempt.output["output"], {}, attempt.request_id, attempt.output)
        yield _succeeded(ctx, job, made, clock, {})
    elif ctx.catalog.model(job.model).repeatable:
        yield _repeated(ctx, job, "its call's answer was lost", {"outcome": "unknown"}, clock)
    else:
        yield from reconcile(ctx, job, clock)


def poll(ctx: Context, job: Job, clock: Clock) -> Moves:
    """One look at the task; a wait until the next one while it runs."""
    if job.cancel_requested and (move := _cancel(ctx, job, clock)):
        yield move
        return
    try:
        seen = ctx.client(job).task(job.task_id or "")
    except CallFailed as error:
        ctx.queries.slow(ctx.owner(job))
        yield _look_again(job, clock, f"no answer: {error}")
        return
    if isinstance(seen, Refused):
        yield _not_told(ctx, job, seen, clock)
        return
    if seen.status != "UNKNOWN":
        ctx.queries.sighted(ctx.owner(job))
    yield _SEEN.get(seen.status, _still_running)(ctx, job, seen, clock)


def copy(ctx: Context, job: Job, clock: Clock) -> Moves:
    """Copies every output into the bucket, and tells them all at once when all are there and checked."""
    if job.fans_out:
        yield from fanout.assemble(ctx, job, clock)
        return
    if job.result is not None and not job.sources:
        yield _written(ctx, job, clock)
        return
    now, dies_at = clock(), job.links_expire_at or clock() + spans.LINKS
    if now >= dies_at + spans.RELINK:  # with room for clocks that differ, and for asking for the link again
        last = (job.error or {}).get("message", "")
        yield _expired(job, f"the links died before their outputs could be copied. {last}".strip())
        return
    if not job.sources:
        failure = Failure("no_output", ErrorClass.PROVIDER, "the task succeeded without any output", billed=job.billed)
        yield Move(State.FAILED, failure.message, columns={"error": failure.as_json()})
        return
    deadline = spans.copying(now - job.state_at)
    stored = ctx.stored(job) if len(job.sources) > 1 else frozenset()
    outputs: list[dict[str, Any]] = []
    try:
        for n, source in enumerate(job.sources):
            if n not in stored:
                outputs.append(_copied(ctx, job, n, Source(**source), deadline))
    except storage.LinkDead as dead:
        yield _relinked(ctx, job, str(dead), clock, outputs)
    except (storage.BadSource, storage.SourceTrouble, storage.StorageTrouble) as trouble:
        # a source of a wrong type or host too: it is paid for, and a person can set that right while the link lives
        # what is stored stays stored, whatever becomes of the rest
        error = {"error": _trouble(trouble)}
        yield Move(State.COPYING, run_at=_backoff(job, clock), columns=error, outputs=tuple(outputs))
    else:
        yield Move(State.SUCCEEDED, columns={"error": None}, outputs=tuple(outputs))


STEPS = {
    State.QUEUED: Step(fanout.begin, spans.LEASES["gather"], 8),  # of parents; others are admitted by the tick
    State.GATHERING: Step(fanout.gather, spans.LEASES["gather"], 1),
    State.ADMITTED: Step(submit, spans.LEASES["submit"], 4),
    State.SUBMITTING: Step(lapsed, spans.LEASES["submit"], 16),
    State.UNCERTAIN: Step(uncertain, spans.LEASES["reconcile"], 4),
    State.RUNNING: Step(poll, spans.LEASES["poll"], 1000),  # one list answers for many
    State.COPYING: Step(copy, spans.COPY[1] + spans.BUCKET_OVERRUN, 1),
}


def _tokens(usage: Usage) -> int | None:
    """What a call counts against limits by the token; None: nothing does."""
    found = [usage.units[name] for name in ("input_tokens", "output_tokens") if name in usage.units]
    return int(sum(found)) if found else None


def _attempt(ctx: Context, job: Job, request: Any, tokens: int | None) -> dict[str, Any]:
    account = next(account for account in ctx.settings.all_accounts if account.name == job.account)
    return {
        "id": uuid.uuid4(),
        "number": job.attempts + 1,
        "owner": account.owner,
        "account": account.name,
        "region": account.region,
        "model": request.body["model"],
        "request_hash": jobs.digest(request.body),
        **({"tokens": tokens} if tokens is not None else {}),
    }


def _accepted(ctx: Context, job: Job, answer: Accepted, clock: Clock) -> Move:
    said = {"outcome": "accepted", "http_status": 200, "request_id": answer.request_id, "task_id": answer.task_id}
    if answer.task_id is None:
        made = TaskSeen("SUCCEEDED", answer.output, answer.usage, answer.request_id, answer.body)
        return _succeeded(ctx, job, made, clock, said | {"output": {"output": answer.output, "usage": answer.usage}})
    now = clock()
    columns = {
        "task_id": answer.task_id,
        "task_status": answer.status,
        "started_at": now,
        "deadline_at": now + spans.RUNNING,
        "billed": "unknown",
        "polls": 0,
        "error": None,
    }
    first = polling.first_look(now, ctx.learned.times(job), ctx.queries.has_room(ctx.owner(job)))
    return Move(State.RUNNING, run_at=first, columns=columns, attempt=said)


def _refused(ctx: Context, job: Job, refused: Refused, clock: Clock) -> Move:
    """A definite no: nothing was made. What follows is the error table's word."""
    row = faults.classify(refused.http_status, refused.code, refused.message)
    failure = faults.failure(row, refused.code, refused.message, refused.request_id)
    if row.code == "model_not_served":
        failure = replace(failure, hint=_misrouted(ctx, job))
    now = clock()
    said = {
        "outcome": "refused",
        "http_status": refused.http_status,
        "request_id": refused.request_id,
        "code": refused.code,
        "message": failure.message,
        "billed": "no",
        "closed_at": now,
    }
    columns = {"error": failure.as_json()}
    if row.verdict in _FINAL or (row.tries is not None and ctx.refusals(job, refused.code) >= row.tries):
        return Move(State.FAILED, failure.message, columns=columns, attempt=said)
    if row.verdict is Verdict.RETRY:
        return Move(State.QUEUED, f"refused: {failure.code}", _create_again(job, clock), columns, said)
    until, why = _until(row, refused, now), f"{failure.message} ({row.hint})" if row.hint else failure.message
    if row.verdict is Verdict.STOP_ACCOUNT and row.scope not in faults.OF_A_MODEL:
        return Move(State.QUEUED, f"refused: {failure.code}", now, columns, said, stop=(until, why))
    throttled = (row.scope or Scope.RATE, until, why)
    return Move(State.QUEUED, f"refused: {failure.code}", now, columns, said, throttled=throttled)


def _misrouted(ctx: Context, job: Job) -> str:
    """A model that does not exist is one that the account's region does not serve, or serves by another name."""
    model = ctx.catalog.model(job.model)
    places = ", ".join(f"{region} ({there.id})" for region, there in model.regions.items())
    return (
        f"the account {job.account} asked in {job.region}; by the catalog the model is served in {places}:"
        " compare the account's region with its url and key, or give an account of another region"
    )


def _until(row: faults.Row, refused: Refused, now: datetime) -> datetime:
    """When creates may go on after a refusal that is about the lane or the account."""
    if row.scope is faults.Scope.DAILY:
        return _next_midnight(now) + timedelta(minutes=random.uniform(1, 5))  # noqa: S311
    pause = _PAUSES.get(row.scope, spans.PROBE) if row.scope else spans.PROBE
    return now + max(spans.spread(pause), timedelta(seconds=refused.retry_after or 0))


def _next_midnight(now: datetime) -> datetime:
    """00:00 in Shanghai, when the provider renews daily quotas."""
    tomorrow = now.astimezone(_SHANGHAI).date() + timedelta(days=1)
    return datetime.combine(tomorrow, datetime.min.time(), _SHANGHAI)


def _again(job: Job, clock: Clock, why: str, said: dict[str, Any]) -> Move:
    return Move(State.QUEUED, why, _create_again(job, clock), attempt={**said, "closed_at": clock()})


def _unknown(ctx: Context, job: Job, error: Ambiguous, said: dict[str, Any], clock: Clock) -> Move:
    known = {name: said.get(name) for name in ("http_status", "code", "request_id")}
    attempt = {**known, "outcome": "unknown", "message": str(error)}
    if ctx.catalog.model(job.model).repeatable:
        return _repeated(ctx, job, f"no certain answer: {error}", attempt, clock)
    return Move(State.UNCERTAIN, f"no certain answer: {error}", columns={"billed": "unknown"}, attempt=attempt)


def _repeated(ctx: Context, job: Job, why: str, attempt: dict[str, Any], clock: Clock) -> Move:
    """A call that cannot be looked up is made again, since it is cheap; but each may be paid for, so not for ever."""
    closed = {**attempt, "billed": "unknown", "closed_at": clock()}
    if ctx.unanswered(job) < _REPEATS:
        return Move(State.QUEUED, why, _create_again(job, clock), {"billed": "unknown"}, closed)
    message = f"{_REPEATS} calls went without an answer, and each may be billed: {why}"
    failure = Failure("unanswered", ErrorClass.PROVIDER, message, retryable=True, billed="unknown")
    columns = {"error": failure.as_json(), "billed": "unknown"}
    return Move(State.FAILED, message, columns=columns, attempt=closed)


def _cancel(ctx: Context, job: Job, clock: Clock) -> Move | None:
    """Asks the provider, which drops only tasks that have not started; None: no answer, ask at the next look."""
    try:
        refused = ctx.client(job).cancel(job.task_id or "")
    except CallFailed:
        return None
    if refused is None:
        attempt = {"billed": "no", "closed_at": clock()}
        return Move(State.CANCELED, "canceled at the provider", columns={"billed": "no"}, attempt=attempt)
    if refused.http_status != 400:
        return None
    why = "too late to cancel: the provider has started it, and bills it"
    return Move(State.RUNNING, why, clock(), columns={"cancel_requested": False})


def _succeeded(ctx: Context, job: Job, seen: TaskSeen, clock: Clock, said: dict[str, Any] | None = None) -> Move:
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
        "links_expire_at": _links_expire(sources, now),
        "deadline_at": _links_expire(sources, now),
        "error": None,
    }
    attempt = {**(said or {}), "billed": "yes", "closed_at": now}
    if (tokens := _tokens(usage)) is not None:
        attempt["tokens"] = tokens
    if (result := kind.result(seen.output)) is not None:
        columns |= {"result": result, "deadline_at": None, "links_expire_at": None}
    to = State.SUCCEEDED if result is not None and job.parent_id else State.COPYING
    return Move(to, columns=columns, attempt=attempt)


def _failed(ctx: Context, job: Job, seen: TaskSeen, clock: Clock) -> Move:
    """Failed tasks are not billed (Alibaba docs, model pricing), so one more is made where that may help."""
    code, message = str(seen.output.get("code") or ""), str(seen.output.get("message") or "")
    row = faults.classify(200, code, message)
    failure = faults.failure(row, code, message, seen.request_id)
    attempt = {"billed": "no", "closed_at": clock(), "code": code, "message": failure.message}
    columns: dict[str, Any] = {"task_status": seen.status, "error": failure.as_json(), "billed": "no"}
    if row.verdict in (Verdict.RETRY, Verdict.WAIT) and job.retries == 0:
        columns |= {"retries": 1, "task_id": None, "task_status": None}
        return Move(State.QUEUED, f"the task failed: {code}", _create_again(job, clock), columns, attempt)
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
    is_believed = now - since >= spans.UNKNOWN_BELIEVED and ctx.queries.was_sighted_since(ctx.owner(job), since)
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
    again = polling.next_look(job.started_at or now, now, ctx.learned.times(job), ctx.queries.has_room(ctx.owner(job)))
    return Move(State.RUNNING, run_at=again, columns={"task_status": status, "unknown_since": None})


def _is_overdue(job: Job, now: datetime) -> bool:
    return job.deadline_at is not None and now > job.deadline_at


_SEEN: dict[str, Callable[[Context, Job, TaskSeen, Clock], Move]] = {
    "SUCCEEDED": _succeeded,
    "FAILED": _failed,
    "CANCELED": _canceled,
    "UNKNOWN": _unknown_task,
}
_USUAL = frozenset({"PENDING", "RUNNING"})
_UNKNOWN_HINT = "look the task up in the console of the account that made it; a key of another account cannot see it"


def _not_told(ctx: Context, job: Job, refused: Refused, clock: Clock) -> Move:
    """A query that was refused: the task lives on. Only a bad key or account stops anything, and then creates."""
    if polling.is_trouble(refused.http_status):
        ctx.queries.slow(ctx.owner(job))
    row = faults.classify(refused.http_status, refused.code, refused.message)
    return _look_again(job, clock, f"HTTP {refused.http_status} {refused.code}", row)


def _look_again(job: Job, clock: Clock, why: str, row: faults.Row | None = None) -> Move:
    now = clock()
    if job.deadline_at and now > job.deadline_at + spans.LINKS:
        message = f"the provider has told nothing of the task for a day after its end: {why}"
        failure = Failure("task_unseen", ErrorClass.PROVIDER, message, billed="unknown", hint=_UNKNOWN_HINT)
        return Move(State.EXPIRED, message, columns={"error": failure.as_json()})
    stops = row is not None and row.verdict is Verdict.STOP_ACCOUNT
    stop = (now + timedelta(minutes=5), why) if stops else None
    return Move(State.RUNNING, run_at=min(_backoff(job, clock), now + _LAST_LOOKS), stop=stop)


def _copied(ctx: Context, job: Job, n: int, source: Source, deadline: timedelta) -> dict[str, Any]:
    name = f"{storage.stem(job)}/{n}-{source.role}"
    stored = storage.copy(ctx.sources, ctx.bucket, source.url, name, ctx.settings, deadline.total_seconds())
    return storage.row(n, source.role, stored, (job.usage or {}).get("seconds"))


def _written(ctx: Context, job: Job, clock: Clock) -> Move:
    """An answer in words as an object, so that it is in the bucket like all else."""
    body = json.dumps(job.result, ensure_ascii=False, indent=2).encode()
    key = f"{storage.stem(job)}/0-answer.json"
    try:
        stored = ctx.bucket.put_stream(key, (body,), "application/json", storage.Expected(len(body)), {})
    except NoriaError as trouble:
        return Move(State.COPYING, run_at=_backoff(job, clock), columns={"error": _trouble(trouble)})
    return Move(State.SUCCEEDED, columns={"error": None}, outputs=(storage.row(0, "answer", stored, None),))


def _relinked(ctx: Context, job: Job, dead: str, clock: Clock, outputs: Sequence[dict[str, Any]] = ()) -> Move:
    """Asks once for the link again, while the provider still keeps the task; `outputs` are what was stored."""
    kept = tuple(outputs)
    if job.relinked or job.task_id is None:
        return replace(_expired(job, dead), outputs=kept)
    try:
        seen = ctx.client(job).task(job.task_id)
    except CallFailed:
        return Move(State.COPYING, run_at=_backoff(job, clock), outputs=kept)
    if isinstance(seen, Refused):
        return Move(State.COPYING, run_at=_backoff(job, clock), outputs=kept)
    sources = KINDS[job.kind].outputs(seen.output)
    if not sources:
        return replace(_expired(job, f"{dead}; the provider keeps the task no more"), outputs=kept)
    columns = {
        "relinked": True,
        "sources": [asdict(source) for source in sources],
        "links_expire_at": _links_expire(sources, clock()),
    }
    return Move(State.COPYING, "the link was dead and is asked for again", columns=columns, outputs=kept)


def _expired(job: Job, message: str) -> Move:
    failure = Failure("output_expired", ErrorClass.STORAGE, message, billed=job.billed, hint=_EXPIRED_HINT)
    return Move(State.EXPIRED, message, columns={"error": failure.as_json()})


_EXPIRED_HINT = "the output was made and billed, and its link lives 24 h; look for what kept the bucket from taking it"


def _trouble(trouble: NoriaError) -> dict[str, Any]:
    cls = ErrorClass.STORAGE if isinstance(trouble, storage.StorageTrouble) else ErrorClass.NETWORK
    return Failure(trouble.code, cls, str(trouble), retryable=True, billed="yes").as_json()


def _create_again(job: Job, clock: Clock) -> datetime:
    """2 s after the first attempt, twice as long after each further one, 5 minutes at the most."""
    return clock() + spans.spread(min(timedelta(seconds=2 ** min(job.attempts, 9)), timedelta(minutes=5)))


def _backoff(job: Job, clock: Clock) -> datetime:
    now = clock()
    return now + spans.backoff(now - job.state_at)


def _links_expire(sources: Iterable[Source], now: datetime) -> datetime:
    """The first of the links' `Expires` (Unix seconds), or 24 h from now."""
    stamps = [parse_qs(urlsplit(source.url).query).get("Expires", [""])[0] for source in sources]
    known = [datetime.fromtimestamp(int(stamp), UTC) for stamp in stamps if stamp.isdecimal() and len(stamp) < 12]
    return min(known, default=now + spans.LINKS)


def _took(output: dict[str, Any]) -> float | None:
    """Seconds from the submission to the end by the provider's own stamps, which have no zone."""
    try:
        began, ended = (datetime.fromisoformat(str(output[name])) for name in ("submit_time", "end_time"))
    except (KeyError, ValueError):
        return None
    return max(0.0, (ended - began).total_seconds())
