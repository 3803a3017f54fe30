"""The tables. Postgres holds the truth; each column that needs one has its reason beside it.

`jobs`, `deliveries` and `batches` have work in them: `run_at`, `claim`, `claimed` and `crashes` belong to `claims.py`.
Classes are mapped for their columns' types; statements are Core, since an ORM statement costs three times as much.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar, Self

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from worker.states import Mode, State


class Base(DeclarativeBase):
    """Names constraints so that migrations can name them too."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        date: Date,
        str: Text,
        bytes: LargeBinary,
        int: BigInteger,
        uuid.UUID: Uuid,
        dict[str, Any]: JSONB(none_as_null=True),  # else None is written as the JSON word null
        list[Any]: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
        Decimal: Numeric,
        float: Double,
    }

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Self:
        """The row as a detached value; nothing is ever loaded behind it. What else it has, beside columns, is kept."""
        made = cls()
        # past the instrumented attributes, which take longer than all the rest: nothing is ever flushed
        vars(made).update(zip(row.keys(), row.values(), strict=True))
        return made

    def changed(self, columns: Mapping[str, Any]) -> Self:
        """The row as it is once these columns are written."""
        rest = {name: value for name, value in vars(self).items() if name != "_sa_instance_state"}
        return self.of({**rest, **columns})


Base.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

_ID: Any = {"primary_key": True, "server_default": text("uuidv7()")}
_NOW: Any = {"server_default": func.now()}


class Project(Base):
    """A tenant: owns keys, jobs, budgets and what signs its webhooks."""

    __tablename__ = "projects"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    name: Mapped[str] = mapped_column(unique=True)
    weight: Mapped[int] = mapped_column(SmallInteger, server_default="1")
    time_zone: Mapped[str] = mapped_column(server_default="Asia/Shanghai")
    webhook_secret: Mapped[str]  # whsec_…, in the clear: it must sign, so a hash would not do
    max_in_flight: Mapped[int | None]  # of its jobs in all lanes at once; null: as many as the lanes have
    paused_at: Mapped[datetime | None]  # by a person: no creates for it since
    created_at: Mapped[datetime] = mapped_column(**_NOW)
    usage_keys: Mapped[list[str]] = mapped_column(server_default="{}")  # of metadata: what usage is broken down by
    cache_days: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # for jobs that do not say; 0: no cache
    account: Mapped[str | None]  # the only one that its jobs go to; null: any
    retention: Mapped[dict[str, Any]] = mapped_column(server_default="{}")  # days, by what is kept for so long

    __table_args__ = (
        CheckConstraint("weight between 1 and 1000", name="weight"),
        CheckConstraint("max_in_flight > 0", name="max_in_flight"),
        CheckConstraint("cache_days between 0 and 366", name="cache_days"),
    )


class ApiKey(Base):
    """A key of a project, or of an operator (`project_id` null), kept as a hash."""

    __tablename__ = "api_keys"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(server_default="")
    prefix: Mapped[str]  # the first characters, to tell keys apart in a list
    hash: Mapped[bytes] = mapped_column(unique=True)  # SHA-256; 256 random bits need no slow hash
    created_at: Mapped[datetime] = mapped_column(**_NOW)
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    scope: Mapped[str] = mapped_column(server_default="admin")  # what keys from before scopes may do
    expires_at: Mapped[datetime | None]
    replaced_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("api_keys.id"))  # rotated: the key to use instead
    link_used_at: Mapped[datetime | None]  # when a link last signed in at the console: links from before are spent

    __table_args__ = (CheckConstraint("scope in ('read', 'submit', 'admin')", name="scope"),)


class Lane(Base):
    """What a provider limit applies to: (owner, region, model). Its slots are counted from `jobs`, never kept here."""

    __tablename__ = "lanes"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    account: Mapped[str]  # the first of `accounts`: all that the version before knows
    accounts: Mapped[list[str] | None]  # the credentials that may create here; null: written by the version before
    owner: Mapped[str]
    region: Mapped[str]
    model: Mapped[str]
    concurrency: Mapped[int]
    interval_us: Mapped[int]  # between two creates, microseconds: the published rate at 90 %
    next_at: Mapped[datetime] = mapped_column(**_NOW)  # when the next create may leave
    parked_until: Mapped[datetime | None]  # throttled or out of quota: nothing is admitted before
    parked_why: Mapped[str | None]
    paused_at: Mapped[datetime | None]  # no creates until a person resumes it
    paused_why: Mapped[str | None]  # what the provider said; null: a person paused it
    pace: Mapped[float] = mapped_column(server_default="1")  # share of its rate that was left at `paced_at`
    paced_at: Mapped[datetime | None]  # when the provider last said that it is too fast
    ceiling: Mapped[int | None]  # tasks at once that the provider took, where it refused one more
    ceiling_at: Mapped[datetime | None]  # when it last refused one
    probes: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # refused in a row over it; -1: suspected
    passed: Mapped[int] = mapped_column(server_default="0")  # creates since then
    turn: Mapped[float] = mapped_column(server_default="0")  # the virtual time of the last job that was admitted
    tpm: Mapped[int | None]  # tokens a minute, as published; null: none set
    tpd: Mapped[int | None]  # tokens a day
    tokens_at: Mapped[datetime] = mapped_column(**_NOW)  # when the tokens booked so far are worked off, at `tpm`
    day: Mapped[date | None]  # the day in Shanghai that `day_tokens` counts
    day_tokens: Mapped[int] = mapped_column(server_default="0")  # booked that day, and settled by usage
    unserved_at: Mapped[datetime | None]  # when the provider last said that the account may not call it so
    unserved_why: Mapped[str | None]
    quota: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # rps, concurrency, tpm, as told
    ends_at: Mapped[datetime | None]  # when the provider ends the model, as it told

    __table_args__ = (
        UniqueConstraint("owner", "region", "model"),
        CheckConstraint("concurrency >= 0", name="concurrency"),
        CheckConstraint("interval_us >= 0", name="interval"),
        CheckConstraint("pace > 0 and pace <= 1", name="pace"),
    )


