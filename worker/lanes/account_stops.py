"""What stops creates until somebody acts: an account that the provider turns away, and what a person pauses.

A stopped account lets one job through every five minutes, to try; the first that is accepted ends the stop. Looks at
tasks and copies go on whatever is stopped or paused, and an admitted job whose call has not begun gives its slot back.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, SQLColumnExpression, and_, exists, func, or_, select, update

from worker import log, timeouts, webhooks
from worker.claims import Now
from worker.errors import NotFound
from worker.states import SLOTTED, State
from worker.tables import Attempt, Job, Lane, Owner, Project

_ACCEPTED = (State.RUNNING, State.COPYING, State.SUCCEEDED, State.EXPIRED)
_ALARM_EVERY = timedelta(hours=1)

_log = log.get(__name__)


def stop(connection: Connection, owner: str, until: datetime, why: str, now: datetime) -> None:
    """Stops an account's creates until a try at `until` passes. One alarm is raised, however many answers say so."""
    stopped = (
        update(Owner)
        .where(Owner.name == owner)
        .values(stopped_at=func.coalesce(Owner.stopped_at, now), stopped_until=until, stopped_why=why, probe=None)
    )
    connection.execute(stopped)
    unsaid = or_(Owner.alarmed_at.is_(None), and_(Owner.stopped_at == now, Owner.alarmed_at < now - _ALARM_EVERY))
    alarmed = update(Owner).where(Owner.name == owner, unsaid).values(alarmed_at=now).returning(Owner.alert_url)
    row = connection.execute(alarmed).one_or_none()
    if row is None:
        return
    _log.error("the account is stopped", account=owner, why=why)
    if row.alert_url:
        webhooks.enqueue_alarm(connection, row.alert_url, _alarm(owner, why, until, now))


@dataclass(frozen=True)
class Stop:
    """An effect of an answer that is about the account: `stop` for the owner of the job's call."""

    until: datetime
    why: str

    def carry_out(self, connection: Connection, job: Job, now: datetime) -> None:
        """Does that; a look at a task does not, while the account is stopped: it would put off the try that ends it."""
        called = select(Owner.name, Owner.stopped_at).join(Attempt, Attempt.owner == Owner.name)
        row = connection.execute(called.where(Attempt.id == job.attempt_id)).one_or_none()
        if row and (job.state == State.SUBMITTING or row.stopped_at is None):
            stop(connection, row.name, self.until, self.why, now)


@dataclass(frozen=True)
class Unserved:
    """An effect of a refusal of the way of calling: the account may not create in the job's lane."""

    why: str

    def carry_out(self, connection: Connection, job: Job, now: datetime) -> None:
        """Writes it on the lane."""
        unserved = update(Lane).where(Lane.id == job.lane_id).values(unserved_at=now, unserved_why=self.why)
        connection.execute(unserved)


def start(connection: Connection, owner: str) -> None:
    """Ends an account's stop: a try was accepted."""
    started = (
        update(Owner)
        .where(Owner.name == owner, Owner.stopped_at.is_not(None))
        .values(stopped_at=None, stopped_until=None, stopped_why=None, probe=None)
    )
    if connection.execute(started).rowcount:
        _log.info("the account creates again", account=owner)


def may_probe(connection: Connection, owner: str, now: Now) -> bool:
    """Whether a stopped account lets a job through now; the next one is five minutes later, and one at a time."""
    busy = exists().where(Job.id == Owner.probe, Job.state.in_(SLOTTED - {State.RUNNING}))
    due = (
        update(Owner)
        .where(Owner.name == owner, Owner.stopped_until <= now, ~busy)
        .values(stopped_until=now + timeouts.PROBE, probe=None)
    )
    return connection.execute(due).rowcount > 0


def probe(connection: Connection, owner: str, job_id: uuid.UUID) -> None:
    """Lets this job, and no other, through to a stopped account."""
    connection.execute(update(Owner).where(Owner.name == owner).values(probe=job_id))


def is_proven() -> ColumnElement[bool]:
    """Whether the provider has accepted the stopped account's last try."""
    tried = exists().where(Job.id == Owner.probe, Job.submitted_at >= Owner.stopped_at, Job.state.in_(_ACCEPTED))
    return and_(Owner.stopped_at.is_not(None), tried)


def pause(connection: Connection, what: str, name: str, now: Now | None) -> None:
    """Pauses a `project`, a `lane` (its model's, in every region) or `all`; resumes it with `now` None.

    Raises NotFound where there is none of that name. What is in flight goes on.
    """
    table, column = _PAUSABLE[what]
    paused = update(table).values(paused_at=now)
    if table is Lane:
        paused = paused.values(paused_why=None)
    if column is not None:
        paused = paused.where(column == name)
    if not connection.execute(paused).rowcount:
        raise NotFound(f"no {what} {name}")


def resume_accounts(connection: Connection, owner: str | None) -> None:
    """Ends the stop of an account, or of all, because a person says so; the next one alarms again. Raises NotFound."""
    started = update(Owner).values(stopped_at=None, stopped_until=None, stopped_why=None, probe=None, alarmed_at=None)
    if owner is not None:
        started = started.where(Owner.name == owner)
    if not connection.execute(started).rowcount:
        raise NotFound(f"no account {owner or ''}")


# what `noria pause` names, and how: the table, and the column of the name
_PAUSABLE: dict[str, tuple[type[Project | Lane | Owner], SQLColumnExpression[str] | None]] = {
    "project": (Project, Project.name),
    "lane": (Lane, Lane.model),
    "all": (Owner, None),
}


def _alarm(owner: str, why: str, until: datetime, now: datetime) -> str:
    said = {"account": owner, "why": why, "next_try_at": _rfc3339(until)}
    return json.dumps({"type": "account.stopped", "timestamp": _rfc3339(now), "data": said}, ensure_ascii=False)


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
