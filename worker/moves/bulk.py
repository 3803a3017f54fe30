"""Moves of many jobs that a person asks for: canceled, made again, held with their batch, let go with it.

The jobs are locked first, in the order of their ids, so that no two callers wait for each other in a circle. Each is
then judged by its own row, and those that fare alike are moved by one statement, with their events. What belongs to
them follows in the same transaction: the ledger's lines, their children, their batches, deliveries. One job that is
canceled or made again goes the same way: there is one set of rules.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.orm import aliased

from worker import document, inputs, money, moves, webhooks
from worker.claims import TAKEN
from worker.errors import BudgetExhausted, Fault, InvalidInput
from worker.inputs import naming
from worker.money import budgets
from worker.money.budgets import Room
from worker.moves import children, making, transition
from worker.states import TERMINAL, HeldFor, Mode, State
from worker.tables import Attempt, Batch, Job, Project
from worker.webhooks import endpoints

CHUNK = 500  # jobs in one transaction, so that workers wait for their rows a fraction of a second
_AT_ONCE = 50  # inputs, or documents for receivers, that are in memory together

_MINE = frozenset({State.QUEUED, State.HELD, State.ADMITTED})  # the provider knows nothing of the job
_PAID = frozenset({State.COPYING, State.AWAITING_REVIEW})  # its outputs are on their way, or there
AGAIN = frozenset({State.FAILED, State.CANCELED, State.EXPIRED})
MADE = frozenset({"retried", "held"})  # the outcomes of jobs that are made again

T = TypeVar("T")


@dataclass(frozen=True)
class Fate:
    """What became of a job, in the words of the API; or the code of why nothing did, and then `why` in a sentence.

    `estimate`: what it was to cost, or costs again, of one that is canceled or made again. `faults`: of its files, or
    of its price. `spent`: the budget that has no room for it.
    """

    outcome: str
    why: str = ""
    estimate: int | None = None
    faults: tuple[Fault, ...] = ()
    spent: BudgetExhausted | None = None


Fates = dict[uuid.UUID, Fate]


def would_cancel(connection: Connection, project_id: uuid.UUID, ids: Sequence[uuid.UUID]) -> Fates:
    """What `cancel` would lead to now."""
    return {job.id: _of_cancel(job) for job in _look(connection, _SEEN, project_id, ids)}


def cancel(connection: Connection, project_id: uuid.UUID, ids: Sequence[uuid.UUID], now: datetime) -> Fates:
    """Asks jobs to stop: what became of those that are the project's.

    `canceled`: it is. `requested`: the provider is being asked. `too_late`: it runs on and is billed, and ends as if
    nothing had been asked. `already_finished`. Refused: `is_child`, `held_uncertain`.
    """
    jobs = _look(connection, _LOCKED, project_id, ids)
    fates = {job.id: _of_cancel(job) for job in jobs}
    if canceled := [job for job in jobs if fates[job.id].outcome == "canceled"]:
        events = _move(connection, _CANCEL, canceled, "canceled by the user", now)
        for parent in (job for job in canceled if job.round):  # held by crashes while it was copied
            children.tell_paid(connection, parent.id)
        money.release_ended(connection, _ids(canceled), now)
        _tell(connection, State.CANCELED, canceled, events, now)
    asked = [job for job in jobs if fates[job.id].outcome == "requested"]
    if parents := [job for job in asked if job.state == State.HELD]:
        _move(connection, _SEE_TO_THE_END, parents, "canceled by the user: its parts are seen to their end", now)
    if others := [job.id for job in asked if job.state != State.HELD]:
        connection.execute(_ASK, {"jobs": others, "now": now})
    return fates


def would_retry(
    connection: Connection, project_id: uuid.UUID, ids: Sequence[uuid.UUID], budget: Room, room: int | None = None
) -> Fates:
    """What `retry` would lead to now; `budget` is what there is room for, of which this takes."""
    return _of_retry(connection, project_id, _look(connection, _SEEN, project_id, ids), budget, room)


def retry(
    connection: Connection, project_id: uuid.UUID, ids: Sequence[uuid.UUID], now: datetime, room: int | None = None
) -> Fates:
    """Makes jobs again that failed, expired or were canceled; of parents only the children that did not succeed.

    They are reserved and paid for again, `room` of them at the most, and their batches are open again. What became of
    those that are the project's: `retried`, `held` until its budget has room, or refused: `is_child`, `not_retryable`,
    `attempt_open` while it is not known what became of a call, the code of what is wrong with a file,
    `too_many_waiting`, `budget_exhausted`, `price_unknown`.
    """
    connection.execute(_LOCK_BATCHES, {"of_project": project_id, "jobs": ids})
    jobs = _look(connection, _LOCKED, project_id, ids)
    fates = _of_retry(connection, project_id, jobs, budgets.locked(connection, project_id, now), room)
    again = [job for job in jobs if fates[job.id].outcome == "retried"]
    held = [job for job in jobs if fates[job.id].outcome == "held"]
    for statement, to, some in (
        (_MAKE_AGAIN, State.QUEUED, [job for job in again if not job.round]),
        (_GATHER_AGAIN, State.GATHERING, [job for job in again if job.round]),
        (_MAKE_AGAIN_HELD, State.HELD, held),
    ):
        if some:
            _tell(connection, to, some, _move(connection, statement, some, "made again, as a person asked", now), now)
    if again:
        if parents := [job.id for job in again if job.mode == Mode.PARENT]:
            children.make_again(connection, parents, now)
        money.reserve(connection, _ids(again), now)
    for batch_id in {job.batch_id for job in again + held if job.batch_id}:
        reopen(connection, batch_id)
    return fates


def hold(connection: Connection, project_id: uuid.UUID, ids: Sequence[uuid.UUID], now: datetime) -> list[uuid.UUID]:
    """Holds the jobs of a batch that is paused, those that wait and nobody works on; which."""
    waits = (State.QUEUED, State.ADMITTED)
    jobs = [
        job
        for job in _look(connection, _LOCKED, project_id, ids)
        if job.state in waits and job.claimed != TAKEN and not job.cancel_requested
    ]
    if jobs:
        _tell(connection, State.HELD, jobs, _move(connection, _HOLD, jobs, "its batch is paused", now), now)
    return _ids(jobs)


def let_go(connection: Connection, project_id: uuid.UUID, ids: Sequence[uuid.UUID], now: datetime) -> list[uuid.UUID]:
    """Puts the jobs of a batch that goes on back into the line, those that were held with it; which."""
    jobs = [job for job in _look(connection, _LOCKED, project_id, ids) if job.held_for == HeldFor.BATCH]
    if jobs:
        _tell(connection, State.QUEUED, jobs, _move(connection, _LET_GO, jobs, "its batch goes on", now), now)
    return _ids(jobs)


def let_go_within_budgets(connection: Connection, now: datetime) -> bool:
    """Puts jobs that are held for their project's budget into the line, and reserves for them: the oldest that fit.

    The first that does not fit keeps those after it waiting, unless it costs more than a whole budget. What somebody
    works on at the moment is looked at the next time. Whether there may be more that fit: it lets go a few hundred.
    """
    has_more = False
    for project_id in connection.execute(_HELD_FOR_BUDGETS).scalars().all():
        room = budgets.unlocked(connection, project_id, now)
        if room is None:
            continue
        least = min((standing.budget.micros for standing in room.standings), default=None)
        jobs = connection.execute(_HELD, {"of_project": project_id, "most": CHUNK, "least": least}).all()
        if some := _that_fit(jobs, room):
            events = _move(connection, _LET_GO, some, "its project's budget has room", now)
            _tell(connection, State.QUEUED, some, events, now)
            money.reserve(connection, _ids(some), now)
        has_more |= len(some) == CHUNK
    return has_more


def end_overdue(connection: Connection, now: datetime) -> None:
    """Ends jobs that were not sent by their `not_after` and that nobody works on, some of them; the longest first."""
    jobs = connection.execute(_OVERDUE, {"now": now}).all()
    for (not_after, _, billed), some in groupby(jobs, key=lambda job: (job.not_after, job.project_id, job.billed)):
        end = moves.overdue(not_after, billed)
        late = list(some)
        events = _move(connection, _END_OVERDUE, late, end.why, now, the_error=end.columns["error"])
        money.release_ended(connection, _ids(late), now)
        _tell(connection, State.FAILED, late, events, now)


def reopen(connection: Connection, batch_id: uuid.UUID) -> None:
    """Lets a batch run on in which something is made again; whoever completes it now writes nothing."""
    connection.execute(_REOPEN, {"the_batch": batch_id})


def chunks(things: Sequence[T], most: int = CHUNK) -> Iterator[Sequence[T]]:
    """The things, so many at a time."""
    return (things[start : start + most] for start in range(0, len(things), most))


def _of_cancel(job: Row[Any]) -> Fate:
    """What a cancel leads to."""
    state = State(job.state)
    if state in TERMINAL:
        return Fate("already_finished")
    if job.parent_id is not None:
        return Fate("is_child", f"it is a part of job {job.parent_id}: cancel that")
    if state is State.HELD and job.held_from == State.UNCERTAIN:
        return Fate("held_uncertain", "a person has to say first what became of its create call: POST …/resolve")
    if state in _MINE and job.claimed != TAKEN and job.held_from != State.GATHERING:
        return Fate("canceled", estimate=job.estimate)
    if state in _PAID or (state is State.RUNNING and job.task_status == "RUNNING"):
        return Fate("too_late")
    return Fate("requested")


def _that_fit(jobs: Sequence[Any], room: Room) -> list[Row[Any]]:
    some = []
    for job in jobs:
        if room.can_ever_fit(job.estimate or 0):
            if not room.fits(job.estimate or 0):
                break
            room.take(job.estimate or 0)
            some.append(job)
    return some


def _of_budget(job: Row[Any], budget: Room) -> Fate:
    """What a retry leads to where nothing but the budget is in its way."""
    try:
        holds = budget.holds(job.estimate, job.model)
    except BudgetExhausted as error:
        return Fate(error.code, str(error), spent=error)
    except InvalidInput as error:
        return Fate(error.faults[0].code, error.faults[0].message, faults=tuple(error.faults))
    if holds and job.round:
        why = "the project's budget has no room for the parts that are missing: retry it when there is"
        return Fate("no_room_in_budget", why)
    return Fate("held" if holds else "retried", estimate=job.estimate)


def _of_retry(
    connection: Connection, project_id: uuid.UUID, jobs: Sequence[Row[Any]], budget: Room, room: int | None
) -> Fates:
    """What a retry leads to; calls and files are looked at once for all."""
    fates: Fates = {}
    for job in jobs:
        if job.parent_id is not None:
            why = f"it is a part of job {job.parent_id}: retry that, which repeats only what failed"
            fates[job.id] = Fate("is_child", why)
        elif job.state not in AGAIN:
            instead = "; POST …/reject with a reroll makes another take" if job.state == State.REJECTED else ""
            why = f"it is {job.state}: only what failed, expired or was canceled is made again{instead}"
            fates[job.id] = Fate("not_retryable", why)
    left = [job for job in jobs if job.id not in fates]
    why = "it is not known yet what became of its last create call, so it may be paid for"
    is_open = connection.execute(_OPEN, {"jobs": _ids(left)}).scalars() if left else ()
    fates |= dict.fromkeys(is_open, Fate("attempt_open", why))
    fates |= _without_files(connection, project_id, [job for job in left if job.id not in fates])
    fits = [job for job in left if job.id not in fates]
    fates |= {job.id: _of_budget(job, budget) for job in fits[:room]}
    full = Fate("too_many_waiting", "the project has as many unfinished jobs as it may")
    return fates | {job.id: full for job in fits[len(fits[:room]) :]}


def _without_files(connection: Connection, project_id: uuid.UUID, jobs: Sequence[Row[Any]]) -> Fates:
    """The jobs that name a file that is gone or unfit; a parent's documents are for its kind to report."""
    fates: Fates = {}
    made_whole = [job.id for job in jobs if job.mode != Mode.PARENT]
    naming = connection.execute(_NAMING, {"jobs": made_whole}).scalars().all() if made_whole else ()
    for some in chunks(naming, _AT_ONCE):
        rows = connection.execute(_INPUTS, {"jobs": some}).all()
        found = inputs.check_all(connection, project_id, [(row.model, row.input) for row in rows])
        for row, faults in zip(rows, found, strict=True):
            if faults:
                fates[row.id] = Fate(faults[0].code, faults[0].message, faults=tuple(faults))
    return fates


