"""The children of a job, as rows: made, counted, waited for, canceled, made again.

A child is a job like any other, with a parent and a place in one of its rounds. Nothing here looks at all parents:
the end of a child wakes its own parent, and once a minute the tick looks at those that wait (two children that end
in the same instant see each other unfinished, and wake nobody).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker.errors import ErrorClass, Failure
from worker.kinds import KINDS, ParentKind
from worker.kinds.kind import Ended, Stored
from worker.tables import Event, Job, Output


@dataclass(frozen=True)
class Counts:
    """A parent's children: how many have not ended, and ended without success; and how many its last round has."""

    unfinished: int
    failed: int  # failed or expired
    in_round: int


def make(connection: Connection, parent: Job, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Inserts children; a place that is taken stays as it is, so that a commit may be repeated."""
    shared = {
        "project_id": parent.project_id,
        "parent_id": parent.id,
        "priority": parent.priority,
        "rank_at": parent.rank_at,  # in their project's line they stand where their parent came in
        "created_at": now,
        "state_at": now,
        "run_at": now,
        "sequence": 1,
    }
    made = connection.execute(_MAKE, [{**shared, **row} for row in rows]).scalars().all()
    if made:
        said = {"project_id": parent.project_id, "sequence": 1, "type": "job.queued", "entered": "queued", "at": now}
        connection.execute(insert(Event), [{**said, "job_id": child} for child in made])


def counts(connection: Connection, parent: Job) -> Counts:
    """How the parent's children stand."""
    row = connection.execute(_COUNTS, {"parent": parent.id, "round": parent.round}).one()
    return Counts(row.unfinished, row.failed, row.in_round)


def unfinished(connection: Connection, project_id: uuid.UUID, most: int) -> int:
    """How many of the project's children have not ended; no more than `most` are counted."""
    return int(connection.execute(_UNFINISHED, {"project": project_id, "most": most}).scalar_one())


def ended(connection: Connection, parent: Job, rounds: int) -> list[Ended]:
    """The children of the first `rounds` rounds in the order of their places, with what they made."""
    stored: dict[uuid.UUID, list[Stored]] = {}
    for row in connection.execute(_STORED, {"parent": parent.id, "rounds": rounds}):
        seconds = None if row.duration is None else float(row.duration)
        stored.setdefault(row.job_id, []).append(Stored(row.role, row.key, row.bytes, seconds))
    rows = connection.execute(_ENDED, {"parent": parent.id, "rounds": rounds}).mappings()
    return [Ended(**{**row, "note": row["note"] or {}}, outputs=tuple(stored.get(row["id"], ()))) for row in rows]


def first_failed(connection: Connection, parent: Job) -> Job | None:
    """The first child that failed or expired; None where none did."""
    row = connection.execute(_FIRST_FAILED, {"parent": parent.id}).mappings().one_or_none()
    return Job.of(row) if row else None


def paid(connection: Connection, parent: Job) -> dict[str, Any]:
    """What the children cost in all: the columns of a parent that has ended."""
    row = connection.execute(_PAID, {"parent": parent.id}).one()
    return {"cost": row.cost, "billed": row.billed}


def tell_paid(connection: Connection, parent_id: uuid.UUID) -> None:
    """Lets a parent that has ended say what its children cost, as the ledger has it now."""
    ended = select(*Job.__table__.c).where(Job.id == parent_id, Job.finished_at.is_not(None))
    row = connection.execute(ended).mappings().one_or_none()
    if row is not None:
        connection.execute(update(Job).where(Job.id == parent_id).values(**paid(connection, Job.of(row))))


def wake(connection: Connection, parent_id: uuid.UUID) -> bool:
    """Makes a parent due that waits for its children and has none left to wait for; whether it did.

    One that needs all of its children is due at the first that failed, too. To be called in a transaction of its
    own, after the child's end is committed.
    """
    return connection.execute(_WAKE, {"parent": parent_id, "hasty": _hasty()}).rowcount > 0


def wake_all(connection: Connection, now: datetime) -> None:
    """The same look at every parent that waits."""
    connection.execute(_WAKE_ALL, {"hasty": _hasty(), "now": now})


def cancel(connection: Connection, parent: Job, why: str, now: datetime) -> None:
    """Ends the children that nobody works on and for which nothing was sent; leaves word for the others."""
    connection.execute(_CANCEL, {"parent": parent.id, "why": why, "now": now})
    connection.execute(_ASK, {"parent": parent.id, "now": now})


def condemn(connection: Connection, parent: Job, parts: Sequence[uuid.UUID], why: str, now: datetime) -> None:
    """Fails children that succeeded and are of no use to their parent, so that a retry makes them again."""
    error = Failure("part_unfit", ErrorClass.PROVIDER, why, retryable=True, billed="yes").as_json()
    said = {"parent": parent.id, "parts": list(parts), "why": why, "error": json.dumps(error), "now": now}
    connection.execute(_CONDEMN, said)


def make_again(connection: Connection, parent: Job, now: datetime) -> int:
    """Puts the children that failed, expired or were canceled back into the line; how many."""
    return connection.execute(_AGAIN, {"parent": parent.id, "now": now}).rowcount


def _hasty() -> list[str]:
    """The kinds that need all of their children, so that the first failure is news."""
    return [kind.name for kind in KINDS.values() if isinstance(kind, ParentKind) and kind.all_or_none]


# Built once: to build a statement costs more than to run it.

_MAKE = (
    upsert(Job)
    .on_conflict_do_nothing(index_elements=["parent_id", "round", "place"], index_where=text("parent_id is not null"))
    .returning(Job.id)
)
_COUNTS = text(
    """
    select count(*) filter (where finished_at is null) as unfinished,
           count(*) filter (where state in ('failed', 'expired')) as failed,
           count(*) filter (where round = :round) as in_round
      from jobs where parent_id = :parent
    """
)
_UNFINISHED = text(
    """
    select count(*) from (select from jobs where project_id = :project and finished_at is null
                             and parent_id is not null limit :most) as waiting
    """
)
_SHOWN = ("id", "round", "place", "kind", "model", "note", "state", "result", "usage", "cost", "error")
_CHILD = Job.__table__
_ENDED = (
    select(*(_CHILD.c[name] for name in _SHOWN))
    .where(text("parent_id = :parent and round <= :rounds"))
    .order_by(Job.round, Job.place)
)
_STORED = (
    select(Output.job_id, Output.role, Output.key, Output.bytes, Output.duration)
    .join(Job, Job.id == Output.job_id)
    .where(text("jobs.parent_id = :parent and jobs.round <= :rounds"))
    .order_by(Output.job_id, Output.n)
)
_FIRST_FAILED = (
    select(*_CHILD.c)
    .where(text("parent_id = :parent and state in ('failed', 'expired')"))
    .order_by(Job.round, Job.place)
    .limit(1)
)
# Every call that was settled, also those of a part that was made again.
_PAID = text(
    """
    select (select sum(micros) from ledger where job_id = :parent and entry = 'settle') as cost,
           case when bool_or(billed = 'unknown') then 'unknown' when bool_or(billed = 'yes') then 'yes'
                else 'no' end as billed
      from jobs where parent_id = :parent
    """
)
_WAITS = """jobs.state = 'gathering' and jobs.claimed is null and jobs.run_at is null
       and (not exists (select from jobs as child where child.parent_id = jobs.id and child.finished_at is null)
            or (jobs.cancel_requested
                or jobs.kind = any(:hasty)
                   and exists (select from jobs as child where child.parent_id = jobs.id
                                and child.state in ('failed', 'expired')))
               and exists (select from jobs as child where child.parent_id = jobs.id
                            and child.finished_at is null and not child.cancel_requested))"""
_WAKE = text(f"update jobs set run_at = now() where id = :parent and {_WAITS}")  # noqa: S608 - words of ours
_WAKE_ALL = text(f"update jobs set run_at = :now where {_WAITS}")  # noqa: S608
_CANCEL = text(
    """
    with ended as (
        update jobs set state = 'canceled', state_at = :now, finished_at = :now, run_at = null, claimed = null,
               held_for = null, held_from = null, cancel_requested = true, claim = claim + 1, sequence = sequence + 1
         where parent_id = :parent and claimed is distinct from 'taken'
           and (state in ('queued', 'admitted') or state = 'held' and held_from <> 'uncertain')
        returning id, project_id, sequence, old.state as was
    )
    insert into events (job_id, project_id, sequence, type, "left", entered, why, at)
    select id, project_id, sequence, 'job.canceled', was, 'canceled', :why, :now from ended
    """
)
_ASK = text(
    """
    update jobs set cancel_requested = true,
           run_at = case when claimed is null and state = 'running' then least(run_at, :now) else run_at end
     where parent_id = :parent and finished_at is null and not cancel_requested
    """
)
_CONDEMN = text(
    """
    with unfit as (
        update jobs set state = 'failed', state_at = :now, error = cast(:error as jsonb), claim = claim + 1,
               sequence = sequence + 1
         where parent_id = :parent and id = any(:parts) and state = 'succeeded'
        returning id, project_id, sequence, old.state as was
    ), gone as (
        delete from outputs where job_id in (select id from unfit)
    )
    insert into events (job_id, project_id, sequence, type, "left", entered, why, at)
    select id, project_id, sequence, 'job.failed', was, 'failed', :why, :now from unfit
    """
)
_AGAIN = text(
    """
    with again as (
        update jobs set state = 'queued', state_at = :now, run_at = :now, finished_at = null, error = null,
               cancel_requested = false, retries = 0, task_id = null, task_status = null, sources = null,
               relinked = false, links_expire_at = null, deadline_at = null, unknown_since = null, crashes = 0,
               lane_id = null, account = null, region = null, claimed = null, claim = claim + 1,
               attempt_id = null, cost = null, billed = 'no', usage = null, result = null, sequence = sequence + 1
         where parent_id = :parent and state in ('failed', 'expired', 'canceled')
        returning id, project_id, sequence, old.state as was
    )
    insert into events (job_id, project_id, sequence, type, "left", entered, why, at)
    select id, project_id, sequence, 'job.queued', was, 'queued', 'made again', :now from again
    """
)
