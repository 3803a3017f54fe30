"""Jobs: how one is checked, made and canceled.

How one is moved on is `moves`; how one is read, `reading`; how it looks to others, `document`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, and_, bindparam, case, exists, or_, select, update

from worker import claims, document, inputs, kinds, money, moves, text
from worker.catalog import Catalog, Model
from worker.errors import Conflict, Fault, InvalidInput
from worker.jobs import reading
from worker.kinds import OFFERED, Kind, ParentKind
from worker.moves import children
from worker.settings import Settings
from worker.states import TERMINAL, Mode, Move, State
from worker.tables import Attempt, IdempotencyKey, Job, Project

_ASKED = {"cancel_requested": True}
_MINE = (State.QUEUED, State.HELD, State.ADMITTED)  # states in which the provider knows nothing of the job
_AGAIN = frozenset({State.FAILED, State.CANCELED, State.EXPIRED})

# Whether the job has, or one of its children, a call whose verdict is open.
_OPEN = select(
    exists()
    .where(Attempt.job_id == Job.id, Attempt.closed_at.is_(None))
    .where(or_(Job.id == bindparam("job"), Job.parent_id == bindparam("job")))
)


@dataclass(frozen=True)
class Submission:
    """What a user asks for, as it came: `input` is checked by `prepare`; `model` None leaves it to the catalog."""

    kind: str
    model: str | None
    input: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    custom_id: str | None = None
    priority: str = "normal"
    webhook_url: str | None = None
    webhook_events: list[str] | None = None
    review: Literal["required"] | None = None
    not_after: datetime | None = None


@dataclass(frozen=True)
class Prepared:
    """A submission that is valid: the catalog's id of the model, the complete input, the price if it is known."""

    submission: Submission
    model: str
    mode: Mode
    input: dict[str, Any]
    estimate: int | None
    warnings: list[Fault] = field(default_factory=list)  # of what is taken all the same

    @property
    def digest(self) -> bytes:
        """What Idempotency-Keys were kept with until `Sent` was: needed for seven days after that release."""
        return text.digest([self.submission.kind, self.model, self.input, _rest(self.submission)])


@dataclass(frozen=True)
class Sent:
    """An Idempotency-Key, and the digest of the body that it came with, as that was sent.

    Not of the complete submission: a catalog with another default would make a repeat another body (ADR 0013).
    """

    key: str
    digest: bytes


def prepare(catalog: Catalog, settings: Settings, submission: Submission, on: datetime) -> Prepared:
    """Checks a submission against the catalog and prices it; raises InvalidInput with every fault."""
    kind, model = _kind_and_model(catalog, submission)
    regions = money.regions(settings, model)
    checked = kind.check(catalog, model, submission.input, None)  # any of the regions: admission finds one with room
    if variant := catalog.variant(model.id, kind.variant(checked)):
        money.regions(settings, variant)
    usage = kind.estimate(model, checked)
    return Prepared(
        submission=submission,
        model=model.id,
        mode=Mode.PARENT if isinstance(kind, ParentKind) else model.mode,
        input=checked.model_dump(mode="json", exclude_none=True),
        estimate=money.dearest(model, usage, regions, on.date()),
        warnings=kinds.warnings(catalog, kind.name, model.id, submission.input),
    )


def submit(
    connection: Connection, project: Project, prepared: Prepared, sent: Sent | None, now: datetime | None
) -> tuple[Job, bool]:
    """Makes the job and its reservation, or finds the first one under the same Idempotency-Key: (job, replayed).

    `now` is when it is made; None: Postgres's time. Raises Conflict when the key was used with another body,
    InvalidInput when a file that is named is not there: roll back.
    """
    row = {"project_id": project.id, **asked(prepared)}
    if sent is None:
        job: Job | None = moves.make(connection, row, now)
    else:
        job = moves.make_once(connection, row, {"key": sent.key, "hash": sent.digest}, now)
    if job is None:
        assert sent is not None
        first = replayed(connection, project, sent, prepared)
        return (first, True) if first else submit(connection, project, prepared, sent, now)  # the key ended just now
    # last, so that a repeated submission is answered whatever has become of its files
    inputs.check(connection, project.id, prepared.model, prepared.input)
    return job, False


def asked(prepared: Prepared) -> dict[str, Any]:
    """What of a job's row is asked for."""
    said = prepared.submission
    return {
        "kind": said.kind,
        "model": prepared.model,
        "mode": prepared.mode,
        "input": prepared.input,
        "labels": said.metadata,
        "custom_id": said.custom_id,
        "priority": document.PRIORITIES[said.priority],
        "webhook_url": said.webhook_url,
        "webhook_events": said.webhook_events,
        "review": said.review,
        "not_after": said.not_after,
        "estimate": prepared.estimate,
    }


