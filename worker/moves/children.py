"""The children of a job, as rows: made, counted, waited for, canceled, made again.

A child is a job like any other, with a parent and a place in one of its rounds. The end of a child wakes its own
parent. Once a minute the tick looks at all parents that wait: two children that end in the same instant see each
other unfinished, and wake nobody.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Connection, Uuid, and_, any_, bindparam, delete, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import claims
from worker.errors import ErrorClass, Failure
from worker.kinds import KINDS, ParentKind
from worker.kinds.kind import Ended, Stored
from worker.moves import transition
from worker.states import DONE, State
from worker.tables import Event, Job, Output


@dataclass(frozen=True)
class Counts:
    """A parent's children: how many have not ended, and ended without success; and how many its last round has."""

    unfinished: int
    failed: int  # failed or expired
    in_round: int


@dataclass(frozen=True)
class Make:
    """An effect of a parent's move: these children are made, `rows` of `jobs` but for what they share."""

    rows: Sequence[Mapping[str, Any]]

    def carry_out(self, connection: Connection, job: Job, now: datetime) -> None:
        """Inserts them; a place that is taken stays as it is, so that a commit may be repeated."""
        if not self.rows:
            return
        shared = {
            "project_id": job.project_id,
            "parent_id": job.id,
            "priority": job.priority,
            "cache_days": job.cache_days,
            "rank_at": job.rank_at,  # in their project's line they stand where their parent came in
            "created_at": now,
            "state_at": now,
            "run_at": now,
            "sequence": 1,
        }
        made = connection.execute(_MAKE, [{**shared, **row} for row in self.rows]).scalars().all()
        if made:
            said = {"project_id": job.project_id, "sequence": 1, "type": "job.queued", "entered": "queued", "at": now}
            connection.execute(insert(Event), [{**said, "job_id": child} for child in made])


@dataclass(frozen=True)
class Cancel:
    """An effect of a parent's move: its children are to end."""

    why: str

    def carry_out(self, connection: Connection, job: Job, now: datetime) -> None:
        """Ends those that nobody works on and for which nothing was sent; asks the others to end."""
        connection.execute(_CANCEL, {"parent": job.id, "the_why": self.why, "now": now})
        connection.execute(_ASK, {"parent": job.id, "now": now})


@dataclass(frozen=True)
class Fail:
    """An effect of a parent's end: `parts` that succeeded are of no use to it, and a retry is to make them again."""

    parts: Sequence[uuid.UUID]
    why: str

    def carry_out(self, connection: Connection, job: Job, now: datetime) -> None:
        """Fails them, and forgets their outputs."""
        if self.parts:
            error = Failure("part_unfit", ErrorClass.PROVIDER, self.why, retryable=True, billed="yes").as_json()
            said = {"parent": job.id, "parts": list(self.parts), "the_why": self.why, "the_error": error, "now": now}
            failed = connection.execute(_FAIL, said).scalars().all()
            connection.execute(_FORGET, {"jobs": failed})


def make_again(connection: Connection, parents: Sequence[uuid.UUID], now: datetime) -> None:
    """Puts the parents' children that failed, expired or were canceled back into the line."""
    connection.execute(_AGAIN, {"parents": parents, "the_why": "made again", "now": now})


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


def paid(connection: Connection, parent_id: uuid.UUID) -> dict[str, Any]:
    """What the children cost in all: the columns of a parent that is done."""
    row = connection.execute(_PAID, {"parent": parent_id}).one()
    return {"cost": row.cost, "billed": row.billed}


def tell_paid(connection: Connection, parent_id: uuid.UUID) -> None:
    """Lets a parent that is done say what its children cost, as the ledger has it now."""
    is_done = (Job.id == parent_id, Job.state.in_(DONE))
    connection.execute(update(Job).where(*is_done).values(**paid(connection, parent_id)))


def wake(connection: Connection, parent_id: uuid.UUID) -> bool:
    """Makes a parent due that waits for its children and has none left to wait for; whether it did.

    One that needs all of its children is due at the first that failed, too. To be called in a transaction of its
    own, after the child's end is committed.
    """
    return connection.execute(_WAKE, {"parent": parent_id, "all_or_none": _all_or_none()}).rowcount > 0


def wake_all(connection: Connection, now: datetime) -> None:
    """The same look at every parent that waits."""
    connection.execute(_WAKE_ALL, {"all_or_none": _all_or_none(), "now": now})


def _all_or_none() -> list[str]:
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
    select (select cast(sum(micros) as bigint) from ledger where job_id = :parent and entry = 'settle') as cost,
           case when bool_or(billed = 'unknown') then 'unknown' when bool_or(billed = 'yes') then 'yes'
                else 'no' end as billed
      from jobs where parent_id = :parent
    """
)
# The provider drops no task that has started, and says so each time.
_IS_ASKED = "({0}state <> 'running' or {0}task_status is distinct from 'RUNNING')"
_WAITS = f"""jobs.state = 'gathering' and jobs.claimed is null and jobs.run_at is null
       and (not exists (select from jobs as child where child.parent_id = jobs.id and child.finished_at is null)
            or (jobs.cancel_requested
                or jobs.kind = any(:all_or_none)
                   and exists (select from jobs as child where child.parent_id = jobs.id
                                and child.state in ('failed', 'expired')))
               and exists (select from jobs as child where child.parent_id = jobs.id and child.finished_at is null
                            and not child.cancel_requested and {_IS_ASKED.format("child.")}))"""  # noqa: S608
_WAKE = text(f"update jobs set run_at = now() where id = :parent and {_WAITS}")  # noqa: S608 - words of ours
_WAKE_ALL = text(f"update jobs set run_at = :now where {_WAITS}")  # noqa: S608
_OF_PARENT = Job.parent_id == bindparam("parent")
_CANCEL = transition.many(
    {State.QUEUED, State.ADMITTED, State.HELD},
    State.CANCELED,
    _OF_PARENT,
    Job.claimed.is_distinct_from(claims.TAKEN),
    # one that may have a task at the provider is found first
    ~and_(Job.state == State.HELD, Job.held_from == State.UNCERTAIN),
    cancel_requested=True,
)
_ASK = text(
    f"""
    update jobs set cancel_requested = true,
           run_at = case when claimed is null and state = 'running' then least(run_at, :now) else run_at end
     where parent_id = :parent and finished_at is null and not cancel_requested
       and {_IS_ASKED.format("")}
    """  # noqa: S608
)
_FAIL = transition.many(
    {State.SUCCEEDED},
    State.FAILED,
    _OF_PARENT,
    Job.id.in_(bindparam("parts", expanding=True)),
    error=bindparam("the_error", type_=Job.__table__.c.error.type),
)
_FORGET = delete(Output).where(Output.job_id.in_(bindparam("jobs", expanding=True)))
_AGAIN = transition.many(
    {State.FAILED, State.EXPIRED, State.CANCELED},
    State.QUEUED,
    Job.parent_id == any_(bindparam("parents", type_=ARRAY(Uuid))),
)