def _look(
    connection: Connection, how: Select[Any], project_id: uuid.UUID, ids: Sequence[uuid.UUID]
) -> Sequence[Row[Any]]:
    return connection.execute(how, {"of_project": project_id, "jobs": ids}).all()


def _move(
    connection: Connection,
    how: transition.Telling,
    jobs: Sequence[Row[Any]],
    why: str,
    now: datetime,
    **more: Any,
) -> dict[uuid.UUID, int]:
    """Moves jobs that are locked; each one's event."""
    told = connection.execute(how, {"jobs": _ids(jobs), "the_why": why, "now": now, **more}).all()
    assert len(told) == len(jobs), "what is locked and was judged is moved"
    return {row.job_id: row.id for row in told}


def _tell(
    connection: Connection, to: State, jobs: Sequence[Row[Any]], events: dict[uuid.UUID, int], now: datetime
) -> None:
    """Writes the deliveries of a move's events to those receivers and endpoints that want them."""
    event_type, project_id = f"job.{to}", jobs[0].project_id
    own = {job.id for job in jobs if job.webhook_url and webhooks.wanted(event_type, job.webhook_events)}
    listens = event_type in endpoints.EVENTS and jobs[0].has_endpoints
    if not own and not listens:
        return
    project = connection.execute(_PROJECT, {"of_project": project_id}).scalar_one()
    for some in chunks([job.id for job in jobs if listens or job.id in own], _AT_ONCE):
        moved = [Job.of(row) for row in connection.execute(_TOLD, {"jobs": some}).mappings()]
        body = _bodies(connection, project, event_type, moved, now)
        told = [(job.id, events[job.id], job.webhook_url or "", body(job)) for job in moved]
        if rows := [row for row in told if row[0] in own]:
            webhooks.enqueue_all(connection, project_id, rows)
        if listens:
            rows_of_endpoints = [(job_id, event_id, said) for job_id, event_id, _, said in told]
            endpoints.enqueue_all(connection, project_id, event_type, rows_of_endpoints)


