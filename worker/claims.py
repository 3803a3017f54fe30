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
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Interval,
    Row,
    TableValuedAlias,
    Update,
    Uuid,
    and_,
    bindparam,
    case,
    column,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.types import TypeEngine

from worker import timeouts
from worker.tables import Batch, Delivery, Job

Claimable = type[Job] | type[Delivery] | type[Batch]
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
    busy: tuple[str, ...] = (SENT,),
) -> list[Claim]:
    """Claims for rows whose `run_at` has come, in `order`; rows that others look at are left.

    At most `limit` rows of this kind are on their way at a time, so that a message is never older than its lease: those
    whose claim is one of `busy`.
    """
    rows = connection.execute(_claiming(table, due, order, limit, busy), {"now": now})
    # an UPDATE returns its rows in any order; what has no time comes last, as in Postgres
    ordered = sorted(rows, key=lambda row: [(part is None, part) for part in row[4:]])
    return [Claim(*row[:4]) for row in ordered]


def take(
    connection: Connection,
    table: Claimable,
    numbers: Numbers,
    lease: Lease,
    columns: tuple[ColumnElement[Any], ...] | None = None,
) -> list[Row[Any]]:
    """Spends claim numbers: the rows that are now ours, in the order of `numbers`, each with Postgres's `now`.

    A number that was spent or replaced gives no row: its message was a repeat, or late. `columns`: what is read of the
    rows, all of it where that is None.
    """
    order = {row_id: n for n, (row_id, _) in enumerate(numbers)}
    rows = connection.execute(_taking(table, lease, columns), bound(numbers)).all()
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
    connection.execute(_giving_back(table), bound(numbers) | {"after": after})


def let_go(connection: Connection, table: Claimable, numbers: Numbers, after: timedelta) -> None:
    """Gives back what is still in this worker's hands; takes back the crash where a lease lapsed there meanwhile."""
    connection.execute(_letting_go(table), bound(numbers) | {"after": after})
    connection.execute(_uncrashing(table), bound(numbers))


def unnested(name: str, **columns: TypeEngine[Any]) -> TableValuedAlias:
    """A table of rows that are bound as one array for each column, by the column's name.

    Its text is the same for any number of rows, so a statement on it is compiled and prepared once; one with a list of
    values would be for each length of the list.
    """
    arrays = [bindparam(column_name, type_=ARRAY(type_)) for column_name, type_ in columns.items()]
    parts = [column(column_name, type_) for column_name, type_ in columns.items()]
    return func.unnest(*arrays).table_valued(*parts, name=name).render_derived()


def bound(numbers: Numbers) -> dict[str, Any]:
    """Claim numbers as `OURS` binds them."""
    return {"ids": [row_id for row_id, _ in numbers], "numbers": [number for _, number in numbers]}


# Statements are built once: to build one costs more than to run it.

# the rows of `bound`
OURS = unnested("ours", ids=Uuid(), numbers=BigInteger())


@lru_cache(maxsize=64)
def _claiming(
    table: Claimable, due: ColumnElement[bool], order: tuple[Any, ...], limit: int, busy: tuple[str, ...]
) -> ReturningUpdate[Any]:
    now = bindparam("now", type_=DateTime(timezone=True))
    under_way = select(func.count()).where(due, table.claimed.in_(busy), table.run_at > now).scalar_subquery()
    group: ColumnElement[str] = func.coalesce(Job.account, "") if table is Job else literal("")
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
def _taking(table: Claimable, lease: Lease, columns: tuple[ColumnElement[Any], ...] | None) -> ReturningUpdate[Any]:
    return (
        update(table)
        .where(table.id == OURS.c.ids, table.claim == OURS.c.numbers, table.claimed == SENT)
        .values(run_at=NOW + lease, claim=table.claim + 1, claimed=TAKEN)
        .returning(*(columns or table.__table__.c), NOW.label("now"))
    )


@lru_cache(maxsize=64)
def _giving_back(table: Claimable) -> Update:
    returned = update(table).where(table.id == OURS.c.ids, table.claim == OURS.c.numbers)
    return returned.values(run_at=NOW + bindparam("after", type_=Interval), claimed=None)


@lru_cache(maxsize=64)
def _letting_go(table: Claimable) -> Update:
    return _giving_back(table).where(table.claimed == TAKEN)


@lru_cache(maxsize=64)
def _uncrashing(table: Claimable) -> Update:
    lapsed = update(table).where(table.id == OURS.c.ids, table.claim != OURS.c.numbers, table.crashes > 0)
    return lapsed.values(crashes=table.crashes - 1)
