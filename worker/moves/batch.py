"""The jobs of a batch, made together: one statement for all of its good rows, which makes each row once in the project.

A row's key is kept among the Idempotency-Keys, for as long as they are, and committed with its job. So the same file
makes nothing again, a corrected one makes only the rows that changed, and two commits at once make each row once: the
second waits for the first at the first key that both have, and finds the jobs.
"""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    LargeBinary,
    Select,
    Text,
    Update,
    Uuid,
    and_,
    any_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import aliased

from worker import document, webhooks
from worker.moves import making
from worker.states import Mode
from worker.tables import BatchRow, Event, IdempotencyKey, Job
from worker.webhooks import endpoints

# What becomes a job's row, and is not kept twice: as `jobs.submission.asked` names it.
ASKED = (
    *("kind", "model", "mode", "input", "labels", "priority", "webhook_url", "webhook_events"),
    *("review", "not_after", "estimate"),
)
_SPENT: dict[str, Any] = {name: null() for name in ASKED}
# A tab, which no Idempotency-Key of a user's may hold.
_PREFIX = "row\t"
_QUEUED = "job.queued"
_TOLD_AT_ONCE = 500  # deliveries that are written together


def make(connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID, now: datetime) -> tuple[int, int]:
    """Makes a job of each good row that has none yet in the project, and links the others to theirs: of how many each.

    Jobs of one commit stand in their project's line as their rows stand in the file.
    """
    bound = {"the_project": project_id, "the_batch": batch_id, "now": now}
    made = existing = 0
    while connection.execute(_HAS_GOOD, bound).scalar_one():  # again, where a key has ended just now
        connection.execute(_PLAN, {"nested": "off"})
        made += connection.execute(_MAKE, bound).scalar_one()
        connection.execute(_PLAN, {"nested": "on"})
        existing += connection.execute(_LINK, bound).rowcount
    return made, existing


def tell(connection: Connection, project: str, project_id: uuid.UUID, batch_id: uuid.UUID) -> None:
    """Writes the deliveries of the first events of a batch's jobs, to the receivers and endpoints that want them."""
    bound = {"the_project": project_id, "the_batch": batch_id}
    found = connection.execute(_WANTED, bound, execution_options={"yield_per": _TOLD_AT_ONCE})
    for rows in found.mappings().partitions():
        told = [(row, _body(project, Job.of(row))) for row in rows]
        if own := [(row["id"], row["event_id"], row["webhook_url"], body) for row, body in told if row["is_wanted"]]:
            webhooks.enqueue_all(connection, project_id, own)
        if rows[0]["listens"]:
            of_endpoints = [(row["id"], row["event_id"], body) for row, body in told]
            endpoints.enqueue_all(connection, project_id, _QUEUED, of_endpoints)


def _body(project: str, job: Job) -> str:
    parts: Counter[str] | None = Counter() if job.mode == Mode.PARENT else None
    shown = document.shown(project, job, [], None, None, parts)
    return making.body(_QUEUED, job, shown, job.created_at)


# Statements are built once: to build one costs more than to run it.

_PROJECT, _NOW = bindparam("the_project", type_=Uuid), bindparam("now", type_=DateTime(timezone=True))
_GOOD = (BatchRow.batch_id == bindparam("the_batch", type_=Uuid), BatchRow.outcome == literal_column("'good'"))
_HAS_GOOD = select(exists().where(*_GOOD))


def _key(row: Any) -> Any:
    """What a row is known by in its project."""
    return literal(_PREFIX, Text).concat(func.encode(row.hash, "hex")).concat(".").concat(cast(row.copy, Text))


# Whether a row of a batch has a job already; binds `the_project`.
IS_MADE = exists().where(IdempotencyKey.project_id == _PROJECT, IdempotencyKey.key == _key(BatchRow))


def _making() -> Select[Any]:
    """Makes the jobs of the good rows whose keys are new, and returns how many."""
    rows = select(BatchRow).where(*_GOOD).order_by(BatchRow.n).subquery("good")
    born = select(func.uuidv7().label("id"), _NOW.label("at"), _key(rows.c).label("key"), rows).cte("born")
    names = ("project_id", "key", "request_hash", "job_id", "created_at")
    # in one order, so that two commits never wait for each other's keys
    keys = select(_PROJECT, born.c.key, cast(born.c.hash, LargeBinary), born.c.id, born.c.at).order_by(born.c.key)
    kept = upsert(IdempotencyKey).from_select(names, keys).on_conflict_do_nothing().returning(IdempotencyKey.job_id)
    is_new = kept.cte("kept")
    asked = {name: born.c[name] for name in (*ASKED, "custom_id", "batch_id")}
    written = making.columns(born, {"project_id": _PROJECT, "batch_row": born.c.n, **asked})
    given = select(*written.values()).join_from(born, is_new, is_new.c.job_id == born.c.id).order_by(born.c.n)
    made = making.inserted(written, given)
    mine = (BatchRow.batch_id == bindparam("the_batch", type_=Uuid), BatchRow.n == made.c.batch_row)
    marked = update(BatchRow).where(*mine).values(job_id=made.c.id, outcome="made", **_SPENT)
    return (
        select(func.count()).select_from(made).add_cte(making.told(made), making.reserved(made), marked.cte("marked"))
    )


def _linking() -> Update:
    """Links the good rows whose keys are known to the newest takes of their jobs."""
    later = aliased(Job, name="later")
    newest = select(later.id).where(later.first_take == IdempotencyKey.job_id).order_by(later.take.desc()).limit(1)
    job = func.coalesce(newest.correlate(IdempotencyKey).scalar_subquery(), IdempotencyKey.job_id)
    known = (IdempotencyKey.project_id == _PROJECT, IdempotencyKey.key == _key(BatchRow))
    return update(BatchRow).where(*_GOOD, *known).values(job_id=job, outcome="existing", **_SPENT)


# The planner takes rows that were just written for a handful, and would compare each of them with each.
_PLAN = text("select set_config('enable_nestloop', :nested, true)")
_MAKE, _LINK = _making(), _linking()
_IS_WANTED = func.coalesce(
    and_(Job.webhook_url.is_not(None), literal(_QUEUED, Text) == any_(Job.webhook_events)), False
)
_LISTENS = select(endpoints.listens(_PROJECT, literal(_QUEUED, Text))).scalar_subquery()  # which is asked once
_WANTED = (
    select(
        *Job.__table__.c,
        Event.id.label("event_id"),
        _IS_WANTED.label("is_wanted"),
        _LISTENS.label("listens"),
    )
    .join(Event, Event.job_id == Job.id)
    .where(
        Job.batch_id == bindparam("the_batch", type_=Uuid),
        Job.project_id == _PROJECT,
        Event.sequence == 1,
        or_(_IS_WANTED, _LISTENS),
    )
    .order_by(Job.id)
)
