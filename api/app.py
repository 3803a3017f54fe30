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
from fastapi_offline import FastAPIOffline

from api import context, describe, problems
from api.middleware import Frame
from api.routes import files, health, jobs, limits, models, resolve, schedules
from worker import database, log, settings
from worker.settings import Settings

_THREADS = 64  # more than all gates together let in, so that a key is looked up and a stream is read meanwhile
_LAST_WORDS = 2.0  # seconds that hints and events may still take at the end


def create_app(given: Settings) -> FastAPI:
    """The app for these settings; it opens no connection before the first request."""
    made = context.make(given)
    # Its page at /docs needs nothing from elsewhere: the usual one loads its scripts from a CDN that many cannot reach.
    app = FastAPIOffline(
        redoc_url=None, title=describe.TITLE, version=_version(), lifespan=_lifespan, redirect_slashes=False
    )
    app.state.context = made
    app.openapi = lambda: describe.describe(app)  # type: ignore[method-assign]
    app.add_middleware(Frame)
    problems.handle(app)
    for routes in (jobs, resolve, files, schedules, models, limits, health):
        app.include_router(routes.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = _THREADS
    yield
    app.state.context.sender.stop(_LAST_WORDS)
    app.state.context.engine.dispose()
    app.state.context.beside.dispose()


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
