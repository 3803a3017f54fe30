"""Money, in integer micro-CNY: what a submission reserves, and what its attempts settle or release.

A job reserves its estimate in the transaction that makes it. The verdict on an attempt books what it cost (`settle`),
in the statement's own transaction and whatever has become of the job; `release` gives the reservation back. An answer
that nobody knows is charged at the estimate until it is known: then its line says what it was. Other lines are only
ever added, and each is unique by (attempt, entry).
"""

from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, insert, text

from worker.tables import Entry, Job

MICROS = 1_000_000


def reserve(connection: Connection, job: Job, now: datetime) -> None:
    """Books the job's estimate; nothing when there is no price for it."""
    if job.estimate is not None:
        line = {"project_id": job.project_id, "job_id": job.id, "entry": "reserve", "micros": job.estimate}
        connection.execute(_RESERVE, line | {"at": now, "reserved_at": job.created_at})


def book(
    connection: Connection, job: Job, attempt_id: uuid.UUID | None, billed: str, cost: int | None, now: datetime
) -> None:
    """Books the verdict on a job's call, on its parent where it is a part.

    `billed` yes: what it cost, or the estimate without a known price; unknown: the estimate; no: nothing, also where
    it was charged before.
    """
    amount = cost if billed == "yes" and cost is not None else job.estimate
    said = {"job": job.parent_id or job.id, "attempt": attempt_id, "now": now}
    if billed == "no":
        connection.execute(_UNSETTLE, said)
    elif amount is not None:
        connection.execute(_SETTLE, said | {"cost": amount})


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


_RESERVE = insert(Entry)

_SETTLE = text(
    """
    insert into ledger (project_id, job_id, attempt_id, entry, micros, at, reserved_at)
    select project_id, id, cast(:attempt as uuid), 'settle', :cost, :now, created_at from jobs where id = :job
    on conflict (attempt_id, entry) do update set micros = excluded.micros, at = excluded.at
       where ledger.micros <> excluded.micros
    """
)
_UNSETTLE = text(
    "update ledger set micros = 0, at = :now"
    " where attempt_id = cast(:attempt as uuid) and entry = 'settle' and job_id = :job and micros <> 0"
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
