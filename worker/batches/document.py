"""A batch as others see it: the API's answers, which OpenAPI shows, and what its webhook is told."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import Field

from worker.document import Amount, Answer, JobDocument, Moment
from worker.errors import Fault

Outcome = Literal["good", "bad", "made", "existing", "skipped"]
BatchState = Literal["draft", "running", "paused", "completed"]


class RowFault(Answer):
    """What is wrong with a row: in which line and column of the file, and in which field of the job."""

    row: int = Field(description="from 1")
    line: int = Field(description="of the file, from 1, where the row begins")
    column: str | None = Field(description="as the file's first line names it; null: of no column")
    pointer: str = Field(examples=["/input/size"])
    code: str
    message: str


class Group(Answer):
    """The new rows of one kind and model: how many, what they cost at most, how long they take at today's limits."""

    kind: str
    model: str
    rows: int
    cost: Amount | None = Field(description="of those rows whose price is known; null: of none")
    unpriced: int = Field(description="rows without a known price")
    seconds: float | None = Field(description="null: not known, e.g. of what is made in parts")


class Report(Answer):
    """All that was found before anything was spent."""

    faults: list[RowFault] = Field(description="the first hundred; all are at …/items?outcome=bad and …/errors.jsonl")
    faults_total: int
    faults_by_code: dict[str, int]
    groups: list[Group]
    cost: Amount | None = Field(description="of the new rows that have a price; null: no price is known")
    unpriced: int = Field(description="new rows without a known price")
    seconds: float | None = Field(description="that the new rows take at today's limits, behind what waits already")
    existing: int = Field(description="good rows that have a job already: they are not new, and cost nothing more")
    warnings: list[Fault] = Field(description="of what is taken nevertheless, each sentence once")


class Source(Answer):
    """The file, as it was read."""

    name: str
    format: Literal["csv", "jsonl", "json"]
    encoding: str | None = Field(examples=["utf-8", "utf-16", "gb18030"])
    delimiter: str | None = Field(description="of a CSV", examples=[","])
    bytes: int
    sha256: str


class Rows(Answer):
    """The file's rows by what became of them; `good` and `bad` until the commit, then the others."""

    total: int
    good: int
    bad: int
    made: int
    existing: int = Field(description="had a job before: of this project's, in whichever batch")
    skipped: int = Field(description="had faults, and skip_bad was said")


class Jobs(Answer):
    """The batch's own jobs, later takes among them."""

    total: int
    unfinished: int
    by_state: dict[str, int] = Field(description="states that no job is in are left out")


class BatchCost(Answer):
    """In CNY. `to_come`: the estimates of what has not been billed and has not ended."""

    currency: Literal["CNY"] = "CNY"
    estimated: Amount | None = Field(description="of all its jobs")
    actual: Amount = Field(description="so far")
    to_come: Amount


class BatchReview(Answer):
    """Of the jobs that a person is to look at."""

    waiting: int
    approved: int
    rejected: int
    cost_per_approved: Amount | None = Field(description="all that the batch cost so far, by what was kept")


class BatchDocument(Answer):
    """Jobs submitted together."""

    id: uuid.UUID
    object: Literal["batch"] = "batch"
    name: str
    project: str
    state: BatchState
    source: Source
    rows: Rows
    report: Report | None = Field(description="null in lists")
    jobs: Jobs | None = Field(description="null of a draft")
    cost: BatchCost | None = Field(description="null of a draft")
    review: BatchReview | None = Field(description="null where no job needs one")
    finish_at: Moment | None = Field(description="when it ends, as far as run times and limits tell; null: not known")
    webhook_url: str | None
    manifest: str | None = Field(description="the key, in the bucket, of the list of what it made; once it is complete")
    created_at: Moment
    expires_at: Moment | None = Field(description="of a draft: it is forgotten then, or once there are 20 newer ones")
    committed_at: Moment | None
    paused_at: Moment | None
    canceled_at: Moment | None
    completed_at: Moment | None
    urls: dict[str, str]


class ItemDocument(Answer):
    """A row of a batch, and its job: the newest take; the takes before are in `takes`."""

    object: Literal["batch_item"] = "batch_item"
    row: int
    line: int
    custom_id: str | None
    outcome: Outcome
    faults: list[RowFault]
    asked: dict[str, Any] | None = Field(description="of a good row of a draft: kind, model, input, cost")
    job: JobDocument | None
    takes: list[uuid.UUID] = Field(description="the jobs of all takes, the first first; empty where there is one")
