"""Runs steps: takes rows by their claims, and puts each move on record before the step's next line runs.

It knows no Celery: `tasks` hands it what messages carry, and tests hand it the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Connection, Row, and_, bindparam, select, update

from worker import claims, database, document, log, moves, steps, tick, webhooks, work
from worker.claims import Numbers
from worker.context import Clock, Context
from worker.errors import ClaimLost
from worker.runner.looks import Looks
from worker.schedules import fire
from worker.states import TERMINAL, Move, State
from worker.steps import find
from worker.tables import DeadReceiver, Delivery, Job, Project
from worker.webhooks import alerts

Publish = Callable[[tick.Message], None]
T = TypeVar("T")

_POSTPONED = timedelta(seconds=2)  # until rows are due again that were given back
_AWAY = timedelta(seconds=15)  # how long a message waits for the database
_TOLD_AGAIN = 2000  # jobs: Flower keeps as many rows


_log = log.get(__name__)


@dataclass(frozen=True)
class Runner:
    """Does what messages ask for; `hint` asks for a tick soon, `tell` leaves an event for Flower; neither waits."""

    ctx: Context
    hint: Callable[[], None]
    tell: Callable[[dict[str, Any]], None]

    def tick(self, publish: Publish) -> None:
        """One tick, and its messages; when one cannot be published, its claims and the later ones' are given back."""
        with self.ctx.engine.begin() as connection:
            messages = tick.run(connection)
        for n, message in enumerate(messages):
            try:
                publish(message)
            except Exception as error:  # noqa: BLE001 - whatever the broker's client raises
                _log.warning("the broker takes no messages", cause=type(error).__name__, kept=len(messages) - n)
                with self.ctx.engine.begin() as connection:
                    tick.give_back(connection, messages[n:])
                return

    def work(self, numbers: Numbers) -> None:
        """One step for each row, one after the other; each is taken right before its step."""
        for number in numbers:
            for row in _take(self.ctx, Job, [number], work.LEASE):
                job, clock = Job.of(_columns(row)), Clock(row.now)
                if wait := self.carry_out(job, clock):
                    self._write([(job, wait)], clock)

    def poll(self, numbers: Numbers) -> None:
        """A look at the task of each row, all of one account: by its list where they are many, the rest singly."""
        Looks(self.ctx, self).at_all(numbers)

    def deliver(self, numbers: Numbers) -> None:
        """One try of each delivery, one after the other; then the receiver's next may go."""
        for n, number in enumerate(numbers):
            if not _deliver(self.ctx, number):  # the rest would only hold the thread
                with self.ctx.engine.begin() as connection:
                    claims.give_back(connection, Delivery, numbers[n + 1 :], timedelta(0))
                break
        self.hint()

    def fire(self) -> None:
        """The schedules whose time has come; what they submit waits for the next tick."""
        for job in fire.fire_due(self.ctx.engine, self.ctx.catalog, self.ctx.settings):
            self._tell(job)
            self.hint()

    def sweep(self) -> None:
        """The look for tasks that no job owns, of the accounts whose hour has come."""
        find.sweep(self.ctx)

    def tell_unfinished(self) -> None:
        """Tells Flower of the newest unfinished jobs again: it forgets what it heard when it restarts."""
        with self.ctx.engine.connect() as connection:
            # few at a time: an input may hold a picture
            rows = connection.execution_options(yield_per=50).execute(_UNFINISHED)
            for job in map(Job.of, rows.mappings()):
                self._tell(job)

    def carry_out(self, job: Job, clock: Clock) -> Move | None:
        """Runs the step of the job's state; the plain wait that a look ended in, for the caller to write, or None."""
        return self.guarded(job, lambda: self._run(job, clock))

    def put(self, moved: Sequence[tuple[Job, Move]], clock: Clock) -> None:
        """Puts moves on record, each the whole of what its step had to say."""
        for job, move in moved:
            self.guarded(job, partial(self._put, job, move, clock))

    def guarded(self, job: Job, act: Callable[[], T]) -> T | None:
        """What `act` returns; None when it fails, and the next row of the message goes on.

        A mistake of ours leaves the job's row to the lease, which counts as a crash. What fails because the database is
        away gives the row back.
        """
        bound = structlog.contextvars.bind_contextvars(job=str(job.id), lane=job.lane_id, claim=job.claim)
        try:
            return act()
        except ClaimLost as lost:
            _log.warning("the claim is lost; nothing was written", why=str(lost))
            self._let_go([job])
        except Exception as error:  # noqa: BLE001 - the next row of the message goes on
            _log.exception("a step failed; its row is left to the lease, or given back where the database was away")
            if database.is_away(error):
                self._let_go([job])
        finally:
            structlog.contextvars.reset_contextvars(**bound)
        return None

    def _run(self, job: Job, clock: Clock) -> Move | None:
        step = steps.of(job)(self.ctx, job, clock)
        move = next(step, None)
        while move is not None:
            if move.to == job.state == State.RUNNING and not (move.why or move.effects):
                return move
            job = self._put(job, move, clock)
            move = _next(step, job)
        return None

    def _put(self, job: Job, move: Move, clock: Clock) -> Job:
        """Puts a move on record, and tells those who wait for it; the job as it is then."""
        moved = self.ctx.record(job, move, clock)
        if moved.state != job.state:
            self._moved(moved, job.state, [output["key"] for output in move.outputs])
        return moved

    def _moved(self, job: Job, left: str, keys: Sequence[str]) -> None:
        """After the commit: Flower's row, and a hint where somebody can go on at once."""
        _log.info("moved", left=left, entered=job.state, task=job.task_id)
        if job.parent_id and job.state in TERMINAL:
            self.ctx.wake(job.parent_id)
        if job.state not in (State.SUBMITTING, State.RUNNING):
            self.hint()
        self._tell(job, keys)

    def _tell(self, job: Job, keys: Sequence[str] = ()) -> None:
        """Tells Flower of the state that the job has entered, with its outputs' keys."""
        if event := document.flower_event(job, self.ctx.project_name(job), keys):
            self.tell(event)

    def _let_go(self, taken: Sequence[Job]) -> None:
        """Gives rows back that a living worker could not finish, or lost while the database was away: no crash."""
        self.ctx.write(partial(claims.let_go, table=Job, numbers=_numbers(taken), after=_POSTPONED), "rows given back")

    def _write(self, waits: Sequence[tuple[Job, Move]], clock: Clock) -> None:
        def write(connection: Connection) -> None:
            if moves.record_waits(connection, waits, clock()) < len(waits):
                claims.let_go(connection, Job, _numbers([job for job, _ in waits]), _POSTPONED)

        if waits:
            self.ctx.write(write, f"{len(waits)} looks")


