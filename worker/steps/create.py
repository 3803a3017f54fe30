"""The create call: made once, and what becomes of a job by its answer.

`submitting` is on record before the call leaves, so whoever finds the row later knows that it may have been made. A
provider batch goes the same way, with calls of its own (`batch`).
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from worker import kinds, moves, text, timeouts
from worker.catalog import Model, Usage, Variant
from worker.context import Clock, Context, Moves
from worker.dashscope import errors, responses
from worker.dashscope.errors import Scope, Verdict
from worker.dashscope.responses import Accepted, Refused, ServerTrouble, TaskSeen
from worker.dashscope.uploads import FileRefused
from worker.errors import Ambiguous, ErrorClass, Failure, NoriaError, NotFound, NotSent
from worker.kinds import Request
from worker.lanes import query_budget, quotas, throttle
from worker.lanes.account_stops import Stop, StopKey, Unserved
from worker.lanes.throttle import Slow
from worker.moves import attempts
from worker.states import Effect, Mode, Move, State
from worker.steps import cache, finish
from worker.tables import Job

_NO_TOKENS = {"tokens": 0}  # those that were booked are given back to the lane
_BAD_REQUEST = 400
_UNSENT = 5  # tries of a call of Batch Chat that never left this machine; then it goes by a plain call

# verdicts that end a job, and how long others make its lane wait
_FINAL = frozenset({Verdict.FAIL, Verdict.MISCONFIGURED, Verdict.EXPECTED})
_PAUSES = {
    Scope.RATE: timedelta(seconds=5),
    Scope.BURST: timedelta(seconds=10),
    Scope.ALLOCATION: timedelta(seconds=30),
    Scope.CAPACITY: timedelta(seconds=30),
}


@dataclass(frozen=True)
class Way:
    """How a create is made: the functions in which a task and a batch differ.

    `ready` (ctx, job, request, attempt) → the request as it can be sent; makes nothing
    `call`  (ctx, job, request) → the answer
    `taken` (job, move, now) → the move of an accepted call, with this way's own times
    """

    ready: Callable[[Context, Job, Request, dict[str, Any]], Request]
    call: Callable[[Context, Job, Request], Accepted | Refused]
    taken: Callable[[Job, Move, datetime], Move]


def step(ctx: Context, job: Job, clock: Clock) -> Moves:
    """Makes the create call, once, and tells what came of it."""
    yield from made(ctx, job, clock, _WAY)


def made(ctx: Context, job: Job, clock: Clock, way: Way) -> Moves:
    """The same, in that way."""
    if job.cancel_requested:
        yield moves.canceled(job)
        return
    if ctx.account(job).name != job.account:
        yield Move(State.QUEUED, f"its account {job.account} is not set up any more")
        return
    model, kind = ctx.catalog.model(job.model), kinds.call(job.kind)
    wanted = kind.input.model_validate(job.input)
    request = kind.request(model, job.region or "", wanted)
    said = _attempt(ctx, job, request, _tokens(model, kind.estimate(model, wanted)))
    if (answered := cache.answer(ctx, job, said["request_hash"], clock)) is not None:
        yield answered
        return
    try:
        request = way.ready(ctx, job, request, said)
    except NoriaError as trouble:
        yield _not_ready(job, trouble, clock)
        return
    job = yield Move(State.SUBMITTING, attempt=said)
    if job.state != State.SUBMITTING:  # the lane makes it wait, it was canceled, or its time has passed
        return
    sent_at = job.submitted_at or clock()
    clock.wait_until(sent_at)
    if clock() > sent_at + timeouts.SEND:
        # The process was stopped here: by now, others may have proved that nothing was made, and made the call again.
        yield _again(job, clock, "not sent: the worker woke too late for it", {})
        return
    yield _called(ctx, job, request, way, clock)


def _called(ctx: Context, job: Job, request: Request, way: Way, clock: Clock) -> Move:
    """The create call, and what its end means."""
    try:
        answer = way.call(ctx, job, request)
    except NotSent as error:
        if job.attempts >= _UNSENT and ctx.catalog.model(job.model).variant is Variant.CHAT:
            return _unreached(error, clock)
        return _again(job, clock, f"not sent: {error}", {"message": str(error)})
    except ServerTrouble as error:
        return _unknown(ctx, job, error, asdict(error.refused), clock)
    except Ambiguous as error:
        return _unknown(ctx, job, error, {"request_id": error.request_id}, clock)
    if isinstance(answer, Refused):
        return _refused(ctx, job, answer, clock)
    return way.taken(job, _accepted(ctx, job, answer, clock), clock())


def lapsed(_: Context, __: Job, clock: Clock) -> Move:
    """The worker that made the call is gone, and the answer with it, unless it is on the attempt's row.

    Or the worker lives and the database was away: then the answer comes in a moment.
    """
    why = "the worker stopped while the create call was out"
    return Move(State.UNCERTAIN, why, clock() + timeouts.LATE_ANSWER, columns={"billed": "unknown"})


def attempt(ctx: Context, job: Job) -> dict[str, Any]:
    """The row of the call that would be made for the job, by the account that it has."""
    kind = kinds.call(job.kind)
    request = kind.request(ctx.catalog.model(job.model), job.region or "", kind.input.model_validate(job.input))
    return _attempt(ctx, job, request, None)


def _attempt(ctx: Context, job: Job, request: Request, tokens: int | None) -> dict[str, Any]:
    account = ctx.account(job)
    return {
        "id": uuid.uuid4(),
        "number": job.attempts + 1,
        "owner": account.owner,
        "account": account.name,
        "region": account.region,
        "model": request.body["model"],
        "request_hash": _digest(request),
        **({"tokens": tokens} if tokens is not None else {}),
    }


def _digest(request: Request) -> bytes:
    """Of what decides the answer: the body, and whether the model's reasoning is kept of it."""
    return text.digest([request.body, "with reasoning"] if request.reasoning else request.body)