def _bodies(
    connection: Connection, project: str, event_type: str, jobs: Sequence[Job], now: datetime
) -> Callable[[Job], str]:
    """What receivers are told of each of the jobs."""
    stored, requests = document.outputs(connection, jobs), document.request_ids(connection, jobs)
    made_of = document.parts(connection, jobs)

    def body(job: Job) -> str:
        shown = document.shown(project, job, stored[job.id], requests.get(job.id), None, made_of.get(job.id))
        return making.body(event_type, job, shown, now)

    return body


def _ids(jobs: Sequence[Row[Any]]) -> list[uuid.UUID]:
    return [job.id for job in jobs]


# Statements are built once: to build one costs more than to run it.

_JOBS: ColumnElement[bool] = Job.id == any_(bindparam("jobs", type_=ARRAY(Uuid)))
_OF_PROJECT: ColumnElement[bool] = Job.project_id == bindparam("of_project", type_=Uuid)
_JUDGED = (
    *("id", "project_id", "batch_id", "parent_id", "kind", "model", "mode", "round"),
    *("state", "held_for", "held_from", "claimed"),
    *("cancel_requested", "task_status", "estimate", "webhook_url", "webhook_events"),
)
_HAS_ENDPOINTS = endpoints.exist(Job.project_id).label("has_endpoints")
_SEEN = select(*(Job.__table__.c[name] for name in _JUDGED), _HAS_ENDPOINTS).where(_OF_PROJECT, _JOBS).order_by(Job.id)
_LOCKED = _SEEN.with_for_update(key_share=True)  # who writes an event or an output of one does not wait

