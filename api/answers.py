"""What the API answers, as models that describe it. The engine builds the answers; tests hold the two together."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from worker.states import HeldFor, State

_STATES: dict[str, Any] = {"enum": [*State]}


class Answer(BaseModel):
    """All that is said is said here."""

    model_config = ConfigDict(extra="forbid")


class Fault(Answer):
    """One wrong field."""

    pointer: str = Field(description="a JSON pointer into the body, or /query/… or /header/…", examples=["/input/size"])
    code: str = Field(description="stable, for programs", examples=["not_allowed"])
    message: str = Field(description="for people")


class Problem(Answer):
    """Why a request was refused, or failed (RFC 9457)."""

    type: str = Field(examples=["urn:noria:problem:invalid_input"])
    title: str
    status: int
    code: str = Field(description="stable, for programs", examples=["invalid_input"])
    request_id: str = Field(description="finds the request in the log; also in X-Request-Id")
    detail: str | None = Field(None, description="for people")
    errors: list[Fault] | None = Field(None, description="every wrong field, where input is wrong")


class Cost(Answer):
    """Amounts are decimal strings; null where no price is known, or nothing was billed yet."""

    currency: Literal["CNY"]
    estimated: Decimal | None = Field(examples=["3.00"])
    actual: Decimal | None
    billed: Literal["yes", "no", "unknown"]


class Waiting(Answer):
    """What an unfinished job waits for."""

    code: str = Field(examples=["slot"])
    detail: str
    until: datetime | None
    position: int | None = Field(description="in its project's line for the model, from 1")


class Provider(Answer):
    """What the provider knows the job by."""

    account: str | None
    region: str | None
    task_id: str | None
    request_id: str | None
    status: str | None
    links_expire_at: datetime | None


class Output(Answer):
    """An object in the bucket, checked; `url` redirects to a link to it."""

    n: int
    role: str
    content_type: str
    bytes: int
    sha256: str
    duration: float | None = Field(description="seconds")
    key: str
    url: str


class Children(Answer):
    """How many parts a job has so far, and how many of them have ended in which way."""

    total: int
    unfinished: int
    succeeded: int
    failed: int
    canceled: int
    expired: int


class Job(Answer):
    """One thing that was asked for. Treat a state that you do not know as unfinished unless `is_terminal`."""

    id: UUID
    object: Literal["job"]
    kind: str
    model: str
    project: str
    state: str = Field(json_schema_extra=_STATES)
    is_terminal: bool
    held_for: HeldFor | None
    cancel_requested: bool
    waiting_on: Waiting | None
    priority: Literal["high", "normal", "low"]
    input: dict[str, Any] = Field(description="complete: defaults filled in; in lists long parts are cut, and end in …")
    metadata: dict[str, str]
    custom_id: str | None
    batch_id: UUID | None
    parent_id: UUID | None
    round: int | None = Field(description="a child's own, from 1; a parent's last one")
    place: int | None = Field(description="a child's, in its round, from 0")
    children: Children | None = Field(description="of a job that is made in parts: how they stand")
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    cost: Cost
    usage: dict[str, Any] | None = Field(description="what was billed, in the model's units")
    provider: Provider
    outputs: list[Output]
    result: dict[str, Any] | None = Field(description="of a text: what was answered; cut in lists as the input is")
    error: dict[str, Any] | None = Field(description="code, class, message, retryable, billed, hint, provider")
    urls: dict[str, str]


class Submitted(Job):
    """The job that was made, or the first one under the same Idempotency-Key."""

    warnings: list[Fault] = Field(description="of what was taken all the same: a model that others report as retired")


class File(Answer):
    """A file in the bucket, to be named by its key in a job's input."""

    object: Literal["file"]
    id: UUID
    name: str = Field(description="as its sender calls it", examples=["cat.png"])
    key: str = Field(description="what an input names it by")
    content_type: str = Field(description="by its bytes", examples=["image/png"])
    bytes: int
    sha256: str
    created_at: datetime


class Event(Answer):
    """A recorded move."""

    object: Literal["event"]
    id: str
    job_id: UUID
    sequence: int = Field(description="counts within the job; the stream's id")
    type: str = Field(examples=["job.running"])
    from_: str | None = Field(alias="from", description="the state it left; null: it was made")
    to: str
    why: str
    at: datetime


class Attempt(Answer):
    """One create call to the provider: what may have cost money."""

    object: Literal["attempt"]
    id: UUID
    number: int
    model: str
    region: str
    account: str
    sent_at: datetime
    answered_at: datetime | None
    outcome: Literal["sent", "accepted", "refused", "not_sent", "unknown", "absent"]
    http_status: int | None
    request_id: str | None
    task_id: str | None
    code: str | None
    message: str | None
    billed: Literal["yes", "no", "unknown"]


class Model(BaseModel):
    """A model of the catalog: what it makes and takes, its defaults, and its limits and prices by region."""

    object: Literal["model"]
    id: str
    family: str
    kinds: list[str]
    aliases: list[str]
    fields: list[str] = Field(description="the input fields that it takes")
    requires: list[str]
    sizes: Any
    resolutions: list[str]
    ratios: list[str]
    durations: list[int] = Field(description="seconds")
    default: dict[str, Any] = Field(description="what is sent when the input says nothing")
    regions: dict[str, dict[str, Any]]
    currency: Literal["CNY"]
    retired: date | None = Field(description="when the provider ended it")
    retired_by: Literal["notice", "reports"] | None = Field(
        description="notice: jobs are refused; reports: taken, warned"
    )
    successor: str | None = Field(description="what to take instead of a retired one")


