"""The right to work on a row for a while: the claim protocol, for every table that has work in it.

`run_at` says when a row wants attention. Four statements are the whole of it, and of crash recovery:

1. `claim_due`, in the tick: rows whose `run_at` has come get a new claim number and a lease, and go out in messages.
   The lease is `run_at` pushed into the future, so a message that is lost is sent again when it lapses.
2. `take`, right before a row's step: spends the number. A repeated or late message finds another number and is
   dropped.
3. `is_ours`, the guard of every write: the row as long as nobody has claimed it since. A worker that woke late writes
   nothing.
4. `seize`, where a person decides: the job goes out of its worker's hands, whose number is worth nothing from then on.

Only a lease that lapses while `taken` is a crash. A worker that lives takes its own back (`let_go`): it could not write
while the database was away. There is no reaper, no heartbeat, no lock table, and nobody but the holder writes `run_at`
unless `claimed` is null.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Row,
    and_,
    bindparam,
    case,
    func,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from worker import timeouts
from worker.tables import Delivery, Job

Claimable = type[Job] | type[Delivery]
Now = datetime | ColumnElement[datetime]
Lease = timedelta | ColumnElement[timedelta]
Numbers = Sequence[tuple[uuid.UUID, int]]  # rows and the claim numbers to spend on them

# Postgres's clock, read in the statement itself: two workers whose clocks differ then agree.
NOW: ColumnElement[datetime] = func.statement_timestamp()

SENT, TAKEN = "sent", "taken"


@dataclass(frozen=True)
class Claim:
    """A row and the number that may be spent on it.

    `crashes`: leases that lapsed while a worker held it; `group`: rows of one group belong on one thread.
    """

    id: uuid.UUID
    number: int
    crashes: int
    group: str

    def as_message(self) -> list[str | int]:
        """What travels in a Celery message: never more than this."""
        return [str(self.id), self.number]


def claim_due(
    connection: Connection,
    table: Claimable,
    due: ColumnElement[bool],
    order: tuple[Any, ...],
    limit: int,
    now: datetime,
) -> list[Claim]:
    """Claims for rows whose `run_at` has come, in `order`; rows that others look at are left.

    At most `limit` rows of this kind are on their way at a time, so that a message is never older than its lease.
    """
    rows = connection.execute(_claiming(table, due, order, limit), {"now": now})
    # an UPDATE returns its rows in any order; what has no time comes last, as in Postgres
    ordered = sorted(rows, key=lambda row: [(part is None, part) for part in row[4:]])
    return [Claim(*row[:4]) for row in ordered]


def take(
    connection: Connection, table: Claimable, numbers: Numbers, lease: Lease, *more: ColumnElement[Any]
) -> list[Row[Any]]:
    """Spends claim numbers: the rows that are now ours, in the order of `numbers`, each with Postgres's `now`.

    `more`: what else a row gives. A number that was spent or replaced gives no row: its message was a repeat, or late.
    """
    order = {row_id: n for n, (row_id, _) in enumerate(numbers)}
    rows = connection.execute(_taking(table, lease, *more), {"numbers": list(numbers)}).all()
    return sorted(rows, key=lambda row: order[row.id])


def seize(connection: Connection, job: Job, *guard: ColumnElement[bool]) -> Job | None:
    """Takes a job from whoever works on it, since a person decides; None where it has moved, or `guard` is not met."""
    mine = update(Job).where(Job.id == job.id, Job.state == job.state, Job.sequence == job.sequence, *guard)
    seized = mine.values(claim=Job.claim + 1, claimed=None).returning(*Job.__table__.c)
    row = connection.execute(seized).mappings().one_or_none()
    return Job.of(row) if row else None


def moment(now: Now) -> ColumnElement[datetime]:
    """The instant as an expression, to be selected beside what is read."""
    return now if isinstance(now, ColumnElement) else literal(now, DateTime(timezone=True))


def is_ours(table: Claimable, row_id: uuid.UUID, number: int) -> ColumnElement[bool]:
    """The guard of every write under a claim: the row, as long as nobody has claimed it since."""
    return and_(table.id == row_id, table.claim == number)


def give_back(connection: Connection, table: Claimable, numbers: Numbers, after: timedelta) -> None:
    """Makes claimed rows due again after a while: their messages could not be sent, or there was no room for them."""
    returned = update(table).where(tuple_(table.id, table.claim).in_(numbers)).values(run_at=NOW + after, claimed=None)
    connection.execute(returned)


def let_go(connection: Connection, table: Claimable, numbers: Numbers, after: timedelta) -> None:
    """Gives back what is still in this worker's hands; takes back the crash where a lease lapsed there meanwhile."""
    ours = tuple_(table.id, table.claim).in_(numbers)
    mine = update(table).where(ours, table.claimed == TAKEN).values(run_at=NOW + after, claimed=None)
    connection.execute(mine)
    lapsed = update(table).where(table.id.in_([row_id for row_id, _ in numbers]), ~ours, table.crashes > 0)
    connection.execute(lapsed.values(crashes=table.crashes - 1))


# Statements are built once: to build one costs more than to run it.


@lru_cache(maxsize=64)
def _claiming(table: Claimable, due: ColumnElement[bool], order: tuple[Any, ...], limit: int) -> ReturningUpdate[Any]:
    now = bindparam("now", type_=DateTime(timezone=True))
    under_way = select(func.count()).where(due, table.claimed == SENT, table.run_at > now).scalar_subquery()
    group = func.coalesce(Job.account, "")
    picked = (
        select(table.id, *(column.label(f"order_{n}") for n, column in enumerate(order)))
        .where(due, table.run_at <= now)
        .order_by(*order)
        .limit(func.greatest(limit - under_way, 0))
        .with_for_update(skip_locked=True)
        # A CTE, so that the planner cannot run the limited select more than once.
        .cte("picked")
    )
    crashed = case((table.claimed == TAKEN, 1), else_=0)
    return (
        update(table)
        .where(table.id == picked.c.id)
        .values(run_at=now + timeouts.SENT, claim=table.claim + 1, claimed=SENT, crashes=table.crashes + crashed)
        .returning(table.id, table.claim, table.crashes, group.label("group"), *list(picked.c)[1:])
    )


@lru_cache(maxsize=64)
def _taking(table: Claimable, lease: Lease, *more: ColumnElement[Any]) -> ReturningUpdate[Any]:
    return (
        update(table)
        .where(tuple_(table.id, table.claim).in_(bindparam("numbers", expanding=True)), table.claimed == SENT)
        .values(run_at=NOW + lease, claim=table.claim + 1, claimed=TAKEN)
        .returning(*table.__table__.c, NOW.label("now"), *more)
    )
