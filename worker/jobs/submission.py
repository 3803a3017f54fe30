"""Jobs: how one is checked, made and canceled.

How one is moved on is `moves`; how one is read, `reading`; how it looks to others, `document`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, select

from worker import document, inputs, kinds, money, moves, text
from worker.catalog import Catalog, Model
from worker.errors import Conflict, Fault, InvalidInput, NotFound
from worker.jobs import reading
from worker.kinds import OFFERED, Kind, ParentKind
from worker.moves import bulk
from worker.settings import Settings
from worker.states import Mode
from worker.tables import IdempotencyKey, Job, Project

_LONGEST_WAIT = timedelta(days=366)  # until a job's `not_after`


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
    cache_days: int | None = None  # None: as the project says


@dataclass(frozen=True)
class Prepared:
    """A submission that is valid: the catalog's id of the model, the complete input, the price if it is known."""

    submission: Submission
    model: str
    mode: Mode
    input: dict[str, Any]
    estimate: int | None
    warnings: list[Fault] = field(default_factory=list)  # of what is taken all the same
    advice: list[Fault] = field(default_factory=list)  # for who asks for the price, before it is paid
    schedule_id: uuid.UUID | None = None  # which submits it

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
    """Checks a submission against the catalog and prices it; raises InvalidInput with every fault.

    `on` is when: prices are of that day, and `not_after` must be after it. `settings` are the project's (`bound_to`).
    """
    late = _of_not_after(submission.not_after, on) + _of_cache(submission)
    try:
        prepared = _prepared(catalog, settings, submission, on)
    except InvalidInput as error:
        raise InvalidInput(late + error.faults) from None
    if late:
        raise InvalidInput(late)
    return prepared


def _prepared(catalog: Catalog, settings: Settings, submission: Submission, on: datetime) -> Prepared:
    kind, model = _kind_and_model(catalog, submission)
    regions = money.regions(settings, model)
    checked = kind.check(catalog, model, submission.input, None)  # any of the regions: admission finds one with room
    if variant := catalog.variant(model.id, kind.variant(checked)):
        other = money.regions(settings, variant)
        if not isinstance(kind, ParentKind):  # whose children go the other way
            model, regions = variant, other
    for further in kind.models:
        money.regions(settings, catalog.model(getattr(checked, further)))
    usage = kind.estimate(model, checked)
    estimate = money.dearest(model, usage, regions, on.date())
    cheaper = money.advice(catalog, settings, kind.name, model, checked, estimate, on.date())
    return Prepared(
        submission=submission,
        model=model.id,
        mode=Mode.PARENT if isinstance(kind, ParentKind) else model.mode,
        input=checked.model_dump(mode="json", exclude_none=True),
        estimate=estimate,
        warnings=kinds.warnings(catalog, kind.name, model.id, submission.input),
        advice=[cheaper] if cheaper else [],
    )


def submit(
    connection: Connection, project: Project, prepared: Prepared, sent: Sent | None, now: datetime | None
) -> tuple[Job, bool]:
    """Makes the job and its reservation, or finds the first one under the same Idempotency-Key: (job, replayed).

    `now` is when it is made; None: Postgres's time. Raises Conflict when the key was used with another body,
    InvalidInput when a file that is named is not there, BudgetExhausted: roll back.
    """
    row = {"project_id": project.id, **asked(prepared)}
    if prepared.schedule_id is not None:
        row["schedule_id"] = prepared.schedule_id
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
        "cache_days": said.cache_days if OFFERED[said.kind].cached else 0,
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
    """Asks a job to stop: the job, and what became of it, as `moves.bulk.cancel` says.

    Raises Conflict for a child, and for a job that is held because nobody knows whether the provider has a task for it.
    """
    fate = _fate(bulk.cancel(connection, project_id, [job_id], now), job_id)
    return reading.one(connection, project_id, job_id), fate.outcome


def retry(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, now: datetime) -> Job:
    """Makes a job again that failed, expired or was canceled; of a parent, only the children that did not succeed.

    It is reserved and paid for again. Raises Conflict where there is nothing to make again, and while it is not known
    what became of a call for it; InvalidInput where a file that it names is gone, or its price is not known in a
    project with a budget; BudgetExhausted.
    """
    _fate(bulk.retry(connection, project_id, [job_id], now), job_id)
    return reading.one(connection, project_id, job_id)


def _fate(fates: bulk.Fates, job_id: uuid.UUID) -> bulk.Fate:
    """What became of the job; raises NotFound, InvalidInput, BudgetExhausted and Conflict."""
    fate = fates.get(job_id)
    if fate is None:
        raise NotFound(f"no job {job_id}")
    if fate.faults:
        raise InvalidInput([*fate.faults])
    if fate.spent:
        raise fate.spent
    if fate.why:
        raise Conflict(fate.outcome, fate.why)
    return fate


def _of_not_after(not_after: datetime | None, on: datetime) -> list[Fault]:
    if not_after is None or on < not_after <= on + _LONGEST_WAIT:
        return []
    if not_after > on:
        return [Fault("/not_after", "too_late", f"must be within {_LONGEST_WAIT.days} days")]
    return [Fault("/not_after", "in_the_past", "is in the past: nothing could be sent by then")]


def _of_cache(said: Submission) -> list[Fault]:
    kind = OFFERED.get(said.kind)
    if not said.cache_days or kind is None or kind.cached:
        return []
    names = ", ".join(name for name, offered in sorted(OFFERED.items()) if offered.cached)
    return [Fault("/cache_days", "not_cached", f"only answers in words are kept: of {names}")]


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
