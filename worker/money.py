"""Money, in integer micro-CNY: what a submission reserves, and what its attempts settle or release.

A job reserves its estimate in the transaction that makes it. When it is known what an attempt cost, `settle` books
that and `release` gives the reservation back; an answer that nobody knows stays charged until it is known. Rows are
only ever added, and each is unique by (attempt, entry).
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from worker.models import Entry, Job

MICROS = 1_000_000


def reserve(connection: Connection, job: Job, now: datetime) -> None:
    """Books the job's estimate; nothing when there is no price for it."""
    if job.estimate is not None:
        _book(connection, job, "reserve", job.estimate, now)


def settle(connection: Connection, job: Job, cost: int | None, now: datetime) -> None:
    """Books what the open attempt cost, and gives the reservation back. Without a known price, the estimate."""
    booked = cost if cost is not None else job.estimate
    if booked is not None:
        _book(connection, job, "settle", booked, now)
    release(connection, job, now)


def release(connection: Connection, job: Job, now: datetime) -> None:
    """Gives back what is still reserved for the job."""
    reserved = reserved_for(connection, job)
    if reserved:
        _book(connection, job, "release", -reserved, now)


def reserved_for(connection: Connection, job: Job) -> int:
    """What is reserved for the job and not given back, micro-CNY."""
    open_sum = select(func.coalesce(func.sum(Entry.micros), 0)).where(
        Entry.job_id == job.id, Entry.entry.in_(("reserve", "release"))
    )
    return int(connection.execute(open_sum).scalar_one())


def shown(micros: int | None) -> str | None:
    """`"3.00"`: at least two decimals, and as many as the amount has."""
    if micros is None:
        return None
    amount = (Decimal(micros) / MICROS).normalize()
    return f"{amount:.2f}" if -amount.as_tuple().exponent < 2 else f"{amount:f}"  # type: ignore[operator]


def _book(connection: Connection, job: Job, entry: str, micros: int, now: datetime) -> None:
    line = (
        upsert(Entry)
        .values(
            project_id=job.project_id,
            job_id=job.id,
            attempt_id=None if entry == "reserve" else job.attempt_id,
            entry=entry,
            micros=micros,
            at=now,
            reserved_at=job.created_at,
        )
        .on_conflict_do_nothing(index_elements=[Entry.attempt_id, Entry.entry])
    )
    connection.execute(line)
