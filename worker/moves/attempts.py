"""What is read of create calls: whose a task is, and how a job's earlier calls ended; and tasks that no call made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
from sqlalchemy import (
    ARRAY,
    Connection,
    DateTime,
    Row,
    Text,
    and_,
    any_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from worker.claims import NOW
from worker.states import State
from worker.tables import Attempt, Job, Owner, Unowned

_SWEPT_EVERY, _SWEPT_AGAIN = timedelta(hours=1), timedelta(minutes=5)  # between two sweeps; after one that failed
_UNOWNED_KEPT = timedelta(days=7)


def last(connection: Connection, job: Job) -> Attempt | None:
    """The job's last create call as it is on record now; None when it never made one."""
    row = connection.execute(_LAST, {"attempt": job.attempt_id}).mappings().one_or_none()
    return Attempt.of(row) if row else None


def bound(connection: Connection, owner: str, task_ids: Sequence[str]) -> set[str]:
    """Those of the owner's tasks that an attempt has."""
    found = connection.execute(_BOUND, {"owner": owner, "tasks": list(task_ids)}).scalars()
    return {task_id for task_id in found if task_id}


def is_taken(error: IntegrityError) -> bool:
    """Whether a statement failed because the task that it writes is another attempt's."""
    return isinstance(error.orig, psycopg.Error) and error.orig.diag.constraint_name == "uq_attempts_task"


def rivals(connection: Connection, attempt: Attempt, within: timedelta) -> Sequence[Row[Any]]:
    """The other attempts of the lane without a task, sent about when this one was, each with its job's request."""
    said = {"attempt": attempt.id, "owner": attempt.owner, "model": attempt.model}
    said |= {"start": attempt.sent_at - within, "end": attempt.sent_at + within}
    return connection.execute(_RIVALS, said).all()


def refusals(connection: Connection, job: Job, code: str) -> int:
    """How often the job's create calls were refused with that code before."""
    return connection.execute(_REFUSALS, {"job": job.id, "code": code}).scalar_one()


def unanswered(connection: Connection, job: Job) -> int:
    """How many of the job's create calls before this one went without an answer."""
    return connection.execute(_UNANSWERED, {"job": job.id, "attempt": job.attempt_id}).scalar_one()


def absences(connection: Connection, job: Job) -> int:
    """How many of the job's create calls before this one were proved absent, or declared so by a person."""
    return connection.execute(_ABSENCES, {"job": job.id, "attempt": job.attempt_id}).scalar_one()


def answered(
    connection: Connection, job: Job, request_hash: bytes, accounts: Sequence[str], since: datetime
) -> Row[Any] | None:
    """The newest answer since then to an equal call of the job's project by one of the accounts: `output`, `job_id`.

    Only of a job that succeeded, with that call: one whose answer its kind, its parent or a person refused has not.
    """
    said = {"project": job.project_id, "hash": request_hash, "accounts": accounts, "since": since}
    return connection.execute(_ANSWERED, said | {"of_kind": job.kind, "of_model": job.model}).one_or_none()


def take_sweeps(connection: Connection) -> dict[str, datetime]:
    """The owners whose tasks are to be swept now, and Postgres's time; nobody else sweeps them within the hour."""
    return {row.name: row.now for row in connection.execute(_TAKE_SWEEPS)}


def put_sweep_off(connection: Connection, owner: str) -> None:
    """Makes the owner's sweep due again soon: it failed."""
    connection.execute(_PUT_SWEEP_OFF, {"owner": owner})


def keep_unowned(connection: Connection, owner: str, rows: Sequence[dict[str, Any]]) -> list[int]:
    """Keeps tasks that no attempt has; what each that was not known cost, micro-CNY.

    Forgets the owner's that an attempt has by now, and what was found a week ago.
    """
    connection.execute(_FORGET_OWNED, {"owner": owner})
    connection.execute(_FORGET_OLD)
    kept = [connection.execute(_KEEP_UNOWNED, row).one() for row in rows]
    return [row.micros or 0 for row in kept if row.is_new]


# Statements are built once: to build one costs more than to run it.

_OWNER = bindparam("owner", type_=Text)
_LAST = select(*Attempt.__table__.c).where(Attempt.id == bindparam("attempt"))
_BOUND = select(Attempt.task_id).where(Attempt.owner == _OWNER, Attempt.task_id.in_(bindparam("tasks", expanding=True)))
_RIVALS = (
    select(Attempt.request_hash, Attempt.request_id, Attempt.closed_at)
    .add_columns(Job.id, Job.project_id, Job.state, Job.kind, Job.input)
    .join(Job, Job.id == Attempt.job_id)
    .where(
        Attempt.owner == _OWNER,
        Attempt.model == bindparam("model"),
        # what was called absent is a rival still: that verdict may have been wrong
        or_(Attempt.closed_at.is_(None), Attempt.outcome == "absent"),
        Attempt.task_id.is_(None),
        Attempt.id != bindparam("attempt"),
        Attempt.sent_at.between(
            bindparam("start", type_=DateTime(timezone=True)), bindparam("end", type_=DateTime(timezone=True))
        ),
    )
)
_OF_JOB = select(func.count()).where(Attempt.job_id == bindparam("job"))
_REFUSALS = _OF_JOB.where(Attempt.code == bindparam("code"))
_BEFORE = _OF_JOB.where(Attempt.id != bindparam("attempt"))  # of this call another worker may have said something
_UNANSWERED = _BEFORE.where(Attempt.outcome == "unknown")
_ABSENCES = _BEFORE.where(Attempt.outcome == "absent")
# by `ix_attempts_answers`, the newest first
_ANSWERED = (
    select(Attempt.output, Attempt.job_id)
    .join(Job, and_(Job.id == Attempt.job_id, Job.attempt_id == Attempt.id))
    .where(
        Attempt.project_id == bindparam("project"),
        Attempt.request_hash == bindparam("hash"),
        Attempt.output.is_not(None),
        Attempt.answered_at > bindparam("since", type_=DateTime(timezone=True)),
        Attempt.account == any_(bindparam("accounts", type_=ARRAY(Text))),
        Job.state == State.SUCCEEDED,
        Job.kind == bindparam("of_kind"),
        Job.model == bindparam("of_model"),
    )
    .order_by(Attempt.answered_at.desc())
    .limit(1)
)
# takes the sweeps that are due, and puts the next ones off
_TAKE_SWEEPS = (
    update(Owner)
    .where(Owner.sweep_at <= NOW)
    .values(sweep_at=NOW + _SWEPT_EVERY)
    .returning(Owner.name, NOW.label("now"))
)
_PUT_SWEEP_OFF = update(Owner).where(Owner.name == _OWNER).values(sweep_at=NOW + _SWEPT_AGAIN)
_FORGET_OWNED = delete(Unowned).where(
    Unowned.owner == _OWNER,
    exists().where(Attempt.owner == Unowned.owner, Attempt.task_id == Unowned.task_id),
)
_FORGET_OLD = delete(Unowned).where(Unowned.found_at < NOW - _UNOWNED_KEPT)
_FOUND = upsert(Unowned)
# keeps a task, or what is known of it now; whether it is new, by the transaction's clock
_KEEP_UNOWNED = _FOUND.on_conflict_do_update(
    index_elements=[Unowned.owner, Unowned.task_id],
    set_={"status": _FOUND.excluded.status, "micros": func.coalesce(_FOUND.excluded.micros, Unowned.micros)},
).returning(Unowned.micros, (Unowned.found_at == func.now()).label("is_new"))
