"""A job as others see it: the API, a webhook's receiver, and Flower.

Each answer is one pydantic model, built from rows that are handed in or read here by the project's own jobs. OpenAPI
shows the same models. The provider's links are never shown; nor is the prompt, to Flower.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from sqlalchemy import ARRAY, Connection, Uuid, any_, bindparam, func, select

from worker import money
from worker.kinds import KINDS
from worker.states import TERMINAL, HeldFor, Mode, State
from worker.tables import Attempt, Job, Output
from worker.text import moment

PRIORITIES = {"high": 1, "normal": 0, "low": -1}
STATES: dict[str, Any] = {"enum": [*State]}  # as of today: a state may be added

PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}

Priority = Literal["high", "normal", "low"]
Billed = Literal["yes", "no", "unknown"]
# RFC 3339 in UTC, to the millisecond.
Moment = Annotated[
    datetime, PlainSerializer(moment, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"})
]
Amount = Annotated[str, Field(pattern=r"^-?\d+\.\d{2,6}$", examples=["3.00"])]  # of money, as `money.shown` writes it


class Answer(BaseModel):
    """What others are told: always with all of its fields, and no others."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        from_attributes=True,
        json_schema_serialization_defaults_required=True,
        serialize_by_alias=True,
        validate_by_name=True,
    )

    def as_json(self) -> dict[str, Any]:
        """The answer as values that JSON has."""
        return self.model_dump(mode="json")


class Cost(Answer):
    """Amounts are decimal strings; null where no price is known, or nothing was billed yet."""

    currency: Literal["CNY"] = "CNY"
    estimated: Amount | None
    actual: Amount | None
    billed: Billed


@dataclass(frozen=True)
class Waiting:
    """What an unfinished job waits for: a code, a sentence, and when that may change (null: unknown)."""

    __pydantic_config__ = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)

    code: Annotated[str, Field(examples=["slot"])]
    detail: str
    until: Moment | None = None
    position: Annotated[int | None, Field(description="in its project's line for the model, from 1")] = None


class Provider(Answer):
    """What the provider knows the job by."""

    account: str | None
    region: str | None
    task_id: str | None
    request_id: str | None
    status: str | None
    links_expire_at: Moment | None


class OutputDocument(Answer):
    """An object in the bucket, checked; `url` redirects to a link to it."""

    n: int
    role: str
    content_type: str
    bytes: int
    sha256: str
    duration: float | None = Field(description="seconds")
    key: str
    url: str
    poster: str | None = Field(
        description="redirects to a small JPEG of a clip or picture; null: it has none, or not yet"
    )
    pruned_at: Moment | None = Field(
        description="since when the object is gone, as the project wants; its URL says 410"
    )


class Children(Answer):
    """How many parts a job has so far, and how many of them have ended in which way."""

    total: int
    unfinished: int
    succeeded: int
    failed: int
    canceled: int
    expired: int


class Review(Answer):
    """What a person said of the outputs; `decision` is null until then."""

    decision: Literal["approved", "rejected"] | None
    comment: str | None
    at: Moment | None


class JobDocument(Answer):
    """One thing that was asked for. Treat a state that you do not know as unfinished unless `is_terminal`."""

    id: uuid.UUID
    object: Literal["job"] = "job"
    kind: str
    model: str
    project: str
    state: str = Field(json_schema_extra=STATES)
    is_terminal: bool
    held_for: HeldFor | None
    cancel_requested: bool
    waiting_on: Waiting | None
    priority: Priority
    input: dict[str, Any] = Field(description="complete: defaults filled in; in lists long parts are cut, and end in …")
    metadata: dict[str, str]
    custom_id: str | None
    batch_id: uuid.UUID | None
    batch_row: int | None = Field(description="which row of its batch, from 1; takes of one row have the same")
    take: int = Field(description="1, or which re-roll of the first take it is")
    first_take: uuid.UUID | None = Field(description="of a re-roll: the job that was the first take")
    review: Review | None = Field(description="null: nobody is to look at it first")
    parent_id: uuid.UUID | None
    round: int | None = Field(description="a child's own, from 1; a parent's last one")
    place: int | None = Field(description="a child's, in its round, from 0")
    children: Children | None = Field(description="of a job that is made in parts: how they stand")
    created_at: Moment
    submitted_at: Moment | None
    started_at: Moment | None
    finished_at: Moment | None
    deadline_at: Moment | None
    not_after: Moment | None = Field(description="what has not been sent by then ends unpaid")
    cost: Cost
    usage: dict[str, Any] | None = Field(description="what was billed, in the model's units; of a cached answer {}")
    cached_from: uuid.UUID | None = Field(description="the job whose answer the result cache gave; null: none")
    provider: Provider
    outputs: list[OutputDocument]
    result: dict[str, Any] | None = Field(description="of a text: what was answered; cut in lists as the input is")
    error: dict[str, Any] | None = Field(description="code, class, message, retryable, billed, hint, provider")
    urls: dict[str, str]


