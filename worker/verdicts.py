"""A person's verdict on the last call of a job that has ended.

The provider forgot its task, or never told of its end, so it may have been billed, and nothing will ever tell. Until
somebody decides, what it may have cost stays reserved, and the job is not made again.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select, update

from worker import children, money, moves
from worker.models import Attempt, Job
from worker.states import State


def give(connection: Connection, job: Job, billed: str, why: str, now: datetime) -> Job:
    """Closes the job's last call as billed ("yes", "no"), and books it; the job as it is then, in the state it was."""
    close = update(Attempt).where(Attempt.id == job.attempt_id, Attempt.closed_at.is_(None))
    connection.execute(close.values(billed=billed, closed_at=now))
    said = update(Job).where(Job.id == job.id, Job.state == job.state, Job.claim == job.claim)
    told = said.values(billed=billed, sequence=Job.sequence + 1).returning(*Job.__table__.c)
    ended = Job.of(connection.execute(told).mappings().one())
    moves.tell(connection, ended, State(job.state), why, now)
    _book(connection, ended, now)
    return ended


def _book(connection: Connection, job: Job, now: datetime) -> None:
    if job.parent_id is not None:
        _book_part(connection, job, now)
    elif job.billed == "yes":
        money.settle(connection, job, now)
    else:
        money.release(connection, job, now)


def _book_part(connection: Connection, child: Job, now: datetime) -> None:
    """On the parent, which says what all its parts cost once it has ended."""
    if child.billed == "yes":
        money.settle_part(connection, child, True, now)
    statement = select(*Job.__table__.c).where(Job.id == child.parent_id, Job.finished_at.is_not(None))
    row = connection.execute(statement).mappings().one_or_none()
    if row is not None:
        paid = update(Job).where(Job.id == child.parent_id).values(**children.paid(connection, Job.of(row)))
        connection.execute(paid)
