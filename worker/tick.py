"""The tick: each second, and at once on a hint, it admits jobs, claims what is due, and gives the messages to publish.

It is one transaction under an advisory lock, so any number of clocks may run. The messages are published after the
commit and may be lost: rows that no worker takes are due again when their claims lapse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Interval,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased

from worker import claims, log, moves, retention, timeouts, webhooks, work
from worker.batches import completion, draft
from worker.claims import Claim, Claimable, Now, Numbers
from worker.context import Context
from worker.errors import ErrorClass, Failure
from worker.jobs import spending
from worker.lanes import query_budget, slots
from worker.money import budgets
from worker.moves import bulk, children, fair_queue
from worker.schedules import fire
from worker.states import HeldFor, Mode, Move, State, may
from worker.tables import Batch, Delivery, Duty, IdempotencyKey, Job, Output, Owner
from worker.webhooks import feed, receivers
from worker.work import WORK, Group

LOCK = 0x4E6F726961  # "Noria": whoever holds it ticks
_KEYS_KEPT = timedelta(days=7)
_SOON = timedelta(hours=2)  # left to a link
# A message on which a worker died goes again in parts, each a hundredth of the longest: of eight rows each goes alone,
# and of thousands, of which one at the most is to blame, no thousands of messages are made.
_FEWER = 100

_LATE = {"quotas": timedelta(minutes=5)}  # duties that a new system does not begin with

_DELIVER, _COMPLETE = "noria.deliver", "noria.complete"
_TABLES: dict[str, Claimable] = {_DELIVER: Delivery, _COMPLETE: Batch}  # whose rows a task's claims are; the rest: Job

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
    """Rows of a group that may be claimed: in which states, which, how many may be on their way, in which order."""

    group: Group
    states: frozenset[State]
    limit: int
    due: ColumnElement[bool]
    order: tuple[Any, ...]


_NOW = bindparam("now", type_=DateTime(timezone=True))
# False where no link dies: what is assembled lies in our bucket.
_DIES_SOON = func.coalesce(Job.links_expire_at < _NOW + _SOON, False)
_PARENT = aliased(Job, name="parent")
# The parents of a job's project that workers gather for.
_GATHERS = (
    select(func.count())
    .where(
        text("parent.state = 'gathering'"),
        _PARENT.project_id == Job.project_id,
        _PARENT.claimed.is_not(None),
        _PARENT.run_at > _NOW,  # lapsed rows are not counted: otherwise they would block each other forever
    )
    .correlate(Job)
    .scalar_subquery()
)


def _due(group: Group) -> Iterator[_Due]:
    """The claims of a group: one, or two where some of it is kept for what is urgent."""
    modes, among, apart = work.rows_of(group)
    here = and_(work.in_states(*sorted(among)), work.of_modes(*sorted(modes)), apart)
    if group.per_project is not None:
        here = and_(here, group.per_project > _GATHERS)
    if State.QUEUED in among:  # parents, which are in no lane's line
        here = and_(here, text(f"not ({fair_queue.PASSED_BY})"))
    if group.urgent:
        yield _Due(group, among, group.on_their_way, and_(here, _DIES_SOON), (Job.links_expire_at,))
        yield _Due(group, among, group.on_their_way - group.urgent, and_(here, ~_DIES_SOON), (Job.links_expire_at,))
    else:
        # many looks are due at one instant: those of one message then lie close together in the provider's list, too
        yield _Due(group, among, group.on_their_way, here, (Job.run_at, Job.submitted_at))


_CLAIMED = sorted({state for _, state in WORK} - {State.QUEUED})
_WORK = tuple(due for group in work.GROUPS for due in _due(group))


def prepare(connection: Connection, ctx: Context) -> None:
    """What the first tick of a process needs: lanes, owners and duties as the catalog and the settings say."""
    slots.sync(connection, ctx.catalog, ctx.settings)
    connection.execute(_MAKE_DUTY, [{"name": name, "late": _LATE.get(name, timedelta(0))} for name in _DUTIES])


def run(connection: Connection, now: Now = claims.NOW) -> list[Message]:
    """One tick; what to publish once the transaction is committed. Nothing while another process ticks."""
    found = connection.execute(_look(now)).one()
    if not found.locked:
        return []
    messages = _do_duties(connection, found.now) if found.duty_due else []
    if found.overdue:  # first, so that none of them is admitted
        bulk.end_overdue(connection, found.now)
    if found.fires:
        messages.append(Message("noria.fire", "tick", ()))  # sent each tick until the schedules are fired
    states = {*map(State, found.states or ()), *({State.QUEUED} if found.parents else ())}
    if found.lines and fair_queue.admit(connection, found.now):
        states.add(State.ADMITTED)
    for due in _WORK:
        if due.states & states:
            messages += _messages(connection, due, found.now)
    if found.deliveries:
        messages += _deliveries(connection, found.now)
    if found.batches:
        messages += _completions(connection, found.now)
    return messages


def give_back(connection: Connection, messages: Iterable[Message]) -> None:
    """Makes the rows of messages that could not be sent due again."""
    for message in messages:
        claims.give_back(connection, _TABLES.get(message.task, Job), message.numbers, timedelta(0))


@lru_cache(maxsize=4)
def _look(now: Now) -> Select[Any]:
    """Takes the lock, and what wants attention: a look at a few indexes, so that only what is due is claimed.

    It may miss a row that is being committed: the next tick finds that.
    """
    state = func.unnest(array(_CLAIMED)).column_valued("wanted")  # not a name of a column: it would be that
    # the first by its index: a mere `exists` reads the table where the statistics say that many are due
    due = select(Job.run_at).where(text("jobs.state <> 'queued' and jobs.run_at is not null"), Job.state == state)
    first = due.where(Job.run_at <= now).order_by(Job.run_at).limit(1).scalar_subquery()
    delivery = select(Delivery.run_at).where(Delivery.run_at <= now).order_by(Delivery.run_at).limit(1)
    line = select(Job.model).where(slots.in_line(), Job.run_at <= now).order_by(Job.model).limit(1)
    parents = select(Job.run_at).where(work.in_states(State.QUEUED), work.of_modes(Mode.PARENT), Job.run_at <= now)
    overdue = select(Job.not_after).where(moves.is_overdue(now)).order_by(Job.not_after).limit(1)
    return select(
        func.pg_try_advisory_xact_lock(LOCK).label("locked"),
        select(func.array_agg(state)).where(first.is_not(None)).scalar_subquery().label("states"),
        # two, as their indexes are
        line.scalar_subquery().is_not(None).label("lines"),
        parents.order_by(Job.run_at).limit(1).scalar_subquery().is_not(None).label("parents"),
        delivery.scalar_subquery().is_not(None).label("deliveries"),
        exists().where(Duty.due_at <= now).label("duty_due"),
        fire.is_due(now).label("fires"),
        completion.is_due(now).label("batches"),
        overdue.scalar_subquery().is_not(None).label("overdue"),
        feed.tells(now).label("told"),
        claims.moment(now).label("now"),
    )


def _messages(connection: Connection, due: _Due, now: datetime) -> Iterator[Message]:
    claimed = claims.claim_due(connection, Job, due.due, due.order, due.limit, now, due.group.busy)
    healthy = [claim for claim in claimed if claim.crashes == 0]
    crashed = [claim for claim in claimed if claim.crashes > 0]
    again = [claim for claim in crashed if not _stopped(connection, claim, now)]
    rows = min(due.group.rows, max(1, math.ceil(len(healthy) / due.group.messages)))
    batches = [*_batches(healthy, rows)]
    for crashes in sorted({claim.crashes for claim in again}):
        suspects = [claim for claim in again if claim.crashes == crashes]
        batches += _batches(suspects, max(1, due.group.rows // _FEWER**crashes))
    for batch in batches:
        yield Message(due.group.task, due.group.queue, tuple(batch))


def _deliveries(connection: Connection, now: datetime) -> list[Message]:
    """The messages of due deliveries, each of one project and receiver; one on which a worker died goes alone."""
    claimed = receivers.claim_due(connection, now)
    healthy = _batches([claim for claim in claimed if not claim.crashes], receivers.ROWS)
    alone = [(claim,) for claim in claimed if claim.crashes]
    return [Message(_DELIVER, "webhook", tuple(batch)) for batch in (*healthy, *alone)]


def _completions(connection: Connection, now: datetime) -> list[Message]:
    """The messages of batches whose end is due, each alone: a manifest may take minutes."""
    return [Message(_COMPLETE, "transfer", (claim,)) for claim in completion.claim_due(connection, now)]


def _batches(claimed: Sequence[Claim], rows: int) -> Iterator[Sequence[Claim]]:
    """Claims in the order they were made, those of one group together, at most `rows` at a time."""
    for _, group in groupby(sorted(claimed, key=lambda claim: claim.group), key=lambda claim: claim.group):
        members = list(group)
        yield from (members[start : start + rows] for start in range(0, len(members), rows))


def _stopped(connection: Connection, claim: Claim, now: datetime) -> bool:
    """Whether a job on which too many workers died goes no further: it is held for a person, or has ended."""
    if claim.crashes < timeouts.CRASHES:
        return False
    job = Job.of(connection.execute(_JOB, {"job": claim.id}).mappings().one())
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
    """What is done once in a while, by whichever tick comes first; the messages for what of it workers do."""
    messages: list[Message] = []
    for name, (every, duty) in _DUTIES.items():
        if not connection.execute(_TAKE_DUTY, {"duty": name, "now": now, "next_at": now + every}).rowcount:
            continue
        try:
            with connection.begin_nested():
                messages += duty(connection, now) or ()
        except DBAPIError:  # a duty that fails must not stop what is done each second
            _log.exception("a duty failed; it is tried again when it is next due", duty=name)
    return messages


def _sweep(connection: Connection, now: datetime) -> list[Message]:
    """The message for the look for unowned tasks; sent again each minute until an owner's look is no longer due."""
    return [Message("noria.sweep", "provider", ())] if connection.execute(_SWEEP_DUE, {"now": now}).scalar_one() else []