def replayed(connection: Connection, project: Project, sent: Sent, prepared: Prepared | None) -> Job | None:
    """The job that the first submission under this Idempotency-Key made; None when this is the first.

    `prepared` is None where the catalog refuses now what it took then. Raises Conflict when the key came with another
    body.
    """
    statement = select(IdempotencyKey.request_hash, IdempotencyKey.job_id).where(
        IdempotencyKey.project_id == project.id, IdempotencyKey.key == sent.key
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    if row.request_hash not in (sent.digest, prepared.digest if prepared else None):
        raise Conflict("idempotency_key_reused", "this Idempotency-Key came with another body before")
    return reading.one(connection, project.id, row.job_id)


def cancel(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, now: datetime) -> tuple[Job, str]:
    """Asks a job to stop: the job, and what became of it.

    `canceled`: it is. `requested`: the provider is being asked. `too_late`: it runs on and is billed, and ends as if
    nothing had been asked; what awaits a review is approved or rejected. `already_finished`. Raises Conflict for a job
    that is held because nobody knows whether the provider has a task for it.
    """
    job = reading.one(connection, project_id, job_id)
    state = State(job.state)
    if state in TERMINAL:
        return job, "already_finished"
    if job.parent_id is not None:
        raise Conflict("is_child", f"it is a part of job {job.parent_id}: cancel that")
    if state is State.HELD and job.held_from == State.UNCERTAIN:
        raise Conflict("held_uncertain", "a person has to say first what became of its create call: POST …/resolve")
    if state is State.HELD and job.held_from == State.GATHERING:
        seen_to = Move(State.GATHERING, "canceled by the user: its parts are seen to their end", columns=_ASKED)
        return _decided(connection, job, "moved_on", seen_to, now), "requested"
    if state in _MINE and (mine := claims.seize(connection, job, Job.claimed.is_distinct_from(claims.TAKEN))):
        stopped = Move(State.CANCELED, "canceled by the user", columns=_ASKED)
        return moves.record(connection, mine, stopped, now), "canceled"
    if state in (State.COPYING, State.AWAITING_REVIEW) or (state is State.RUNNING and job.task_status == "RUNNING"):
        return job, "too_late"
    return _ask_to_cancel(connection, job, now), "requested"


def retry(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, now: datetime) -> Job:
    """Makes a job again that failed, expired or was canceled; of a parent, only the children that did not succeed.

    It is reserved and paid for again. Raises Conflict where there is nothing to make again, and while it is not known
    what became of a call for it; InvalidInput where a file that it names is gone.
    """
    job = reading.one(connection, project_id, job_id)
    if job.parent_id is not None:
        raise Conflict("is_child", f"it is a part of job {job.parent_id}: retry that, which repeats only what failed")
    if job.state not in _AGAIN:
        instead = "; POST …/reject with a reroll makes another take" if job.state == State.REJECTED else ""
        why = f"it is {job.state}: only what failed, expired or was canceled is made again{instead}"
        raise Conflict("not_retryable", why)
    if connection.execute(_OPEN, {"job": job.id}).scalar_one():
        raise Conflict("attempt_open", "it is not known yet what became of its last create call, so it may be paid for")
    if job.mode != Mode.PARENT:  # a document that is gone is for its kind to report
        inputs.check(connection, project_id, job.model, job.input)
    to = State.GATHERING if job.round else State.QUEUED
    made = _decided(connection, job, "not_retryable", Move(to, "made again, as a person asked"), now)
    if job.mode == Mode.PARENT:
        children.make_again(connection, made, now)
    money.reserve(connection, made, now)
    return made


def _decided(connection: Connection, job: Job, code: str, move: Move, now: datetime) -> Job:
    """Moves a job as a person asks, whoever works on it; raises Conflict where it has moved since it was read."""
    mine = claims.seize(connection, job)
    if mine is None:
        raise Conflict(code, "somebody else has just changed it: look again")
    return moves.record(connection, mine, move, now)


def _kind_and_model(catalog: Catalog, submission: Submission) -> tuple[Kind, Model]:
    """Both, or the faults of both."""
    kind, faults = OFFERED.get(submission.kind), []
    if kind is None:
        faults.append(Fault("/kind", "unknown_kind", f"kinds are: {', '.join(sorted(OFFERED))}"))
    try:
        model = catalog.offered(submission.model or _default(catalog, submission.kind))
    except InvalidInput as error:
        raise InvalidInput(faults + error.faults) from None
    if kind is None:
        raise InvalidInput(faults)
    return kind, model


def _default(catalog: Catalog, kind: str) -> str:
    """The model of a kind where the user names none; raises InvalidInput where there is none."""
    model = catalog.default(kind)
    if model is None:
        raise InvalidInput([Fault("/model", "required", "is required: GET /v1/models lists them")])
    return model


def _rest(said: Submission) -> list[Any]:
    return [said.metadata, said.custom_id, said.priority, said.webhook_url, said.webhook_events]


def _ask_to_cancel(connection: Connection, job: Job, now: datetime) -> Job:
    """Leaves word for whoever works on the job, and makes it due at once where nobody does."""
    waits = or_(Job.run_at > now, and_(Job.state == State.GATHERING, Job.run_at.is_(None)))
    due = case((and_(Job.claimed.is_(None), waits), now), else_=Job.run_at)
    asked = update(Job).where(Job.id == job.id).values(cancel_requested=True, run_at=due)
    return Job.of(connection.execute(asked.returning(*Job.__table__.c)).mappings().one())
