"""What is read of jobs: one, a page of them, its history, its attempts.

Every query carries the project, so another project's ids do not exist.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, null, or_, select, tuple_
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.expression import cast

from worker import document
from worker.errors import NotFound
from worker.jobs import waiting
from worker.states import State
from worker.tables import Attempt, Event, File, Job, Output
from worker.text import moment

LOOKED_THROUGH = 10_000  # jobs, for a part of their prompts: no index finds those


@dataclass(frozen=True)
class Filter:
    """Which jobs to list; what is None or empty does not narrow. `before` is the last id of the page before."""

    states: tuple[str, ...] = ()
    kind: str | None = None
    model: str | None = None
    custom_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str | None = None
    before: uuid.UUID | None = None
    last: uuid.UUID | None = None  # the oldest job that is looked at


def one(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID) -> Job:
    """The project's job; raises NotFound."""
    row = connection.execute(_ONE, {"project": project_id, "job": job_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return Job.of(row)


def brief(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID) -> Job:
    """The project's job as lists have it, with what is long cut; raises NotFound."""
    statement = select(*_LISTED).where(Job.project_id == project_id, Job.id == job_id)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return Job.of(row)


def page(connection: Connection, project_id: uuid.UUID, wanted: Filter, limit: int) -> list[Job]:
    """At most `limit` top-level jobs, the newest first, as lists show them: long inputs and results are cut."""
    statement = (
        select(*_LISTED)
        .where(Job.project_id == project_id, Job.parent_id.is_(None), *_conditions(wanted))
        .order_by(Job.id.desc())
        .limit(limit)
    )
    return [Job.of(row) for row in connection.execute(statement).mappings()]


def last_to_look_at(
    connection: Connection, project_id: uuid.UUID, wanted: Filter, most: int = LOOKED_THROUGH
) -> uuid.UUID | None:
    """The last job of as many as one search may look through, found by the index; None: there are fewer."""
    statement = select(Job.id).where(Job.project_id == project_id, Job.parent_id.is_(None))
    if wanted.before:
        statement = statement.where(Job.id < wanted.before)
    found: uuid.UUID | None = connection.execute(
        statement.order_by(Job.id.desc()).offset(most - 1).limit(1)
    ).scalar_one_or_none()
    return found


def children(
    connection: Connection, parent: Job, states: Sequence[str], after: tuple[int, int], limit: int
) -> list[Job]:
    """At most `limit` of the job's children after a (round, place), in that order, cut as `page` cuts them.

    All states where none is named.
    """
    places = tuple_(Job.round, Job.place)
    statement = select(*_LISTED).where(Job.parent_id == parent.id, places > after)
    if states:
        statement = statement.where(Job.state.in_(states))
    rows = connection.execute(statement.order_by(Job.round, Job.place).limit(limit)).mappings()
    return [Job.of(row) for row in rows]


def history(connection: Connection, job: Job, after: int = 0, limit: int | None = None) -> Sequence[Row[tuple[Event]]]:
    """The job's events after a sequence number, oldest first."""
    statement = (
        select(*Event.__table__.c)
        .where(Event.job_id == job.id, Event.project_id == job.project_id, Event.sequence > after)
        .order_by(Event.sequence)
        .limit(limit)
    )
    return connection.execute(statement).all()


def sequences(connection: Connection, job_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
    """The sequence number of each job's last event; of jobs that were read as their project's before."""
    statement = select(Job.id, Job.sequence).where(Job.id.in_(job_ids))
    return {row.id: row.sequence for row in connection.execute(statement)}


def attempts(connection: Connection, job: Job) -> list[Attempt]:
    """Every create call of the job, oldest first, without its `output`, which is the job's."""
    statement = select(*_CALL).where(Attempt.job_id == job.id).order_by(Attempt.number)
    return [Attempt.of(row) for row in connection.execute(statement).mappings()]


def output(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, n: int) -> Output:
    """The n-th stored output of the project's job; raises NotFound."""
    statement = select(*Output.__table__.c).where(
        Output.project_id == project_id, Output.job_id == job_id, Output.n == n
    )
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no output {n} of job {job_id}")
    return Output.of(row)


def documents(connection: Connection, project: str, jobs: Sequence[Job], now: datetime) -> list[dict[str, Any]]:
    """The jobs as the API shows them, in their order."""
    stored, requests = document.outputs(connection, jobs), document.request_ids(connection, jobs)
    made_of = document.parts(connection, jobs)
    causes = waiting.waiting_on(connection, jobs, now)
    causes |= {job.id: waiting.on_parts(made_of[job.id]) for job in jobs if job.state == State.GATHERING}
    return [
        document.shown(project, job, stored[job.id], requests.get(job.id), causes[job.id], made_of.get(job.id))
        for job in jobs
    ]


def lane_shown(lane: Row[Any], is_operator: bool) -> dict[str, Any]:
    """A lane, as `slots.listed` gives it, as the API and the command line show it."""
    return {
        "object": "lane",
        "model": lane.model,
        "region": lane.region,
        "account": lane.owner if is_operator else None,
        "concurrency": lane.concurrency,
        "allowed": lane.allowed,
        "per_second": round(1e6 / lane.interval_us, 3) if lane.interval_us else None,
        "pace": round(lane.pace_now, 3),
        "in_use": lane.in_use,
        "queued": lane.queued,
        "tokens": _tokens(lane),
        "waiting_on": document.cause_shown(waiting.of_lane(lane)),
    }


def _tokens(lane: Row[Any]) -> dict[str, Any] | None:
    """What calls may take, are booked ahead and took today; None where the provider does not limit that."""
    if lane.tpm is None and lane.tpd is None:
        return None
    ahead = None if lane.tokens_ahead is None else int(lane.tokens_ahead)
    return {"per_minute": lane.tpm, "ahead": ahead, "per_day": lane.tpd, "today": lane.tokens_today}


def file_shown(file: File) -> dict[str, Any]:
    """An input that a user gave, as the API shows it."""
    return {
        "object": "file",
        "id": str(file.id),
        "name": file.name,
        "key": file.key,
        "content_type": file.content_type,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "created_at": moment(file.created_at),
    }


def attempt_shown(attempt: Attempt) -> dict[str, Any]:
    """One create call as the API shows it."""
    return {
        "object": "attempt",
        "id": str(attempt.id),
        "number": attempt.number,
        "model": attempt.model,
        "region": attempt.region,
        "account": attempt.account,
        "sent_at": moment(attempt.sent_at),
        "answered_at": moment(attempt.answered_at),
        "outcome": attempt.outcome,
        "http_status": attempt.http_status,
        "request_id": attempt.request_id,
        "task_id": attempt.task_id,
        "code": attempt.code,
        "message": attempt.message,
        "billed": attempt.billed,
    }


def event_shown(event: Any) -> dict[str, Any]:
    """One recorded move as the API shows it."""
    return {
        "object": "event",
        "id": f"evt_{event.id}",
        "job_id": str(event.job_id),
        "sequence": event.sequence,
        "type": event.type,
        "from": event.left,
        "to": event.entered,
        "why": event.why,
        "at": moment(event.at),
    }


_SHORT: Mapping[str, Any] = {  # what a list never loads whole: megabytes each; a text that was cut ends in "…"
    "input": func.shortened(Job.input, type_=JSONB),
    "result": func.shortened(Job.result, type_=JSONB),
    "note": null(),
    "sources": null(),
}
_LISTED = [_SHORT[column.name].label(column.name) if column.name in _SHORT else column for column in Job.__table__.c]
_CALL = [null().label("output") if column.name == "output" else column for column in Attempt.__table__.c]

# Built once: with the columns of a job, building a statement costs as much as running it.
_ONE = select(*Job.__table__.c).where(Job.project_id == bindparam("project"), Job.id == bindparam("job"))


def _conditions(wanted: Filter) -> list[Any]:
    simple = {Job.kind: wanted.kind, Job.model: wanted.model, Job.custom_id: wanted.custom_id}
    conditions: list[Any] = [column == value for column, value in simple.items() if value is not None]
    if wanted.states:
        conditions.append(Job.state.in_(wanted.states))
    if wanted.metadata:
        conditions.append(Job.labels.op("@>")(cast(dict(wanted.metadata), JSONB)))
    if wanted.created_after:
        conditions.append(Job.created_at > wanted.created_after)
    if wanted.created_before:
        conditions.append(Job.created_at < wanted.created_before)
    if wanted.before:
        conditions.append(Job.id < wanted.before)
    if wanted.last:
        conditions.append(Job.id >= wanted.last)
    if wanted.q:
        pattern = "%" + wanted.q.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
        conditions.append(or_(Job.input["prompt"].astext.ilike(pattern), Job.custom_id.ilike(pattern)))
    return conditions