class Owner(Base):
    """A main account at the provider: its query budget, and whether its creates are stopped."""

    __tablename__ = "owners"

    name: Mapped[str] = mapped_column(primary_key=True)
    next_query_at: Mapped[datetime] = mapped_column(**_NOW)
    query_pace: Mapped[float] = mapped_column(server_default="1")  # share of the query rate left at `slowed_at`
    slowed_at: Mapped[datetime | None]  # when queries were last throttled or failed; the pace recovers from then on
    page_size: Mapped[int | None] = mapped_column(SmallInteger)  # of the task list, as the provider cuts it
    seen_at: Mapped[datetime | None]  # when one of its tasks was last seen alive or ended, so its key sees tasks
    sweep_at: Mapped[datetime] = mapped_column(server_default=text("now() + interval '1 hour'"))  # for unowned tasks
    stopped_at: Mapped[datetime | None]  # since when it creates nothing: arrears, a bad key, a missing permission
    stopped_until: Mapped[datetime | None]  # when one more is tried
    stopped_why: Mapped[str | None]
    probe: Mapped[uuid.UUID | None]  # the job that is let through to try
    alarmed_at: Mapped[datetime | None]
    alert_url: Mapped[str | None]  # where its alarms go, as the settings say
    paused_at: Mapped[datetime | None]  # by a person: no creates since


class StoppedAccount(Base):
    """An account whose own key the provider refused: nothing is admitted to it for a while, and its siblings go on."""

    __tablename__ = "stopped_accounts"

    account: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    stopped_until: Mapped[datetime]  # then it is tried again; what is past is kept for `alarmed_at`
    stopped_why: Mapped[str]
    alarmed_at: Mapped[datetime | None]