def _accepted(ctx: Context, job: Job, answer: Accepted, clock: Clock) -> Move:
    said = {"outcome": "accepted", "http_status": 200, "request_id": answer.request_id, "task_id": answer.task_id}
    if answer.task_id is None:
        made = TaskSeen("SUCCEEDED", answer.output, answer.usage, answer.request_id, answer.body)
        return finish.succeeded(
            ctx, job, made, clock, said | {"output": {"output": answer.output, "usage": answer.usage}}
        )
    now = clock()
    columns = {
        "task_id": answer.task_id,
        "task_status": answer.status,
        "started_at": now,
        "deadline_at": now + timeouts.RUNNING,
        "billed": "unknown",
        "polls": 0,
        "error": None,
    }
    first = query_budget.first_look(now, ctx.learned.times(job), ctx.queries.apart(ctx.owner(job)))
    return Move(State.RUNNING, run_at=first, columns=columns, attempt=said)


def _refused(ctx: Context, job: Job, refused: Refused, clock: Clock) -> Move:
    """A definite no: nothing was made. What follows is looked up in the table of errors."""
    row = errors.classify(refused.http_status, refused.code, refused.message)
    failure = errors.failure(row, refused.code, refused.message, refused.request_id)
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
        **_NO_TOKENS,
    }
    columns = {"error": failure.as_json()}
    if _is_closed(ctx, job, row):
        # the account may not call it so: others need not find that out for themselves
        return Move(State.FAILED, failure.message, columns=columns, attempt=said, effects=(Unserved(failure.message),))
    if row.verdict in _FINAL or (row.tries is not None and _refusals(ctx, job, refused.code) >= row.tries):
        return Move(State.FAILED, failure.message, columns=columns, attempt=said)
    if row.verdict is Verdict.RETRY:
        return Move(
            State.QUEUED, f"refused: {failure.code}", timeouts.create_again(job.attempts, clock()), columns, said
        )
    until, why = _until(row, refused, now), f"{failure.message} ({row.hint})" if row.hint else failure.message
    if row.verdict is Verdict.STOP_ACCOUNT and row.scope not in errors.OF_A_MODEL:
        stop = stopping(ctx, job, row, until, why)
        return Move(State.QUEUED, f"refused: {failure.code}", now, columns, said, effects=(stop,))
    slow = Slow(row.scope or Scope.RATE, until, why)
    return Move(State.QUEUED, f"refused: {failure.code}", now, columns, said, effects=(slow,))


