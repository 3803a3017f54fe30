"""What a step works with: one value per process, made at its start, and handed down; nothing is global below it.

It also holds the two ways in which a step's word reaches Postgres: `record`, which goes on trying while the database
is away, since an answer that cost money must not be dropped, and `answer_of`, which reads what is on record.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Engine, create_engine, func, or_, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from worker import children, log, moves, polling, reading, spans
from worker.catalog import Catalog
from worker.catalog import load as load_catalog
from worker.dashscope.client import Client
from worker.egress import Wire, wires
from worker.errors import ClaimLost
from worker.handover import Handover
from worker.kinds.kind import Ended
from worker.learned import Learned
from worker.models import Attempt, Job, Lane, Project
from worker.polling import Budget
from worker.settings import Account, Settings
from worker.states import Move, State
from worker.storage import Bucket

_PATIENCE = timedelta(minutes=15)  # how long a word is kept for a database that is away
_WAKING = timedelta(seconds=15)  # of a parent; the tick looks at it again each minute
_ANOTHER = timedelta(seconds=3)  # before a job whose candidate went to another looks again
_PAUSE = (0.2, 5.0)  # seconds between two tries: the first, and the longest
_SESSION = (
    "-c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=5s -c timezone=UTC -c jit=off"
)

_log = log.get(__name__)
T = TypeVar("T")
Moves = Generator[Move, Job, None]  # a step: what it yields is on record before its next line runs


class Clock:
    """Postgres's time at the start of a step, and how long ago that is by this machine's monotonic clock."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._started = time.monotonic()

    def __call__(self) -> datetime:
        """Postgres's time now, aware."""
        return self._now + timedelta(seconds=time.monotonic() - self._started)

    def wait_until(self, moment: datetime) -> None:
        """Blocks the thread until then: a second or so, for a rate."""
        time.sleep(max(0.0, (moment - self()).total_seconds()))


@dataclass(frozen=True)
class Context:
    """The process's settings, catalog, database, provider, bucket and wires."""

    settings: Settings
    catalog: Catalog
    engine: Engine
    bucket: Bucket
    clients: dict[str, Client]  # by account
    sources: Wire
    webhooks: Wire
    documents: Wire
    learned: Learned
    queries: Budget
    handover: Handover

    names: dict[uuid.UUID, str] = field(default_factory=dict)  # of projects, which never change
    strange: set[str] = field(default_factory=set)  # statuses of tasks that were wondered at already

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
            with self.engine.connect() as connection:
                name = connection.execute(select(Project.name).where(Project.id == job.project_id)).scalar_one()
            self.names[job.project_id] = name
        return self.names[job.project_id]

    def client(self, job: Job) -> Client:
        """The provider's client for the account that the job was admitted with."""
        return self.clients[self.account(job).name]

    def account(self, job: Job) -> Account:
        """The account that the job was admitted with; where settings renamed it, another of its region."""
        accounts = self.settings.all_accounts
        named = [account for account in accounts if account.name == job.account]
        there = [account for account in accounts if account.region == job.region]
        return (named or there or list(accounts))[0]

    def record(self, job: Job, move: Move, clock: Clock) -> Job:
        """Puts a move on record, trying again while the database is away; raises ClaimLost."""
        return until_it_holds(lambda: self._record_once(job, move, clock()), f"job {job.id} to {move.to}")

    def spend_query(self, owner: str) -> None:
        """Waits for a place among the account's task queries, and takes it."""
        while (booked := self.queries.book(owner, 1, polling.AHEAD)) is None:
            time.sleep(_PAUSE[0])
        Clock(booked.now).wait_until(booked.at)

    def stored(self, job: Job) -> frozenset[int]:
        """The numbers of the job's outputs that are in the bucket already."""
        with self.engine.connect() as connection:
            return frozenset(output.n for output in reading.outputs(connection, [job])[job.id])

    def refusals(self, job: Job, code: str) -> int:
        """How often the job's create calls were refused with that code before."""
        statement = select(func.count()).where(Attempt.job_id == job.id, Attempt.code == code)
        with self.engine.connect() as connection:
            return connection.execute(statement).scalar_one()

    def unanswered(self, job: Job) -> int:
        """How many of the job's create calls before this one went without an answer."""
        lost = (Attempt.outcome == "unknown", Attempt.id != job.attempt_id)
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).where(Attempt.job_id == job.id, *lost)).scalar_one()

    def unserved(self, model: str) -> str | None:
        """Why the provider serves no account of ours with the model, as it said lately; None: it may be tried."""
        refused = select(Lane.unserved_why).where(Lane.model == model)
        tried = or_(Lane.unserved_at.is_(None), Lane.unserved_at < func.now() - spans.UNSERVED)
        with self.engine.connect() as connection:
            if connection.execute(refused.where(tried).limit(1)).first():
                return None
            return connection.execute(refused.where(~tried).limit(1)).scalar_one_or_none()

    def children(self, job: Job) -> children.Counts:
        """How the job's children stand."""
        with self.engine.connect() as connection:
            return children.counts(connection, job)

    def ended(self, job: Job, rounds: int) -> list[Ended]:
        """The job's children of its first rounds, all of which have ended."""
        with self.engine.connect() as connection:
            return children.ended(connection, job, rounds)

    def first_failed(self, job: Job) -> Job | None:
        """The first of the job's children that failed."""
        with self.engine.connect() as connection:
            return children.first_failed(connection, job)

    def wake(self, parent_id: uuid.UUID) -> bool:
        """Makes a parent due that waits for its children, if it has none left to wait for; whether it is."""
        return until_it_holds(lambda: self._wake(parent_id), f"wake {parent_id}", _WAKING)

    def answer_of(self, job: Job) -> Attempt | None:
        """What is on record of the job's open attempt."""
        with self.engine.connect() as connection:
            return moves.answer_on_record(connection, job)

    def _wake(self, parent_id: uuid.UUID) -> bool:
        with self.engine.begin() as connection:
            return children.wake(connection, parent_id)

    def _record_once(self, job: Job, move: Move, now: datetime) -> Job:
        try:
            return self._record_bound(job, move, now)
        except IntegrityError as error:
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