class Job(Base):
    """One thing that a user asked for."""

    __tablename__ = "jobs"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[str]
    model: Mapped[str]
    input: Mapped[dict[str, Any]]  # complete: defaults filled in, so that a later catalog changes nothing
    labels: Mapped[dict[str, Any]] = mapped_column(server_default="{}")  # the user's `metadata`
    custom_id: Mapped[str | None]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # 1 high, 0 normal, -1 low
    rank_at: Mapped[datetime] = mapped_column(**_NOW)  # its place in its project's line: see `moves/fair_queue`
    mode: Mapped[str] = mapped_column(server_default="task")  # how it is carried out: task, call, batch, parent
    round: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # a parent's last one; a child's own, from 1
    round_open: Mapped[bool] = mapped_column(server_default=text("false"))  # not all of the last round is made yet
    place: Mapped[int | None] = mapped_column(Integer)  # a child's, in its round, from 0
    note: Mapped[dict[str, Any] | None]  # its kind's own: what a child is to its parent, how far a parent is
    webhook_url: Mapped[str | None]
    webhook_events: Mapped[list[str] | None]  # null: `webhooks.DEFAULT_EVENTS`
    not_after: Mapped[datetime | None]  # what has not been sent by then ends unpaid
    batch_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("batches.id"))
    batch_row: Mapped[int | None] = mapped_column(Integer)  # which row of it, from 1; its takes have the same
    schedule_id: Mapped[uuid.UUID | None]  # which submitted it; kept when that is deleted, so it refers to none
    review: Mapped[str | None]  # required, then approved or rejected; null: nobody is to look at it first
    review_note: Mapped[str | None]  # what the person said
    reviewed_at: Mapped[datetime | None]
    first_take: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))  # of a later take
    take: Mapped[int] = mapped_column(SmallInteger, server_default="1")  # a re-roll is the next one
    cache_days: Mapped[int | None] = mapped_column(SmallInteger)  # how old an answer of the cache may be; null, 0: none

    state: Mapped[str] = mapped_column(server_default="queued")
    state_at: Mapped[datetime] = mapped_column(**_NOW)  # when it entered that state
    held_for: Mapped[str | None]
    held_from: Mapped[str | None]
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))

    run_at: Mapped[datetime | None] = mapped_column(**_NOW)  # when work on it is due; null: never again
    claim: Mapped[int] = mapped_column(server_default="0")
    claimed: Mapped[str | None]  # sent, taken, or null when nobody works on it
    crashes: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    sequence: Mapped[int] = mapped_column(server_default="0")  # of its last event

    lane_id: Mapped[int | None] = mapped_column(ForeignKey("lanes.id"))
    account: Mapped[str | None]
    region: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    attempt_id: Mapped[uuid.UUID | None]  # the open or last one
    task_id: Mapped[str | None]
    task_status: Mapped[str | None]  # as the provider last said it
    unproven: Mapped[bool] = mapped_column(server_default=text("false"))  # a person's word made the task its own
    polls: Mapped[int] = mapped_column(server_default="0")
    tokens: Mapped[int | None]  # that its call wants, where its lane's day was seen to have fewer left
    retries: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # tasks made again after an unbilled failure
    unknown_since: Mapped[datetime | None]  # since when each look said UNKNOWN
    run_seconds: Mapped[float | None]  # from the provider's own stamps
    shape: Mapped[str | None]  # what of its request its run time depends on: tier and seconds, size and count
    sources: Mapped[list[Any] | None]  # the provider's links: never shown to a user
    relinked: Mapped[bool] = mapped_column(server_default=text("false"))  # a dead link was asked for again
    links_expire_at: Mapped[datetime | None]

    created_at: Mapped[datetime] = mapped_column(**_NOW)
    submitted_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]  # entered running
    finished_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime | None]  # of the phase it is in

    estimate: Mapped[int | None]  # micro-CNY
    cost: Mapped[int | None]  # micro-CNY, settled
    billed: Mapped[str] = mapped_column(server_default="no")
    usage: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]  # what a call answered, where that is words and not a link
    cached_from: Mapped[uuid.UUID | None]  # the job whose call answered it; no reference, since that one may be deleted
    error: Mapped[dict[str, Any] | None]

    __table_args__ = (
        CheckConstraint("state in (" + ", ".join(f"'{s}'" for s in State) + ")", name="state"),
        CheckConstraint("claimed in ('sent', 'taken')", name="claimed"),
        CheckConstraint("billed in ('yes', 'no', 'unknown')", name="billed"),
        CheckConstraint(
            "(state in ('succeeded', 'rejected', 'failed', 'canceled', 'expired')) = (finished_at is not null)",
            name="finished",
        ),
        CheckConstraint("finished_at is null or run_at is null", name="rests"),
        CheckConstraint("(state = 'held') = (held_for is not null)", name="held"),
        # what is due, by state: a claim reads it in order and stops
        Index(
            "ix_jobs_due",
            "state",
            "run_at",
            postgresql_where=text("run_at is not null and state <> 'queued'"),
        ),
        Index("ix_jobs_sent", "state", postgresql_where=text("claimed = 'sent'")),
        Index("ix_jobs_learned", "lane_id", text("created_at desc"), postgresql_where=text("run_seconds is not null")),
        Index(
            "ix_jobs_queued",
            "model",
            "project_id",
            "rank_at",
            "id",
            postgresql_where=text("state = 'queued' and mode <> 'parent'"),
        ),
        Index("ix_jobs_parents", "run_at", postgresql_where=text("state = 'queued' and mode = 'parent'")),
        Index(
            "ix_jobs_slots",
            "lane_id",
            "project_id",
            postgresql_where=text("state in ('admitted', 'submitting', 'uncertain', 'running', 'held')"),
        ),
        Index("ix_jobs_unfinished", "project_id", postgresql_where=text("finished_at is null")),
        Index("ix_jobs_listing", "project_id", text("id desc"), postgresql_where=text("parent_id is null")),
        # for `reading`: the newest of each group that a list may be narrowed to
        Index(
            "ix_jobs_groups",
            *("project_id", "kind", "model", "state"),
            text("id desc"),
            postgresql_where=text("parent_id is null"),
        ),
        Index(
            "ix_jobs_custom_id",
            *("project_id", "custom_id"),
            text("id desc"),
            postgresql_where=text("custom_id is not null"),
        ),
        # every move of a job writes into this index, so jobs without labels are left out
        Index(
            "ix_jobs_labels",
            "labels",
            postgresql_using="gin",
            postgresql_ops={"labels": "jsonb_path_ops"},
            postgresql_where=text("labels <> '{}'"),
        ),
        # one child a place, whatever is repeated
        Index(
            "uq_jobs_place",
            "parent_id",
            "round",
            "place",
            unique=True,
            postgresql_where=text("parent_id is not null"),
        ),
        Index("ix_jobs_gathering", "id", postgresql_where=text("state = 'gathering'")),
        Index(
            "ix_jobs_at_work",
            "parent_id",
            postgresql_where=text("parent_id is not null and finished_at is null"),
        ),
        Index(
            "ix_jobs_failed_parts",
            "parent_id",
            postgresql_where=text("parent_id is not null and state in ('failed', 'expired')"),
        ),
        # for `batches`: counts, cost and forecast by the index alone, and pages; what has not ended; what is overdue
        Index(
            "ix_jobs_batch",
            *("batch_id", "kind", "model", "state", "id"),
            postgresql_include=["review", "estimate", "cost", "billed"],
            postgresql_where=text("batch_id is not null"),
        ),
        Index(
            "ix_jobs_batch_unfinished",
            "batch_id",
            postgresql_where=text("batch_id is not null and finished_at is null"),
        ),
        Index("ix_jobs_schedule", "schedule_id", "id", postgresql_where=text("schedule_id is not null")),
        Index(
            "ix_jobs_not_after",
            "not_after",
            postgresql_where=text("not_after is not null and state in ('queued', 'held', 'admitted')"),
        ),
        Index("ix_jobs_held_for_budget", "project_id", "id", postgresql_where=text("held_for = 'budget'")),
        Index("uq_jobs_take", "first_take", "take", unique=True, postgresql_where=text("first_take is not null")),
        CheckConstraint("review in ('required', 'approved', 'rejected')", name="review"),
        # a worker of a version without reviews cannot end what a person is to look at first
        CheckConstraint("state <> 'succeeded' or review is distinct from 'required'", name="reviewed"),
        CheckConstraint("(parent_id is null) = (place is null)", name="place"),
        CheckConstraint("parent_id is null or mode <> 'parent'", name="one_generation"),
        CheckConstraint("mode in (" + ", ".join(f"'{m}'" for m in Mode) + ")", name="mode"),
        {
            "postgresql_with": {
                "fillfactor": "80",
                "autovacuum_vacuum_scale_factor": "0.01",
                "autovacuum_vacuum_threshold": "1000",
                "autovacuum_vacuum_cost_delay": "0",
            }
        },
    )


