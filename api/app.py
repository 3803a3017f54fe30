"""The HTTP API: `uvicorn api.app:app`.

The app is made when `app` is first asked for, so that importing this module needs no settings.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline

from api import context, forms, problems
from api.middleware import Frame
from api.routes import catalog, files, jobs, operator, schedules
from worker import database, log, settings
from worker.settings import Settings

_THREADS = 64  # more than all gates together let in, so that a key is looked up and a stream is read meanwhile
_LAST_WORDS = 2.0  # seconds that hints and events may still take at the end
_TITLE = "Noria"
_ABOUT = """\
A job queue for generated media on DashScope: submit a job, and find its output in your own bucket.

- A key goes with every request: `Authorization: Bearer noria_…`. An operator's key names a project in `Noria-Project`.
- Refusals and failures are `application/problem+json` (RFC 9457); `code` is stable, `errors` names every wrong field.
- Times are RFC 3339 in UTC, money is a decimal string, ids are UUIDv7.
- With an `Idempotency-Key` a submission may be repeated: the first job is answered, with `Idempotency-Replayed: true`.
"""
_FORMS = (forms.ResolveCreate, forms.ScheduleCreate, problems.ProblemDocument)


def create_app(given: Settings) -> FastAPI:
    """The app for these settings; it opens no connection before the first request."""
    made = context.make(given)
    # Its page at /docs needs nothing from elsewhere: the usual one loads its scripts from a CDN that many cannot reach.
    app = FastAPIOffline(redoc_url=None, title=_TITLE, version=_version(), lifespan=_lifespan, redirect_slashes=False)
    app.state.context = made
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    app.add_middleware(Frame)
    problems.handle(app)
    for routes in (jobs, operator, files, schedules, catalog):
        app.include_router(routes.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = _THREADS
    yield
    app.state.context.sender.stop(_LAST_WORDS)
    app.state.context.engine.dispose()
    app.state.context.beside.dispose()


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description of the app, made once: FastAPI's, and the bodies and problems that it does not find."""
    if app.openapi_schema is None:
        made = get_openapi(title=_TITLE, version=app.version, description=_ABOUT, routes=app.routes)
        components = made.setdefault("components", {}).setdefault("schemas", {})
        shown = {form.__name__: form.model_json_schema(ref_template=forms.REF) for form in _FORMS}
        shown["JobCreate"] = forms.job_schema()
        update = {name: value for name, value in shown["ScheduleCreate"].items() if name != "required"}
        shown["ScheduleUpdate"] = {**update, "title": "ScheduleUpdate", "description": forms.UPDATE}
        for name, schema in shown.items():
            components |= {**schema.pop("$defs", {}), name: schema}
        app.openapi_schema = made
    return app.openapi_schema


@cache
def _app() -> FastAPI:
    given = settings.load()
    log.configure(given.log_level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # through our formatter, as everything
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)  # it writes queries; the frame logs each request
    made = create_app(given)
    if why := database.why_unfit(made.state.context.engine):
        sys.exit(f"NORIA_DATABASE_URL: {why}.")
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