def _is_closed(ctx: Context, job: Job, row: errors.Meaning) -> bool:
    """Whether a refusal closes this way to have the model, and no other: nothing stops but its own lane.

    Nobody tells how Batch Chat refuses an account or a model, so there it is every refusal that would stop an account,
    but one for money, or that does not know the model or the path.
    """
    variant = ctx.catalog.model(job.model).variant
    if variant is not Variant.CHAT:
        return row.code == "wrong_mode" and variant is not None
    stops = row.verdict is Verdict.STOP_ACCOUNT and row.scope is not Scope.MONEY
    return stops or row.code in ("wrong_mode", "wrong_route", "model_not_served", "not_found")


def stopping(ctx: Context, job: Job, row: errors.Meaning, until: datetime, why: str) -> Effect:
    """What a refusal stops: the account alone, where its key is to blame and its owner has another one there."""
    mine = ctx.account(job)
    places = [(each.owner, each.region) for each in ctx.settings.all_accounts]
    if row.scope in errors.OF_A_KEY and places.count((mine.owner, mine.region)) > 1:
        return StopKey(mine.name, mine.owner, until, why)
    return Stop(until, why)


def _refusals(ctx: Context, job: Job, code: str) -> int:
    return ctx.read(lambda connection: attempts.refusals(connection, job, code))


def _again(job: Job, clock: Clock, why: str, said: dict[str, Any]) -> Move:
    """The next try of a call that never left this machine."""
    closed = {"outcome": "not_sent", "billed": "no", "closed_at": clock(), **_NO_TOKENS, **said}
    return Move(State.QUEUED, why, timeouts.create_again(job.attempts, clock()), attempt=closed)


def _unreached(error: NotSent, clock: Clock) -> Move:
    """The end of a call that never left this machine, and is made another way."""
    failure = Failure("not_sent", ErrorClass.NETWORK, f"{_UNSENT} calls could not be sent: {error}", retryable=True)
    closed = {"outcome": "not_sent", "billed": "no", "closed_at": clock(), "message": str(error), **_NO_TOKENS}
    return Move(State.FAILED, failure.message, columns={"error": failure.as_json()}, attempt=closed)


def _not_ready(job: Job, trouble: NoriaError, clock: Clock) -> Move:
    """An input could not be given to the provider: the job waits without a slot, or fails where the input is gone.

    Where the provider's own error refuses the file, what follows is looked up in the table of errors.
    """
    if isinstance(trouble, FileRefused) and trouble.refused.code and responses.is_definite(trouble.refused):
        return _not_taken(trouble.refused, clock())
    is_gone = isinstance(trouble, NotFound)
    cls = ErrorClass.VALIDATION if is_gone else ErrorClass.STORAGE
    failure = Failure("input_gone" if is_gone else trouble.code, cls, str(trouble), retryable=not is_gone)
    if is_gone:
        return Move(State.FAILED, failure.message, columns={"error": failure.as_json()})
    again_at = clock() + timeouts.backoff(clock() - job.created_at)
    return Move(State.QUEUED, f"its inputs were not handed over: {trouble}", again_at, {"error": failure.as_json()})


def _unknown(ctx: Context, job: Job, error: Ambiguous, said: dict[str, Any], clock: Clock) -> Move:
    known = {name: said.get(name) for name in ("http_status", "code", "request_id")}
    attempt = {**known, "outcome": "unknown", "message": str(error)}
    if ctx.catalog.model(job.model).repeatable:
        return repeated(ctx, job, f"no certain answer: {error}", attempt, clock)
    return Move(State.UNCERTAIN, f"no certain answer: {error}", columns={"billed": "unknown"}, attempt=attempt)


