"""Jobs: how one is made, moved and canceled. Every change of a job's row is one of the statements here.

`record` is the only way to move a job that somebody works on: it names the state and the claim that it leaves, and
writes everything that belongs to the move (its event, the attempt's answer, outputs, ledger lines, deliveries) in
the same transaction.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Connection, DateTime, Text, Uuid, cast, column, insert, select, update, values
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import claims, lanes, money, reading, webhooks
from worker.catalog import Catalog, Model
from worker.claims import Now
from worker.errors import ClaimLost, Conflict, Fault, InvalidInput
from worker.kinds import KINDS, Kind
from worker.models import Attempt, Event, IdempotencyKey, Job, Output, Project
from worker.settings import Settings
from worker.states import TERMINAL, HeldFor, Move, State, may

_MINE = (State.QUEUED, State.HELD, State.ADMITTED)  # states in which the provider knows nothing of the job
_PUBLIC = {State.SUBMITTING: "job.submitted"}  # the event's type where it is not the state's own name


@dataclass(frozen=True)
class Submission:
    """What a user asks for, as it came: `input` is checked by `prepare`."""

    kind: str
    model: str
    input: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    custom_id: str | None = None
    priority: str = "normal"
    webhook_url: str | None = None
    webhook_events: list[str] | None = None


@dataclass(frozen=True)
class Prepared:
    """A submission that is valid: the catalog's id of the model, the complete input, the price if it is known."""

    submission: Submission
    model: str
    sync: bool
    input: dict[str, Any]
    estimate: int | None

    @property
    def digest(self) -> bytes:
        """What tells one submission from another under the same Idempotency-Key."""
        return digest([self.submission.kind, self.model, self.input, _rest(self.submission)])


def prepare(catalog: Catalog, settings: Settings, submission: Submission, on: datetime) -> Prepared:
    """Checks a submission against the catalog and prices it; raises InvalidInput with every fault."""
    kind, model = _kind_and_model(catalog, submission)
    region = _region(settings, model)
    checked = kind.check(model, submission.input, region)
    usage = kind.estimate(model, checked)
    return Prepared(
        submission=submission,
        model=model.id,
        sync=model.sync,
        input=checked.model_dump(mode="json", exclude_none=True),
        estimate=model.price(usage, region, on.date()),
    )


def submit(
    connection: Connection, project: Project, prepared: Prepared, key: str | None, now: datetime
) -> tuple[Job, bool]:
    """Makes the job and its reservation, or finds the first one under the same Idempotency-Key: (job, replayed).

    Raises Conflict when the key was used with another body.
    """
    if key is not None and (first := replayed(connection, project, prepared, key)):
        return first, True
    said = prepared.submission
    row = (
        insert(Job)
        .values(
            project_id=project.id,
            kind=said.kind,
            model=prepared.model,
            sync=prepared.sync,
            input=prepared.input,
            labels=said.metadata,
            custom_id=said.custom_id,
            priority=reading.PRIORITIES[said.priority],
            webhook_url=said.webhook_url,
            webhook_events=said.webhook_events,
            estimate=prepared.estimate,
            sequence=1,
            created_at=now,
            state_at=now,
            run_at=now,
        )
        .returning(*Job.__table__.c)
    )
    job = Job.of(connection.execute(row).mappings().one())
    if key is not None and not _remember(connection, job, prepared, key):
        raise IdempotencyRace
    _tell(connection, job, None, "", now)
    money.reserve(connection, job, now)
    return job, False