def shown(
    project: str,
    job: Job,
    stored: Sequence[Output],
    request_id: str | None,
    cause: Waiting | None,
    made_of: Counter[str] | None = None,
) -> JobDocument:
    """One job as the API and the webhooks show it; `made_of` is what `parts` says of a parent."""
    path = f"/v1/jobs/{job.id}"
    return JobDocument(
        id=job.id,
        kind=job.kind,
        model=job.model,
        project=project,
        state=job.state,
        is_terminal=State(job.state) in TERMINAL,
        held_for=HeldFor(job.held_for) if job.held_for else None,
        cancel_requested=job.cancel_requested,
        waiting_on=cause,
        priority=PRIORITY_NAMES[job.priority],
        input=job.input,
        metadata=job.labels,
        custom_id=job.custom_id,
        batch_id=job.batch_id,
        batch_row=job.batch_row,
        take=job.take,
        first_take=job.first_take,
        review=_review(job),
        parent_id=job.parent_id,
        round=job.round if job.parent_id or job.mode == Mode.PARENT else None,
        place=job.place,
        children=_children(made_of) if made_of is not None else None,
        created_at=job.created_at,
        submitted_at=job.submitted_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        deadline_at=job.deadline_at,
        not_after=job.not_after,
        cost=Cost(estimated=money.shown(job.estimate), actual=money.shown(job.cost), billed=job.billed),
        usage=job.usage,
        cached_from=job.cached_from,
        provider=_provider(job, request_id),
        outputs=[_output(path, output) for output in stored],
        result=job.result,
        error=job.error,
        urls=_urls(job, path),
    )


def outputs(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, list[Output]]:
    """The stored outputs of each job, in order."""
    found: dict[uuid.UUID, list[Output]] = {job.id: [] for job in jobs}
    for row in connection.execute(_OUTPUTS, {"jobs": list(found)}).mappings().all():
        found[row["job_id"]].append(Output.of(row))
    return found


def request_ids(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, str | None]:
    """The provider's request id of each job's last attempt: what its support asks for."""
    of_attempt = {job.attempt_id: job.id for job in jobs if job.attempt_id}
    if not of_attempt:
        return {}
    rows = connection.execute(_REQUEST_IDS, {"attempts": list(of_attempt)}).all()
    return {of_attempt[row.id]: row.request_id for row in rows}


def parts(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, Counter[str]]:
    """How many children each parent has in each state; asks nothing where no job is a parent."""
    found: dict[uuid.UUID, Counter[str]] = {job.id: Counter() for job in jobs if job.mode == Mode.PARENT}
    if found:
        for row in connection.execute(_PARTS, {"parents": list(found)}):
            found[row.parent_id][row.state] = row.jobs
    return found


