"""An upgrade and a rollback while jobs are made: processes of the version before and of this one, on one schema.

And a bucket that is moved. A key that is rotated is in `test_accounts`, a database that is restored in `test_restored`.

The version before is the code as it was before the newest migration, taken from the project's history.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg import sql
from serving import served
from sqlalchemy import Engine, create_engine, text
from stage import Stage

from ops import audit
from ops.local import servers, up
from ops.local.supervise import Program, Supervisor, has_logged
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import context
from worker.states import State
from worker.storage import Bucket, Expected

PATIENCE = 60.0  # seconds
MODEL = "wan2.5-t2v-preview"
SPEECH = {"kind": "speech", "model": "qwen3-tts-flash", "input": {"text": "水车日夜不停地转动。" * 80}}


def before() -> str:
    """The commit before the newest migration came; skips where there is no history."""
    newest = max((up.PROJECT / "migrations" / "versions").glob("[0-9]*.py"))
    came = git("rev-list", "HEAD", "--", str(newest)).split()
    parent = git("rev-parse", "--verify", "--quiet", f"{came[-1]}^") if came else ""
    return parent.strip() or pytest.skip("the project's history is not here, so there is no version before")


def git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=up.PROJECT, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the version before."""
    folder = tmp_path_factory.mktemp("before")
    archive = folder.with_suffix(".tar")
    subprocess.run(("git", "archive", "-o", str(archive), before()), cwd=up.PROJECT, check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder)
    return folder