# projects of which something is held for a budget, and the oldest that is
_HELD_FOR_BUDGETS = select(Project.id).where(
    exists().where(Job.project_id == Project.id, Job.held_for == literal_column(f"'{HeldFor.BUDGET}'"))
)
_HELD = (
    select(*(Job.__table__.c[name] for name in _JUDGED), _HAS_ENDPOINTS)
    .where(_OF_PROJECT, Job.held_for == literal_column(f"'{HeldFor.BUDGET}'"))
    # what costs more than a whole budget keeps nobody waiting, however many there are
    .where(func.coalesce(Job.estimate <= bindparam("least", type_=BigInteger), True))
    .order_by(Job.id)
    .limit(bindparam("most"))
    .with_for_update(key_share=True, skip_locked=True)
)
_CANCEL = transition.many(_MINE, State.CANCELED, _JOBS, cancel_requested=True)
_SEE_TO_THE_END = transition.many({State.HELD}, State.GATHERING, _JOBS, cancel_requested=True)
_MAKE_AGAIN = transition.many(AGAIN, State.QUEUED, _JOBS)
_GATHER_AGAIN = transition.many(AGAIN, State.GATHERING, _JOBS)
_AS_QUEUED: dict[str, Any] = {
    "held_from": literal_column(f"'{State.QUEUED}'", Text),  # an admitted one gives its slot back
    **dict.fromkeys(("lane_id", "account", "region")),
}
_FOR_BUDGET = literal_column(f"'{HeldFor.BUDGET}'", Text)
_MAKE_AGAIN_HELD = transition.many(AGAIN, State.HELD, _JOBS, held_for=_FOR_BUDGET, **_AS_QUEUED)
_HOLD = transition.many(
    {State.QUEUED, State.ADMITTED},
    State.HELD,
    _JOBS,
    held_for=literal_column(f"'{HeldFor.BATCH}'", Text),
    **_AS_QUEUED,
)
_LET_GO = transition.many({State.HELD}, State.QUEUED, _JOBS)