class Attempt(Base):
    """One create call: what may have cost money. Written before the call leaves, and again when its answer is in."""

    __tablename__ = "attempts"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"))
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    number: Mapped[int] = mapped_column(SmallInteger)
    owner: Mapped[str]
    account: Mapped[str]
    region: Mapped[str]
    model: Mapped[str]  # as spelled in that region
    request_hash: Mapped[bytes]
    sent_at: Mapped[datetime] = mapped_column(**_NOW)
    answered_at: Mapped[datetime | None]
    outcome: Mapped[str] = mapped_column(server_default="sent")
    http_status: Mapped[int | None] = mapped_column(SmallInteger)
    request_id: Mapped[str | None]
    task_id: Mapped[str | None]
    code: Mapped[str | None]
    message: Mapped[str | None]
    output: Mapped[dict[str, Any] | None]  # of a call that answered at once with its result
    tokens: Mapped[int | None]  # booked of the lane's, until its usage is known
    billed: Mapped[str] = mapped_column(server_default="unknown")
    closed_at: Mapped[datetime | None]  # when its verdict on money was given

    __table_args__ = (
        UniqueConstraint("job_id", "number"),
        CheckConstraint("outcome in ('sent', 'accepted', 'refused', 'not_sent', 'unknown', 'absent')", name="outcome"),
        CheckConstraint("billed in ('yes', 'no', 'unknown')", name="billed"),
        # a task belongs to one job, always
        Index("uq_attempts_task", "owner", "task_id", unique=True, postgresql_where=text("task_id is not null")),
        Index("ix_attempts_open", "owner", "model", "sent_at", postgresql_where=text("closed_at is null")),
        # for the result cache: the newest answer to a request
        Index(
            "ix_attempts_answers",
            *("project_id", "request_hash", "answered_at"),
            postgresql_where=text("output is not null"),
        ),
    )


class Event(Base):
    """A recorded move. The feed shows only rows that no open transaction can still precede (`xid`)."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    batch_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("batches.id"))  # of a batch's own events
    endpoint_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("webhook_endpoints.id"))  # of an endpoint's own
    budget_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("budgets.id"))  # of a budget's
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    sequence: Mapped[int]  # within the job, the batch, the endpoint or the budget
    type: Mapped[str]
    left: Mapped[str | None]  # null: the job was made
    entered: Mapped[str]
    why: Mapped[str] = mapped_column(server_default="")
    claim: Mapped[int | None]  # of the worker that moved it
    at: Mapped[datetime] = mapped_column(**_NOW)
    xid: Mapped[int] = mapped_column(server_default=text("(pg_current_xact_id()::text)::bigint"))

    __table_args__ = (
        UniqueConstraint("job_id", "sequence"),
        Index("uq_events_batch", "batch_id", "sequence", unique=True, postgresql_where=text("batch_id is not null")),
        Index("uq_events_budget", "budget_id", "sequence", unique=True, postgresql_where=text("budget_id is not null")),
        # the feed
        Index(
            "ix_events_told",
            *("project_id", "xid", "id"),
            postgresql_where=text(
                "type not in ('job.noted', 'job.admitted', 'job.uncertain', 'job.gathering', 'job.copying')"
            ),
        ),
        CheckConstraint("num_nonnulls(job_id, batch_id, endpoint_id, budget_id) = 1", name="subject"),
    )


class Output(Base):
    """An object in our bucket, checked."""

    __tablename__ = "outputs"

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    n: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    role: Mapped[str]
    key: Mapped[str] = mapped_column(unique=True)
    content_type: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    crc64: Mapped[str]  # decimal, as OSS writes it
    duration: Mapped[Decimal | None]  # seconds
    created_at: Mapped[datetime] = mapped_column(**_NOW)
    pruned_at: Mapped[datetime | None]  # since when the object is gone; the row stays
    # Of its small still: wanted, made, or none to be had, which it also is while it is made; null: never wanted.
    poster: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("poster in ('wanted', 'made', 'none')", name="poster"),
        Index("ix_outputs_kept", "project_id", "created_at", postgresql_where=text("pruned_at is null")),
        Index("ix_outputs_poster", "created_at", postgresql_where=text("poster = 'wanted'")),
    )


class Hold(Base):
    """A legal hold: what is not to be pruned, of a project, or of one job or batch of it."""

    __tablename__ = "holds"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[uuid.UUID | None]
    batch_id: Mapped[uuid.UUID | None]
    why: Mapped[str]
    since: Mapped[datetime] = mapped_column(**_NOW)
    released_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("job_id is null or batch_id is null", name="one"),
        Index("ix_holds_project_id", "project_id", postgresql_where=text("released_at is null")),
    )


class Turn(Base):
    """Where a project stands in a lane's virtual time: when its next job starts there, were it alone."""

    __tablename__ = "turns"

    lane_id: Mapped[int] = mapped_column(ForeignKey("lanes.id"), primary_key=True)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    at: Mapped[float]