class Lane(Answer):
    """What a limit of the provider's applies to: a model in a region. What is in use and waits is the caller's own."""

    object: Literal["lane"]
    model: str
    region: str
    account: str | None = Field(description="whose limits these are; only for operators")
    concurrency: int = Field(description="tasks at once, as configured")
    allowed: int = Field(description="tasks at once now: fewer, where the provider takes fewer")
    per_second: float | None = Field(description="creates, at full pace")
    pace: float = Field(description="the share of that rate that is used now, after throttling")
    in_use: int
    queued: int
    waiting_on: Waiting | None = Field(description="what holds the lane up")


class Estimate(Answer):
    """What a submission would be and cost; nothing was made."""

    object: Literal["estimate"]
    kind: str
    model: str
    input: dict[str, Any]
    cost: dict[str, Any] = Field(examples=[{"currency": "CNY", "estimated": "3.00"}])
    warnings: list[Fault] = Field(description="of what would be taken all the same")


class Cancellation(Answer):
    """What became of the wish: canceled, requested (the provider is asked), too_late (billed), already_finished."""

    object: Literal["cancellation"]
    outcome: Literal["canceled", "requested", "too_late", "already_finished"]
    job: Job


class Candidate(Answer):
    """A task that no job has, of the model and time of the job's open call."""

    task_id: str
    request_id: str | None
    status: str
    created_at: datetime | None
    differs: list[str] | None = Field(description="what it repeats of another request; null: not known")


class AtStake(Answer):
    """What another call would cost, if the open one did make something."""

    currency: Literal["CNY"]
    estimated: Decimal | None
    billed: Literal["yes", "no", "unknown"]


class CandidateList(Answer):
    """What may be adopted, and the money at stake."""

    object: Literal["list"]
    has_more: bool
    next_cursor: str | None
    data: list[Candidate]
    at_stake: AtStake


class Resolution(Answer):
    """What was decided of a job, or would be (`done` false: a dry run)."""

    object: Literal["resolution"]
    action: Literal["adopt", "requeue", "give_up"]
    done: bool
    to: str = Field(description="the state that the job enters", json_schema_extra=_STATES)
    why: str
    at_stake: AtStake
    job: Job


class Schedule(Answer):
    """A job for the clock to submit."""

    id: UUID
    object: Literal["schedule"]
    name: str
    cron: str
    time_zone: str
    explained: str = Field(description="the cron expression, in English", examples=["At 02:30 every day"])
    template: dict[str, Any] = Field(description="what it submits, with its variables as they were written")
    overlap: Literal["skip", "queue", "cancel"]
    missed: Literal["run_once", "skip"]
    next: list[datetime] = Field(description="the next five fire times; none while it is paused")
    paused_at: datetime | None
    since: datetime | None = Field(description="until when its last submitted run took documents")
    job_id: UUID | None = Field(description="of its last run that submitted one")
    created_at: datetime
    updated_at: datetime
    warnings: list[Fault] = Field(description="a zone with its sign inverted, a model that others report as retired")
    urls: dict[str, str]


class Run(Answer):
    """What became of one fire time, or of a person's wish."""

    id: UUID
    object: Literal["run"]
    schedule_id: UUID
    fire_at: datetime
    trigger: Literal["clock", "late", "person"] = Field(description="late: no clock ran at its time")
    outcome: Literal["waiting", "submitted", "skipped", "refused"]
    why: str
    job_id: UUID | None
    job_state: str | None = Field(description="where its job is now")
    at: datetime = Field(description="when it was seen to")


class _List(Answer):
    object: Literal["list"]
    has_more: bool
    next_cursor: str | None = Field(description="give it as `cursor` to get the next page")


class JobList(_List):
    """A page of jobs, the newest first."""

    data: list[Job]


class ChildList(_List):
    """A page of a job's children, in the order of their rounds and places."""

    data: list[Job]


class FileList(_List):
    """A page of files, the newest first."""

    data: list[File]


class EventList(_List):
    """A page of a job's events, the oldest first; the cursor is the last one's sequence."""

    data: list[Event]


class AttemptList(_List):
    """Every attempt of a job, the oldest first."""

    data: list[Attempt]


class ModelList(_List):
    """The models."""

    data: list[Model]


class ScheduleList(_List):
    """A page of schedules, the newest first."""

    data: list[Schedule]


class RunList(_List):
    """A page of a schedule's runs, the latest fire time first; the cursor is the last one's."""

    data: list[Run]


class LaneList(_List):
    """The lanes, by model and region."""

    data: list[Lane]


class Readiness(Answer):
    """`degraded`: something is away that can be done without for a while."""

    status: Literal["ready", "degraded", "unready"]
    checks: dict[str, dict[str, Any]]


def listed(data: list[dict[str, Any]], next_cursor: str | None = None) -> JSONResponse:
    """A page of things; with a cursor there are more."""
    page = {"object": "list", "data": data, "has_more": next_cursor is not None, "next_cursor": next_cursor}
    return JSONResponse(page)
