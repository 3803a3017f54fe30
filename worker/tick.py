"""The tick: each second, and at once on a hint, it admits what fits, claims what is due, and says what to publish.

One transaction under an advisory lock, so any number of clocks is harmless; then the messages, which may be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased

from worker import claims, log, moves, timeouts, webhooks
from worker.claims import Claim, Claimable, Now, Numbers
from worker.context import Context
from worker.errors import ErrorClass, Failure
from worker.lanes import limits, run_times
from worker.moves import children, fair_queue
from worker.schedules import firing
from worker.states import HeldFor, Mode, Move, State, may
from worker.tables import Delivery, Duty, IdempotencyKey, Job, Owner
from worker.webhooks import receivers
from worker.work import WORK, Group

LOCK = 0x4E6F726961  # "Noria": whoever holds it ticks
_LOCKED = func.pg_try_advisory_xact_lock(LOCK).label("locked")
_KEYS_KEPT = timedelta(days=7)
_SOON = timedelta(hours=2)  # left to a link

_log = log.get(__name__)


@dataclass(frozen=True)
class Message:
    """What a worker gets: the task's name, its queue, and the claims to spend."""

    task: str
    queue: str
    claims: tuple[Claim, ...]

    @property
    def numbers(self) -> Numbers:
        """What the worker spends."""
        return [(claim.id, claim.number) for claim in self.claims]


@dataclass(frozen=True)
class _Due:
    """Rows of a group that may be claimed: which, how many may be on their way, and in which order."""

    group: Group
    limit: int
    due: ColumnElement[bool]
    order: tuple[Any, ...]


def _jobs_in(*states: State) -> ColumnElement[bool]:
    # literals, so that the planner can match the partial indexes
    return text(f"jobs.state in ({', '.join(repr(str(state)) for state in states)})")  # type: ignore[return-value]


def _of_modes(*modes: Mode) -> ColumnElement[bool]:
    return text(f"jobs.mode in ({', '.join(repr(str(mode)) for mode in modes)})")  # type: ignore[return-value]


_NOW = bindparam("now", type_=DateTime(timezone=True))
# false of a link of which we do not know when it dies, and where there is none: what is assembled is in our bucket
_dies_soon = func.coalesce(Job.links_expire_at < _NOW + _SOON, False)

_PARENT = aliased(Job, name="parent")
_gathers = (
    select(func.count())
    .where(
        text("parent.state = 'gathering'"),
        _PARENT.project_id == Job.project_id,
        _PARENT.claimed.is_not(None),
        # What has lapsed occupies no thread. Counted, the lapsed would keep each other from being due, for ever.
        _PARENT.run_at > _NOW,
    )
    .correlate(Job)
    .scalar_subquery()
)


def _due(group: Group) -> Iterator[_Due]:
    """The claims of a group: one, or two where some of it is kept for what is urgent."""
    modes, states = zip(*(key for key, wants in WORK.items() if wants.group is group), strict=True)
    here = and_(_jobs_in(*dict.fromkeys(states)), _of_modes(*dict.fromkeys(modes)))
    if group.per_project is not None:
        here = and_(here, _gathers < group.per_project)
    if group.urgent:
        yield _Due(group, group.on_their_way, and_(here, _dies_soon), (Job.links_expire_at,))
        yield _Due(group, group.on_their_way - group.urgent, and_(here, ~_dies_soon), (Job.links_expire_at,))
    else:
        yield _Due(group, group.on_their_way, here, (Job.run_at,))


_WORK = tuple(due for group in dict.fromkeys(wants.group for wants in WORK.values()) for due in _due(group))


def prepare(connection: Connection, ctx: Context, now: Now = claims.NOW) -> None:
    """What the first tick of a process needs: lanes, owners and duties as the catalog and the settings say."""
    limits.sync(connection, ctx.catalog, ctx.settings)
    connection.execute(
        upsert(Duty).values([{"name": name, "due_at": now} for name in _DUTIES]).on_conflict_do_nothing()
    )


def run(connection: Connection, now: Now = claims.NOW) -> list[Message]:
    """One tick; what to publish once the transaction is committed. Nothing when another process is at it."""
    lock = select(_LOCKED, _anything(now), _duty_due(now), firing.is_due(now).label("fires"), _moment(now))
    probe = connection.execute(lock).one()
    if not probe.locked:
        return []
    messages = _do_duties(connection, probe.now) if probe.duty_due else []
    if probe.fires:
        messages.append(Message("noria.fire", "tick", ()))  # the rows are the truth of it: said until it is done
    if not probe.anything:
        return messages
    fair_queue.admit(connection, probe.now)
    messages += [message for due in _WORK for message in _messages(connection, due, probe.now)]
    return messages + _deliveries(connection, probe.now)


def give_back(connection: Connection, messages: Iterable[Message]) -> None:
    """Makes the rows of messages that could not be sent due again."""
    for message in messages:
        table: Claimable = Delivery if message.queue == "webhook" else Job
        claims.give_back(connection, table, message.numbers, timedelta(0))