class Delivery(Base):
    """One event on its way to one receiver; or, of no project, an alarm on its way to the operator's."""

    __tablename__ = "deliveries"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    event_id: Mapped[int | None]  # no reference, which would need an index: pruning keeps events while this is there
    endpoint_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("webhook_endpoints.id"))  # null: the job's own
    url: Mapped[str]
    receiver: Mapped[int] = mapped_column(server_default="0")  # its host and port, as `webhooks.receiver` numbers them
    body: Mapped[str]  # the bytes that are signed, the same on every retry
    state: Mapped[str] = mapped_column(server_default="waiting")
    tries: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    last_status: Mapped[int | None] = mapped_column(SmallInteger)
    last_error: Mapped[str | None]
    last_ms: Mapped[int | None] = mapped_column(Integer)  # what the last try took
    last_answer: Mapped[str | None]  # of an endpoint's: how the answer's body began
    created_at: Mapped[datetime] = mapped_column(**_NOW)  # or when it was asked for again
    finished_at: Mapped[datetime | None]

    run_at: Mapped[datetime | None] = mapped_column(**_NOW)
    claim: Mapped[int] = mapped_column(server_default="0")
    claimed: Mapped[str | None]
    crashes: Mapped[int] = mapped_column(SmallInteger, server_default="0")

    __table_args__ = (
        # an event is told once to a job's own receiver, and once to each endpoint, whatever their URLs
        Index("uq_deliveries_url", "event_id", "url", unique=True, postgresql_where=text("endpoint_id is null")),
        Index(
            "uq_deliveries_endpoint",
            *("event_id", "endpoint_id"),
            unique=True,
            postgresql_where=text("endpoint_id is not null"),
        ),
        Index(
            "ix_deliveries_log",
            *("endpoint_id", "state", text("id desc")),
            postgresql_where=text("endpoint_id is not null"),
        ),
        CheckConstraint("state in ('waiting', 'delivered', 'exhausted')", name="state"),
        CheckConstraint("claimed in ('sent', 'taken')", name="claimed"),
        CheckConstraint("(state = 'waiting') = (run_at is not null)", name="waits"),
        CheckConstraint(
            "(project_id is null) = (event_id is null) and (event_id is not null or job_id is null)", name="alarm"
        ),
        Index("ix_deliveries_due", "run_at", postgresql_where=text("run_at is not null")),
        Index(
            "ix_deliveries_turns",
            text("coalesce(project_id, '00000000-0000-0000-0000-000000000000'::uuid)"),
            "receiver",
            "run_at",
            postgresql_where=text("run_at is not null"),
        ),
        Index("ix_deliveries_old", "created_at", postgresql_where=text("run_at is not null")),
        Index("ix_deliveries_claimed", "url", postgresql_where=text("claimed is not null")),
        Index("ix_deliveries_job_id", "job_id"),
        Index("ix_deliveries_ended", "project_id", "finished_at", postgresql_where=text("finished_at is not null")),
    )


