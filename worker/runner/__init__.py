"""Runs steps: takes rows by their claims, and puts each move on record before the step's next line runs.

It knows no Celery: `tasks` hands it what messages carry, and tests hand it the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy import ColumnElement, Row, select

from worker import claims, database, document, log, retention, steps, tick, tracing, work
from worker.batches import completion
from worker.claims import Numbers
from worker.context import Clock, Context
from worker.errors import ClaimLost
from worker.runner import imports, posters
from worker.runner.looks import Looks
from worker.runner.together import Together
from worker.schedules import fire
from worker.states import TERMINAL, Move, State
from worker.steps import find
from worker.tables import Job
from worker.webhooks.sending import Courier

_PRUNED_FOR, _POSTERS_FOR = 30.0, 20.0  # seconds of one message

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
        """One step for each row, one after the other; those that a slow one holds up are given back."""
        if rows := self.take(numbers):
            taken = [Job.of(row._mapping) for row in rows]  # noqa: SLF001
            Together(self, taken, Clock(rows[0].now)).carry_out()

    def poll(self, numbers: Numbers) -> None:
        """A look at the task of each row, all of one account: by its list where they are many, the rest singly."""
        Looks(self).at_all(numbers)

    def deliver(self, numbers: Numbers) -> None:
        """The deliveries of a message, and what waits behind them, for a turn; then others may go."""
        if Courier(self.ctx.engine, self.ctx.webhooks, self.ctx.settings, self.ctx.patience).deliver(numbers):
            self.hint()

    def complete(self, numbers: Numbers) -> None:
        """The end of each batch of which nothing is unfinished; its webhook can go at once."""
        if completion.complete(self.ctx, numbers):
            self.hint()

    def fire(self) -> None:
        """The schedules whose time has come; what they submit waits for the next tick."""
        for job in fire.fire_due(self.ctx.engine, self.ctx.catalog, self.ctx.settings):
            self._tell(job)
            self.hint()

    def sweep(self) -> None:
        """The look for tasks that no job owns, of the accounts whose hour has come."""
        find.sweep(self.ctx)

    def prune(self) -> None:
        """Lets go, for half a minute, what projects no longer keep."""
        with self.ctx.engine.connect() as connection:
            now = connection.execute(select(claims.NOW)).scalar_one()
        retention.nightly(self.ctx.engine, self.ctx.bucket, now, _PRUNED_FOR)

    def import_quotas(self) -> None:
        """The look at what the provider tells each account of its models and limits."""
        imports.carry_out(self.ctx)

    def make_posters(self) -> None:
        """Makes, for a third of a minute, the small stills of outputs that are wanted."""
        posters.carry_out(self.ctx, _POSTERS_FOR)

    def tell_unfinished(self) -> None:
        """Tells Flower of the newest unfinished jobs again: it forgets what it heard when it restarts."""
        with self.ctx.engine.connect() as connection:
            # few at a time: an input may hold a picture
            rows = connection.execution_options(yield_per=50).execute(_UNFINISHED)
            for job in map(Job.of, rows.mappings()):
                self._tell(job)

    def take(self, numbers: Numbers, columns: tuple[ColumnElement[Any], ...] | None = None) -> Sequence[Row[Any]]:
        """Spends claim numbers, tried again while the database is away: a restart must not cost a message its lease.

        `columns`: what is read of the rows, all of it where that is None. A number whose spending was committed and
        whose answer was lost is spent: its row waits for the lease.
        """

        def spend() -> Sequence[Row[Any]]:
            with self.ctx.engine.begin() as connection:
                return claims.take(connection, Job, numbers, work.LEASE, columns)

        return database.until_it_holds(spend, "claims", _AWAY)

    def carry_out(self, job: Job, clock: Clock) -> None:
        """Runs the step of the job's state; each of its moves is on record before its next line runs."""
        self.guarded(job, lambda: self._run(job, clock))

    def put(self, moved: Sequence[tuple[Job, Move]], clock: Clock) -> None:
        """Puts moves on record in one commit, each the whole of what its step had to say."""
        try:
            found = self.ctx.record_all(moved, clock)
        except Exception as error:
            if database.is_away(error):
                self.let_go([job for job, _ in moved])
            raise
        for (job, move), outcome in zip(moved, found, strict=True):
            self._safely(job, partial(self._told, job, move, outcome))

    def guarded(self, job: Job, act: Callable[[], T]) -> T | None:
        """What `act`, of the job's step, returns; None when it fails, and the next row of the message goes on.

        A mistake of ours leaves the job's row to the lease, which counts as a crash. What fails because the database is
        away gives the row back.
        """
        with tracing.step(job.id, job.parent_id, steps.name(job), lane=job.lane_id, state=job.state):
            return self._safely(job, act)

    def _safely(self, job: Job, act: Callable[[], T]) -> T | None:
        bound = structlog.contextvars.bind_contextvars(job=str(job.id), lane=job.lane_id, claim=job.claim)
        try:
            return act()
        except ClaimLost as lost:
            _log.warning("the claim is lost; nothing was written", why=str(lost))
            self.let_go([job])
        except Exception as error:  # noqa: BLE001 - the next row of the message goes on
            _log.exception("a step failed; its row is left to the lease, or given back where the database was away")
            if database.is_away(error):
                self.let_go([job])
        finally:
            structlog.contextvars.reset_contextvars(**bound)
        return None

    def _run(self, job: Job, clock: Clock) -> None:
        step = steps.of(job)(self.ctx, job, clock)
        move = next(step, None)
        while move is not None:
            job = self._told(job, move, self.ctx.record(job, move, clock))
            move = _next(step, job)

    def _told(self, job: Job, move: Move, outcome: Job | Exception) -> Job:
        """After the commit: Flower's row, and a hint where somebody can go on at once; the job as it is then."""
        if isinstance(outcome, Exception):
            raise outcome
        if outcome.state == job.state:
            return outcome
        _log.info("moved", left=job.state, entered=outcome.state, task=outcome.task_id)
        if outcome.state in TERMINAL:
            self._ended(outcome)
        if outcome.state not in (State.SUBMITTING, State.RUNNING):
            self.hint()
        self._tell(outcome, [output["key"] for output in move.outputs])
        return outcome

    def _ended(self, job: Job) -> None:
        if job.parent_id:
            self.ctx.wake(job.parent_id)
        elif job.finished_at:
            tracing.ended(job.id, f"{job.kind} {job.model}", job.created_at, job.finished_at, state=job.state)

    def _tell(self, job: Job, keys: Sequence[str] = ()) -> None:
        """Tells Flower of the state that the job has entered, with its outputs' keys."""
        if event := document.flower_event(job, self.ctx.project_name(job), keys):
            self.tell(event)

    def let_go(self, taken: Sequence[Job]) -> None:
        """Gives rows back that a living worker could not finish, or lost while the database was away: no crash."""
        numbers = [(job.id, job.claim) for job in taken]
        self.ctx.write(partial(claims.let_go, table=Job, numbers=numbers, after=_POSTPONED), "rows given back")


def _next(step: Any, job: Job) -> Move | None:
    try:
        move: Move = step.send(job)
    except StopIteration:
        return None
    return move


# Built once: to build a statement costs more than to run it.
_UNFINISHED = (
    select(*Job.__table__.c)
    .where(Job.finished_at.is_(None), Job.parent_id.is_(None))
    .order_by(Job.id.desc())
    .limit(_TOLD_AGAIN)
)
