"""The sandbox as an ASGI application.

Everything is one process and one thread but drawing, so the books need no locks.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from ops.sandbox import (
    compatible,
    compatible_batches,
    compatible_embeddings,
    compatible_files,
    console,
    native,
    offers,
    oss,
    oss_uploads,
)
from ops.sandbox.options import Options
from ops.sandbox.provider import Provider


def create_app(options: Options | None = None, state: Path | None = None) -> FastAPI:
    """Return a sandbox; with a `state` file it knows, after a restart, the tasks of before."""
    provider = Provider(options or Options(), state)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        provider.journal.close()

    app = FastAPI(title="Sandbox DashScope", lifespan=lifespan)
    for routes in (
        native,
        offers,
        oss,
        oss_uploads,
        compatible,
        compatible_embeddings,
        compatible_files,
        compatible_batches,
        console,
    ):
        app.include_router(routes.router(provider))
    app.include_router(compatible.batch_chat_router(provider))

    @app.exception_handler(ValidationError)
    async def refuse(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    return app
