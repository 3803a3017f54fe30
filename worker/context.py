"""What a step works with: one value per process, made at its start and passed down; nothing below it is global.

Reads and writes are tried again while the database is away: a step may hold an answer that cost money.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from threading import Lock
from typing import TypeVar

from sqlalchemy import Connection, Engine, bindparam, select
from sqlalchemy.exc import IntegrityError

from worker import database, moves
from worker.catalog import Catalog
from worker.catalog import load as load_catalog
from worker.dashscope.client import Client
from worker.egress import Transport, transports
from worker.errors import ClaimLost
from worker.inputs import Handover
from worker.lanes import query_budget
from worker.lanes.query_budget import Budget, Learned
from worker.moves import attempts, children
from worker.settings import Account, Settings
from worker.states import Move, State
from worker.storage import Bucket
from worker.tables import Attempt, Job, Project

_WAKING = timedelta(seconds=15)  # of a parent; the tick looks at it again each minute
_ANOTHER = timedelta(seconds=3)  # before a job whose candidate went to another looks again
_PAUSE = 0.2  # seconds, until the query budget is asked again

_NAME = select(Project.name).where(Project.id == bindparam("project"))
_ACCOUNT = select(Project.account).where(Project.id == bindparam("project"))

T = TypeVar("T")
Moves = Generator[Move, Job, None]  # a step: what it yields is on record before its next line runs


# Linux's monotonic clock stands still while the machine is suspended; a call of then must not be sent afterwards.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """Postgres's time at the start of a step, and how long ago that is by a clock of this machine that nobody sets."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._started = time.clock_gettime(_CLOCK)

    def __call__(self) -> datetime:
        """Postgres's time now, aware."""
        return self._now + timedelta(seconds=time.clock_gettime(_CLOCK) - self._started)

    def wait_until(self, at: datetime) -> None:
        """Blocks the thread until then: a second or so, for a rate."""
        time.sleep(max(0.0, (at - self()).total_seconds()))