_OVERDUE: Select[Any] = (
    select(*_LOCKED.selected_columns, Job.not_after, Job.billed)
    .where(moves.is_overdue(transition.BOUND_NOW))
    .order_by(Job.not_after, Job.project_id, Job.billed)
    .limit(CHUNK)
    .with_for_update(skip_locked=True)
)
_END_OVERDUE = transition.many(_MINE, State.FAILED, _JOBS, error=bindparam("the_error", type_=JSONB))

# leaves word for whoever works on the jobs, and makes those due at once on which nobody does
_WAITS = or_(Job.run_at > transition.BOUND_NOW, and_(Job.state == State.GATHERING, Job.run_at.is_(None)))
_ASK = (
    update(Job)
    .where(_JOBS)
    .values(
        cancel_requested=True,
        run_at=case((and_(Job.claimed.is_(None), _WAITS), transition.BOUND_NOW), else_=Job.run_at),
    )
)

# the jobs that have a call whose verdict is open, or a child that has one
_CHILD = aliased(Job, name="child")
_OPEN = select(Job.id).where(
    _JOBS,
    or_(
        exists().where(Attempt.job_id == Job.id, Attempt.closed_at.is_(None)),
        and_(
            Job.mode == literal_column(f"'{Mode.PARENT}'"),
            exists().where(_CHILD.parent_id == Job.id, Attempt.job_id == _CHILD.id, Attempt.closed_at.is_(None)),
        ),
    ),
)
_NAMING = select(Job.id).where(_JOBS, Job.input.has_any(array(naming.FIELDS))).order_by(Job.id)
_INPUTS = select(Job.id, Job.model, Job.input).where(_JOBS).order_by(Job.id)
_PROJECT = select(Project.name).where(Project.id == bindparam("of_project", type_=Uuid))
# what receivers are told of; without what may be long and is not told
_LEFT_OUT = {"input": cast(literal_column("'{}'"), JSONB), "note": null(), "sources": null()}
_TOLD = (
    select(*(_LEFT_OUT[it.name].label(it.name) if it.name in _LEFT_OUT else it for it in Job.__table__.c))
    .where(_JOBS)
    .order_by(Job.id)
)

# before their jobs, and in order, so that no two wait for each other in a circle
_OF_JOBS = select(Job.batch_id).where(_OF_PROJECT, _JOBS)
_LOCK_BATCHES = select(Batch.id).where(Batch.id.in_(_OF_JOBS)).order_by(Batch.id).with_for_update(key_share=True)
_REOPEN = (
    update(Batch)
    .where(Batch.id == bindparam("the_batch"), Batch.state != "draft")
    .values(
        state=case((Batch.state == "completed", "running"), else_=Batch.state),
        canceled_at=None,  # what is made again is wanted again
        run_at=None,
        claim=Batch.claim + 1,
        claimed=None,
        crashes=0,
    )
)
