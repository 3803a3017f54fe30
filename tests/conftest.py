"""Real servers for the tests: one PostgreSQL, Valkey and SeaweedFS per run, shared by its worker processes.

The process that pytest starts in runs them, at the first fixture that asks (`wanted` in their home); workers
find the addresses in the home's files, and wait only for the server they need. Each test has a database and a
bucket of its own. No key and no setting of the caller's is seen: a test can never spend money.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import image as images
import psycopg
import pytest
import redis
import sqlalchemy
import structlog
from others import OLDER_LOCALE
from psycopg import sql
from serving import api, http
from stage import play, sandbox

from ops.local import servers as embedded
from worker import log

__all__ = ["api", "http", "play", "sandbox"]  # fixtures for every file

for _name in [name for name in os.environ if name.startswith(("DASHSCOPE_", "NORIA_"))]:
    del os.environ[_name]
if folder := os.environ.get("TEST_POSTGRES"):  # of the executables of another PostgreSQL than the wheel's
    _wheels = embedded.find_binaries()
    embedded.find_binaries = lambda: _wheels | {"postgres": Path(folder) / "postgres"}
    embedded.Cluster = partial(embedded.Cluster, locale=OLDER_LOCALE)
# Rich draws every local, the whole catalog among them, which takes seconds while a transaction is open.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback
gc.disable()  # until all is imported and collected, of which nothing is ever let go

Connection = psycopg.Connection[tuple[object, ...]]

TEMPLATE = "noria_template"
START_SECONDS = 60.0
MEMORY_BYTES = 4 << 30
PROJECT = Path(__file__).resolve().parents[1]
HOME = pytest.StashKey[Path]()
STOP = pytest.StashKey[Callable[[], None]]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the servers' home; in a worker, take it over from the process that made it."""
    handed_over: dict[str, str] = getattr(config, "workerinput", {})
    if "servers_home" in handed_over:
        config.stash[HOME] = Path(handed_over["servers_home"])
        _take_ports(int(handed_over["workerid"].removeprefix("gw")))
        return
    folder = Path(tempfile.mkdtemp(prefix="noria-tests-", dir=_memory()))
    folder.chmod(0o711)
    config.stash[HOME] = embedded.make_home(folder / "home")
    embedded.described(config.stash[HOME])  # chooses ports and passwords, before there are two to choose
    config.stash[STOP] = _run_when_wanted(config.stash[HOME])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Tell a worker where the home is (xdist calls this before it starts one)."""
    config: pytest.Config = node.config  # type: ignore[attr-defined]
    node.workerinput["servers_home"] = str(config.stash[HOME])  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Let the collector look at what tests make, and not at what was there before them."""
    gc.freeze()
    gc.enable()


def _take_ports(worker: int) -> None:
    """A tenth of the ports for the stacks that this worker's tests start: two that start at once meet nowhere."""
    first, last = map(int, embedded.PORTS.split("-"))
    share = (last - first) // 10
    start = first + worker % 10 * share
    os.environ[embedded.PORTS_NAME] = f"{start}-{start + share}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers, whatever became of the tests."""
    if STOP in config.stash:
        config.stash[STOP]()
        shutil.rmtree(config.stash[HOME].parent, ignore_errors=True)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> embedded.Servers:
    """The three servers' addresses; they may still be starting, so ask for what needs them instead."""
    home = request.config.stash[HOME]
    (home / "wanted").touch()
    return embedded.described(home)


@pytest.fixture(scope="session")
def template(servers: embedded.Servers) -> str:
    """The name of a migrated database to be cloned; migrated once in a run, by the worker that comes first."""
    done = servers.home / "migrated"
    _eventually(servers, lambda: servers.connect().close(), psycopg.OperationalError)
    with _turn(servers.home):
        if not done.exists():
            servers.create_database(TEMPLATE)
            _migrate(servers.environment(database=TEMPLATE))
            _hash_the_password_once(servers)
            done.touch()
    return TEMPLATE


@pytest.fixture(scope="session")
def maintenance(servers: embedded.Servers, template: str) -> Iterator[Connection]:
    """A connection to make and drop databases on."""
    with servers.connect() as connection:
        yield connection


@pytest.fixture
def database_url(servers: embedded.Servers, template: str, maintenance: Connection) -> Iterator[str]:
    """A fresh, migrated database's SQLAlchemy address; dropped afterwards, whoever is still connected."""
    name = f"test_{uuid.uuid4().hex}"
    clone = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
    maintenance.execute(clone.format(sql.Identifier(name), sql.Identifier(template)))
    yield servers.url_of(name)
    maintenance.execute(drop.format(sql.Identifier(name)))


@pytest.fixture
def engine(database_url: str) -> Iterator[sqlalchemy.Engine]:
    """An engine on the test's own database."""
    engine = sqlalchemy.create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def store(servers: embedded.Servers) -> embedded.Servers:
    """The servers, once SeaweedFS stores things."""
    _eventually(servers, lambda: _store_something(servers), ConnectionError)
    return servers