def make(settings: Settings) -> Context:
    """The context of this process; opens no connection yet."""
    queries, creates = wires.keeping(), wires.single()
    database, catalog, bucket = engine(settings, threads=32), load_catalog(), Bucket(settings)
    return Context(
        settings=settings,
        catalog=catalog,
        engine=database,
        bucket=bucket,
        clients={account.name: Client(account, queries, creates) for account in settings.all_accounts},
        sources=wires.sources(settings),
        webhooks=wires.webhooks(settings),
        documents=wires.documents(settings),
        learned=Learned(database, catalog),
        queries=Budget(database, settings.poll_qps),
        handover=Handover(settings, bucket),
    )


def engine(settings: Settings, threads: int) -> Engine:
    """The database: a pooled connection for each thread that may want one at once, with bounds on every statement."""
    return create_engine(
        settings.database_url.get_secret_value(),
        pool_size=threads,
        max_overflow=4,
        pool_timeout=10,
        pool_recycle=1800,
        hide_parameters=True,  # prompts and keys are parameters
        connect_args={
            "connect_timeout": 5,
            "options": _SESSION,
            "application_name": "noria",
            # a database host that vanished is noticed in half a minute, not in two hours
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    )


def until_it_holds(write: Callable[[], T], what: str, patience: timedelta = _PATIENCE) -> T:
    """The result of `write`, tried again while the database is away; what it raises otherwise passes."""
    give_up, pause = time.monotonic() + patience.total_seconds(), _PAUSE[0]
    while True:
        try:
            return write()
        except DBAPIError as error:
            if time.monotonic() > give_up or not is_away(error):
                raise
            _log.warning("the database is away, trying again", what=what, cause=type(error.orig).__name__)
        time.sleep(pause)
        pause = min(_PAUSE[1], pause * 2)


def is_away(error: DBAPIError) -> bool:
    """Whether the database did not answer, was starting or stopping, or asked to try again; not a wrong statement."""
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or state[:2] in ("08", "57", "53", "40", "55", "58")
