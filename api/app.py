"""The HTTP API: `uvicorn api.app:app`; and what every request has: an id, a line in the log, headers, an answer.

The app is made when `app` is first asked for, so that importing this module needs no settings.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import console, context, description, forms, problems, scopes
from api.routes import (
    batch_exports,
    batches,
    budgets,
    bulk,
    catalog,
    endpoints,
    files,
    jobs,
    keys,
    metrics,
    operator,
    review,
    schedules,
)
from worker import database, log, settings, tracing
from worker.catalog import CatalogError
from worker.keys import Scope as KeyScope
from worker.settings import Settings

_THREADS = 64  # more than all gates together let in, so that some are left to look up keys and to read streams
_LAST_WORDS = 2.0  # seconds that are left at the end to send hints and events
_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_QUIET = frozenset({"/healthz", "/readyz"})  # asked every few seconds by machines
_TITLE = "Noria"
_ABOUT = """\
A job queue for generated media on DashScope: submit a job, and find its output in your own bucket.

- A key goes with every request: `Authorization: Bearer noria_…`. An operator's key names a project in `Noria-Project`.
- A key has a scope: `read` looks, `submit` makes and changes too, `admin` also sets up keys, budgets and endpoints.
  Each route names the one that it takes under `security`; a key of a narrower one gets 403, `wrong_scope`.
- Refusals and failures are `application/problem+json` (RFC 9457); `code` is stable, `errors` names every wrong field.
- Times are RFC 3339 in UTC, money is a decimal string, ids are UUIDv7.
- With an `Idempotency-Key` a submission may be repeated: the first job is answered, with `Idempotency-Replayed: true`.
"""
_FORMS = (
    forms.ApproveCreate,
    forms.BatchCreate,
    forms.BudgetCreate,
    forms.BudgetUpdate,
    forms.BulkCreate,
    forms.EndpointCreate,
    forms.EndpointUpdate,
    forms.RedeliverCreate,
    forms.KeyCreate,
    forms.KeyRotate,
    forms.RejectCreate,
    forms.ResolveCreate,
    forms.ScheduleCreate,
    problems.ProblemDocument,
)

_log = log.get(__name__)


_ROUTES = (
    *(jobs, bulk, review, batches, batch_exports, operator, files, schedules),
    *(budgets, endpoints, keys, catalog, metrics),
)


def create_app(given: Settings) -> FastAPI:
    """The app for these settings; it opens no connection before the first request."""
    made = context.make(given)
    app = _routed()
    app.state.context = made
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    app.add_middleware(Frame)
    problems.handle(app)
    return app


def described() -> dict[str, Any]:
    """The OpenAPI description, for which no settings are needed."""
    return _described(_routed())


def _routed() -> FastAPI:
    # /docs is served offline: FastAPI's own page loads its scripts from a CDN that many cannot reach.
    app = FastAPIOffline(redoc_url=None, title=_TITLE, version=_version(), lifespan=_lifespan, redirect_slashes=False)
    for routes in _ROUTES:
        app.include_router(routes.router)
    app.mount("/console/static", console.static)
    for router in console.routers:
        app.include_router(router, include_in_schema=False)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    tracing.start("noria-api")
    to_thread.current_default_thread_limiter().total_tokens = _THREADS
    yield
    app.state.context.sender.stop(_LAST_WORDS)
    for engine in (app.state.context.engine, app.state.context.reader, app.state.context.beside):
        engine.dispose()
    tracing.stop()


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of the app, made once: FastAPI's, with the bodies and problems that it cannot find."""
    if app.openapi_schema is None:
        made = get_openapi(title=_TITLE, version=app.version, description=_ABOUT, routes=app.routes)
        components = made.setdefault("components", {}).setdefault("schemas", {})
        shown = {form.__name__: form.model_json_schema(ref_template=forms.REF) for form in _FORMS}
        shown["JobCreate"] = forms.job_schema()
        shown["ScheduleUpdate"] = forms.update_schema(shown["ScheduleCreate"])
        for name, schema in shown.items():
            for part, of in {**schema.pop("$defs", {}), name: schema}.items():
                assert components.setdefault(part, of) == of, f"two different forms are called {part}"
        _name_scopes(made["paths"])
        description.complete(made)
        app.openapi_schema = made
    return app.openapi_schema


def _name_scopes(paths: dict[str, Any]) -> None:
    """Adds the scope that each operation takes, and the refusal of a key of a narrower one."""
    for path, methods in paths.items():
        for method, operation in methods.items():
            if "security" not in operation:
                continue
            needed = scopes.needed(method.upper(), path)
            operation["security"] = [{scheme: [needed]} for scheme in operation["security"][0]]
            if needed is not KeyScope.READ:
                operation["responses"].setdefault("403", problems.refusals(403)[403])


class Frame:
    """The middleware next to routing, so that every answer passes it, refusals and failures too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        framed = _Framed(scope, send)
        try:
            async with AsyncExitStack() as scope["state"]["held"]:  # what the request holds until it is answered
                await self._app(scope, receive, framed.send)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception as error:  # noqa: BLE001 - the client gets an answer, the log gets the cause
            answer = problems.answer(Request(scope), error)
            if not framed.status:
                await answer(scope, receive, framed.send)
        finally:
            framed.note()


class _Framed:
    """One request on its way."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        self._scope = scope
        self._send = send
        self._began = time.monotonic()
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        """Passes the answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update({"x-request-id": self.request_id, **_HEADERS})
            if self._scope["path"].startswith("/v1/"):
                headers.setdefault("cache-control", "no-store")
        await self._send(message)

    def note(self) -> None:
        """Writes one line to the log: with the route's template, never the address with its query."""
        route = getattr(self._scope.get("route"), "path", None)
        if route in _QUIET and self.status < 500:
            return
        state: dict[str, Any] = self._scope["state"]
        _log.info(
            "request",
            request=self.request_id,
            method=self._scope["method"],
            route=route,
            status=self.status or None,  # none: the client went away first
            ms=round((time.monotonic() - self._began) * 1000, 1),
            project=state.get("project"),
        )


@cache
def _app() -> FastAPI:
    given = settings.load()
    log.configure(given.log_level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # through our formatter, like everything else
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)  # it would write queries; `Frame` logs each request
    try:
        made = create_app(given)
    except CatalogError as error:
        sys.exit(str(error))
    _log.info("catalog", digest=made.state.context.catalog.digest)
    if why := database.why_unfit(made.state.context.engine):
        sys.exit(f"NORIA_DATABASE_URL: {why}.")
    # What is made by now stays: to look through all of it would hold every request up for a fifth of a second.
    gc.collect()
    gc.freeze()
    return made


def _version() -> str:
    try:
        return version("noria")
    except PackageNotFoundError:  # run from the source tree
        return "0"


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app()
    raise AttributeError(name)
