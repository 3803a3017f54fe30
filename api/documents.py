"""What the API answers, for the client: made from `openapi.json` by `make openapi`, not by hand (ADR 0046).

A newer server may say more: words of an enum are any text here, and fields that are not known are left out.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from api.document import Document


class Amounts(Document):
    """What was used and what it cost, in CNY; what the provider does not count is 0."""

    jobs: int
    calls: int
    settled: str
    unknown: str
    reserved: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float
    characters: int
    images: int


class AtStake(Document):
    """What another call would cost, if the open one did make something."""

    currency: str
    estimated: str | None
    billed: str


class AttemptDocument(Document):
    """One create call to the provider: what may have cost money."""

    object: str
    id: UUID
    number: int
    model: str
    region: str
    account: str
    sent_at: datetime
    answered_at: datetime | None
    outcome: str
    http_status: int | None
    request_id: str | None
    task_id: str | None
    code: str | None
    message: str | None
    billed: str


class BatchCost(Document):
    """In CNY. `to_come`: the estimates of what has not been billed and has not ended."""

    currency: str
    estimated: str | None
    actual: str
    to_come: str


class BatchDocument(Document):
    """Jobs submitted together."""

    id: UUID
    object: str
    name: str
    project: str
    state: str
    source: Source
    rows: Rows
    report: Report | None
    jobs: Jobs | None
    cost: BatchCost | None
    review: BatchReview | None
    finish_at: datetime | None
    webhook_url: str | None
    manifest: str | None
    created_at: datetime
    expires_at: datetime | None
    committed_at: datetime | None
    paused_at: datetime | None
    canceled_at: datetime | None
    completed_at: datetime | None
    urls: dict[str, str]


class BatchReview(Document):
    """Of the jobs that a person is to look at."""

    waiting: int
    approved: int
    rejected: int
    cost_per_approved: str | None


class BudgetDocument(Document):
    """How much a project may spend in a period, and what is used of it; amounts in CNY."""

    id: UUID
    object: str
    period: str
    limit: str
    used: str
    left: str
    currency: str
    over: str
    time_zone: str
    begins_at: datetime | None
    ends_at: datetime | None
    held: int
    created_at: datetime
    updated_at: datetime


class BulkCost(Document):
    """In CNY: what jobs that are canceled were to cost, and what jobs that are made again cost at most, again."""

    currency: str
    estimated: str
    unpriced: int


class BulkDocument(Document):
    """What became of many jobs, or would become of them: each job has one outcome."""

    object: str
    action: str
    dry_run: bool
    jobs: int
    outcomes: dict[str, int]
    cost: BulkCost
    refused: list[RefusedJob]
    has_more: bool
    next_cursor: str | None


class Cancellation(Document):
    """What a cancel led to: canceled, requested (the provider is asked), too_late (billed), already_finished."""

    object: str
    outcome: str
    job: JobDocument


class CandidateDocument(Document):
    """A task that no job has, of the model and time of the job's open call."""

    task_id: str
    request_id: str | None
    status: str
    created_at: datetime | None
    differs: list[str] | None


class CandidateList(Document):
    """What may be adopted, and the money at stake."""

    object: str
    data: list[CandidateDocument]
    has_more: bool
    next_cursor: str | None
    at_stake: AtStake


class Check(Document):
    """Whether a service answers, and why it does not."""

    ok: bool
    why: str | None


class Children(Document):
    """How many parts a job has so far, and how many of them have ended in which way."""

    total: int
    unfinished: int
    succeeded: int
    failed: int
    canceled: int
    expired: int


class Cost(Document):
    """Amounts are decimal strings; null where no price is known, or nothing was billed yet."""

    currency: str
    estimated: str | None
    actual: str | None
    billed: str


class DeliveryDocument(Document):
    """One event on its way to one endpoint."""

    id: UUID
    object: str
    webhook_id: str
    type: str
    timestamp: datetime
    job_id: UUID | None
    batch_id: UUID | None
    url: str
    state: str
    tries: int
    status: int | None
    error: str | None
    milliseconds: int | None
    answer: str | None
    created_at: datetime
    next_try_at: datetime | None
    finished_at: datetime | None


class EndpointDocument(Document):
    """A receiver of the project's events."""

    id: UUID
    object: str
    url: str
    events: list[str]
    description: str
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_why: str | None
    previous_secret_until: datetime | None
    created_at: datetime
    urls: dict[str, str]


class EndpointSecret(Document):
    """A receiver of the project's events, with the secret that it is signed with from now on."""

    id: UUID
    object: str
    url: str
    events: list[str]
    description: str
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_why: str | None
    previous_secret_until: datetime | None
    created_at: datetime
    urls: dict[str, str]
    secret: str


class Estimate(Document):
    """What a submission would be and cost; nothing was made."""

    object: str
    kind: str
    model: str
    input: dict[str, Any]
    cost: EstimatedCost
    state: str
    segments: Segments | None
    warnings: list[Fault]