def repeated(ctx: Context, job: Job, why: str, attempt: dict[str, Any], clock: Clock) -> Move:
    """A call that is in no list is made again, since it is cheap; only a few times, since each may be billed."""
    closed = {**attempt, "billed": "unknown", "closed_at": clock()}
    before = ctx.read(lambda connection: attempts.unanswered(connection, job))
    repeats = ctx.catalog.model(job.model).repeats
    if before + 1 < repeats:  # this one, which is not on record yet, is one of them
        return Move(State.QUEUED, why, timeouts.create_again(job.attempts, clock()), {"billed": "unknown"}, closed)
    message = f"{repeats} calls went without an answer, and each may be billed: {why}"
    failure = Failure("unanswered", ErrorClass.PROVIDER, message, retryable=True, billed="unknown")
    columns = {"error": failure.as_json(), "billed": "unknown"}
    return Move(State.FAILED, message, columns=columns, attempt=closed)


def _not_taken(refused: Refused, now: datetime) -> Move:
    """The provider refused the job's file: nothing was made. A wait for that is without a slot."""
    row = errors.classify(refused.http_status, refused.code, refused.message)
    failure = errors.failure(row, refused.code, refused.message, refused.request_id)
    columns = {"error": failure.as_json()}
    if row.verdict in _FINAL:
        return Move(State.FAILED, failure.message, columns=columns)
    until, why = _until(row, refused, now), f"its file was not taken: {failure.message}"
    if row.scope is Scope.DAILY or (row.verdict is Verdict.STOP_ACCOUNT and row.scope):
        # The lane rests, since its other jobs' files would be refused too.
        return Move(State.QUEUED, why, now, columns, effects=(Slow(row.scope, until, failure.message),))
    return Move(State.QUEUED, why, until, columns)


def _misrouted(ctx: Context, job: Job) -> str:
    """The hint where a model does not exist: it has ended, or the account's region has it not, or by another name."""
    model = ctx.catalog.model(job.model)
    if model.end:
        return model.end
    if ends_at := ctx.read(lambda connection: quotas.ends_at(connection, job.lane_id)):
        return f"the provider ends it at {text.moment(ends_at)}, as it told the account: take another model"
    places = ", ".join(f"{region} ({there.id})" for region, there in model.regions.items())
    return (
        f"the account {job.account} asked in {job.region}; by the catalog the model is served in {places}:"
        " compare the account's region with its url and key, or give an account of another region"
    )


def _until(row: errors.Meaning, refused: Refused, now: datetime) -> datetime:
    """When creates may go on after a refusal that is about the lane or the account."""
    if row.scope is errors.Scope.DAILY:
        return throttle.renewal(now)
    pause = _PAUSES.get(row.scope, timeouts.PROBE) if row.scope else timeouts.PROBE
    return now + max(timeouts.spread(pause), timedelta(seconds=refused.retry_after or 0))


def _tokens(model: Model, estimate: Usage) -> int | None:
    """What the call books of its lane's tokens; no call reads and writes more than the model's window."""
    most = finish.tokens(estimate)
    return most if most is None or model.context is None else min(most, model.context)


def _ready(ctx: Context, job: Job, request: Request, _: dict[str, Any]) -> Request:
    """The request, with links or uploads that the provider can follow in place of our keys."""
    return ctx.handover.request(ctx.client(job), job, request)


def _call(ctx: Context, job: Job, request: Request) -> Accepted | Refused:
    """The create call; once more under another name of a field, where the first is refused by name and made nothing."""
    client, deadline = ctx.client(job), timeouts.CALL if job.mode == Mode.CALL else timeouts.CREATE
    ends = time.monotonic() + deadline.total_seconds()
    said = client.create(request, deadline.total_seconds())
    other = _renamed(request, said) if isinstance(said, Refused) else None
    return said if other is None else client.create(other, max(1.0, ends - time.monotonic()))


def _renamed(request: Request, refused: Refused) -> Request | None:
    """The request with the other name of a field that a 400 names; None: it names none that has another."""
    if refused.http_status != _BAD_REQUEST:
        return None
    named = {name for name in request.instead if re.search(rf"\b{name}\b", refused.message)} & request.body.keys()
    body = {request.instead[name] if name in named else name: value for name, value in request.body.items()}
    return replace(request, body=body, instead={}) if named else None


def _as_it_is(_: Job, move: Move, __: datetime) -> Move:
    return move


_WAY = Way(_ready, _call, _as_it_is)