class WebhookEndpoint(Base):
    """A receiver that a project has registered, for events of all its jobs and batches. Deleted, its row stays."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    url: Mapped[str]
    receiver: Mapped[int]  # its host and port, as `webhooks.receiver` numbers them
    description: Mapped[str] = mapped_column(server_default="")
    events: Mapped[list[str] | None]  # types, or `job.*`; null: `webhooks.DEFAULT_EVENTS` and what is no job's
    secret: Mapped[str]  # in the clear, as a project's
    previous_secret: Mapped[str | None]  # signs too until `previous_until`
    previous_until: Mapped[datetime | None]
    sequence: Mapped[int] = mapped_column(server_default="0")  # of its last event
    failing_since: Mapped[datetime | None]  # the first of its failures in a row
    disabled_at: Mapped[datetime | None]
    disabled_why: Mapped[str | None]
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(**_NOW)

    __table_args__ = (
        CheckConstraint("(disabled_at is null) = (disabled_why is null)", name="disabled"),
        Index(
            "uq_webhook_endpoints_url",
            *("project_id", "url"),
            unique=True,
            postgresql_where=text("deleted_at is null"),
        ),
    )


class DeadReceiver(Base):
    """A receiver that did not answer a project's last delivery; the row goes with its next answer."""

    __tablename__ = "dead_receivers"

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    receiver: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    failures: Mapped[int] = mapped_column(SmallInteger)  # in a row
    resume_at: Mapped[datetime]  # when the project's deliveries are tried again


class Entry(Base):
    """A line of the ledger, micro-CNY: `reserve` at submission, then `settle` what was billed, `release` the rest."""

    __tablename__ = "ledger"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[uuid.UUID]  # no references: the ledger outlives jobs and attempts, which may be pruned
    attempt_id: Mapped[uuid.UUID | None]
    entry: Mapped[str]
    micros: Mapped[int]
    usage: Mapped[dict[str, Any] | None]  # of a settled call: `money.COUNTED` of what it used
    known: Mapped[bool] = mapped_column(server_default=text("true"))  # false: the estimate, until its answer is known
    currency: Mapped[str] = mapped_column(server_default="CNY")
    at: Mapped[datetime] = mapped_column(**_NOW)
    reserved_at: Mapped[datetime]  # the period that reserved it is the period that it counts in

    __table_args__ = (
        CheckConstraint("entry in ('reserve', 'settle', 'release')", name="entry"),
        UniqueConstraint("attempt_id", "entry"),
        Index("ix_ledger_job", "job_id", "entry"),
        Index("ix_ledger_listing", "project_id", "at", "id"),
    )


class LedgerSum(Base):
    """What was booked of a project in a quarter of an hour of `reserved_at`; several rows, until the tick adds them up.

    A trigger on the ledger writes them, in the transaction that books: they are the ledger's, and nobody waits for one.
    """

    __tablename__ = "ledger_sums"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    project_id: Mapped[uuid.UUID]
    quarter: Mapped[datetime]  # its beginning: each zone's days begin at one
    micros: Mapped[int]
    is_whole: Mapped[bool] = mapped_column(server_default=text("false"))  # a sum of others

    __table_args__ = (
        Index("ix_ledger_sums_quarter", "project_id", "quarter", postgresql_include=["micros"]),
        Index("ix_ledger_sums_parts", "project_id", "quarter", postgresql_where=text("not is_whole")),
    )


class UsageSum(Base):
    """What was booked and used in a day of a project, by all that usage is broken down by; in parts, as `LedgerSum`.

    A trigger on the ledger writes it, in the transaction that books: it is the ledger's, and equals it.
    """

    __tablename__ = "usage_sums"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    project_id: Mapped[uuid.UUID]
    day: Mapped[date]  # of `reserved_at`, in the zone that the project had then
    kind: Mapped[str]  # of the job that the user submitted; empty: the row is gone
    model: Mapped[str]
    batch_id: Mapped[uuid.UUID | None]
    schedule_id: Mapped[uuid.UUID | None]
    labels: Mapped[dict[str, Any]] = mapped_column(server_default="{}")  # those that the project's `usage_keys` name
    jobs: Mapped[int] = mapped_column(server_default="0")  # that were reserved
    calls: Mapped[int] = mapped_column(server_default="0")  # that were billed, or may be
    settled: Mapped[int] = mapped_column(server_default="0")  # micro-CNY, of calls whose bill is known
    unknown: Mapped[int] = mapped_column(server_default="0")  # of those that are charged at their estimate
    reserved: Mapped[int] = mapped_column(server_default="0")  # and not settled or given back yet
    input_tokens: Mapped[Decimal] = mapped_column(server_default="0")
    cached_tokens: Mapped[Decimal] = mapped_column(server_default="0")  # of the input, in the provider's cache
    output_tokens: Mapped[Decimal] = mapped_column(server_default="0")
    seconds: Mapped[Decimal] = mapped_column(server_default="0")
    characters: Mapped[Decimal] = mapped_column(server_default="0")
    images: Mapped[Decimal] = mapped_column(server_default="0")
    is_whole: Mapped[bool] = mapped_column(server_default=text("false"))

    __table_args__ = (
        Index("ix_usage_sums_day", "project_id", "day"),
        Index("ix_usage_sums_parts", "id", postgresql_where=text("not is_whole")),
        Index(
            "uq_usage_sums_whole",
            *("project_id", "day", "kind", "model", "batch_id", "schedule_id", "labels"),
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("is_whole"),
        ),
    )


