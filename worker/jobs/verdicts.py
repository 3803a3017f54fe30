"""A person's verdict on the calls of a job that has ended, of which nobody knows whether they were billed.

The provider forgot its task, or never told of its end, or never answered a call that cannot be looked up: it may have
been billed, and nothing will ever tell. Until somebody decides, what it may have cost stays charged; and where a task
may live, the job is not made again.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, or_, select, update

from worker import money, moves
from worker.errors import Conflict
from worker.states import State
from worker.tables import Attempt, Job


def is_missing(connection: Connection, job: Job) -> bool:
    """Whether nobody knows yet what the job cost that has ended."""
    last = and_(Attempt.id == job.attempt_id, Attempt.closed_at.is_(None))
    missing = or_(last, _unknown(job)) if job.billed == "unknown" else last
    return connection.execute(select(Attempt.id).where(missing).limit(1)).first() is not None


def give(connection: Connection, job: Job, billed: str, why: str, now: datetime) -> Job:
    """Closes the job's calls as billed ("yes", "no"), and books them; the job as it is then, in the state it was.

    Raises Conflict where an answer has come meanwhile.
    """
    close = update(Attempt).where(_unknown(job)).values(billed=billed, closed_at=now).returning(Attempt.id)
    closed = connection.execute(close).scalars().all()
    if not closed:
        raise Conflict("moved_on", "its call's own answer has come meanwhile: look again")
    for attempt_id in closed:
        cost = job.cost if attempt_id == job.attempt_id else None
        money.book(connection, job, attempt_id, billed, cost, now)
    said = update(Job).where(Job.id == job.id, Job.state == job.state, Job.claim == job.claim)
    told = said.values(billed=billed, sequence=Job.sequence + 1).returning(*Job.__table__.c)
    ended = Job.of(connection.execute(told).mappings().one())
    moves.tell(connection, ended, State(job.state), why, now)
    moves.close(connection, ended, now)
    return ended


def _unknown(job: Job) -> ColumnElement[bool]:
    """The job's calls of which it is not known whether they were billed."""
    return and_(Attempt.job_id == job.id, or_(Attempt.closed_at.is_(None), Attempt.billed == "unknown"))