def _anything(now: Now) -> ColumnElement[bool]:
    """Whether any row wants attention: one look at four indexes, for the many ticks in which none does.

    It may miss a row that is being committed: the next tick finds that.
    """
    due = exists().where(text("jobs.state <> 'queued' and jobs.run_at is not null"), Job.run_at <= now)
    # two, as their indexes are
    queued = exists().where(text("jobs.state = 'queued' and jobs.mode <> 'parent'"), Job.run_at <= now)
    parents = exists().where(text("jobs.state = 'queued' and jobs.mode = 'parent'"), Job.run_at <= now)
    return or_(due, queued, parents, exists().where(Delivery.run_at <= now)).label("anything")


def _duty_due(now: Now) -> ColumnElement[bool]:
    return exists().where(Duty.due_at <= now).label("duty_due")


def _moment(now: Now) -> ColumnElement[datetime]:
    return claims.moment(now).label("now")


def _messages(connection: Connection, due: _Due, now: datetime) -> Iterator[Message]:
    claimed = claims.claim_due(connection, Job, due.due, due.order, due.limit, now)
    healthy = [claim for claim in claimed if claim.crashes == 0]
    crashed = [claim for claim in claimed if claim.crashes > 0]
    alone = [claim for claim in crashed if not _stopped(connection, due, claim, now)]
    for batch in (*_batches(healthy, due.group.rows), *((claim,) for claim in alone)):
        yield Message(due.group.task, due.group.queue, tuple(batch))


def _deliveries(connection: Connection, now: datetime) -> list[Message]:
    """Each message is of one receiver. What a worker died on goes alone."""
    claimed = receivers.claim_due(connection, now)
    healthy = _batches([claim for claim in claimed if not claim.crashes], receivers.ROWS)
    alone = [(claim,) for claim in claimed if claim.crashes]
    return [Message("noria.deliver", "webhook", tuple(batch)) for batch in (*healthy, *alone)]


def _batches(claimed: Sequence[Claim], rows: int) -> Iterator[Sequence[Claim]]:
    """In the order they were claimed, rows of one group together."""
    for _, group in groupby(sorted(claimed, key=lambda claim: claim.group), key=lambda claim: claim.group):
        members = list(group)
        yield from (members[start : start + rows] for start in range(0, len(members), rows))


def _stopped(connection: Connection, due: _Due, claim: Claim, now: datetime) -> bool:
    """Whether a row on which too many workers died is held now, for a person to look at; or over."""
    if claim.crashes < timeouts.CRASHES:
        return False
    row = connection.execute(select(*Job.__table__.c).where(Job.id == claim.id)).mappings().one()
    job = Job.of(row)
    why = f"{claim.crashes} workers died while they worked on it"
    if may(State(job.state), State.HELD):
        move = Move(State.HELD, why, columns={"held_for": HeldFor.CRASHES})
    elif job.state == State.RUNNING and now > (job.deadline_at or job.state_at + timeouts.RUNNING) + timeouts.LINKS:
        failure = Failure("task_unseen", ErrorClass.INTERNAL, f"{why}, until its links were dead", billed="unknown")
        move = Move(State.EXPIRED, failure.message, columns={"error": failure.as_json()})
    else:
        return False
    moves.record(connection, job, move, now)
    _log.error("a job kills workers", job=str(job.id), crashes=claim.crashes, entered=move.to)
    return True


def _do_duties(connection: Connection, now: datetime) -> list[Message]:
    """What is to be done once a while, by whichever tick comes first; what of it is a worker's to do."""
    messages: list[Message] = []
    for name, (every, duty) in _DUTIES.items():
        taken = update(Duty).where(Duty.name == name, Duty.due_at <= now).values(due_at=now + every)
        if not connection.execute(taken).rowcount:
            continue
        try:
            with connection.begin_nested():
                messages += duty(connection, now) or ()
        except DBAPIError:  # what is done once a while must not stop what is done each second
            _log.exception("a duty failed; it is tried again when it is next due", duty=name)
    return messages


def _sweep(connection: Connection, now: datetime) -> list[Message]:
    """The owners' rows are the truth of it, so the message may be lost, and is sent again."""
    is_due = connection.execute(select(exists().where(Owner.sweep_at <= now))).scalar_one()
    return [Message("noria.sweep", "provider", ())] if is_due else []


def _forget_keys(connection: Connection, now: datetime) -> None:
    connection.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now - _KEYS_KEPT))


_DUTIES: dict[str, tuple[timedelta, Callable[[Connection, datetime], list[Message] | None]]] = {
    "learn": (timedelta(seconds=30), run_times.learn),
    "gather": (timedelta(minutes=1), children.wake_all),
    "forget_keys": (timedelta(hours=1), _forget_keys),
    "sweep": (timedelta(minutes=1), _sweep),
    "give_up": (timedelta(minutes=1), webhooks.give_up),
}