def _next(step: Any, job: Job) -> Move | None:
    try:
        move: Move = step.send(job)
    except StopIteration:
        return None
    return move


def _take(ctx: Context, table: claims.Claimable, numbers: Numbers, lease: claims.Lease) -> list[Row[Any]]:
    """Spends claim numbers, tried again while the database is away: a restart must not cost a message its lease.

    A number whose spending was committed and whose answer was lost is spent: its row waits for the lease.
    """

    def take() -> list[Row[Any]]:
        with ctx.engine.begin() as connection:
            return claims.take(connection, table, numbers, lease)

    return database.until_it_holds(take, "claims", _AWAY)


def _deliver(ctx: Context, number: tuple[uuid.UUID, int]) -> bool:
    """One try of a delivery; whether its receiver answers."""
    rows = _take(ctx, Delivery, [number], work.DELIVERY)
    if not rows:
        return True
    delivery, clock = Delivery.of(_columns(rows[0])), Clock(rows[0].now)
    said = {"project": delivery.project_id, "receiver": delivery.receiver}
    project = ctx.read(lambda connection: connection.execute(_SIGNS, said).first())
    tried = _tried(ctx, delivery, project.webhook_secret if project else None, clock())
    outcome = "delivered" if tried.state == "delivered" else "not delivered"
    _log.info(outcome, delivery=str(delivery.id), status=tried.status)
    was_silent = project is not None and project.failures is not None
    write = partial(_write_try, delivery=delivery, tried=tried, was_silent=was_silent, now=clock())
    ctx.write(write, f"delivery {delivery.id}")
    return tried.status is not None


def _tried(ctx: Context, delivery: Delivery, key: str | None, now: datetime) -> webhooks.Tried:
    if delivery.project_id is not None:
        return webhooks.deliver(ctx.webhooks, delivery, key, now)
    tried = alerts.deliver(ctx.webhooks, delivery, alerts.robot(ctx.settings, delivery.url), now)
    if tried.state != "delivered":  # the address is a secret, but for its host
        _log.error("an alarm was not delivered", host=urlsplit(delivery.url).hostname, why=tried.error)
    return tried


def _write_try(
    connection: Connection, delivery: Delivery, tried: webhooks.Tried, was_silent: bool, now: datetime
) -> None:
    statement = (
        update(Delivery)
        .where(claims.is_ours(Delivery, delivery.id, delivery.claim))
        .values(
            state=tried.state,
            tries=delivery.tries + 1,
            last_status=tried.status,
            last_error=tried.error,
            run_at=tried.again_at,
            finished_at=None if tried.again_at else now,
            claimed=None,
            crashes=0,
        )
    )
    connection.execute(statement)
    if tried.status is None:
        webhooks.pause(connection, delivery, now)
    elif was_silent and delivery.project_id:
        webhooks.resume(connection, delivery.project_id, delivery.receiver)


def _numbers(taken: Sequence[Job]) -> Numbers:
    return [(job.id, job.claim) for job in taken]


def _columns(row: Row[Any]) -> dict[str, Any]:
    """The row without the time of its taking."""
    return {name: value for name, value in row._mapping.items() if name != "now"}  # noqa: SLF001


# Statements are built once: to build one costs more than to run it.

_UNFINISHED = (
    select(*Job.__table__.c)
    .where(Job.finished_at.is_(None), Job.parent_id.is_(None))
    .order_by(Job.id.desc())
    .limit(_TOLD_AGAIN)
)
# what signs a project's deliveries, and whether the receiver was silent before
_SIGNS = (
    select(Project.webhook_secret, DeadReceiver.failures)
    .outerjoin(
        DeadReceiver, and_(DeadReceiver.project_id == Project.id, DeadReceiver.receiver == bindparam("receiver"))
    )
    .where(Project.id == bindparam("project"))
)