def replayed(connection: Connection, project: Project, prepared: Prepared, key: str) -> Job | None:
    """The job that the first submission under this Idempotency-Key made; None when this is the first.

    Raises Conflict when the key came with another body.
    """
    statement = select(IdempotencyKey.request_hash, IdempotencyKey.job_id).where(
        IdempotencyKey.project_id == project.id, IdempotencyKey.key == key
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    if row.request_hash != prepared.digest:
        raise Conflict("idempotency_key_reused", "this Idempotency-Key came with another body before")
    return reading.one(connection, project.id, row.job_id)


class IdempotencyRace(Exception):  # not an error: the caller rolls back and asks again
    """Another submission with the same key committed first: roll back and submit again, to find it."""


def record(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    """Puts a move on record; the job as it is then.

    For a move to `submitting` look at what came back: it is `admitted` still when the lane's rate makes it wait,
    and `canceled` when somebody asked for that. Raises ClaimLost when the row is no longer ours; what `move.attempt`
    says is written all the same, so commit.
    """
    left = State(job.state)
    assert may(left, move.to), f"{left} may not become {move.to}"
    if move.to is State.SUBMITTING:
        return _begin(connection, job, move, now)
    if move.attempt is not None:
        _answer(connection, job, move.attempt, now)
    moved = _update(connection, job, move, now)
    if move.outputs:
        rows = [{**output, "job_id": job.id, "project_id": job.project_id} for output in move.outputs]
        connection.execute(upsert(Output).values(rows).on_conflict_do_nothing())
    if move.to is not left or move.why:
        _tell(connection, moved, left, move.why, now)
    _account(connection, moved, move, now)
    _slow(connection, job, move)
    return moved


def record_waits(connection: Connection, waits: Sequence[tuple[Job, Move]], now: datetime) -> None:
    """Puts many waits of `running` jobs on record at once; rows that are no longer ours are left alone."""
    if not waits:
        return
    looks = values(
        column("id", Uuid),
        column("number", BigInteger),
        column("run_at", DateTime(timezone=True)),
        column("task_status", Text),
        column("unknown_since", DateTime(timezone=True)),
        name="looks",
    ).data(
        [
            (
                job.id,
                job.claim,
                move.run_at or now,
                move.columns.get("task_status", job.task_status),
                move.columns.get("unknown_since"),
            )
            for job, move in waits
        ]
    )
    waited = (
        update(Job)
        .where(Job.id == looks.c.id, Job.claim == looks.c.number, Job.state == State.RUNNING)
        .values(
            run_at=looks.c.run_at,
            claimed=None,
            crashes=0,
            polls=Job.polls + 1,
            task_status=looks.c.task_status,
            unknown_since=cast(looks.c.unknown_since, DateTime(timezone=True)),  # NULLs have no type of their own
        )
    )
    connection.execute(waited)


def answer_on_record(connection: Connection, job: Job) -> Attempt | None:
    """The job's open attempt as it is on record now; None when it never had one."""
    statement = select(*Attempt.__table__.c).where(Attempt.id == job.attempt_id)
    row = connection.execute(statement).mappings().one_or_none()
    return Attempt.of(row) if row else None


def cancel(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, now: datetime) -> tuple[Job, str]:
    """Asks a job to stop: the job, and what became of it.

    `canceled`: it is. `requested`: the provider is being asked. `too_late`: it runs on and is billed, and ends as if
    nothing had been asked. `already_finished`.
    """
    job = reading.one(connection, project_id, job_id)
    state = State(job.state)
    if state in TERMINAL:
        return job, "already_finished"
    if state in _MINE and job.held_from != State.UNCERTAIN:
        stopped = _cancel_at_once(connection, job, now)
        if stopped is not None:
            return stopped, "canceled"
    if state is State.COPYING or (state is State.RUNNING and job.task_status == "RUNNING"):
        return job, "too_late"
    return _ask_to_cancel(connection, job, now), "requested"


def digest(value: Any) -> bytes:
    """SHA-256 of the value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).digest()


def _kind_and_model(catalog: Catalog, submission: Submission) -> tuple[Kind, Model]:
    """Both, or the faults of both."""
    kind, faults = KINDS.get(submission.kind), []
    if kind is None:
        faults.append(Fault("/kind", "unknown_kind", f"kinds are: {', '.join(sorted(KINDS))}"))
    try:
        model = catalog.model(submission.model)
    except InvalidInput as error:
        raise InvalidInput(faults + error.faults) from None
    if kind is None:
        raise InvalidInput(faults)
    return kind, model


def _region(settings: Settings, model: Model) -> str:
    """The region of the first account that offers the model; raises InvalidInput with a hint when none does."""
    for account in settings.all_accounts:
        if model.region(account.region):
            return account.region
    have = ", ".join(sorted({account.region for account in settings.all_accounts}))
    offered = ", ".join(model.regions)
    message = f"{model.id} is offered in {offered}; the configured accounts are in {have}"
    raise InvalidInput([Fault("/model", "model_not_in_region", message)])


def _rest(said: Submission) -> list[Any]:
    return [said.metadata, said.custom_id, said.priority, said.webhook_url, said.webhook_events]


def _remember(connection: Connection, job: Job, prepared: Prepared, key: str) -> bool:
    row = (
        upsert(IdempotencyKey)
        .values(
            project_id=job.project_id,
            key=key,
            request_hash=prepared.digest,
            job_id=job.id,
            created_at=job.created_at,
        )
        .on_conflict_do_nothing()
    )
    return connection.execute(row).rowcount == 1


def _begin(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    """Admitted to submitting: an attempt on record, an instant of the lane's rate booked; or a wait, or canceled."""
    assert move.attempt is not None, "a create call is an attempt"
    at, next_at = lanes.reserve(connection, job.lane_id or 0, now)
    if at is None:
        return _update(connection, job, Move(State.ADMITTED, run_at=next_at), now)
    guard = (claims.held(Job, job.id, job.claim), Job.state == State.ADMITTED, ~Job.cancel_requested)
    begun = (
        update(Job)
        .where(*guard)
        .values(
            state=State.SUBMITTING,
            state_at=now,
            crashes=0,
            submitted_at=at,
            attempt_id=move.attempt["id"],
            attempts=move.attempt["number"],
            sequence=Job.sequence + 1,
            **move.columns,
        )
        .returning(*Job.__table__.c)
    )
    row = connection.execute(begun).mappings().one_or_none()
    if row is None:
        return _not_begun(connection, job, move, now)
    moved = Job.of(row)
    attempt = {**move.attempt, "job_id": job.id, "project_id": job.project_id, "sent_at": at}
    connection.execute(insert(Attempt).values(attempt))
    _tell(connection, moved, State.ADMITTED, move.why, now)
    return moved


def _not_begun(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    assert move.attempt is not None
    found = _reread(connection, job)
    if found.state == State.SUBMITTING and found.attempt_id == move.attempt["id"]:
        return found  # our own commit, whose answer was lost
    if found.claim != job.claim or found.state != State.ADMITTED:
        raise ClaimLost(f"job {job.id} is {found.state} under claim {found.claim}")
    return record(connection, job, Move(State.CANCELED, "canceled before anything was sent"), now)


def _answer(connection: Connection, job: Job, said: dict[str, Any], now: datetime) -> None:
    """By the attempt's id and whatever has become of the claim: an answer is never dropped."""
    answered = update(Attempt).where(Attempt.id == job.attempt_id).values(**{"answered_at": now, **said})
    connection.execute(answered)


def _update(connection: Connection, job: Job, move: Move, now: datetime) -> Job:
    statement = (
        update(Job)
        .where(claims.held(Job, job.id, job.claim), Job.state == job.state)
        .values(**_columns(job, move, now))
        .returning(*Job.__table__.c)
    )
    row = connection.execute(statement).mappings().one_or_none()
    if row is not None:
        return Job.of(row)
    found = _reread(connection, job)
    if found.claim == job.claim and found.state == move.to and found.sequence == job.sequence + 1:
        raise AlreadyRecorded(found)
    raise ClaimLost(f"job {job.id} is {found.state} under claim {found.claim}")


class AlreadyRecorded(Exception):  # not an error: the commit held and its answer was lost
    """The move is on record already; `job` is the row."""

    def __init__(self, job: Job) -> None:
        super().__init__(str(job.id))
        self.job = job


def _reread(connection: Connection, job: Job) -> Job:
    row = connection.execute(select(*Job.__table__.c).where(Job.id == job.id)).mappings().one()
    return Job.of(row)


def _columns(job: Job, move: Move, now: datetime) -> dict[str, Any]:
    changed = move.to != job.state
    rests = move.to in TERMINAL or move.to is State.HELD
    columns: dict[str, Any] = {
        "run_at": None if rests else move.run_at or now,
        "claimed": None,
        "crashes": 0,
        **move.columns,
    }
    if changed:
        columns |= {"state": move.to, "state_at": now}
    if changed or move.why:
        columns["sequence"] = Job.sequence + 1
    if move.to in TERMINAL:
        columns |= {"finished_at": now, "sources": None}
    if job.state == State.HELD:
        columns |= {"held_for": None, "held_from": None}
    if move.to is State.HELD:
        columns |= {"held_from": job.state, "held_for": move.columns.get("held_for", HeldFor.UNCERTAIN)}
    if move.to is State.QUEUED:
        columns |= {"lane_id": None, "account": None, "region": None}
    return columns


def _account(connection: Connection, job: Job, move: Move, now: datetime) -> None:
    """Settles what a task cost as soon as that is known; releases what an ended job did not spend."""
    if job.parent_id is not None:
        return
    if move.columns.get("billed") == "yes":
        money.settle(connection, job, job.cost, now)
    elif move.to in TERMINAL and job.billed == "no":
        money.release(connection, job, now)


def _slow(connection: Connection, job: Job, move: Move) -> None:
    """Holds back the lane, or all of the account's creates, where the provider's answer says so."""
    if move.park and job.lane_id:
        lanes.park(connection, job.lane_id, *move.park)
    if move.stop and job.attempt_id:
        owner = connection.execute(select(Attempt.owner).where(Attempt.id == job.attempt_id)).scalar_one()
        lanes.stop(connection, owner, *move.stop)


def _tell(connection: Connection, job: Job, left: State | None, why: str, now: Now) -> None:
    """Writes the event, and its delivery where the job's receiver wants it."""
    event_type = _PUBLIC.get(State(job.state), f"job.{job.state}") if left != job.state else "job.noted"
    row = (
        insert(Event)
        .values(
            job_id=job.id,
            project_id=job.project_id,
            sequence=job.sequence,
            type=event_type,
            left=left,
            entered=job.state,
            why=why,
            claim=job.claim,
            at=now,
        )
        .returning(Event.id)
    )
    event_id = connection.execute(row).scalar_one()
    if job.webhook_url and webhooks.wanted(event_type, job.webhook_events):
        body = _webhook_body(connection, job, event_type, now)
        webhooks.enqueue(connection, job.project_id, job.id, event_id, job.webhook_url, body)


def _webhook_body(connection: Connection, job: Job, event_type: str, now: Now) -> str:
    assert isinstance(now, datetime)
    name = connection.execute(select(Project.name).where(Project.id == job.project_id)).scalar_one()
    document = reading.shown(
        name,
        job,
        reading.outputs(connection, [job])[job.id],
        reading.request_ids(connection, [job]).get(job.id),
        None,
    )
    del document["input"]
    said = {"type": event_type, "timestamp": reading.moment(now), "sequence": job.sequence, "data": document}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def _cancel_at_once(connection: Connection, job: Job, now: datetime) -> Job | None:
    """Ends a job that nobody is working on; None when a worker has it in hand, or it moved."""
    stopped = (
        update(Job)
        .where(
            Job.id == job.id,
            Job.state == job.state,
            Job.claim == job.claim,
            Job.claimed.is_distinct_from(claims.TAKEN),
        )
        .values(
            state=State.CANCELED,
            state_at=now,
            finished_at=now,
            run_at=None,
            claimed=None,
            held_for=None,
            claim=Job.claim + 1,
            sequence=Job.sequence + 1,
            cancel_requested=True,
        )
        .returning(*Job.__table__.c)
    )
    row = connection.execute(stopped).mappings().one_or_none()
    if row is None:
        return None
    canceled = Job.of(row)
    _tell(connection, canceled, State(job.state), "canceled by the user", now)
    money.release(connection, canceled, now)
    return canceled


def _ask_to_cancel(connection: Connection, job: Job, now: datetime) -> Job:
    """Leaves word for whoever works on the job, and makes it due at once where nobody does."""
    connection.execute(update(Job).where(Job.id == job.id).values(cancel_requested=True))
    hurried = update(Job).where(Job.id == job.id, Job.claimed.is_(None), Job.run_at > now).values(run_at=now)
    connection.execute(hurried)
    return _reread(connection, job)


def retry_later(tries: int) -> timedelta:
    """How long to wait after the n-th failure of something that may be tried again: 2 s, 4 s, … up to 2 min."""
    return timedelta(seconds=min(120, 2 ** min(tries + 1, 7)))