@dataclass(frozen=True)
class Context:
    """The process's settings, catalog, database, provider, bucket and transports."""

    settings: Settings
    catalog: Catalog
    engine: Engine
    bucket: Bucket
    clients: dict[str, Client]  # by account
    sources: Transport
    webhooks: Transport
    documents: Transport
    learned: Learned
    queries: Budget
    handover: Handover

    patience: timedelta = database.PATIENCE  # with a database that is away
    names: dict[uuid.UUID, str] = field(default_factory=dict)  # of projects, which never change
    strange: set[str] = field(default_factory=set)  # unknown statuses that were logged already
    # by account, how much later than ours the provider's times of its tasks are: at least, and at most
    drifts: dict[str, tuple[timedelta, timedelta]] = field(default_factory=dict)
    listing: dict[str, Lock] = field(default_factory=dict)  # by account, while a thread lists its tasks

    @property
    def owners(self) -> dict[str, str]:
        """Account → the main account that its limits are counted by."""
        return {account.name: account.owner for account in self.settings.all_accounts}

    def owner(self, job: Job) -> str:
        """The main account that the job's limits are counted by."""
        return self.account(job).owner

    def project_name(self, job: Job) -> str:
        """The name of the job's project."""
        if job.project_id not in self.names:
            said = {"project": job.project_id}
            self.names[job.project_id] = self.read(lambda connection: connection.execute(_NAME, said).scalar_one())
        return self.names[job.project_id]

    def settings_of(self, job: Job) -> Settings:
        """The settings, with one account alone where the job's project is bound to it."""
        said = {"project": job.project_id}
        return self.settings.bound_to(self.read(lambda connection: connection.execute(_ACCOUNT, said).scalar_one()))

    def client(self, job: Job) -> Client:
        """The provider's client for the account that the job was admitted with."""
        return self.clients[self.account(job).name]

    def account(self, job: Job) -> Account:
        """The account that the job was admitted with; where settings renamed it, another of its region."""
        accounts = self.settings.all_accounts
        named = [account for account in accounts if account.name == job.account]
        there = [account for account in accounts if account.region == job.region]
        return (named or there or list(accounts))[0]

    def read(self, look: Callable[[Connection], T]) -> T:
        """What `look` finds, tried again while the database is away."""
        return database.read(self.engine, look, self.patience)

    def write(self, change: Callable[[Connection], T], what: str) -> T:
        """What `change` returns, in a transaction, tried again while the database is away."""
        return database.write(self.engine, change, what, self.patience)

    def record(self, job: Job, move: Move, clock: Clock) -> Job:
        """Puts a move on record, trying again while the database is away; raises ClaimLost."""
        return database.until_it_holds(lambda: self._record_once(job, move, clock()), f"job {job.id} to {move.to}")

    def record_all(self, made: Sequence[tuple[Job, Move]], clock: Clock) -> list[Job | Exception]:
        """Puts a move of each job on record, all in one commit: the jobs as they are then, or why one was not moved.

        One that fails for itself holds up no other: then each is recorded singly. Raises while the database is away.
        """
        if len(made) > 1:
            try:
                return database.until_it_holds(lambda: self._record_together(made, clock()), f"{len(made)} moves")
            except Exception as error:
                if database.is_away(error):
                    raise
        return [self._record_singly(job, move, clock) for job, move in made]

    def spend_query(self, owner: str) -> None:
        """Waits for a place among the account's task queries, and takes it."""
        while (booked := self.queries.book(owner, 1, query_budget.AHEAD)) is None:
            time.sleep(_PAUSE)
        Clock(booked.now).wait_until(booked.at)

    def children(self, job: Job) -> children.Counts:
        """How the job's children stand."""
        return self.read(lambda connection: children.counts(connection, job))

    def wake(self, parent_id: uuid.UUID) -> bool:
        """Makes a parent due that waits for its children, if it has none left to wait for; whether it is."""
        wake = partial(children.wake, parent_id=parent_id)
        return database.write(self.engine, wake, f"wake {parent_id}", _WAKING)

    def answer_of(self, job: Job) -> Attempt | None:
        """What is on record of the job's open attempt."""
        return self.read(lambda connection: attempts.last(connection, job))

    def _record_singly(self, job: Job, move: Move, clock: Clock) -> Job | Exception:
        try:
            return self.record(job, move, clock)
        except Exception as error:  # noqa: BLE001 - for the caller to log
            return error

    def _record_together(self, made: Sequence[tuple[Job, Move]], now: datetime) -> list[Job | Exception]:
        found: dict[uuid.UUID, Job | Exception] = {}
        with self.engine.begin() as connection:
            for job, move in sorted(made, key=lambda one: one[0].lane_id or 0):  # lanes are locked in one order
                try:
                    found[job.id] = moves.record(connection, job, move, now)
                except moves.AlreadyRecorded as held:
                    found[job.id] = held.job
                except ClaimLost as error:
                    found[job.id] = error
        return [found[job.id] for job, _ in made]

    def _record_once(self, job: Job, move: Move, now: datetime) -> Job:
        try:
            return self._record_bound(job, move, now)
        except IntegrityError as error:
            if not attempts.is_taken(error):
                raise
            # The task went to another job in this instant: only equal requests meet so, and share what there is.
            if job.state != State.UNCERTAIN:
                raise ClaimLost(f"task {job.task_id} is another job's") from error
        return self._record_bound(job, Move(State.UNCERTAIN, run_at=now + _ANOTHER), now)

    def _record_bound(self, job: Job, move: Move, now: datetime) -> Job:
        with self.engine.begin() as connection:
            try:
                return moves.record(connection, job, move, now)
            except moves.AlreadyRecorded as held:
                return held.job
            except ClaimLost as error:
                lost = error  # the block ends without it, so that the attempt's answer is committed all the same
        raise lost


def make(settings: Settings, patience: timedelta = database.PATIENCE) -> Context:
    """The context of this process; opens no connection yet. `patience`: with a database that is away."""
    queries, creates = transports.keeping(), transports.single()
    engine, catalog, bucket = database.engine(settings, threads=32), load_catalog(), Bucket(settings)
    return Context(
        settings=settings,
        catalog=catalog,
        engine=engine,
        bucket=bucket,
        clients={account.name: Client(account, queries, creates) for account in settings.all_accounts},
        sources=transports.sources(settings),
        webhooks=transports.webhooks(settings),
        documents=transports.documents(settings),
        learned=Learned(engine, catalog, patience),
        queries=Budget(engine, settings.poll_qps, patience),
        handover=Handover(settings, bucket),
        patience=patience,
    )