@dataclass
class Both:
    """Processes of both versions on one database, one bucket and one broker."""

    supervisors: ExitStack
    folder: Path
    environment: dict[str, str]
    sandbox: Sandbox
    engine: Engine
    key: str = ""
    stops: dict[str, Callable[[], None]] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)

    def run(self, code: Path, *words: str) -> str:
        """What a command of that version prints."""
        command = (sys.executable, *words)
        done = subprocess.run(command, cwd=code, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, name: str, code: Path, command: str, ready: Callable[[Any], bool]) -> None:
        held = self.supervisors.enter_context(ExitStack())
        supervisor = held.enter_context(Supervisor(self.folder, print))
        log = self.folder / f"{name}.log"
        words = (sys.executable, "-m", *command.split())
        supervisor.start([Program(name, words, self.environment, log, ready, cwd=code)])
        supervisor.wait_ready()
        self.stops[name] = held.close

    def stop(self, *names: str) -> None:
        """With SIGTERM, as a container is stopped, in the midst of its work."""
        for name in names:
            self.stops.pop(name)()

    def worker(self, name: str, code: Path) -> None:
        self.start(
            name,
            code,
            f"celery -A worker.tasks worker -P threads -c 16 -n {name}@%h --loglevel INFO",
            has_logged(" ready."),
        )

    def api(self, name: str, code: Path) -> str:
        with socket.create_server((servers.HOST, 0)) as probe:
            port = probe.getsockname()[1]
        address = f"http://{servers.HOST}:{port}"
        self.start(
            name,
            code,
            f"uvicorn api.app:app --host {servers.HOST} --port {port} --timeout-graceful-shutdown 5",
            lambda _: _answers(address),
        )
        return address

    def submit(self, address: str, count: int) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=address, headers=headers, trust_env=False) as http:
            for _ in range(count):
                number = len(self.jobs)
                clip = {"prompt": f"wheel {number}", "size": "832*480"}
                body = SPEECH if number % 5 == 0 else {"kind": "text-to-video", "model": MODEL, "input": clip}
                answer = http.post("/v1/jobs", json=body)
                assert answer.status_code == 201, answer.text
                self.jobs.append(answer.json()["id"])

    def in_flight(self) -> int:
        return self._count("state in ('submitting', 'running', 'gathering', 'copying')")

    def until(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not enough():
            assert time.monotonic() < deadline, self._states()
            time.sleep(0.05)

    def all_done(self) -> bool:
        return not self._count("finished_at is null")

    def _count(self, which: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(text(f"select count(*) from jobs where {which}")).scalar_one())

    def _states(self) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(text("select state, count(*) from jobs group by 1")).all()


@pytest.fixture
def both(old: Path, environment: Mapping[str, str], servers: servers.Servers, tmp_path: Path) -> Iterator[Both]:
    """The old schema, on a database of its own, and nothing started yet."""
    name = f"upgrade_{time.monotonic_ns()}"
    with ExitStack() as held:
        maintenance = held.enter_context(servers.connect())
        servers.create_database(name)
        held.callback(maintenance.execute, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        sandbox = held.enter_context(running(Options(run_seconds=2, queue_seconds=0, call_seconds=0.3)))
        engine = create_engine(servers.url_of(name))
        held.callback(engine.dispose)
        settings = {
            **up.outer_environment({}, False),
            **environment,
            "NORIA_DATABASE_URL": servers.url_of(name),
            "NORIA_DASHSCOPE_URL": sandbox.url,
            "NORIA_SETTLE_SECONDS": "5",
        }
        yield Both(held.enter_context(ExitStack()), tmp_path, settings, sandbox, engine)


def test_jobs_go_on_through_an_upgrade_and_a_rollback(both: Both, old: Path) -> None:
    new = up.PROJECT
    both.run(old, "-m", "migrations")
    both.key = both.run(old, "-c", "from ops.cli import main; main()", "keys", "create", "spring")
    of_old = both.api("api-old", old)
    both.worker("worker-old", old)
    both.start("clock", old, f"celery -A worker.tasks beat -s {both.folder}/schedule", has_logged("maxinterval"))
    both.submit(of_old, 8)
    both.until(lambda: both.in_flight() >= 4)

    # the migration first, then the processes, one by one
    both.run(new, "-m", "migrations")
    of_new = both.api("api-new", new)
    both.worker("worker-new", new)
    both.submit(of_new, 5)
    both.submit(of_old, 5)
    both.until(lambda: both.in_flight() >= 4)
    both.stop("worker-old", "api-old")
    both.submit(of_new, 5)
    both.until(lambda: both.in_flight() >= 4)

    # back, on the schema that is there
    of_old = both.api("api-back", old)
    both.worker("worker-back", old)
    both.stop("worker-new", "api-new")
    both.submit(of_old, 5)
    both.until(both.all_done)

    with both.engine.connect() as connection:
        states = connection.execute(text("select state, count(*) from jobs where parent_id is null group by 1")).all()
    paid = [task for task in both.sandbox.ledger()["tasks"] if task["billed_micros"] and task["is_async"]]
    assert [tuple(row) for row in states] == [("succeeded", len(both.jobs))]
    assert len(paid) == len([n for n in range(len(both.jobs)) if n % 5])
    assert audit.audit(both.engine) == []


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", trust_env=False, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def test_a_bucket_is_moved_in_the_midst_of_work(
    environment: dict[str, str], store: servers.Servers, play: Stage
) -> None:
    """All processes stop, the objects are copied, and the settings name the other bucket."""
    there, on_its_way = play.until(play.submit()), play.until(play.submit(), State.COPYING)
    moved = environment["NORIA_S3_BUCKET"] + "-moved"
    store.create_bucket(moved)
    to = Bucket(play.ctx.settings.model_copy(update={"s3_bucket": moved}))
    for key, length in play.ctx.bucket.objects():
        to.put_stream(key, play.ctx.bucket.chunks(key), "application/octet-stream", Expected(length))
    store.delete_bucket(environment["NORIA_S3_BUCKET"])
    store.create_bucket(environment["NORIA_S3_BUCKET"])  # empty: who still looks there finds nothing

    settings = play.ctx.settings.model_copy(update={"s3_bucket": moved})
    again = Stage(context.make(settings, play.ctx.patience), play.sandbox, play.project)
    again.until(on_its_way)

    with served(environment, s3_bucket=moved) as api, api.http(api.key(play.project.name)) as http:
        for job in (there, on_its_way):
            [output] = http.get(f"/v1/jobs/{job.id}").json()["outputs"]
            link = http.get(output["url"], follow_redirects=False).headers["location"]
            assert len(httpx.get(link, trust_env=False).content) == output["bytes"]
    again.ctx.engine.dispose()
    store.delete_bucket(moved)
