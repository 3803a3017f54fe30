"""Drafts: a batch that was checked, kept until it is committed or forgotten.

One short transaction copies the rows from the spool that the check wrote, so a process that is killed leaves nothing.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from sqlalchemy import Connection, bindparam, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import money
from worker.batches import forecast, reading
from worker.batches.checking import COLUMNS, Checked, let_others
from worker.batches.document import Group, Report
from worker.errors import Conflict
from worker.moves.batch import IS_MADE
from worker.tables import Batch, BatchRow

MOST = 20  # drafts of a project, the newest: each has up to 128 MiB of rows
_FORGOTTEN = 50_000  # rows that are forgotten at once, or one draft


@dataclass(frozen=True)
class Sent:
    """An Idempotency-Key, and the digest of what came with it."""

    key: str
    digest: bytes


def replayed(connection: Connection, project_id: uuid.UUID, sent: Sent) -> Batch | None:
    """The batch that came first under this Idempotency-Key; None where this is the first.

    Raises Conflict where another file or other options came with it.
    """
    row = connection.execute(_UNDER_KEY, {"project": project_id, "the_key": sent.key}).mappings().one_or_none()
    if row is None:
        return None
    if row["digest"] != sent.digest:
        raise Conflict("idempotency_key_reused", "this Idempotency-Key came with another file or other options before")
    return Batch.of(row)


def keep(
    connection: Connection, project_id: uuid.UUID, made: Checked, sent: Sent | None, now: datetime
) -> tuple[Batch, bool]:
    """Keeps the draft, with what only the database knows in its report; or finds the first one under the same key.

    The project's oldest drafts are forgotten where it has too many now. The second is whether it was there already.
    Raises Conflict as `replayed` does.
    """
    batch_id = connection.execute(_KEEP, _columns(project_id, made, sent, now)).scalar_one_or_none()
    if batch_id is None:
        assert sent is not None, "only a key keeps it from being made"
        first = replayed(connection, project_id, sent)
        return (first, True) if first else keep(connection, project_id, made, sent, now)  # it was forgotten just now
    connection.execute(_FORGET_SURPLUS, {"the_project": project_id, "most": MOST})
    _copy(connection, batch_id, made.spool)
    bound = {"the_project": project_id, "the_batch": batch_id}
    report = _priced(connection, made.report, bound)
    report = _timed(connection, project_id, report, now)
    connection.execute(_REPORT, {"the_batch": batch_id, "the_report": report.as_json()})
    return reading.one(connection, project_id, batch_id), False


def drop(connection: Connection, project_id: uuid.UUID, batch_id: uuid.UUID) -> None:
    """Deletes a draft; raises NotFound, and Conflict for a batch that was committed."""
    if not connection.execute(_DROP, {"project": project_id, "the_batch": batch_id}).rowcount:
        found = reading.one(connection, project_id, batch_id)
        raise Conflict("not_a_draft", f"it is {found.state}: only a draft is deleted")


def forget(connection: Connection, now: datetime) -> None:
    """Deletes drafts that were not committed in time, the oldest first, and so many rows of theirs at the most."""
    connection.execute(_FORGET, {"before": now - reading.KEPT, "most": _FORGOTTEN})


def _columns(project_id: uuid.UUID, made: Checked, sent: Sent | None, now: datetime) -> dict[str, Any]:
    return {
        "project_id": project_id,
        "name": made.name,
        "key": sent.key if sent else None,
        "digest": sent.digest if sent else bytes.fromhex(made.source.sha256),
        "repeat": made.options.repeat,
        "source": made.source.as_json(),
        "report": {},
        "rows": made.rows,
        "bad": made.bad,
        "webhook_url": made.options.webhook_url,
        "created_at": now,
    }


def _copy(connection: Connection, batch_id: uuid.UUID, spool: IO[bytes]) -> None:
    """The spool's rows as rows of the batch."""
    driver = connection.connection.driver_connection
    assert driver is not None, "the connection is open"
    spool.seek(0)
    with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        for n, line in enumerate(spool):
            copy.write_row((str(batch_id), *json.loads(line)))
            let_others(n)


