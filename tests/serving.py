"""The API, served: a real uvicorn on a free port of 127.0.0.1, on the test's own database, bucket and broker."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine, text

from api.app import create_app
from ops.sandbox.serving import PromptServer
from worker import keys
from worker.settings import Settings
from worker.tables import Job

PATIENCE = 45.0  # seconds, on a busy machine
CLIP: dict[str, Any] = {
    "kind": "text-to-video",
    "model": "wan2.5-t2v-preview",
    "input": {"prompt": "a kitten runs in the moonlight"},
}


@dataclass
class Served:
    """An API that answers at `url`."""

    url: str
    app: FastAPI

    @property
    def engine(self) -> Engine:
        engine: Engine = self.app.state.context.engine
        return engine

    def key(self, project: str | None = None, scope: keys.Scope = keys.Scope.ADMIN) -> str:
        """A new key: an operator's, or of the project, which is made where needed."""
        with self.engine.begin() as connection:
            names = {found.name: found for found in keys.projects(connection)}
            owner = names.get(project or "") or (keys.create_project(connection, project) if project else None)
            return keys.new_key(connection, owner, scope=scope)[1]

    def http(self, key: str | None, **headers: str) -> httpx.Client:
        """A plain client, with that key."""
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        bearer = {"authorization": f"Bearer {key}"} if key else {}
        # It speaks no TLS, and to read the certificates of public authorities takes 30 ms.
        return httpx.Client(base_url=self.url, headers={**bearer, **said}, timeout=PATIENCE, verify=False)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result.mappings()) if result.returns_rows else []

    def row(self, job_id: str) -> Job:
        return Job.of(self.sql("select * from jobs where id = :id", id=job_id)[0])


def settings_of(environment: dict[str, str], **more: Any) -> Settings:
    """The settings in an environment; `more` by their names. A key may ask as often as a test likes."""
    values = {name.removeprefix("NORIA_").lower(): value for name, value in environment.items()}
    return Settings.model_validate({"api_rate": 100_000, **values, **more})


@contextmanager
def served(environment: dict[str, str], **more: Any) -> Iterator[Served]:
    """The API on the servers of `environment`, until the block ends."""
    app = create_app(settings_of(environment, **more))
    listening = socket.create_server(("127.0.0.1", 0))
    server = PromptServer(
        uvicorn.Config(app, http="h11", log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="api")
    thread.start()
    try:
        eventually(lambda: server.started)
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture
def api(environment: dict[str, str]) -> Iterator[Served]:
    """The API, on the test's own servers."""
    with served(environment) as made:
        yield made


@pytest.fixture
def http(api: Served) -> Iterator[httpx.Client]:
    """A client of it with an admin's key of the project spring."""
    with api.http(api.key("spring")) as client:
        yield client


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` gives, as soon as that is true of it; fails after a while."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s"
        time.sleep(0.02)
    return found
