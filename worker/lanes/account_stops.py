"""What stops creates until somebody acts: an account that the provider refuses, and what a person pauses.

A stopped account is tried every five minutes with one job; the first call that is accepted ends the stop. Polls and
copies go on while creates are stopped or paused, and an admitted job whose call has not begun gives its slot back.

What is said of a main account (arrears, a permission) stops its `Owner`. What is said of one key or workspace stops
that account alone, where its owner has another one in the region: nothing is admitted to it for five minutes
(`stopped_accounts`), and the other one carries the load.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Connection,
    DateTime,
    SQLColumnExpression,
    Text,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import log, timeouts, webhooks
from worker.claims import Now
from worker.errors import NotFound
from worker.states import SLOTTED, State
from worker.tables import Attempt, Job, Lane, Owner, Project, StoppedAccount
from worker.text import moment

_ACCEPTED = (State.RUNNING, State.COPYING, State.SUCCEEDED, State.EXPIRED)
_ALARM_EVERY = timedelta(hours=1)

_log = log.get(__name__)


def stop(connection: Connection, owner: str, until: datetime, why: str, now: datetime) -> None:
    """Stops an account's creates until a try at `until` passes. One alarm is raised, however many answers say so."""
    said = {"owner": owner, "until": until, "why": why, "now": now}
    connection.execute(_STOP, said)
    row = connection.execute(_ALARM, {"owner": owner, "now": now}).one_or_none()
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
class StopKey:
    """An effect of a refusal of one account's key, where its owner has another: `account` takes no jobs for a while."""

    account: str
    owner: str
    until: datetime
    why: str

    def carry_out(self, connection: Connection, job: Job, now: datetime) -> None:
        """Does that, with an alarm an hour; a look at a task does not put off the try that ends the stop."""
        said = {"account": self.account, "owner": self.owner, "stopped_until": self.until, "stopped_why": self.why}
        connection.execute(_STOP_KEY, said | {"now": now, "is_create": job.state == State.SUBMITTING})
        row = connection.execute(_KEY_ALARM, {"the_account": self.account, "now": now}).one_or_none()
        if row is None:
            return
        _log.error("the account is stopped", account=self.account, why=self.why)
        if row.alert_url:
            webhooks.enqueue_alarm(connection, row.alert_url, _alarm(self.account, self.why, self.until, now))


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
    if connection.execute(_START, {"owner": owner}).rowcount:
        _log.info("the account creates again", account=owner)


def may_probe(connection: Connection, owner: str, now: datetime) -> bool:
    """Whether a stopped account is tried with a job now; the next try is five minutes later, and one at a time."""
    return connection.execute(_MAY_PROBE, {"owner": owner, "now": now}).one_or_none() is not None


def probe(connection: Connection, owner: str, job_id: uuid.UUID, now: datetime) -> None:
    """Lets this job, and no other, through to a stopped account."""
    connection.execute(_PROBE, {"owner": owner, "job": job_id, "now": now})


def lets_through(job_id: ColumnElement[uuid.UUID]) -> ColumnElement[bool]:
    """Whether an account's creates are neither paused nor stopped, or it is stopped and tried with this job."""
    return and_(Owner.paused_at.is_(None), or_(Owner.stopped_at.is_(None), Owner.probe == job_id))


def is_proven() -> ColumnElement[bool]:
    """Whether the provider has accepted the stopped account's last try."""
    tried = exists().where(Job.id == Owner.probe, Job.submitted_at >= Owner.stopped_at, Job.state.in_(_ACCEPTED))
    return and_(Owner.stopped_at.is_not(None), tried)


def pause(connection: Connection, what: str, name: str, now: Now | None) -> None:
    """Pauses a `project`, a `lane` (its model's, in every region) or `all`; resumes it with `now` None.

    Raises NotFound where there is none of that name. What is in flight goes on.
    """
    pausable, column = _PAUSABLE[what]
    paused = update(pausable).values(paused_at=now)
    if pausable is Lane:
        paused = paused.values(paused_why=None)
    if column is not None:
        paused = paused.where(column == name)
    if not connection.execute(paused).rowcount:
        raise NotFound(f"no {what} {name}")


