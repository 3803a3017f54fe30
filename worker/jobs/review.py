"""Reviews: what a person says of a job's outputs; and takes, which are made of what was rejected.

Whoever decides holds the job's row until the commit. So of two who decide at once one is answered by what the other
said, and a rejected take has one next take at the most.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, or_, select, update

from worker import document, inputs, moves
from worker.catalog import Catalog
from worker.errors import Conflict, Fault, InvalidInput, NotFound
from worker.jobs import reading, submission
from worker.jobs.submission import Submission
from worker.kinds import KINDS
from worker.kinds.fields import SEED_LIMIT
from worker.moves import bulk
from worker.settings import Settings
from worker.states import Move, State
from worker.tables import BatchRow, Job

MOST_TAKES = 100  # of one row
COMMENT_LENGTH = 2000

_DECIDED = {State.SUCCEEDED: "approved", State.REJECTED: "rejected"}


def approve(
    connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, comment: str | None, now: datetime
) -> Job:
    """The job, which has succeeded; one that was approved before stays as it is, with the first comment.

    Raises Conflict for a job that was rejected, needs no review, or has nothing to look at yet.
    """
    return _decide(connection, project_id, job_id, State.SUCCEEDED, comment, now)


def reject(connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, comment: str, now: datetime) -> Job:
    """The job, which is rejected; one that was rejected before stays as it is, with the first comment.

    Raises Conflict for a job that was approved, needs no review, or has nothing to look at yet.
    """
    return _decide(connection, project_id, job_id, State.REJECTED, comment, now)


def next_take(connection: Connection, job: Job) -> Job | None:
    """The take that was made of a rejected one; None: there is none. To be asked in the transaction that rejects."""
    said = {"the_project": job.project_id, "the_first": job.first_take or job.id, "the_take": job.take + 1}
    row = connection.execute(_TAKE, said).mappings().one_or_none()
    return Job.of(row) if row else None


def reroll(
    connection: Connection,
    catalog: Catalog,
    settings: Settings,
    job: Job,
    changes: Mapping[str, Any],
    now: datetime,
) -> Job:
    """Another take of a rejected job that has none yet: a new job, priced and reserved for like any.

    Its batch runs again. `changes` are fields of its input, `seed` or `prompt`; without any, another seed is drawn
    where its model takes one. Raises InvalidInput where the kind or the model takes no such field, or the catalog
    refuses what it took before; Conflict where the row has as many takes as it may.
    """
    if job.take >= MOST_TAKES:
        raise Conflict("too_many_takes", f"there are {MOST_TAKES} takes of it, as many as there may be")
    wanted = {**job.input, **(changes or _drawn(catalog, job))}
    try:
        prepared = submission.prepare(catalog, settings, _again(job, wanted, now), now)
    except InvalidInput as error:
        raise InvalidInput([_of_change(fault, changes) for fault in error.faults]) from None
    if job.batch_id is not None:  # locked before the job is made: whoever completes the batch now writes nothing
        bulk.reopen(connection, job.batch_id)
    kept = {"project_id": job.project_id, "batch_id": job.batch_id, "batch_row": job.batch_row}
    kept["schedule_id"] = job.schedule_id
    link = {"first_take": job.first_take or job.id, "take": job.take + 1}
    made = moves.make(connection, submission.asked(prepared) | kept | link, now)
    inputs.check(connection, job.project_id, prepared.model, prepared.input)
    if job.batch_id is not None:
        connection.execute(_POINT, {"the_batch": job.batch_id, "the_row": job.batch_row, "the_job": made.id})
    return made


def takes(connection: Connection, job: Job) -> list[Job]:
    """All takes of the job's row, the first first, cut as in lists."""
    said = {"the_project": job.project_id, "the_first": job.first_take or job.id}
    return [Job.of(row) for row in connection.execute(_TAKES, said).mappings()]


def _decide(
    connection: Connection, project_id: uuid.UUID, job_id: uuid.UUID, to: State, comment: str | None, now: datetime
) -> Job:
    row = connection.execute(_LOCKED, {"the_project": project_id, "the_job": job_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    job, decision = Job.of(row), _DECIDED[to]
    if job.review is None:
        raise Conflict("no_review", "nobody is to look at it: it was submitted without review: required")
    if job.review == decision:
        return job
    if job.review != "required":
        raise Conflict(f"already_{job.review}", f"it was {job.review} before, which is final")
    if job.state != State.AWAITING_REVIEW:
        raise Conflict("nothing_to_review", f"it is {job.state}: only what awaits a review is approved or rejected")
    columns = {"review": decision, "review_note": comment, "reviewed_at": now}
    return moves.record(connection, job, Move(to, f"{decision} by a person", columns=columns), now)


def _drawn(catalog: Catalog, job: Job) -> dict[str, int]:
    """Another seed, at random; nothing where the model takes none, whose takes differ anyway."""
    if "seed" not in KINDS[job.kind].input.model_fields or "seed" not in catalog.model(job.model).fields:
        return {}
    seed = secrets.randbelow(SEED_LIMIT)
    return {"seed": seed if seed != job.input.get("seed") else SEED_LIMIT}


def _again(job: Job, wanted: dict[str, Any], now: datetime) -> Submission:
    """What was asked for, with another input; a time to send by that has passed is not asked for again."""
    return Submission(
        kind=job.kind,
        model=job.model.partition("@")[0],  # users name no variants: the input says whether one is wanted
        input=wanted,
        metadata=job.labels,
        custom_id=job.custom_id,
        priority=document.PRIORITY_NAMES[job.priority],
        webhook_url=job.webhook_url,
        webhook_events=job.webhook_events,
        review="required",
        not_after=job.not_after if job.not_after and job.not_after > now else None,
        cache_days=0,  # another take is to be another answer
    )


def _of_change(fault: Fault, changes: Mapping[str, Any]) -> Fault:
    """The fault as one of the request's own field, where it is about that."""
    name = fault.pointer.removeprefix("/input/")
    return Fault(f"/reroll/{name}", fault.code, fault.message) if name in changes else fault


# Built once: to build a statement costs more than to run it.

_MINE = (Job.project_id == bindparam("the_project"), Job.id == bindparam("the_job"))
# What refers to the row, like another take of it, may be written meanwhile.
_LOCKED = select(*Job.__table__.c).where(*_MINE).with_for_update(key_share=True)
_LATER = Job.first_take == bindparam("the_first")
_TAKE = select(*Job.__table__.c).where(
    Job.project_id == bindparam("the_project"), _LATER, Job.take == bindparam("the_take")
)
_TAKES = (
    select(*reading.LISTED)
    .where(Job.project_id == bindparam("the_project"), or_(Job.id == bindparam("the_first"), _LATER))
    .order_by(Job.take)
)
_ROW = (BatchRow.batch_id == bindparam("the_batch"), BatchRow.n == bindparam("the_row"))
_POINT = update(BatchRow).where(*_ROW).values(job_id=bindparam("the_job"))
