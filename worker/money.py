"""Money, in integer micro-CNY: what a submission reserves, and what its attempts settle or release.

A job reserves its estimate in the transaction that makes it. When it is known what an attempt cost, `settle` books
that and `release` gives the reservation back; an answer that nobody knows stays charged until it is known. Rows are
only ever added, and each is unique by (attempt, entry).
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert as upsert

from worker.models import Entry, Job

MICROS = 1_000_000


def reserve(connection: Connection, job: Job, now: datetime) -> None:
    """Books the job's estimate; nothing when there is no price for it."""
    if job.estimate is not None:
        _book(connection, job, "reserve", job.estimate, now)


def settle(connection: Connection, job: Job, now: datetime) -> None:
    """Books what the open attempt cost (without a known price, the estimate), and gives the reservation back."""
    cost = job.cost if job.cost is not None else job.estimate
    if cost is not None:
        _book(connection, job, "settle", cost, now)
    release(connection, job, now)


def charge(connection: Connection, job: Job, now: datetime) -> None:
    """Books a call whose answer nobody will ever know at its estimate; what the next one takes stays reserved."""
    if job.estimate is not None:
        _book(connection, job, "settle", job.estimate, now)


def settle_part(connection: Connection, child: Job, is_known: bool, now: datetime) -> None:
    """Books a child's call on its parent: what it cost, or the estimate where that is not known.

    The parent's reservation is given back when the parent ends: until then what is left of it is the reservation
    less what was settled.
    """
    cost = child.cost if is_known and child.cost is not None else child.estimate
    if cost is not None:
        connection.execute(_PART, {"parent": child.parent_id, "attempt": child.attempt_id, "cost": cost, "now": now})


def release(connection: Connection, job: Job, now: datetime) -> None:
    """Gives back what was reserved for the job; once, whatever its attempts were."""
    if job.estimate is not None:
        connection.execute(_RELEASE, {"the_job": job.id, "the_attempt": job.attempt_id, "now": now})


def shown(micros: int | None) -> str | None:
    """`"3.00"`: at least two decimals, and as many as the amount has."""
    if micros is None:
        return None
    amount = (Decimal(micros) / MICROS).normalize()
    return f"{amount:.2f}" if -amount.as_tuple().exponent < 2 else f"{amount:f}"  # type: ignore[operator]


def _book(connection: Connection, job: Job, entry: str, micros: int, now: datetime) -> None:
    line = {
        "project_id": job.project_id,
        "job_id": job.id,
        "attempt_id": None if entry == "reserve" else job.attempt_id,
        "entry": entry,
        "micros": micros,
        "at": now,
        "reserved_at": job.created_at,
    }
    connection.execute(_LINE, line)


_LINE = upsert(Entry).on_conflict_do_nothing(index_elements=[Entry.attempt_id, Entry.entry])

_PART = text(
    """
    insert into ledger (project_id, job_id, attempt_id, entry, micros, at, reserved_at)
    select project_id, id, cast(:attempt as uuid), 'settle', :cost, :now, created_at from jobs where id = :parent
    on conflict (attempt_id, entry) do nothing
    """
)

# What the job has reserved and not given back, in one statement with the line that gives it back.
_RELEASE = text(
    """
    insert into ledger (project_id, job_id, attempt_id, entry, micros, at, reserved_at)
    select project_id, job_id, cast(:the_attempt as uuid), 'release', -sum(micros), :now, min(reserved_at)
    from ledger where job_id = :the_job and entry in ('reserve', 'release')
    group by project_id, job_id having sum(micros) <> 0
    on conflict (attempt_id, entry) do nothing
    """
)
