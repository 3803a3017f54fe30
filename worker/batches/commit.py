"""The commit: a draft's good rows become jobs, all in one transaction, or none of them does."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, bindparam, select, text, update

from worker import inputs
from worker.batches import reading
from worker.batches.document import RowFault
from worker.errors import Conflict, Fault, NotFound
from worker.inputs import naming
from worker.moves import batch as batch_moves
from worker.tables import Batch, BatchRow, Job, Project

_TOGETHER = 500  # rows whose files are looked up in one query
_TOLD = 2_000  # of whose jobs Flower is told: it shows no more

# The statements are few and long, and a commit waits for another one that makes the same rows.
_BOUNDS = text("select set_config('statement_timeout', '120s', true), set_config('lock_timeout', '60s', true)")


def commit(
    connection: Connection, project: Project, batch_id: uuid.UUID, skip_bad: bool, now: datetime
) -> tuple[Batch, bool]:
    """The batch, committed, and whether that was done now; a second time nothing is done.

    Raises NotFound; BudgetExhausted, or InvalidInput for a price that nobody knows, where the project has a budget; and
    Conflict where rows have faults, unless they are to be skipped: roll back. A file that a row
    names and that has been removed since it was checked is such a fault.
    """
    connection.execute(_BOUNDS)
    bound = {"the_project": project.id, "the_batch": batch_id}
    row = connection.execute(_LOCK, bound).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no batch {batch_id}")
    if row["state"] != reading.DRAFT:
        return Batch.of(row), False
    bad = row["bad"] + _spoiled(connection, project.id, batch_id)
    if bad and not skip_bad:
        raise Conflict("has_bad_rows", _why(connection, batch_id, bad))
    made, existing = batch_moves.make(connection, project.id, batch_id, now)
    connection.execute(_SKIP, bound)
    counts = {"made": made, "existing": existing, "bad": bad, "committed_at": now, "run_at": None if made else now}
    committed = connection.execute(_COMMIT, bound | {f"to_{name}": value for name, value in counts.items()})
    batch_moves.tell(connection, project.name, project.id, batch_id)
    return Batch.of(committed.mappings().one()), True


def first_jobs(connection: Connection, batch: Batch) -> list[Job]:
    """The first jobs that the batch made, some thousands: those that Flower is told of."""
    rows = connection.execute(_FIRST, {"the_project": batch.project_id, "the_batch": batch.id})
    return [Job.of(row) for row in rows.mappings()]


def _spoiled(connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID) -> int:
    """Marks the rows that name files which are gone, or unfit now, as bad: how many. The other files are locked."""
    bound = {"the_project": project_id, "the_batch": batch_id}
    found = connection.execute(_NAMING, bound, execution_options={"yield_per": _TOGETHER})
    bad = [pair for rows in found.partitions() for pair in _gone(connection, project_id, rows)]
    for row, faults in bad:
        shown = [RowFault(row=row.n, line=row.line, column=None, **vars(fault)).as_json() for fault in faults]
        connection.execute(_SPOIL, {"the_batch": batch_id, "the_n": row.n, "the_faults": shown})
    return len(bad)


def _gone(
    connection: Connection, project_id: uuid.UUID, rows: Sequence[Row[Any]]
) -> list[tuple[Row[Any], list[Fault]]]:
    found = inputs.check_all(connection, project_id, [(row.model, row.input) for row in rows])
    return [(row, faults) for row, faults in zip(rows, found, strict=True) if faults]


def _why(connection: Connection, batch_id: uuid.UUID, bad: int) -> str:
    """The first faults in words."""
    rows = connection.execute(_BAD, {"the_batch": batch_id}).scalars().all()
    words = [f"line {fault['line']} {fault['pointer']} {fault['message']}" for faults in rows for fault in faults[:1]]
    return f"{bad} rows have faults: {'; '.join(words)}. Correct the file, or say skip_bad to make the others"


# Statements are built once: to build one costs more than to run it.

_BATCH: BindParameter[uuid.UUID] = bindparam("the_batch")
_MINE = (Batch.project_id == bindparam("the_project"), Batch.id == _BATCH)
_LOCK = select(*Batch.__table__.c).where(*_MINE).with_for_update()
# the rows of which jobs are to be made that may name files
_NAMING = (
    select(BatchRow.n, BatchRow.line, BatchRow.model, BatchRow.input)
    .where(BatchRow.batch_id == _BATCH, BatchRow.outcome == "good", naming.names_files(BatchRow.input))
    .where(~batch_moves.IS_MADE)
    .order_by(BatchRow.n)
)
_SPOIL = (
    update(BatchRow)
    .where(BatchRow.batch_id == _BATCH, BatchRow.n == bindparam("the_n"))
    .values(outcome="bad", faults=bindparam("the_faults"), **dict.fromkeys(("hash", *batch_moves.ASKED)))
)
_BAD = (
    select(BatchRow.faults).where(BatchRow.batch_id == _BATCH, BatchRow.outcome == "bad").order_by(BatchRow.n).limit(3)
)
_SKIP = update(BatchRow).where(BatchRow.batch_id == _BATCH, BatchRow.outcome == "bad").values(outcome="skipped")
_COMMIT = (
    update(Batch)
    .where(*_MINE, Batch.state == reading.DRAFT)
    .values(
        {name: bindparam(f"to_{name}") for name in ("made", "existing", "bad", "committed_at", "run_at")}
        | {"state": "running"}
    )
    .returning(*Batch.__table__.c)
)
_FIRST = (
    select(*Job.__table__.c)
    .where(Job.project_id == bindparam("the_project"), Job.batch_id == _BATCH)
    .order_by(Job.id)
    .limit(_TOLD)
)
