"""Runs steps: takes rows by their claims, and puts each move on record before the step's next line runs.

It knows no Celery: `tasks` hands it what messages carry, and tests hand it the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, Row, select
from sqlalchemy.exc import SQLAlchemyError

from worker import claims, database, document, log, moves, steps, tick, timeouts, work
from worker.claims import Numbers
from worker.context import Clock, Context, Moves
from worker.errors import ClaimLost, NotTold
from worker.lanes import query_budget
from worker.schedules import fire
from worker.states import TERMINAL, Move, State
from worker.steps import find, poll
from worker.tables import Job
from worker.webhooks.sending import Courier

Publish = Callable[[tick.Message], None]

_POSTPONED = timedelta(seconds=2)  # looks for which the account's query budget has no room now
_SINGLY = 5  # looks that are booked, and whose waits are written, together
_LOOKING = timedelta(seconds=60)  # of a message; its rows' lease outlasts that and one look that hangs
_TOGETHER = timedelta(seconds=1)  # that a move which may be repeated waits for others
_AWAY = timedelta(seconds=15)  # how long a message waits for the database
_TOLD_AGAIN = 2000  # jobs: Flower keeps as many rows


_log = log.get(__name__)


@dataclass(frozen=True)
class _Pending:
    """A step's move that is not on record yet, since `at`."""

    job: Job
    step: Moves
    move: Move
    at: datetime

    @property
    def is_wait(self) -> bool:
        """Whether it is the plain wait of a look."""
        return self.move.to == self.job.state == State.RUNNING and not (self.move.why or self.move.effects)


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
        rows = _take(self.ctx, Job, numbers, work.LEASE)
        if not rows:
            return
        taken, clock = [Job.of(_columns(row)) for row in rows], Clock(rows[0].now)
        with self._keeping(taken):
            self._work(taken, clock)

    def _work(self, taken: Sequence[Job], clock: Clock) -> None:
        began, pending = clock(), list[_Pending]()
        for n, job in enumerate(taken):
            if n and clock() - began > timeouts.WORKING:
                self._let_go(taken[n:])
                break
            if work.of(job).repeatable:
                pending += self._tried(job, clock)
            else:
                self.carry_out(job, clock)
            if pending and clock() - pending[0].at > _TOGETHER:
                self._put(pending, clock)
                pending = []
        self._put(pending, clock)

    def poll(self, numbers: Numbers) -> None:
        """A look at the task of each row, all of one account: by its list where they are many, the rest singly."""
        rows = _take(self.ctx, Job, numbers, work.LEASE)
        taken = [Job.of(_columns(row)) for row in rows]
        if not taken:
            return
        with self._keeping(taken):
            self._poll(taken, Clock(rows[0].now))

    def deliver(self, numbers: Numbers) -> None:
        """The deliveries of a message, and what waits behind them, for a turn; then others may go."""
        if Courier(self.ctx.engine, self.ctx.webhooks, self.ctx.settings, self.ctx.patience).deliver(numbers):
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

    def carry_out(self, job: Job, clock: Clock) -> None:
        """Runs the step of the job's state; each of its moves is on record before its next line runs."""
        with self._watching(job):
            step = steps.of(job)(self.ctx, job, clock)
            self._go_on(job, step, next(step, None), clock)

    def _tried(self, job: Job, clock: Clock) -> list[_Pending]:
        """Runs a step that may be repeated to its first move, which can wait for others; no move where it failed."""
        with self._watching(job):
            step = steps.of(job)(self.ctx, job, clock)
            return [_Pending(job, step, move, clock()) for move in itertools.islice(step, 1)]
        return []

    def _put(self, pending: Sequence[_Pending], clock: Clock) -> None:
        """Puts moves on record in one commit, waits in one statement; then goes on with each step."""
        self._write([(one.job, one.move) for one in pending if one.is_wait], clock)
        moved = [one for one in pending if not one.is_wait]
        for one, found in zip(moved, self.ctx.record_all([(one.job, one.move) for one in moved], clock), strict=True):
            with self._watching(one.job):
                if isinstance(found, Exception):
                    raise found
                self._moved(found, one.job.state, one.move)
                self._go_on(found, one.step, _next(one.step, found), clock)

    def _go_on(self, job: Job, step: Moves, move: Move | None, clock: Clock) -> None:
        while move is not None:
            left, job = job.state, self.ctx.record(job, move, clock)
            self._moved(job, left, move)
            move = _next(step, job)

    @contextmanager
    def _keeping(self, taken: Sequence[Job]) -> Iterator[None]:
        """Gives the rows of a message back where the database was away for too long: no crash."""
        try:
            yield
        except SQLAlchemyError as error:
            if not database.is_away(error):
                raise
            _log.warning("the database is away; the message's rows are put off", cause=log.words(error))
            self._let_go(taken)

    @contextmanager
    def _watching(self, job: Job) -> Iterator[None]:
        """Names the job in the log; the message's next row goes on whatever happens to this one.

        A step that fails by a mistake of ours leaves its row to the lease, which counts as a crash. A step that fails
        because the database is away gives its row back.
        """
        bound = structlog.contextvars.bind_contextvars(job=str(job.id), lane=job.lane_id, claim=job.claim)
        try:
            yield
        except ClaimLost as lost:
            _log.warning("the claim is lost; nothing was written", why=str(lost))
            self._let_go([job])
        except Exception as error:  # noqa: BLE001 - whatever it is
            _log.exception("a step failed; its row is left to the lease, or given back where the database was away")
            if database.is_away(error):
                self._let_go([job])
        finally:
            structlog.contextvars.reset_contextvars(**bound)

    def _moved(self, job: Job, left: str, move: Move) -> None:
        """After the commit: Flower's row, and a hint where somebody can go on at once."""
        if job.state == left:
            return
        _log.info("moved", left=left, entered=job.state, task=job.task_id)
        if job.parent_id and job.state in TERMINAL:
            self.ctx.wake(job.parent_id)
        if job.state not in (State.SUBMITTING, State.RUNNING):
            self.hint()
        self._tell(job, [output["key"] for output in move.outputs])

    def _tell(self, job: Job, keys: Sequence[str] = ()) -> None:
        """Tells Flower of the state that the job has entered, with its outputs' keys."""
        if event := document.flower_event(job, self.ctx.project_name(job), keys):
            self.tell(event)

    def _poll(self, taken: Sequence[Job], clock: Clock) -> None:
        until = clock() + _LOOKING
        singly = self._listed(taken, clock) if len(taken) >= query_budget.WORTH else taken
        for start in range(0, len(singly), _SINGLY):
            self._look(singly[start : start + _SINGLY], clock, until)

    def _listed(self, taken: Sequence[Job], clock: Clock) -> Sequence[Job]:
        """Puts the waits of the jobs on record that the list shows as unfinished; the jobs to look at singly.

        Where the list does not come, only a few are looked at now, which tells what is wrong.
        """
        try:
            told = poll.sort(self.ctx, taken, clock)
        except NotTold as error:
            _log.warning("the task list does not tell", why=str(error), rows=len(taken))
            self._postpone(taken[query_budget.WORTH :])
            return taken[: query_budget.WORTH]
        waits = [(job, poll.still_runs(self.ctx, job, status, clock())) for job, status in told.running]
        self._write([(job, move) for job, move in waits if move.to is State.RUNNING], clock)
        overdue = [job for job, move in waits if move.to is not State.RUNNING]
        return [*told.singly, *overdue]

    def _look(self, taken: Sequence[Job], clock: Clock, until: datetime) -> None:
        """Looks spread over the account's query rate; all waits are written in one statement."""
        booked = self.ctx.queries.book(self.ctx.owner(taken[0]), len(taken), query_budget.AHEAD)
        if booked is None:
            self._postpone(taken)
            return
        pending: list[_Pending] = []
        for n, job in enumerate(taken):
            at = booked.at + n * booked.apart
            clock.wait_until(at)
            if clock() > min(until, at + query_budget.LATE):
                self._postpone(taken[n:])
                break
            pending += self._tried(job, clock)
        self._put(pending, clock)

    def _postpone(self, taken: Sequence[Job]) -> None:
        give_back = partial(claims.give_back, table=Job, numbers=_numbers(taken), after=_POSTPONED)
        self.ctx.write(give_back, f"{len(taken)} looks put off")

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
