"""What an endpoint is given: the process's own things, who asks, and the project that the request is about.

A caller is known by `Authorization: Bearer noria_…`. A key that is missing, unknown, revoked or not a key at all gets
one and the same answer; an expired one is told so. What a key may do is its scope, held against `api.scopes`. An
operator's key acts for a project that the header Noria-Project names; a project's own key may name its own there, and
no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from fastapi_problem.error import Problem
from psycopg.errors import QueryCanceled
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from api import callers, scopes
from api.callers import Callers
from api.limits import Gate, Gates, Rates, Waiting, gates
from api.probes import Probes, probes
from api.problems import problem
from api.sessions import COOKIE, Sessions
from api.streams import HEARTBEAT, Watch
from worker import broker, catalog, document, keys
from worker import context as worker_context
from worker.broker import Sender
from worker.catalog import Catalog
from worker.database import engine
from worker.errors import KeyExpired, NotFound
from worker.keys import Caller, Scope
from worker.settings import Settings
from worker.storage import Bucket
from worker.tables import Job, Project

_CONNECTIONS = 24  # as many as handlers that write may run at once by the gates; keys are looked up quickly
_READING = 16  # as many as handlers that read and reads of streams may run at once
_READ_SECONDS = 5  # that one statement of a read may take
_KEY = "an API key of a project: noria_…; of the scope that is named here, or of one that includes it"
ACTING = "Noria-Project"
_CHALLENGE = {"www-authenticate": "Bearer"}

T = TypeVar("T")


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
    callers: Callers
    sessions: Sessions
    rates: Rates
    waiting: Waiting
    watch: Watch
    probes: Probes
    gates: Gates

    @cached_property
    def provider(self) -> worker_context.Context:
        """A step's context, for the few requests that ask the provider; made at the first of them."""
        return replace(worker_context.make(self.settings, patience=timedelta(0)), engine=self.engine)

    def of(self, project: Project) -> Context:
        """The same for a project: with its account alone, where it is bound to one."""
        return self if project.account is None else replace(self, settings=self.settings.bound_to(project.account))

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

    def tell(self, job: Job, project: Project, keys: Sequence[str] = ()) -> None:
        """Tells Flower the job's state, with its outputs' keys, and asks for a tick, without waiting for either."""
        if event := document.flower_event(job, project.name, keys):
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
        callers=Callers(database),
        sessions=Sessions(settings),
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
    """The project that a request is about, Postgres's time when it was let in, and when its key ends (None: never)."""

    project: Project
    now: datetime
    ends_at: datetime | None


class Door(SecurityBase, Generic[T]):
    """A dependency: who asks; the request holds a place of its project in a gate until its answer is sent.

    One node where FastAPI would solve five, which took a third of a request's time: the scheme for OpenAPI, the header,
    the key and its scope, the gate, and what the endpoint is given of the caller.
    """

    def __init__(self, let_in: Callable[[Caller], T], gate: Callable[[Gates, Request], Gate]) -> None:
        self.scheme_name = "key"
        self.model = HTTPBearerModel(bearerFormat="noria_…", description=_KEY)
        self._let_in, self._gate = let_in, gate

    async def __call__(
        self,
        request: Request,
        acting: Annotated[
            str | None, Header(alias=ACTING, description="the project that an operator's key acts for")
        ] = None,
    ) -> T:
        """What the endpoint is given.

        Raises problems: 401, 429 over the key's rate, 404 for a project that is not the caller's, 403 where the key's
        scope is too narrow, and the gate's.
        """
        here: Context = request.app.state.context
        needed = scopes.needed(request.method, request.scope["route"].path)
        who = await _caller(here, request, acting, needed)
        state, gate = request.scope["state"], self._gate(here.gates, request)
        state["project"] = who.project.name if who.project else None
        if not who.scope.includes(needed):
            raise _wrong_scope(who.scope, needed)
        await state["held"].enter_async_context(gate.place(who.project.id if who.project else None))
        return self._let_in(who)