def _priced(connection: Connection, report: Report, bound: dict[str, Any]) -> Report:
    """The report with what its new rows cost; those that have a job already cost nothing more."""
    found = connection.execute(_GOOD, bound).all()
    new = [row for row in found if not row.is_made]
    groups = [
        Group(kind=of.kind, model=of.model, rows=of.rows, cost=_cost(of), unpriced=of.unpriced, seconds=None)
        for of in new
    ]
    cost, unpriced = sum(of.micros for of in new), sum(of.unpriced for of in new)
    is_known = any(of.cost is not None for of in groups) or not groups
    priced = {"groups": groups, "cost": money.shown(cost) if is_known else None, "unpriced": unpriced}
    return report.model_copy(update=priced | {"existing": sum(row.rows for row in found if row.is_made)})


def _cost(of: Any) -> str | None:
    return money.shown(of.micros) if of.rows > of.unpriced else None


def _timed(connection: Connection, project_id: uuid.UUID, report: Report, now: datetime) -> Report:
    """The report with the time that its groups take."""
    spans = forecast.spans(connection, {(of.kind, of.model): of.rows for of in report.groups}, project_id, now)
    seconds = {group: span.total_seconds() if span else None for group, span in spans.items()}
    groups = [of.model_copy(update={"seconds": seconds[of.kind, of.model]}) for of in report.groups]
    known = [of.seconds for of in groups if of.seconds is not None]
    longest = max(known, default=0.0) if len(known) == len(groups) else None
    return report.model_copy(update={"groups": groups, "seconds": longest})


# Statements are built once: to build one costs more than to run it.

_COPY = f"copy batch_rows (batch_id, {', '.join(COLUMNS)}) from stdin"
_UNDER_KEY = select(*Batch.__table__.c).where(
    Batch.project_id == bindparam("project"), Batch.key == bindparam("the_key")
)
# a new draft, unless its project has one under that key
_KEEP = upsert(Batch).on_conflict_do_nothing().returning(Batch.id)
# the good rows by kind and model, apart by whether they have a job
_GOOD = (
    select(
        BatchRow.kind,
        BatchRow.model,
        IS_MADE.label("is_made"),
        func.count().label("rows"),
        func.coalesce(func.sum(BatchRow.estimate), 0).label("micros"),
        func.count().filter(BatchRow.estimate.is_(None)).label("unpriced"),
    )
    .where(BatchRow.batch_id == bindparam("the_batch"), BatchRow.outcome == "good")
    .group_by(BatchRow.kind, BatchRow.model, "is_made")
    .order_by(BatchRow.kind, BatchRow.model)
)
_REPORT = update(Batch).where(Batch.id == bindparam("the_batch")).values(report=bindparam("the_report"))
_DROP = delete(Batch).where(
    Batch.project_id == bindparam("project"), Batch.id == bindparam("the_batch"), Batch.state == "draft"
)
# old drafts, but none that is being committed
_FORGET = text(
    """
    with old as (
        select id, created_at, rows from batches where state = 'draft' and created_at < :before
         order by created_at limit 1000 for update skip locked
    ), first as (
        select id from (select id, sum(rows) over (order by created_at, id) - rows as before_it from old) as counted
         where before_it < :most
    )
    delete from batches using first where batches.id = first.id and batches.state = 'draft'
    """
)
# a project's drafts but for the newest, and none that is being committed
_FORGET_SURPLUS = text(
    """
    with surplus as (
        select id from batches where state = 'draft' and id in (
            select id from batches where project_id = :the_project and state = 'draft' order by id desc offset :most
        ) for update skip locked
    )
    delete from batches using surplus where batches.id = surplus.id and batches.state = 'draft'
    """
)