class EstimatedCost(Document):
    """Null where no price is known."""

    currency: str
    estimated: str | None


class EventDocument(Document):
    """What a webhook says, without the job itself."""

    id: str
    object: str
    type: str
    timestamp: datetime
    sequence: int
    cursor: str
    data: Subject


class Fault(Document):
    """One wrong field: a JSON pointer into the body, a stable code, and a sentence for a person."""

    pointer: str
    code: str
    message: str


class Feed(Document):
    """Events in an order that never changes; a page may hold fewer than asked for, or none, and have more after it."""

    object: str
    data: list[EventDocument]
    has_more: bool
    after: str


class FileDocument(Document):
    """A file in the bucket, to be named by its key in a job's input."""

    object: str
    id: UUID
    name: str
    key: str
    content_type: str
    bytes: int
    sha256: str
    seconds: float | None
    created_at: datetime


class Group(Document):
    """The new rows of one kind and model: how many, what they cost at most, how long they take at today's limits."""

    kind: str
    model: str
    rows: int
    cost: str | None
    unpriced: int
    seconds: float | None


class ItemDocument(Document):
    """A row of a batch, and its job: the newest take; the takes before are in `takes`."""

    object: str
    row: int
    line: int
    custom_id: str | None
    outcome: str
    faults: list[RowFault]
    asked: dict[str, Any] | None
    job: JobDocument | None
    takes: list[UUID]


class JobDocument(Document):
    """One thing that was asked for. Treat a state that you do not know as unfinished unless `is_terminal`."""

    id: UUID
    object: str
    kind: str
    model: str
    project: str
    state: str
    is_terminal: bool
    held_for: str | None
    cancel_requested: bool
    waiting_on: Waiting | None
    priority: str
    input: dict[str, Any]
    metadata: dict[str, str]
    custom_id: str | None
    batch_id: UUID | None
    batch_row: int | None
    take: int
    first_take: UUID | None
    review: Review | None
    parent_id: UUID | None
    round: int | None
    place: int | None
    children: Children | None
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    not_after: datetime | None
    cost: Cost
    usage: dict[str, Any] | None
    cached_from: UUID | None
    provider: Provider
    outputs: list[OutputDocument]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    urls: dict[str, str]


class JobEvent(Document):
    """A recorded move."""

    object: str
    id: str
    job_id: UUID
    sequence: int
    type: str
    from_: str | None = Field(alias="from")
    to: str
    why: str
    at: datetime


class Jobs(Document):
    """The batch's own jobs, later takes among them."""

    total: int
    unfinished: int
    by_state: dict[str, int]


class KeyDocument(Document):
    """An API key, as it is listed: what it is for, what it may do, and when it ends."""

    object: str
    id: UUID
    prefix: str
    name: str
    scope: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: UUID | None


class LaneDocument(Document):
    """What the provider's limits apply to: a model in a region. What is in use and waits is the caller's own."""

    object: str
    model: str
    region: str
    account: str | None
    concurrency: int
    allowed: int
    per_second: float | None
    pace: float
    in_use: int
    queued: int
    tokens: Tokens | None
    waiting_on: Waiting | None


class LedgerLine(Document):
    """A line of the ledger: `reserve` when a job is made, `settle` what a call cost, `release` what is given back."""

    object: str
    id: int
    job_id: UUID
    attempt_id: UUID | None
    entry: str
    amount: str
    currency: str
    at: datetime
    reserved_at: datetime


class ModelDocument(Document):
    """A model of the catalog: what it makes and takes, its defaults, and its limits and prices by region."""

    object: str
    id: str
    family: str
    kinds: list[str]
    aliases: list[str]
    fields: list[str]
    requires: list[str]
    sizes: Any
    resolutions: list[str]
    ratios: list[str]
    durations: list[int]
    default: dict[str, Any]
    regions: dict[str, dict[str, Any]]
    currency: str
    retired: date | None
    retired_by: str | None
    successor: str | None


class NewKey(Document):
    """A key that was just made, and its plain text, which is not shown again."""

    object: str
    id: UUID
    prefix: str
    name: str
    scope: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: UUID | None
    key: str


class OutputDocument(Document):
    """An object in the bucket, checked; `url` redirects to a link to it."""

    n: int
    role: str
    content_type: str
    bytes: int
    sha256: str
    duration: float | None
    key: str
    url: str
    poster: str | None
    pruned_at: datetime | None


class ProjectDocument(Document):
    """A project: its share beside others, and what is set up for all of its jobs."""

    object: str
    id: UUID
    name: str
    weight: int
    time_zone: str
    max_in_flight: int | None
    paused_at: datetime | None
    cache_days: int
    account: str | None
    created_at: datetime
    usage_keys: list[str]
    retention: dict[str, int]


class Provider(Document):
    """What the provider knows the job by."""

    account: str | None
    region: str | None
    task_id: str | None
    request_id: str | None
    status: str | None
    links_expire_at: datetime | None


