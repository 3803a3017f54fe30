"""The rows of a batch with what became of each: its job, which is the newest take, and the objects that that made.

`page` is for lists, where long inputs are cut; `walk` goes through all rows a chunk at a time, each a short read of its
own, so neither memory nor a connection is held. Every query of jobs carries the batch's project.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from sqlalchemy import ARRAY, ColumnElement, Connection, Select, Uuid, any_, bindparam, func, null, select
from sqlalchemy.dialects.postgresql import JSONB

from worker import document, money
from worker.batches.document import ItemDocument, RowFault
from worker.jobs import reading
from worker.tables import Batch, BatchRow, Job, Output

CHUNK = 200  # rows of one read; a result may be long

T = TypeVar("T")


class Read(Protocol):
    """What `look` finds, on a connection that is given back at once."""

    def __call__(self, look: Callable[[Connection], T], /) -> T:
        """Looks, and says what was found."""
        ...


@dataclass(frozen=True)
class Wanted:
    """Which rows to list, `after` a row's number; what is empty does not narrow. `states` are of the rows' jobs."""

    outcomes: Sequence[str] = ()
    states: Sequence[str] = ()
    after: int = 0


@dataclass(frozen=True)
class Item:
    """A row, its job (None: none was made), and the job's objects, where they were asked for."""

    row: BatchRow
    job: Job | None
    outputs: Sequence[Output] = ()


def page(connection: Connection, batch: Batch, wanted: Wanted, limit: int) -> list[Item]:
    """At most `limit` rows in the order of the file, cut as lists of jobs are."""
    return _with_jobs(connection, batch, _rows(connection, batch, wanted, limit), _LISTED_JOBS)


def documents(connection: Connection, project: str, items: Sequence[Item], now: datetime) -> list[ItemDocument]:
    """The rows as the API shows them, in their order."""
    jobs = [item.job for item in items if item.job is not None]
    shown = {made.id: made for made in reading.documents(connection, project, jobs, now)} if jobs else {}
    takes = _takes(connection, jobs)
    return [
        ItemDocument(
            row=item.row.n,
            line=item.row.line,
            custom_id=item.row.custom_id,
            outcome=item.row.outcome,
            faults=[RowFault(**fault) for fault in item.row.faults or ()],
            asked=_asked(item.row),
            job=shown[item.job.id] if item.job else None,
            takes=takes.get(item.job.id, []) if item.job else [],
        )
        for item in items
    ]


def walk(read: Read, batch: Batch) -> Iterator[list[Item]]:
    """All rows of a batch in the order of the file, some at a time, with their jobs' objects; without their inputs."""
    after = 0

    def look(connection: Connection) -> list[Item]:
        rows = _rows(connection, batch, Wanted(after=after), CHUNK)
        found = _with_jobs(connection, batch, rows, _WALKED_JOBS)
        stored = document.outputs(connection, [item.job for item in found if item.job])
        return [Item(item.row, item.job, stored[item.job.id] if item.job else ()) for item in found]

    while chunk := read(look):
        yield chunk
        after = chunk[-1].row.n


def labels(connection: Connection, batch: Batch, most: int) -> list[str]:
    """The keys of metadata that rows of the batch have, in order, at most so many."""
    said = {"batch": batch.id, "project": batch.project_id, "most": most}
    return list(connection.execute(_LABELS, said).scalars())


def _rows(connection: Connection, batch: Batch, wanted: Wanted, limit: int) -> list[BatchRow]:
    statement = select(*_ROW).where(BatchRow.batch_id == batch.id, BatchRow.n > wanted.after)
    if wanted.outcomes:
        statement = statement.where(BatchRow.outcome.in_(wanted.outcomes))
    if wanted.states:
        statement = statement.join(Job, Job.id == BatchRow.job_id).where(Job.state.in_(wanted.states))
    rows = connection.execute(statement.order_by(BatchRow.n).limit(limit))
    return [BatchRow.of(row) for row in rows.mappings()]


def _with_jobs(connection: Connection, batch: Batch, rows: Sequence[BatchRow], jobs: Select[Any]) -> list[Item]:
    said = {"project": batch.project_id, "jobs": [row.job_id for row in rows if row.job_id]}
    found: Mapping[uuid.UUID, Job] = {}
    if said["jobs"]:
        found = {row["id"]: Job.of(row) for row in connection.execute(jobs, said).mappings()}
    return [Item(row, found.get(row.job_id) if row.job_id else None) for row in rows]


def _takes(connection: Connection, jobs: Sequence[Job]) -> dict[uuid.UUID, list[uuid.UUID]]:
    """The takes of the row of each job that is not the only one: the first, then the others."""
    of_first = {job.first_take or job.id: job.id for job in jobs}
    found: dict[uuid.UUID, list[uuid.UUID]] = {}
    for row in connection.execute(_TAKES, {"firsts": list(of_first)}) if jobs else ():
        found.setdefault(of_first[row.first_take], [row.first_take]).append(row.id)
    return found


def _asked(row: BatchRow) -> dict[str, Any] | None:
    """What a good row of a draft asks for; its job says so, once there is one."""
    if row.outcome != "good":
        return None
    return {"kind": row.kind, "model": row.model, "input": row.input, "cost": money.shown(row.estimate)}


# Built once: with the columns of a job, building a statement costs as much as running it.


def _of_jobs(columns: Sequence[ColumnElement[Any]]) -> Select[Any]:
    wanted = any_(bindparam("jobs", type_=ARRAY(Uuid)))
    return select(*columns).where(Job.project_id == bindparam("project"), Job.id == wanted)


_LONG: Mapping[str, ColumnElement[Any]] = {
    "input": func.shortened(BatchRow.input, type_=JSONB).label("input"),
    "hash": null().label("hash"),
}
_ROW = [_LONG.get(column.name, column) for column in BatchRow.__table__.c]
_UNREAD = frozenset({"input", "note", "sources"})
_LISTED_JOBS = _of_jobs(reading.LISTED)
_WALKED_JOBS = _of_jobs([null().label(c.name) if c.name in _UNREAD else c for c in Job.__table__.c])
_TAKES = (
    select(Job.id, Job.first_take)
    .where(Job.first_take == any_(bindparam("firsts", type_=ARRAY(Uuid))))
    .order_by(Job.first_take, Job.take)
)
_OF_BATCH = BatchRow.batch_id == bindparam("batch")
_LABELS = (
    select(func.jsonb_object_keys(func.coalesce(Job.labels, BatchRow.labels)).label("key"))
    .distinct()
    .outerjoin_from(BatchRow, Job, (Job.id == BatchRow.job_id) & (Job.project_id == bindparam("project")))
    .where(_OF_BATCH)
    .order_by("key")
    .limit(bindparam("most"))
)
