"""The steps of a provider batch: a child that is one file of many calls.

It goes through the states of any task, with calls of its own. The file is uploaded before the create is on record:
that costs nothing and may be done again. The batch is created once, with its attempt's id as its name, and one whose
answer was lost is found by that name. What it cost is read from its results as they pass into the bucket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from worker import log, storage, timeouts
from worker.catalog import Model, Usage
from worker.context import Clock, Context, Moves
from worker.dashscope import responses
from worker.dashscope.batches import Batch
from worker.dashscope.responses import Accepted, Refused
from worker.errors import CallFailed, ErrorClass, Failure, NoriaError
from worker.kinds import Request, answers
from worker.moves import attempts
from worker.states import HeldFor, Move, State
from worker.steps import create as creating
from worker.tables import Job

_LOOKS = timedelta(seconds=10), timedelta(minutes=5)  # between two looks: a tenth of its age, within these
_RESULTS_KEPT = timedelta(days=7)  # for which the results are asked for; the provider lists batches for 30 days
_CREATES = 3  # that were lost and proved absent, before a person looks
_FILES_COME = timedelta(hours=1)  # after an end that names no file of answers, though there must be one
_LONGEST = 4 << 20  # bytes of a line of results that are read; no answer is as long
_AT_WORK = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
_ENDS = frozenset({"completed", "failed", "expired", "cancelled"})
_TOO_MANY = 429

_log = log.get(__name__)


@dataclass
class Bill:
    """What the lines of a results file used, counted as they pass, by the tier of prices of each.

    Memory is bounded and time is linear, whatever the file is: a line that is too long is cut, and counts as nothing.
    """

    model: Model
    by_tier: dict[str | None, Counter[str]] = field(default_factory=dict)

    def read(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, unchanged."""
        line = bytearray()
        for chunk in chunks:
            rest, *others = chunk.split(b"\n")
            line += rest[: _LONGEST - len(line)]
            for other in others:
                self._count(line)
                line = bytearray(other[:_LONGEST])
            yield chunk
        self._count(line)

    @property
    def units(self) -> dict[str, int]:
        """What all of them used."""
        return dict(sum(self.by_tier.values(), Counter()))

    def cost(self, region: str, now: datetime) -> int | None:
        """What they cost, micro-CNY: rounded once a tier; None where a tier has no price."""
        used = [Usage({**units, "tier": tier}) for tier, units in self.by_tier.items()]
        micros = [self.model.price(usage, region, now.date()) for usage in used]
        known = [amount for amount in micros if amount is not None]
        return sum(known) if len(known) == len(micros) else None

    def _count(self, line: bytearray) -> None:
        body = responses.field(responses.field(responses.read(bytes(line)), "response"), "body")
        used = answers.tokens(responses.field(body, "usage"))
        if used:
            tier = self.model.token_tier(used.get("input_tokens"))
            self.by_tier.setdefault(tier, Counter()).update(used)


def create(ctx: Context, job: Job, clock: Clock) -> Moves:
    """The create call of its file, which is uploaded first."""
    yield from creating.made(ctx, job, clock, _WAY)


def accepted(job: Job, move: Move, now: datetime) -> Move:
    """The move of any accepted task, with a batch's own times: its window and a day."""
    window = job.input["window"]
    span = timedelta(**{"days" if window.endswith("d") else "hours": int(window[:-1])})
    return replace(move, run_at=now + _LOOKS[0], columns={**move.columns, "deadline_at": now + span + timeouts.LINKS})


def find(ctx: Context, job: Job, clock: Clock) -> Move:
    """What became of a create whose answer was lost: the batch of its name, or proof that there is none."""
    attempt, now = ctx.answer_of(job), clock()
    assert attempt is not None, "no job is uncertain without an attempt"
    if attempt.outcome == "accepted" and attempt.task_id:
        return _running(job, attempt.task_id, "the answer was on the attempt's row", {}, now)
    if attempt.outcome in ("not_sent", "refused"):
        why = f"the attempt's row says {attempt.outcome}: nothing was made"
        return Move(State.QUEUED, why, now, {"billed": "no"})
    settled_at = attempt.sent_at + timedelta(seconds=ctx.settings.settle_seconds)
    try:
        batch = ctx.client(job).batches.find(str(attempt.id), attempt.sent_at)
    except CallFailed:
        return Move(State.UNCERTAIN, run_at=_again(job, now))
    if isinstance(batch, Batch):
        said = {"outcome": "accepted", "task_id": batch.id}
        return _running(job, batch.id, "found by its name among the account's batches", said, now)
    if isinstance(batch, Refused) or now < settled_at:
        return Move(State.UNCERTAIN, run_at=max(_again(job, now), min(settled_at, now + timedelta(minutes=1))))
    absent: dict[str, Any] = {"outcome": "absent", "billed": "no", "closed_at": now}
    if job.cancel_requested:
        why = "no batch was made, and nobody wants it any more"
        return Move(State.CANCELED, why, columns={"billed": "no"}, attempt=absent)
    with ctx.engine.connect() as connection:
        before = attempts.absences(connection, job)
    if before + 1 >= _CREATES:  # this one, which is not on record yet, is one of them
        return Move(State.HELD, "created again and again, and never there", columns={"held_for": HeldFor.UNCERTAIN})
    return Move(State.QUEUED, "no batch has its name: none was made", now, {"billed": "no"}, absent)


