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

A job whose children do the work goes another way: `parent`; a provider batch another: `batch`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from worker import moves, timeouts
from worker.catalog import Model, Usage
from worker.context import Clock, Context, Moves
from worker.dashscope.responses import Refused, ServerTrouble, TaskSeen
from worker.errors import Ambiguous, CallFailed, NoriaError, NotSent
from worker.kinds import KINDS, Request
from worker.states import Mode, Move, State
from worker.steps import batch, copy, create, finish, parent
from worker.steps.find import disowned, give_up_task, reconcile
from worker.tables import Job

_ENDS = frozenset({"SUCCEEDED", "FAILED", "CANCELED"})  # of a task, in the provider's words


@dataclass(frozen=True)
class Step:
    """How a state's step is run: its lease, the queue of its messages, and how many rows travel in one."""

    run: Callable[[Context, Job, Clock], Moves]
    lease: timedelta
    rows: int


def submit(ctx: Context, job: Job, clock: Clock) -> Moves:
    """Makes the create call, once, and tells what came of it."""
    if job.cancel_requested:
        yield moves.canceled(job)
        return
    model, kind = ctx.catalog.model(job.model), KINDS[job.kind]
    wanted = kind.input.model_validate(job.input)
    request = kind.request(model, job.region or "", wanted)
    attempt = create.attempt(ctx, job, request, _tokens(model, kind.estimate(model, wanted)))
    try:
        request = _ready(ctx, job, request, attempt)
    except NoriaError as trouble:
        yield create.not_ready(job, trouble, clock)
        return
    job = yield Move(State.SUBMITTING, attempt=attempt)
    if job.state != State.SUBMITTING:  # the lane makes it wait, or it was canceled
        return
    sent_at = job.submitted_at or clock()
    clock.wait_until(sent_at)
    if clock() > sent_at + timeouts.SEND:
        # The process was stopped here. Others may have proved by now that nothing was made, and made the call again.
        yield create.again(job, clock, "not sent: the worker woke too late for it", {})
        return
    yield _called(ctx, job, request, timeouts.CALL if job.mode == Mode.CALL else timeouts.CREATE, clock)


def lapsed(ctx: Context, job: Job, clock: Clock) -> Moves:
    """The worker that made the call is gone, and its answer with it, unless it is on the attempt's row.

    Or it lives, and the database was away: then the answer comes in a moment.
    """
    why = "the worker stopped while the create call was out"
    yield Move(State.UNCERTAIN, why, clock() + timeouts.LATE_ANSWER, columns={"billed": "unknown"})


def uncertain(ctx: Context, job: Job, clock: Clock) -> Moves:
    """What became of the call: `find`, unless its answer is on record with the result in it."""
    if job.mode == Mode.BATCH:
        yield batch.found(ctx, job, clock)
        return
    attempt = ctx.answer_of(job)
    if attempt is not None and attempt.outcome == "accepted" and attempt.output and not attempt.task_id:
        made = TaskSeen("SUCCEEDED", attempt.output["output"], {}, attempt.request_id, attempt.output)
        yield finish.succeeded(ctx, job, made, clock, {})
    elif ctx.catalog.model(job.model).repeatable:
        yield create.repeated(ctx, job, "its call's answer was lost", {"outcome": "unknown"}, clock)
    else:
        yield from reconcile(ctx, job, clock)


def poll(ctx: Context, job: Job, clock: Clock) -> Moves:
    """One look at the task; a wait until the next one while it runs."""
    if job.mode == Mode.BATCH:
        yield batch.looked(ctx, job, clock)
        return
    # of what may be another's task, nobody is asked to cancel it
    if job.cancel_requested and not job.unproven and (move := _cancel(ctx, job, clock)):
        yield move
        return
    try:
        told = ctx.client(job).task(job.task_id or "")
    except CallFailed as error:
        ctx.queries.slow(ctx.owner(job))
        yield finish.look_again(job, clock, f"no answer: {error}")
        return
    if isinstance(told, Refused):
        yield finish.not_told(ctx, job, told, clock)
        return
    if told.status != "UNKNOWN":
        ctx.queries.sighted(ctx.owner(job))
    if job.unproven and told.status in _ENDS and (why := disowned(job, told)):
        yield from give_up_task(job, why)
        return
    yield finish.move(ctx, job, told, clock)


STEPS = {
    State.QUEUED: Step(parent.begin, timeouts.LEASES["gather"], 8),  # of parents; others are admitted by the tick
    State.GATHERING: Step(parent.gather, timeouts.LEASES["gather"], 1),
    State.ADMITTED: Step(submit, timeouts.LEASES["submit"], 4),
    State.SUBMITTING: Step(lapsed, timeouts.LEASES["submit"], 16),
    State.UNCERTAIN: Step(uncertain, timeouts.LEASES["reconcile"], 4),
    State.RUNNING: Step(poll, timeouts.LEASES["poll"], 1000),  # one list answers for many
    State.COPYING: Step(copy.step, timeouts.COPY[1] + timeouts.BUCKET_OVERRUN, 1),
}


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


def _tokens(model: Model, estimate: Usage) -> int | None:
    """What the call books of its lane's tokens; no call reads and writes more than the model's window."""
    most = finish.tokens(estimate)
    return most if most is None or model.context is None else min(most, model.context)


def _ready(ctx: Context, job: Job, request: Request, attempt: dict[str, Any]) -> Request:
    """The request with what the provider can follow in place of our keys; nothing is made by that."""
    if job.mode == Mode.BATCH:
        return batch.ready(ctx, job, request, attempt["id"])
    return ctx.handover.request(ctx.client(job), job, request)


def _called(ctx: Context, job: Job, request: Request, deadline: timedelta, clock: Clock) -> Move:
    """The create call, and what its end means."""
    is_batch = job.mode == Mode.BATCH
    try:
        client = ctx.client(job)
        answer = batch.create(ctx, job, request) if is_batch else client.create(request, deadline.total_seconds())
    except NotSent as error:
        return create.again(job, clock, f"not sent: {error}", {"message": str(error)})
    except ServerTrouble as error:
        return create.unknown(ctx, job, error, asdict(error.refused), clock)
    except Ambiguous as error:
        return create.unknown(ctx, job, error, {"request_id": error.request_id}, clock)
    if isinstance(answer, Refused):
        return create.refused(ctx, job, answer, clock)
    move = create.accepted(ctx, job, answer, clock)
    return batch.accepted(job, move, clock()) if is_batch else move