class Readiness(Document):
    """`degraded`: a service is away that is not needed at once."""

    status: str
    checks: dict[str, Check]


class Redelivery(Document):
    """How many deliveries are due again."""

    object: str
    deliveries: int
    has_more: bool
    next_cursor: UUID | None


class RefusedJob(Document):
    """A job for which nothing was done, and why."""

    id: UUID
    code: str
    message: str


class Rejection(Document):
    """The job that was rejected, and the take that was made of it."""

    object: str
    job: JobDocument
    next_take: JobDocument | None


class Report(Document):
    """All that was found before anything was spent."""

    faults: list[RowFault]
    faults_total: int
    faults_by_code: dict[str, int]
    groups: list[Group]
    cost: str | None
    unpriced: int
    seconds: float | None
    existing: int
    budget: str | None
    warnings: list[Fault]


class Resolution(Document):
    """What was decided of a job, or would be (`done` false: a dry run)."""

    object: str
    action: str
    done: bool
    to: str
    why: str
    at_stake: AtStake
    job: JobDocument


class Review(Document):
    """What a person said of the outputs; `decision` is null until then."""

    decision: str | None
    comment: str | None
    at: datetime | None


class RowFault(Document):
    """What is wrong with a row: in which line and column of the file, and in which field of the job."""

    row: int
    line: int
    column: str | None
    pointer: str
    code: str
    message: str


class Rows(Document):
    """The file's rows by what became of them; `good` and `bad` until the commit, then the others."""

    total: int
    good: int
    bad: int
    made: int
    existing: int
    skipped: int


class RunDocument(Document):
    """What became of one fire time, or of a run that a person asked for."""

    id: UUID
    object: str
    schedule_id: UUID
    fire_at: datetime
    trigger: str
    outcome: str
    why: str
    job_id: UUID | None
    job_state: str | None
    at: datetime


class ScheduleDocument(Document):
    """A job for the clock to submit."""

    id: UUID
    object: str
    name: str
    cron: str
    time_zone: str
    explained: str
    template: dict[str, Any]
    overlap: str
    missed: str
    next: list[datetime]
    paused_at: datetime | None
    since: datetime | None
    job_id: UUID | None
    created_at: datetime
    updated_at: datetime
    warnings: list[Fault]
    urls: dict[str, str]


class Segment(Document):
    """What one call of a narration would speak, with whose voice; a Han character is billed as two."""

    text: str
    voice: str
    characters: int


class Segments(Document):
    """The segments of a narration: how many there are, and the first of them."""

    total: int
    first: list[Segment]


class Source(Document):
    """The file, as it was read."""

    name: str
    format: str
    encoding: str | None
    delimiter: str | None
    bytes: int
    sha256: str


class Subject(Document):
    """What an event is about."""

    object: str
    id: UUID
    state: str
    left: str | None
    custom_id: str | None
    batch_id: UUID | None
    why: str


class Submitted(Document):
    """The job that was made, or the first one under the same Idempotency-Key."""

    id: UUID
    object: str
    kind: str
    model: str
    project: str
    state: str
    is_terminal: bool
    held_for: str | None
    cancel_requested: bool
    waiting_on: Waiting | None
    priority: str
    input: dict[str, Any]
    metadata: dict[str, str]
    custom_id: str | None
    batch_id: UUID | None
    batch_row: int | None
    take: int
    first_take: UUID | None
    review: Review | None
    parent_id: UUID | None
    round: int | None
    place: int | None
    children: Children | None
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    not_after: datetime | None
    cost: Cost
    usage: dict[str, Any] | None
    cached_from: UUID | None
    provider: Provider
    outputs: list[OutputDocument]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    urls: dict[str, str]
    warnings: list[Fault]


class TestDocument(Document):
    """What came back of a `test.ping`."""

    object: str
    webhook_id: str
    delivered: bool
    status: int | None
    error: str | None
    milliseconds: int
    answer: str


class Tokens(Document):
    """Tokens of a lane: what calls may take a minute and a day, what is booked ahead, and what today took."""

    per_minute: int | None
    ahead: int | None
    per_day: int | None
    today: int


class Usage(Document):
    """Usage in groups, the latest first, the dearest first; and all of it together."""

    object: str
    since: date
    until: date
    group_by: list[str]
    currency: str
    data: list[UsageLine]
    has_more: bool
    total: Amounts


class UsageLine(Document):
    """One group: null is what is not grouped by, and what has none, as a job without a batch."""

    jobs: int
    calls: int
    settled: str
    unknown: str
    reserved: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float
    characters: int
    images: int
    object: str
    begins_on: date | None
    project: str | None
    kind: str | None
    model: str | None
    batch_id: UUID | None
    schedule_id: UUID | None
    metadata: dict[str, str | None]
    job_id: UUID | None
    fire_at: datetime | None
    grew: float | None


class Waiting(Document):
    """What an unfinished job waits for: a code, a sentence, and when that may change (null: unknown)."""

    code: str
    detail: str
    until: datetime | None
    position: int | None