def look(ctx: Context, job: Job, clock: Clock) -> Move:
    """One look at the batch, which is asked to stop first where nobody wants it: what is done by then is billed."""
    batches, now = ctx.client(job).batches, clock()
    try:
        batch = batches.cancel(job.task_id or "") if job.cancel_requested else batches.get(job.task_id or "")
        if isinstance(batch, Refused) and job.cancel_requested:  # it has ended
            batch = batches.get(job.task_id or "")
    except CallFailed as error:
        return _unseen(job, f"no answer: {error}", now)
    if isinstance(batch, Refused):
        return _unseen(job, f"HTTP {batch.http_status} {batch.code}", now)
    if batch.status not in _ENDS:
        return _waited(ctx, job, batch, now)
    if _lacks_answers(batch):
        return _without_answers(job, batch, now)
    if batch.output_file_id or batch.error_file_id:
        return _ended(batch, now)
    _tidy(ctx, job, batch)
    return _failed(batch, now)


def copy(ctx: Context, job: Job, clock: Clock) -> Move:
    """Its results into the bucket, and what they cost."""
    model, outputs = ctx.catalog.model(job.model), []
    bill = Bill(model)
    deadline = timeouts.copying(clock() - job.state_at).total_seconds()
    try:
        for n, source in enumerate(job.sources or ()):
            with ctx.client(job).batches.content(source["url"], deadline) as chunks:
                key = f"{storage.stem(job)}/{n}-{source['role']}.jsonl"
                stored = ctx.bucket.put_stream(key, bill.read(chunks), "application/jsonl", storage.Expected())
            outputs.append(storage.row(n, source["role"], stored, None))
    except NoriaError as trouble:
        return _not_copied(job, trouble, clock())
    _tidy(ctx, job)
    columns = {"error": None, "usage": bill.units, "cost": bill.cost(job.region or "", clock()), "billed": "yes"}
    return Move(
        State.SUCCEEDED, columns=columns, attempt={"billed": "yes", "closed_at": clock()}, outputs=tuple(outputs)
    )


def _ready(ctx: Context, job: Job, request: Request, attempt: dict[str, Any]) -> Request:
    """The create call of the uploaded file; raises NoriaError when it could not be uploaded: nothing was made."""
    file_id = ctx.handover.lines(ctx.client(job), job)
    said = {name: request.body[name] for name in ("window", "endpoint")}
    return replace(request, body={"file": file_id, "name": str(attempt["id"]), **said})


def _call(ctx: Context, job: Job, request: Request) -> Accepted | Refused:
    """The create call, once; its ends are those of any create."""
    asked = request.body
    ctx.handover.forget(job)
    begun, told = (asked["file"], asked["window"], asked["name"]), f"noria job {job.id}"
    said = ctx.client(job).batches.create(*begun, told, endpoint=asked["endpoint"])
    if isinstance(said, Refused):
        if said.http_status == _TOO_MANY:
            ctx.handover.remember(job, asked["file"])
        return said
    return Accepted(said.id, said.status, said.request_id, {}, {}, said.body)


def _running(job: Job, batch_id: str, why: str, said: dict[str, Any], now: datetime) -> Move:
    columns = {"task_id": batch_id, "started_at": now, "billed": "unknown", "polls": 0, "error": None}
    return accepted(job, Move(State.RUNNING, why, columns=columns, attempt=said or None), now)


def _waited(ctx: Context, job: Job, batch: Batch, now: datetime) -> Move:
    """The wait until the next look; a status that we do not know is waited on too, since it is no end."""
    if batch.status not in _AT_WORK and batch.status not in ctx.strange:
        ctx.strange.add(batch.status)
        _log.warning("the provider names an unknown status of a batch: it is waited on", status=batch.status)
    if job.deadline_at is not None and now > job.deadline_at:
        return _unseen(job, f"it says {batch.status}", now)
    return Move(State.RUNNING, run_at=_again(job, now), columns={"task_status": batch.status})


