"""Looks at running tasks, a message of one account's at a time: by the provider's list where they are many.

What a list has not shown has ended, and is fetched next, the oldest first, by several threads that book the account's
query budget ahead of themselves. Another list begins only while nobody has booked ahead. So it waits until all that is
known to have ended is fetched, whichever thread or process knows it; and so do the looks of a message that is too short
for a list. Nothing of that is on record: what a worker knew when it died is listed once more, which is cheap.

Of a row only what a listing needs is read (`COLUMNS`), since a message has thousands; the whole row right before its
task is fetched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from threading import Lock
from typing import Any

from sqlalchemy import ColumnElement, Connection, select
from sqlalchemy.exc import SQLAlchemyError

from worker import claims, database, log, moves
from worker.claims import OURS, Numbers
from worker.context import Clock, Context
from worker.errors import NotTold
from worker.lanes import query_budget
from worker.lanes.query_budget import Booked
from worker.runner.recorder import Recorder
from worker.states import Move, State
from worker.steps import poll
from worker.tables import Job

_POSTPONED = timedelta(seconds=2)  # looks for which the account's query budget has no room now
_HANDFUL = 5  # looks that are booked, and put on record, together
_AT_ONCE = 5  # threads of a message that fetch: to fetch and to put on record takes longer than a place in the budget
_LOOKING = timedelta(seconds=60)  # of a message; its rows' lease outlasts that and one look that hangs
_PAUSE = 0.1  # seconds, until the budget is asked again

_log = log.get(__name__)


@dataclass(frozen=True)
class Looks:
    """Looks for one process."""

    runner: Recorder
    clock: Callable[[datetime], Clock] = Clock  # for the budget's places, from the instant that they were booked at

    @property
    def ctx(self) -> Context:
        """What the runner works with."""
        return self.runner.ctx

    def at_all(self, numbers: Numbers) -> None:
        """A look at the task of each row that the numbers still claim, all of one account."""
        is_long = len(numbers) >= query_budget.WORTH
        rows = self.runner.take(numbers, COLUMNS if is_long else None)
        taken = [Job.of(row._mapping) for row in rows]  # noqa: SLF001
        if not taken:
            return
        clock = Clock(rows[0].now)
        until = clock() + _LOOKING
        try:
            if is_long:
                self.fetch(self.sorted(taken, clock), clock, until)
            elif self._listing(taken).locked():
                self._postpone(taken)
            else:
                self.look(taken, clock, query_budget.LISTS_AHEAD, clock())
        except SQLAlchemyError as error:
            if not database.is_away(error):
                raise
            _log.warning("the database is away; looks are put off", rows=len(taken), cause=log.words(error))
            self.runner.let_go(taken)

    def sorted(self, taken: Sequence[Job], clock: Clock) -> Sequence[Job]:
        """Puts the waits of the jobs on record whose tasks are listed as unfinished; the jobs whose tasks have ended.

        Empty where another thread lists the account's tasks: then all are due again soon, in one message with others.
        Where the list does not come, only a few are looked at now, which tells what is wrong.
        """
        listing = self._listing(taken)
        if not listing.acquire(blocking=False):
            self._postpone(taken)
            return []
        try:
            told = poll.sort(self.ctx, taken, clock)
        except NotTold as error:
            _log.warning("the task list does not tell", why=str(error), rows=len(taken))
            self._postpone(taken[query_budget.WORTH :])
            return taken[: query_budget.WORTH]
        finally:
            listing.release()
        self._postpone(told.unseen)
        waits = [(job, poll.still_runs(self.ctx, job, status, clock())) for job, status in told.running]
        self._write([(job, move) for job, move in waits if move.to is State.RUNNING], clock)
        overdue = [job for job, move in waits if move.to is not State.RUNNING]
        return [*told.ended, *overdue]

    def fetch(self, jobs: Sequence[Job], clock: Clock, until: datetime) -> None:
        """Looks at each task by itself, in that order; jobs that are not come to before `until` are due again soon."""
        handfuls = [jobs[start : start + _HANDFUL] for start in range(0, len(jobs), _HANDFUL)]
        look = partial(self.look, clock=clock, ahead=query_budget.AHEAD, until=until)
        with ThreadPoolExecutor(min(_AT_ONCE, len(handfuls)) or 1, "looks") as threads:
            for _ in threads.map(look, handfuls):
                pass

    def look(self, jobs: Sequence[Job], clock: Clock, ahead: timedelta, until: datetime) -> None:
        """Looks booked at most so far ahead, until then; what follows from them is put on record together.

        Jobs that there is no room for are due again soon, perhaps together with others that make a list worth while.
        """
        left = self._whole(jobs)
        while left and (booked := self._booked(left, clock, ahead, until)):
            seen = list(self._seen(left, booked, clock))
            left = left[len(seen) :]
            followed = [(job, move) for job, move in seen if move]
            self._write([(job, move) for job, move in followed if _is_wait(move)], clock)
            self.runner.put([(job, move) for job, move in followed if not _is_wait(move)], clock)
        self._postpone(left)

    def _seen(self, jobs: Sequence[Job], booked: Booked, clock: Clock) -> Iterator[tuple[Job, Move | None]]:
        """The jobs that were looked at in time, each with what follows; the first that comes late ends it."""
        # not the step's: it is as late as its many rows took to come
        pace = self.clock(booked.now)
        for n, job in enumerate(jobs):
            at = booked.at + n * booked.apart
            pace.wait_until(at)
            if pace() > at + query_budget.LATE:
                return
            if job.unproven:  # a task that is not the job's ends in two moves, the second from where the first led
                self.runner.carry_out(job, clock)
                yield job, None
            else:
                yield job, self.runner.guarded(job, partial(next, poll.step(self.ctx, job, clock)))

    def _booked(self, jobs: Sequence[Job], clock: Clock, ahead: timedelta, until: datetime) -> Booked | None:
        """Places in the budget for a look at each; None: there were none until then."""
        while not (booked := self.ctx.queries.book(self.ctx.owner(jobs[0]), len(jobs), ahead)):
            if clock() >= until:
                return None
            time.sleep(_PAUSE)
        return booked

    def _listing(self, jobs: Sequence[Job]) -> Lock:
        """Held while a thread of this process lists the tasks of the jobs' account, or waits for that."""
        return self.ctx.listing.setdefault(jobs[0].account or "", Lock())

    def _whole(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs' rows, in that order, as far as they are still ours; read where only `COLUMNS` of them are."""
        if all(job.kind for job in jobs):
            return jobs
        bound = claims.bound(_numbers(jobs))
        rows = self.ctx.read(lambda connection: connection.execute(_WHOLE, bound).mappings().all())
        found = {row["id"]: Job.of(row) for row in rows}
        return [found[job.id] for job in jobs if job.id in found]

    def _postpone(self, jobs: Sequence[Job]) -> None:
        if jobs:
            give_back = partial(claims.give_back, table=Job, numbers=_numbers(jobs), after=_POSTPONED)
            self.ctx.write(give_back, f"{len(jobs)} looks put off")

    def _write(self, waits: Sequence[tuple[Job, Move]], clock: Clock) -> None:
        def write(connection: Connection) -> None:
            if moves.record_waits(connection, waits, clock()) < len(waits):
                claims.let_go(connection, Job, _numbers([job for job, _ in waits]), _POSTPONED)

        if waits:
            self.ctx.write(write, f"{len(waits)} looks")


def _is_wait(move: Move) -> bool:
    return move.to is State.RUNNING and not (move.why or move.effects)


def _numbers(jobs: Sequence[Job]) -> Numbers:
    return [(job.id, job.claim) for job in jobs]


# What a listing needs of a row.
_TASK = "model account region task_id task_status submitted_at started_at deadline_at"
_NAMES = f"id claim state state_at cancel_requested {_TASK}"
COLUMNS: tuple[ColumnElement[Any], ...] = (*(Job.__table__.c[name] for name in _NAMES.split()), query_budget.INPUT)
# the rows that are still ours
_WHOLE = select(*Job.__table__.c).where(Job.id == OURS.c.ids, Job.claim == OURS.c.numbers)