async def _caller(here: Context, request: Request, acting: str | None, needed: Scope) -> Caller:
    """Who asks; raises problems."""
    key, acting = credential(here, request, acting)
    # whoever makes keys is looked up anew: a revoked key must leave none behind
    within = 0.0 if needed is Scope.ADMIN else callers.REMEMBERED
    try:
        known = await here.callers.find(key, acting, within)
    except KeyExpired as error:
        raise _unauthorized(str(error)) from None
    if known is None:
        raise _unauthorized("a valid key is needed: Authorization: Bearer noria_…")
    if not here.rates.take(known.key_id):
        await run_in_threadpool(here.rates.spend, known.key_id)
    return known


def still_welcome(request: Request) -> Callable[[], Awaitable[bool]]:
    """Asks whether a request may go on that was let in: False once its key has ended, half a minute later at most."""
    here: Context = request.app.state.context
    key, acting = credential(here, request, request.headers.get(ACTING))

    async def ask() -> bool:
        with suppress(KeyExpired, NotFound):
            return await here.callers.find(key, acting, HEARTBEAT) is not None
        return False

    return ask


def credential(here: Context, request: Request, acting: str | None) -> tuple[bytes, str | None]:
    """The digest of the caller's key, which no key may have, and the project that it acts for.

    Of a key in the Authorization header, or of the console's session there; to look, the session's cookie is enough.
    """
    scheme, _, said = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return keys.digest(said.strip()), acting
    if not scheme and request.method == "GET":
        scheme, said = "session", request.cookies.get(COOKIE, "")
    if scheme.lower() == "session" and (session := here.sessions.read(said)):
        return session.key, session.project
    return b"", acting


def _unauthorized(detail: str) -> Problem:
    refusal = problem(401, "unauthorized", detail)
    refusal.headers = _CHALLENGE
    return refusal


def _wrong_scope(has: Scope, needed: Scope) -> Problem:
    """A 403 that names the scope, in RFC 6750's header too."""
    refusal = problem(403, "wrong_scope", f"this takes a key of the scope {needed}; this key's is {has}")
    refusal.headers = {"www-authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'}
    return refusal


def _anyone(who: Caller) -> Caller:
    return who


def _tenant(who: Caller) -> Tenant:
    """The project that a request is about; raises a problem, 400, when an operator named none."""
    if who.project is None:
        raise problem(400, "project_required", "an operator's key names the project in the header Noria-Project")
    return Tenant(who.project, who.now, who.ends_at)


def _narrows(request: Request) -> bool:
    """Whether a list is filtered, so that many rows may be read for one page."""
    return bool(request.query_params.keys() - {"cursor", "limit"})


def follows(request: Request) -> bool:
    """Whether a stream of events is asked for."""
    return "text/event-stream" in request.headers.get("accept", "")


def _at_once(gates: Gates, request: Request) -> Gate:
    return gates.reads if request.method == "GET" else gates.requests


def _search(gates: Gates, request: Request) -> Gate:
    return gates.searches if _narrows(request) else gates.reads


def _history(gates: Gates, request: Request) -> Gate:
    return gates.streams if follows(request) else gates.reads


Anyone = Annotated[Caller, Depends(Door(_anyone, _at_once))]
Asking = Annotated[Caller, Depends(Door(_anyone, lambda gates, _: gates.lookups))]  # questions to the provider
Calling = Annotated[Tenant, Depends(Door(_tenant, lambda gates, _: gates.lookups))]  # a receiver, while it waits
Mine = Annotated[Tenant, Depends(Door(_tenant, _at_once))]
Searching = Annotated[Tenant, Depends(Door(_tenant, _search))]
Following = Annotated[Tenant, Depends(Door(_tenant, _history))]
Moving = Annotated[Tenant, Depends(Door(_tenant, lambda gates, _: gates.bulk))]  # many jobs at once
Receiving = Annotated[Tenant, Depends(Door(_tenant, lambda gates, _: gates.bodies))]  # and then of `gates.bulk`
Transferring = Annotated[Tenant, Depends(Door(_tenant, lambda gates, _: gates.files))]  # to or from the bucket
Exporting = Annotated[Tenant, Depends(Door(_tenant, lambda gates, _: gates.exports))]  # streams of all rows
Drafting = Annotated[Tenant, Depends(Door(_tenant, lambda gates, _: gates.uploads))]  # and then of `gates.drafts`
Committing = Annotated[Tenant, Depends(Door(_tenant, lambda gates, _: gates.commits))]