def _lacks_answers(batch: Batch) -> bool:
    """Whether lines were done, and are billed, and the batch names no file of them."""
    is_done = batch.completed > 0 or (batch.status == "completed" and not batch.error_file_id)
    return is_done and not batch.output_file_id


def _without_answers(job: Job, batch: Batch, now: datetime) -> Move:
    """The file may come a little later; a batch whose answers cannot be had is paid for all the same."""
    since = job.unknown_since or now
    if now - since < _FILES_COME:
        columns = {"task_status": batch.status, "unknown_since": since}
        return Move(State.RUNNING, run_at=_again(job, now), columns=columns)
    message = f"the provider's batch is {batch.status} with {batch.completed} calls done, and names no file of answers"
    failure = Failure("batch_without_answers", ErrorClass.PROVIDER, message, billed="unknown", hint=_LOOK)
    columns = {"task_status": batch.status, "billed": "unknown", "error": failure.as_json()}
    return Move(State.FAILED, message, columns=columns, attempt={"billed": "unknown", "closed_at": now})


def _tidy(ctx: Context, job: Job, batch: Batch | None = None) -> None:
    """Deletes the batch's input, if that can be: an account holds 10,000 files, and nobody reads this one again."""
    batches = ctx.client(job).batches
    with suppress(CallFailed):
        seen = batch or batches.get(job.task_id or "")
        if isinstance(seen, Batch) and seen.input_file_id:
            batches.delete(seen.input_file_id)


def _ended(batch: Batch, now: datetime) -> Move:
    """Whatever lines have an answer are paid for, however the batch ended."""
    files = (("results", batch.output_file_id), ("errors", batch.error_file_id))
    sources = [{"url": file_id, "role": role, "extension": "jsonl"} for role, file_id in files if file_id]
    columns = {
        "task_status": batch.status,
        "sources": sources,
        "links_expire_at": now + _RESULTS_KEPT,
        "deadline_at": now + _RESULTS_KEPT,
        "error": None,
    }
    why = f"the batch is {batch.status}: {batch.completed} of {batch.total} calls done, {batch.failed} failed"
    return Move(State.COPYING, why, columns=columns)


def _failed(batch: Batch, now: datetime) -> Move:
    """No line was done: the file was not taken, or the window closed before anything was."""
    first = batch.errors[0] if batch.errors else {}
    reason = responses.word(first, "message") or "no call was done"
    failure = Failure(
        f"batch_{batch.status}",
        ErrorClass.PROVIDER,
        f"the provider's batch is {batch.status}: {reason}",
        retryable=True,
        provider={"code": responses.word(first, "code"), "message": reason, "request_id": batch.request_id},
    )
    columns = {"task_status": batch.status, "billed": "no", "error": failure.as_json()}
    attempt = {"billed": "no", "closed_at": now}
    return Move(State.FAILED, failure.message, columns=columns, attempt=attempt)


def _unseen(job: Job, why: str, now: datetime) -> Move:
    """The wait after a look that told nothing; the end of the job, a day after the batch's window."""
    if job.deadline_at is None or now < job.deadline_at:
        return Move(State.RUNNING, run_at=_again(job, now))
    message = f"the batch was not seen to end by a day after its window: {why}"
    failure = Failure("batch_unseen", ErrorClass.PROVIDER, message, billed="unknown")
    return Move(State.EXPIRED, message, columns={"error": failure.as_json()})


def _not_copied(job: Job, trouble: NoriaError, now: datetime) -> Move:
    failure = Failure(trouble.code, ErrorClass.STORAGE, str(trouble), retryable=True, billed="unknown")
    columns = {"error": failure.as_json()}
    if job.links_expire_at and now > job.links_expire_at:
        why, said = f"the results could not be copied for a week: {trouble}", {"billed": "unknown", "closed_at": now}
        return Move(State.EXPIRED, why, columns=columns, attempt=said)
    return Move(State.COPYING, run_at=now + timeouts.backoff(now - job.state_at), columns=columns)


def _again(job: Job, now: datetime) -> datetime:
    age = now - (job.started_at or job.state_at)
    return now + timeouts.spread(min(max(age / 10, _LOOKS[0]), _LOOKS[1]))


_LOOK = "look the batch up in the console of the account that made it"
_WAY = creating.Way(_ready, _call, accepted)