def flower_event(job: Job, project: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """The Celery event, made by hand, of the state that a job has entered; None where Flower has no use for it.

    Only top-level jobs have a row in Flower. Flower merges only the fields that it knows, an unknown `task-foo` becomes
    the state FOO, and nothing shows after a terminal event. `name` becomes a metric's label, so it holds nothing of the
    user's. The prompt is never in an event.
    """
    event_type = _FLOWER_TYPES.get(State(job.state))
    if event_type is None or job.parent_id is not None:
        return None
    said = {
        "type": event_type,
        "uuid": str(job.id),
        "name": f"{job.kind} · {job.model}",
        "args": _words(job),
        "kwargs": repr({"project": project, "custom_id": job.custom_id or "", "id": str(job.id)}),
        "retries": job.retries,
        "timestamp": job.state_at.timestamp(),
        "local_received": time.time(),
    }
    return said | _end(job, keys)


# Built once: with the columns of a job, building a statement costs as much as running it.

_OUTPUTS = (
    select(*Output.__table__.c)
    .where(Output.job_id == any_(bindparam("jobs", type_=ARRAY(Uuid))))
    .order_by(Output.job_id, Output.n)
)

_REQUEST_IDS = select(Attempt.id, Attempt.request_id).where(
    Attempt.id == any_(bindparam("attempts", type_=ARRAY(Uuid)))
)

_PARTS = (
    select(Job.parent_id, Job.state, func.count().label("jobs"))
    .where(Job.parent_id.in_(bindparam("parents", expanding=True)))
    .group_by(Job.parent_id, Job.state)
    .order_by(Job.parent_id, Job.state)
)

_FLOWER_TYPES = {
    State.QUEUED: "task-received",
    State.SUBMITTING: "task-submitted",
    State.RUNNING: "task-running",
    State.GATHERING: "task-gathering",
    State.COPYING: "task-copying",
    State.HELD: "task-held",
    State.AWAITING_REVIEW: "task-awaiting_review",
    # Celery's own task-rejected is of a message that a worker would not take, and hides no state of ours (ADR 0038)
    State.REJECTED: "task-rejected_in_review",
    State.SUCCEEDED: "task-succeeded",
    State.FAILED: "task-failed",
    State.EXPIRED: "task-failed",
    State.CANCELED: "task-revoked",
}
_ENDS = (State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED)
_LINKS = ("events", "attempts", "children", "cancel", "retry", "takes", "approve", "reject")


def _provider(job: Job, request_id: str | None) -> Provider:
    return Provider(
        account=job.account,
        region=job.region,
        task_id=job.task_id,
        request_id=request_id,
        status=job.task_status,
        links_expire_at=job.links_expire_at,
    )


def _review(job: Job) -> Review | None:
    if job.review is None:
        return None
    decision = None if job.review == "required" else job.review
    return Review(decision=decision, comment=job.review_note, at=job.reviewed_at)


def _urls(job: Job, path: str) -> dict[str, str]:
    left_out = set() if job.mode == Mode.PARENT else {"children"}
    left_out |= set() if job.state == State.AWAITING_REVIEW else {"approve", "reject"}
    left_out |= set() if job.review else {"takes"}
    return {"self": path} | {name: f"{path}/{name}" for name in _LINKS if name not in left_out}


def _children(made_of: Counter[str]) -> Children:
    ended = {str(state): made_of[state] for state in _ENDS}
    return Children(total=made_of.total(), unfinished=made_of.total() - sum(ended.values()), **ended)


def _output(path: str, output: Output) -> OutputDocument:
    return OutputDocument(
        n=output.n,
        role=output.role,
        content_type=output.content_type,
        bytes=output.bytes,
        sha256=output.sha256,
        duration=float(output.duration) if output.duration is not None else None,
        key=output.key,
        url=f"{path}/outputs/{output.n}",
        poster=f"{path}/outputs/{output.n}/poster" if output.poster == "made" and not output.pruned_at else None,
        pruned_at=output.pruned_at,
    )


def _words(job: Job) -> str:
    kind = KINDS[job.kind]
    return kind.words(kind.input.model_validate(job.input))


def _end(job: Job, keys: Sequence[str]) -> dict[str, Any]:
    took = (job.finished_at - job.created_at).total_seconds() if job.finished_at else None
    if job.state == State.SUCCEEDED:
        return {"result": ", ".join(keys), "runtime": took}
    if job.state == State.AWAITING_REVIEW:
        return {"result": ", ".join(keys)} if keys else {}  # without them told again, when Flower may have them
    if job.state == State.REJECTED:
        return {"exception": f"rejected: {job.review_note}", "runtime": took}
    if job.state in (State.FAILED, State.EXPIRED):
        error = job.error or {}
        reason = f"{error.get('code')}: {error.get('message')}"
        return {"exception": reason, "traceback": error.get("hint") or "", "runtime": took}
    if job.state == State.CANCELED:
        return {"terminated": False, "signum": None, "expired": False}
    return {}