def _prune(connection: Connection, now: datetime) -> list[Message]:
    """The message to prune what projects no longer keep; sent again each minute of a night until nothing is left."""
    return [Message("noria.prune", "transfer", ())] if retention.is_due(connection, now) else []


def _quotas(_: Connection, __: datetime) -> list[Message]:
    """The message for the look at what the provider tells of limits; where it is lost, the next hour's comes."""
    return [Message("noria.quotas", "provider", ())]


def _posters(connection: Connection, _: datetime) -> list[Message]:
    """The message to make the posters that are wanted; sent again until none is."""
    return [Message("noria.posters", "transfer", ())] if connection.execute(_WANTED).one_or_none() else []


def _forget_keys(connection: Connection, now: datetime) -> None:
    for forget in (_FORGET_KEYS, _FORGET_BATCH_KEYS):
        connection.execute(forget, {"before": now - _KEYS_KEPT})


def _budgets(connection: Connection, now: datetime) -> None:
    """Lets go what budgets have room for, tells how much of them is used, and adds up what was booked."""
    if bulk.let_go_within_budgets(connection, now):
        budgets.wake(connection)
    spending.tell_thresholds(connection, now)
    budgets.add_up(connection, now)


_DUTIES: dict[str, tuple[timedelta, Callable[[Connection, datetime], list[Message] | None]]] = {
    "learn": (timedelta(seconds=30), query_budget.learn),
    "gather": (timedelta(minutes=1), children.wake_all),
    "forget_keys": (timedelta(hours=1), _forget_keys),
    "sweep": (timedelta(minutes=1), _sweep),
    retention.DUTY: (timedelta(minutes=1), _prune),
    "give_up": (timedelta(minutes=1), webhooks.give_up),
    "budgets": (timedelta(seconds=5), _budgets),
    "forget_drafts": (timedelta(minutes=1), draft.forget),
    "quotas": (timedelta(hours=1), _quotas),
    "posters": (timedelta(seconds=2), _posters),
}

# Statements are built once: to build one costs more than to run it.

_JOB = select(*Job.__table__.c).where(Job.id == bindparam("job"))
# makes a duty, unless it is there
_MAKE_DUTY = upsert(Duty).values(due_at=claims.NOW + bindparam("late", type_=Interval)).on_conflict_do_nothing()
# takes a duty that is due, and puts it off
_TAKE_DUTY = (
    update(Duty)
    .where(Duty.name == bindparam("duty"), Duty.due_at <= _NOW)
    .values(due_at=bindparam("next_at", type_=DateTime(timezone=True)))
)
_SWEEP_DUE = select(exists().where(Owner.sweep_at <= _NOW))
_WANTED = select(Output.created_at).where(text("poster = 'wanted'")).order_by(Output.created_at).limit(1)
_BEFORE = bindparam("before", type_=DateTime(timezone=True))
_FORGET_KEYS = delete(IdempotencyKey).where(IdempotencyKey.created_at < _BEFORE)
_FORGET_BATCH_KEYS = update(Batch).where(Batch.key.is_not(None), Batch.created_at < _BEFORE).values(key=None)