class Budget(Base):
    """How much a project may spend in a day, in a month, or in all, and what happens to what would cost more."""

    __tablename__ = "budgets"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    period: Mapped[str]  # day, month, total
    micros: Mapped[int]  # the limit, micro-CNY
    time_zone: Mapped[str]  # IANA: where its days begin
    over: Mapped[str]  # refuse, or hold
    told_of: Mapped[datetime | None]  # the beginning of the period in which `told` was told
    told: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # the highest threshold told of, percent
    sequence: Mapped[int] = mapped_column(server_default="0")  # of its last event
    created_at: Mapped[datetime] = mapped_column(**_NOW)
    updated_at: Mapped[datetime] = mapped_column(**_NOW)
    removed_at: Mapped[datetime | None]  # its events stay

    __table_args__ = (
        CheckConstraint("period in ('day', 'month', 'total')", name="period"),
        CheckConstraint("over in ('refuse', 'hold')", name="over"),
        CheckConstraint("micros >= 0", name="micros"),
        Index("ix_budgets_project_id", "project_id", postgresql_where=text("removed_at is null")),
    )


class IdempotencyKey(Base):
    """A submission's Idempotency-Key, committed with its job; kept seven days."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = mapped_column(**_NOW)

    __table_args__ = (
        Index("ix_idempotency_keys_created_at", "created_at"),
        Index("ix_idempotency_keys_job_id", "job_id"),  # for pruning: each job that goes is looked for here
    )


class RunTime(Base):
    """How long the last tasks of a model and shape took, from create to end; what is not here is not learned yet."""

    __tablename__ = "run_times"

    model: Mapped[str] = mapped_column(primary_key=True)
    shape: Mapped[str] = mapped_column(primary_key=True)
    early: Mapped[float]  # seconds within which hardly any has ended
    median: Mapped[float]  # seconds within which half of them have


class Unowned(Base):
    """A task of the provider's that no attempt knows: made by somebody else with our key, or lost to us."""

    __tablename__ = "unowned"

    owner: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[str]
    model: Mapped[str]  # as spelled in that region
    status: Mapped[str]
    created_at: Mapped[datetime | None]  # by the provider's clock
    found_at: Mapped[datetime] = mapped_column(**_NOW)
    micros: Mapped[int | None]  # what it cost, or will; null: no price is known


class File(Base):
    """An input that a user gave us, in our bucket: a photo, a document."""

    __tablename__ = "files"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    key: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]  # as the user called it
    content_type: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    width: Mapped[int | None] = mapped_column(Integer)  # of a picture, in pixels, with has_alpha, where its header says
    height: Mapped[int | None] = mapped_column(Integer)
    has_alpha: Mapped[bool | None]
    seconds: Mapped[Decimal | None]  # that a clip or sound plays, where its header says
    created_at: Mapped[datetime] = mapped_column(**_NOW)

    __table_args__ = (
        UniqueConstraint("project_id", "sha256", "name"),  # given twice, it is one file
        Index("ix_files_listing", "project_id", text("id desc")),
    )


class Batch(Base):
    """Jobs submitted together, one a row of a file. `run_at` and the claim are for its completion."""

    __tablename__ = "batches"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    key: Mapped[str | None]  # its Idempotency-Key
    digest: Mapped[bytes]  # of the file and of what was said with it
    repeat: Mapped[str] = mapped_column(server_default="")  # equal rows under another one are made once more
    source: Mapped[dict[str, Any]]  # of the file: name, format, encoding, delimiter, bytes, sha256
    report: Mapped[dict[str, Any]]  # what was found before anything was spent: `batches.document.Report`
    rows: Mapped[int] = mapped_column(Integer)  # in the file
    bad: Mapped[int] = mapped_column(Integer, server_default="0")  # of these, with faults
    made: Mapped[int] = mapped_column(Integer, server_default="0")  # jobs, by the commit
    existing: Mapped[int] = mapped_column(Integer, server_default="0")  # rows that had a job before
    webhook_url: Mapped[str | None]  # is told of its completion

    state: Mapped[str] = mapped_column(server_default="draft")
    sequence: Mapped[int] = mapped_column(server_default="0")  # of its last event
    manifest: Mapped[str | None]  # the key of the list of what it made
    created_at: Mapped[datetime] = mapped_column(**_NOW)
    committed_at: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    canceled_at: Mapped[datetime | None]  # a person asked for it: what had been sent goes on
    completed_at: Mapped[datetime | None]  # the last time: what is made again opens it again

    run_at: Mapped[datetime | None]  # when its completion is due; null: its jobs are at work, or it is complete
    claim: Mapped[int] = mapped_column(server_default="0")
    claimed: Mapped[str | None]
    crashes: Mapped[int] = mapped_column(SmallInteger, server_default="0")

    __table_args__ = (
        CheckConstraint("state in ('draft', 'running', 'paused', 'completed')", name="state"),
        CheckConstraint("claimed in ('sent', 'taken')", name="claimed"),
        CheckConstraint("(state = 'paused') = (paused_at is not null)", name="paused"),
        Index("uq_batches_key", "project_id", "key", unique=True, postgresql_where=text("key is not null")),
        Index("ix_batches_listing", "project_id", text("id desc")),
        Index("ix_batches_open", "id", postgresql_where=text("state in ('running', 'paused')")),
        Index("ix_batches_due", "run_at", postgresql_where=text("run_at is not null")),
        Index("ix_batches_drafts", "created_at", postgresql_where=text("state = 'draft'")),
    )