def able(accounts: ColumnElement[list[str]], now: ColumnElement[datetime]) -> ColumnElement[list[str]]:
    """Those of a lane's accounts whose keys were not refused just now."""
    name = func.unnest(accounts).column_valued("name")
    stopped = exists().where(StoppedAccount.account == name, StoppedAccount.stopped_until > now)
    return func.array(select(name).where(~stopped).scalar_subquery(), type_=ARRAY(Text))


def resume_accounts(connection: Connection, name: str | None) -> None:
    """Ends the stop of an owner or an account, or of all, because a person says so; the next one alarms again.

    Raises NotFound.
    """
    started, freed = update(Owner).values(_CREATES | {"alarmed_at": None}), delete(StoppedAccount)
    if name is not None:
        started = started.where(Owner.name == name)
        freed = freed.where(or_(StoppedAccount.account == name, StoppedAccount.owner == name))
    if not connection.execute(freed).rowcount + connection.execute(started).rowcount:
        raise NotFound(f"no account {name or ''}")


# what `noria pause` names, and how: the table, and the column of the name
_PAUSABLE: dict[str, tuple[type[Project | Lane | Owner], SQLColumnExpression[str] | None]] = {
    "project": (Project, Project.name),
    "lane": (Lane, Lane.model),
    "all": (Owner, None),
}


def _alarm(owner: str, why: str, until: datetime, now: datetime) -> str:
    said = {"account": owner, "why": why, "next_try_at": moment(until)}
    return json.dumps({"type": "account.stopped", "timestamp": moment(now), "data": said}, ensure_ascii=False)


# Statements are built once: to build one costs more than to run it.

_NOW = bindparam("now", type_=DateTime(timezone=True))
_OF_OWNER = Owner.name == bindparam("owner")
_CREATES = {"stopped_at": None, "stopped_until": None, "stopped_why": None, "probe": None}  # of an account that does
# stops an account, or puts off its next try
_STOP = (
    update(Owner)
    .where(_OF_OWNER)
    .values(
        stopped_at=func.coalesce(Owner.stopped_at, _NOW),
        stopped_until=bindparam("until", type_=DateTime(timezone=True)),
        stopped_why=bindparam("why"),
        probe=None,
    )
)
# where to raise an alarm, unless one was raised for this stop, or for one within the hour
_ALARM = (
    update(Owner)
    .where(
        _OF_OWNER,
        or_(Owner.alarmed_at.is_(None), and_(Owner.stopped_at == _NOW, Owner.alarmed_at < _NOW - _ALARM_EVERY)),
    )
    .values(alarmed_at=_NOW)
    .returning(Owner.alert_url)
)
_START = update(Owner).where(_OF_OWNER, Owner.stopped_at.is_not(None)).values(_CREATES)
# takes the next try of a stopped account, if that is due and no call of the last one is out
_MAY_PROBE = (
    select(Owner.name)
    .where(
        _OF_OWNER,
        Owner.stopped_until <= _NOW,
        ~exists().where(Job.id == Owner.probe, Job.state.in_(SLOTTED - {State.RUNNING})),
    )
    .with_for_update(key_share=True)
)
_PROBE = update(Owner).where(_OF_OWNER).values(stopped_until=_NOW + timeouts.PROBE, probe=bindparam("job"))
_STOPPED = upsert(StoppedAccount).values(
    {name: bindparam(name) for name in ("account", "owner", "stopped_until", "stopped_why")}
)
# stops an account, or puts off its next try
_STOP_KEY = _STOPPED.on_conflict_do_update(
    index_elements=[StoppedAccount.account],
    set_={name: _STOPPED.excluded[name] for name in ("owner", "stopped_until", "stopped_why")},
    where=or_(bindparam("is_create", type_=Boolean), StoppedAccount.stopped_until <= _NOW),
)
# where to raise an alarm, unless one was raised for it within the hour
_KEY_ALARM = (
    update(StoppedAccount)
    .where(
        StoppedAccount.account == bindparam("the_account"),
        or_(StoppedAccount.alarmed_at.is_(None), StoppedAccount.alarmed_at < _NOW - _ALARM_EVERY),
        Owner.name == StoppedAccount.owner,
    )
    .values(alarmed_at=_NOW)
    .returning(Owner.alert_url)
)
