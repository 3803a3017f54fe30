"""What an endpoint is given: the process's own things, who asks, and the project that the request is about.

A caller is known by `Authorization: Bearer noria_…`, looked up by its hash. A key that is missing, unknown, revoked or
not a key at all gets one and the same answer. An operator's key acts for a project that the header Noria-Project names;
a project's own key may name its own there, and no other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from psycopg.errors import QueryCanceled
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from api.limits import Gate, Gates, Rates, Waiting, gates
from api.probes import Probes, probes
from api.problems import problem
from api.streams import Watch
from worker import broker, catalog, document, keys
from worker import context as worker_context
from worker.broker import Sender
from worker.catalog import Catalog
from worker.database import engine
from worker.errors import NotFound
from worker.keys import Caller
from worker.settings import Settings
from worker.storage import Bucket
from worker.tables import Job, Project

_CONNECTIONS = 20  # as many as handlers that write may run at once by the gates; keys are looked up quickly
_READING = 16  # as many as handlers that read and reads of streams may run at once
_READ_SECONDS = 5  # that one statement of a read may take
_BEARER = HTTPBearer(
    auto_error=False, scheme_name="key", bearerFormat="noria_…", description="an API key of a project: noria_…"
)
_CHALLENGE = {"www-authenticate": "Bearer"}


@dataclass(frozen=True)
class Context:
    """The process's settings, catalog, database, bucket, sender to the broker, and limits."""

    settings: Settings
    catalog: Catalog
    engine: Engine
    reader: Engine  # for what only reads, so that it cannot use up the connections of submissions
    beside: Engine  # for readiness checks, so that requests cannot use up its connections
    bucket: Bucket
    sender: Sender
    rates: Rates
    waiting: Waiting
    watch: Watch
    probes: Probes
    gates: Gates

    @cached_property
    def provider(self) -> worker_context.Context:
        """A step's context, for the few requests that ask the provider; made at the first of them."""
        return replace(worker_context.make(self.settings, patience=timedelta(0)), engine=self.engine)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for what only reads, outside transactions; raises a problem, 503, for what takes too long."""
        with self.reader.connect() as connection:
            try:
                yield connection
            except OperationalError as error:
                if not isinstance(error.orig, QueryCanceled):
                    raise
                detail = f"this takes more than {_READ_SECONDS} s to find: narrow it, by state, kind or time"
                raise problem(503, "search_too_long", detail, retry_after=_READ_SECONDS) from None

    def tell(self, job: Job, project: Project) -> None:
        """Tells Flower the job's state and asks for a tick, without waiting for either."""
        if event := document.flower_event(job, project.name, []):
            self.sender.tell(event)
        self.sender.hint()


def make(settings: Settings) -> Context:
    """The context of this process; opens no connection yet."""
    database, beside = engine(settings, threads=_CONNECTIONS), engine(settings, threads=2)
    reader = engine(settings, threads=_READING, statement_timeout=f"{_READ_SECONDS}s")
    reader = reader.execution_options(isolation_level="AUTOCOMMIT")  # one round trip a statement, and none around them
    bucket = Bucket(settings)
    celery = broker.celery_app(settings)
    return Context(
        settings=settings,
        catalog=catalog.load(),
        engine=database,
        reader=reader,
        beside=beside,
        bucket=bucket,
        sender=Sender(celery),
        rates=Rates(settings),
        waiting=Waiting(settings.max_waiting),
        watch=Watch(reader),
        probes=probes(settings, beside, bucket),
        gates=gates(settings.max_input_bytes),
    )


def moment(connection: Connection) -> datetime:
    """Postgres's time, read in the transaction that uses it."""
    now: datetime = connection.exec_driver_sql("select statement_timestamp()").scalar_one()
    return now


async def here(request: Request) -> Context:
    """The app's context."""
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(here)]


@dataclass(frozen=True)
class Tenant:
    """The project that a request is about, and Postgres's time when it was let in."""

    project: Project
    now: datetime


def _caller(
    request: Request,
    here: Here,
    said: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    acting: Annotated[
        str | None, Header(alias="Noria-Project", description="the project that an operator's key acts for")
    ] = None,
) -> Caller:
    """Who asks; raises problems: 401, 429 over the key's rate, 404 for a project that is not the caller's."""
    known = _known(here, said.credentials, acting) if said else None
    if known is None:
        refusal = problem(401, "unauthorized", "a valid key is needed: Authorization: Bearer noria_…")
        refusal.headers = _CHALLENGE
        raise refusal
    here.rates.spend(known.key_id)
    request.scope["state"]["project"] = known.project.name if known.project else None
    return known


def through(gate: Callable[[Gates, Request], Gate]) -> Callable[..., AsyncIterator[Caller]]:
    """A dependency: who asks; the request holds a place of its project in the gate until the answer is sent."""

    async def caller(request: Request, here: Here, who: Annotated[Caller, Depends(_caller)]) -> AsyncIterator[Caller]:
        async with gate(here.gates, request).place(who.project.id if who.project else None):
            yield who

    return caller


def tenant_of(caller: Callable[..., AsyncIterator[Caller]]) -> Callable[..., Awaitable[Tenant]]:
    """A dependency: the project that such a request is about; raises a problem, 400, when an operator named none."""

    async def tenant(who: Caller = Depends(caller)) -> Tenant:  # noqa: B008 - FastAPI finds no local name in an annotation
        if who.project is None:
            raise problem(400, "project_required", "an operator's key names the project in the header Noria-Project")
        return Tenant(who.project, who.now)

    return tenant


def _narrows(request: Request) -> bool:
    """Whether a list is filtered, so that many rows may be read for one page."""
    return bool(request.query_params.keys() - {"cursor", "limit"})


def follows(request: Request) -> bool:
    """Whether a stream of events is asked for."""
    return "text/event-stream" in request.headers.get("accept", "")


_at_once = through(lambda gates, request: gates.reads if request.method == "GET" else gates.requests)
_search = through(lambda gates, request: gates.searches if _narrows(request) else gates.reads)
_history = through(lambda gates, request: gates.streams if follows(request) else gates.reads)
_file = through(lambda gates, _: gates.files)

Anyone = Annotated[Caller, Depends(_at_once)]
Asking = Annotated[Caller, Depends(through(lambda gates, _: gates.lookups))]  # questions to the provider
Mine = Annotated[Tenant, Depends(tenant_of(_at_once))]
Searching = Annotated[Tenant, Depends(tenant_of(_search))]
Following = Annotated[Tenant, Depends(tenant_of(_history))]
Transferring = Annotated[Tenant, Depends(tenant_of(_file))]  # to or from the bucket


def _known(here: Context, plain: str, acting: str | None) -> Caller | None:
    # autocommit: one round trip; a transaction would take three
    with here.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        known = keys.authenticate(connection, plain)
        if known is None or acting is None:
            return known
        if known.project is None:
            return Caller(known.key_id, keys.project(connection, acting), known.now)
    if known.project.name != acting:
        raise NotFound("no such project")
    return known