@pytest.fixture
def bucket(store: embedded.Servers) -> Iterator[str]:
    """The name of a fresh, empty bucket; dropped afterwards."""
    name = f"test-{uuid.uuid4().hex}"
    store.create_bucket(name)
    yield name
    store.delete_bucket(name)


@pytest.fixture
def broker_url(servers: embedded.Servers, worker_number: int) -> str:
    """The address of a Valkey database that is this worker's own, and empty."""
    url = f"{servers.broker_url.rpartition('/')[0]}/{worker_number + 1}"
    with redis.Redis.from_url(url) as client:
        _eventually(servers, client.flushdb, redis.ConnectionError)
    return url


@pytest.fixture
def environment(servers: embedded.Servers, database_url: str, bucket: str, broker_url: str) -> dict[str, str]:
    """All the settings a process needs to work on this test's database, bucket and broker.

    DashScope is nobody (port 9 refuses): a test that needs one sets NORIA_DASHSCOPE_URL.
    """
    return {
        **servers.environment(bucket, database_url.rpartition("/")[2]),
        "NORIA_BROKER_URL": broker_url,
        "NORIA_DASHSCOPE_URL": f"http://{embedded.HOST}:9",
        "NORIA_DASHSCOPE_API_KEY": "sk-test",
        "NORIA_EGRESS_ALLOW": "127.0.0.0/8",
    }


@pytest.fixture
def written() -> Iterator[Callable[[], str]]:
    """What is written by the formatter that workers and the API have; logging is as it was afterwards."""
    root, stream, structlogs = logging.getLogger(), io.StringIO(), structlog.get_config()
    level, hooks = root.level, (sys.excepthook, threading.excepthook)
    log.configure("INFO")
    structlog.configure(cache_logger_on_first_use=False)  # else loggers would stay so for the tests that follow
    root.handlers[0].setStream(stream)  # type: ignore[attr-defined]
    yield stream.getvalue
    root.handlers = [one for one in root.handlers if type(one) is not logging.StreamHandler]
    root.setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    structlog.configure(**structlogs)


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Iterator[images.Image]:
    """What production runs, without a container; built once in a run, by the worker that comes first."""
    root = request.config.stash[HOME].parent / "image"
    root.mkdir(exist_ok=True)
    with _turn(root):
        if not (root / "built").exists():
            images.build(root)
            (root / "built").touch()
    built = images.described(root)
    yield built
    assert built.written() == [], "a command wrote into the image, whose file system is read-only in production"


@pytest.fixture(scope="session")
def worker_number() -> int:
    """0, 1, … for xdist's gw0, gw1, …; 0 where there is no xdist."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def _memory() -> Path | None:
    """A file system in memory with room for the servers' data; None where there is none.

    Each test's database is 425 files, made and dropped: on a disk, and beside other writers, ten times the work.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return None
    found = os.statvfs(memory)
    is_fit = found.f_bavail * found.f_frsize > MEMORY_BYTES and not found.f_flag & os.ST_NOEXEC
    return memory if is_fit else None


def _run_when_wanted(home: Path) -> Callable[[], None]:
    """Start a thread that runs the servers once somebody wants them; returns what stops them."""
    stop = threading.Event()

    def run() -> None:
        while not (home / "wanted").exists():
            if stop.wait(0.05):
                return
        try:
            with embedded.servers(home, durable=False, say=_note(home)):
                stop.wait()
        except Exception as error:  # noqa: BLE001, it is told to whoever waits
            (home / "failure").write_text(str(error))

    thread = threading.Thread(target=run, name="servers")
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return end


def _note(home: Path) -> Callable[[str], None]:
    def note(line: str) -> None:
        with (home / "logs" / "supervisor.log").open("a") as log:
            log.write(line + "\n")

    return note


def _migrate(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _hash_the_password_once(servers: embedded.Servers) -> None:
    """To hash it 4,096 times is a third of what a connection costs, of which tests make thousands."""
    change = sql.SQL("ALTER ROLE noria PASSWORD {}")
    with servers.connect() as connection:
        if connection.info.server_version < 160_000:  # which cannot
            return
        connection.execute("SET scram_iterations = 1")
        connection.execute(change.format(sql.Literal(embedded.kept_secrets(servers.home)["postgres"])))


def _store_something(servers: embedded.Servers) -> None:
    if not embedded.seaweedfs_is_ready(embedded.kept_ports(servers.home)):
        raise ConnectionError("SeaweedFS stores nothing yet")


def _eventually(servers: embedded.Servers, act: Callable[[], object], not_yet: type[Exception]) -> None:
    """Repeat `act` while it raises `not_yet`, until the servers are known to have failed, or for a minute."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            act()
        except not_yet:
            if (failure := servers.home / "failure").exists():
                pytest.fail(failure.read_text())
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


@contextlib.contextmanager
def _turn(home: Path) -> Iterator[None]:
    """One worker process at a time."""
    with (home / "turn").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