class BatchRow(Base):
    """One row of a batch: what it asks for, until the commit makes it a job; then which job that is."""

    __tablename__ = "batch_rows"

    batch_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    n: Mapped[int] = mapped_column(Integer, primary_key=True)  # from 1
    line: Mapped[int] = mapped_column(Integer)  # where it begins in the file, from 1
    outcome: Mapped[str]  # good or bad; after the commit made, existing or skipped
    custom_id: Mapped[str | None]
    faults: Mapped[list[Any] | None]
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))  # its newest take
    hash: Mapped[bytes | None]  # of what it asks for: equal rows are made once in the project
    copy: Mapped[int] = mapped_column(Integer, server_default="1")  # which of the file's equal rows without a custom_id
    # what becomes the job's row; null once it is made
    kind: Mapped[str | None]
    model: Mapped[str | None]
    mode: Mapped[str | None]
    input: Mapped[dict[str, Any] | None]
    labels: Mapped[dict[str, Any] | None]
    priority: Mapped[int | None] = mapped_column(SmallInteger)
    webhook_url: Mapped[str | None]
    webhook_events: Mapped[list[str] | None]
    not_after: Mapped[datetime | None]
    review: Mapped[str | None]
    estimate: Mapped[int | None]
    cache_days: Mapped[int | None] = mapped_column(SmallInteger)

    __table_args__ = (
        CheckConstraint("outcome in ('good', 'bad', 'made', 'existing', 'skipped')", name="outcome"),
        Index("ix_batch_rows_job_id", "job_id"),
    )


class Schedule(Base):
    """A job that the clock submits: when, in which zone, and what."""

    __tablename__ = "schedules"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    cron: Mapped[str]
    time_zone: Mapped[str]  # IANA
    template: Mapped[dict[str, Any]]  # a submission, with variables in its strings
    overlap: Mapped[str] = mapped_column(server_default="skip")  # when the last run has not ended: skip, queue, cancel
    missed: Mapped[str] = mapped_column(server_default="run_once")  # fire times that no clock saw: run_once, skip
    next_at: Mapped[datetime | None]  # its next fire time; null while it is paused, or never again
    since: Mapped[datetime | None]  # until when the last run took documents: the next takes those after it
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))  # of the last run that submitted one
    paused_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(**_NOW)
    updated_at: Mapped[datetime] = mapped_column(**_NOW)

    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        CheckConstraint("overlap in ('skip', 'queue', 'cancel')", name="overlap"),
        CheckConstraint("missed in ('run_once', 'skip')", name="missed"),
        CheckConstraint("paused_at is null or next_at is null", name="paused"),
        Index("ix_schedules_next_at", "next_at", postgresql_where=text("next_at is not null")),
        Index("ix_schedules_job_id", "job_id", postgresql_where=text("job_id is not null")),
    )


class Run(Base):
    """What became of one fire time of a schedule; there is one row for each, whatever clocks do."""

    __tablename__ = "runs"

    id: Mapped[uuid.UUID] = mapped_column(**_ID)
    schedule_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("schedules.id", ondelete="CASCADE"))
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    fire_at: Mapped[datetime]
    trigger: Mapped[str]  # clock, late (missed, and made up for), or a person
    outcome: Mapped[str]  # waiting (for the run before it), submitted, skipped, refused
    why: Mapped[str] = mapped_column(server_default="")
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    key: Mapped[str | None]  # a person's Idempotency-Key
    at: Mapped[datetime] = mapped_column(**_NOW)

    __table_args__ = (
        UniqueConstraint("schedule_id", "fire_at"),
        UniqueConstraint("schedule_id", "key"),
        CheckConstraint("trigger in ('clock', 'late', 'person')", name="trigger"),
        CheckConstraint("outcome in ('waiting', 'submitted', 'skipped', 'refused')", name="outcome"),
        Index("ix_runs_waiting", "schedule_id", postgresql_where=text("outcome = 'waiting'")),
        Index("ix_runs_job_id", "job_id", postgresql_where=text("job_id is not null")),
    )


class Deletion(Base):
    """An object of the bucket, or all below a prefix, that nothing refers to any more: to be deleted."""

    __tablename__ = "deletions"

    key: Mapped[str] = mapped_column(primary_key=True)
    is_prefix: Mapped[bool] = mapped_column(server_default=text("false"))
    at: Mapped[datetime] = mapped_column(**_NOW)


class Duty(Base):
    """A repeated duty and when it is due, so that any number of clocks do it once."""

    __tablename__ = "duties"

    name: Mapped[str] = mapped_column(primary_key=True)
    due_at: Mapped[datetime] = mapped_column(**_NOW)
    done_at: Mapped[datetime] = mapped_column(**_NOW)  # when nothing of it was left; kept for those that workers do
    leased_until: Mapped[datetime | None]  # for those that one worker at a time does
