"""Noria on one machine: the servers, the schema, and every process of the table below, started and stopped as one.

`docker-compose.yml` runs the same commands; here they run under `ops.local.supervise`. Money is spent only with `real`:
without it no key of the caller's reaches any process, and the sandbox takes DashScope's place.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ops.local import servers
from ops.local.supervise import (
    LocalError,
    Program,
    Run,
    Supervisor,
    explain,
    has_logged,
    port_owner,
)

PROJECT = Path(__file__).resolve().parents[2]
OWN_SETTINGS = ("NORIA_", "DASHSCOPE_")
KEYS = ("NORIA_DASHSCOPE_API_KEY", "DASHSCOPE_API_KEY", "NORIA_ACCOUNTS")
NEWCOMERS = 0.1  # of the provider's times, which are minutes for a clip
SCHEMA = "migrations"  # which is `alembic upgrade head`, without its configuration


@dataclass(frozen=True)
class Process:
    """A row of the table: `command` is what `python -m` runs, with fields for ports, home and time scale."""

    command: str
    is_ready: Callable[[Mapping[str, int]], Callable[[Run], bool]]
    after: frozenset[str] = servers.NAMES
    grace_seconds: float = 10.0


PROCESSES = {
    "sandbox": Process(
        "ops.sandbox --host {host} --port {sandbox} --time-scale {time_scale} --state {home}/sandbox.db",
        lambda ports: _answers(ports["sandbox"], "/"),
        after=frozenset(),
    ),
    "api": Process(
        "uvicorn api.app:app --host {host} --port {api} --http h11 --timeout-graceful-shutdown 5",
        lambda ports: _answers(ports["api"], "/healthz"),
    ),
    "worker-control": Process(
        "celery -A worker.tasks worker -P threads -c 32 -Q tick,provider -n control@%h --loglevel INFO",
        lambda _: has_logged(" ready."),
    ),
    "worker-rest": Process(
        "celery -A worker.tasks worker -P threads -c 32 -Q calls,transfer,webhook -n rest@%h --loglevel INFO",
        lambda _: has_logged(" ready."),
    ),
    "clock": Process(
        "celery -A worker.tasks beat --loglevel INFO",
        lambda _: has_logged("maxinterval"),  # of its banner: our log has no place for a line each second
    ),
    "flower": Process(
        "celery -A worker.tasks flower --address={host} --port={flower}",
        lambda ports: _answers(ports["flower"], "/healthcheck"),
        grace_seconds=1.0,  # on SIGTERM it says that it shuts down, and stays; it has nothing to lose
    ),
}


@dataclass(frozen=True)
class UpOptions:
    """The options of `noria up`. `port` is the API's; None: the one kept in the home."""

    home: Path = Path(".noria")
    port: int | None = None
    real: bool = False  # spend real money, with the caller's own key
    time_scale: float = 1.0  # of the sandbox: how many of its seconds pass in one of ours


@dataclass(frozen=True)
class Stack:
    """A running stack: the environment of its processes, what `prepare` added to it, and the addresses."""

    environment: Mapping[str, str]
    prepared: Mapping[str, str]
    addresses: Mapping[str, str]
    supervisor: Supervisor

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name, as of now: a process that was restarted has a new one."""
        return self.supervisor.pids()


Prepare = Callable[[Mapping[str, str]], Mapping[str, str]]


@contextlib.contextmanager
def stack(options: UpOptions, prepare: Prepare, say: Callable[[str], None] = print) -> Iterator[Stack]:
    """Start everything, and stop it at the end. `LocalError` tells a person why it cannot start.

    `prepare` gets the processes' settings once the schema and the bucket are there; what it returns (a demo key,
    say) is added to the stack's environment and shown to the user.
    """
    with contextlib.ExitStack() as held:
        with _in_plain_words(options.home):
            running = _bring_up(held, options, prepare, say)
        yield running


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal stop the block as Ctrl-C does; only the first of them counts."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(*_: object) -> None:
        for number in signals:  # the clean-up that follows is not to be interrupted in its turn
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outer_environment(environment: Mapping[str, str], real: bool) -> dict[str, str]:
    """The caller's environment for the processes: without `real`, no key and no setting of Noria's.

    `LocalError` with `real` and without a key.
    """
    if real and not any(environment.get(name) for name in KEYS):
        raise LocalError(f"--real spends real money, and needs one of {', '.join(KEYS)} in the environment.")
    kept = {k: v for k, v in environment.items() if real or not k.startswith(OWN_SETTINGS)}
    exceptions = [host for host in (kept.get("NO_PROXY"), servers.HOST, "localhost") if host]
    return {**kept, "NO_PROXY": ",".join(exceptions), "no_proxy": ",".join(exceptions)}


def settings(stored: servers.Servers, ports: Mapping[str, int], outer: Mapping[str, str], real: bool) -> dict[str, str]:
    """The settings of all processes; without `real` they name the sandbox, and allow links to loopback."""
    password = servers.kept_secrets(stored.home)["flower"]
    common = {
        **stored.environment(),
        "NORIA_PUBLIC_URL": outer.get("NORIA_PUBLIC_URL", f"http://{servers.HOST}:{ports['api']}"),
        "FLOWER_BASIC_AUTH": f"noria:{password}",
        "FLOWER_READ_ONLY": "true",
        "FLOWER_MAX_TASKS": "20000",  # 7 kB each
        "MALLOC_ARENA_MAX": "2",  # as in the image
    }
    sandbox = {
        "NORIA_DASHSCOPE_URL": f"http://{servers.HOST}:{ports['sandbox']}",
        "NORIA_DASHSCOPE_BATCH_CHAT_URL": f"http://{servers.HOST}:{ports['sandbox']}/batch-chat",
        "NORIA_DASHSCOPE_API_KEY": "sk-sandbox",
        "NORIA_EGRESS_ALLOW": "127.0.0.0/8",
    }
    # The bucket is on this machine, where the provider cannot reach it.
    paid = {"NORIA_INPUT_HANDOVER": outer.get("NORIA_INPUT_HANDOVER", "upload")}
    return common | (paid if real else sandbox)


def migrate(environment: Mapping[str, str]) -> None:
    """Bring the schema of NORIA_DATABASE_URL up to date. `LocalError` says what alembic said."""
    command = (sys.executable, "-m", SCHEMA)
    done = subprocess.run(
        command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        cause = explain(done.stdout)
        raise LocalError(f"The schema could not be migrated{f': {cause}' if cause else ''}.\n{done.stdout}")


def programs(home: Path, ports: Mapping[str, int], options: UpOptions, environment: Mapping[str, str]) -> list[Program]:
    """The table, filled in for one machine."""
    values = {"host": servers.HOST, "home": home, "time_scale": options.time_scale, **ports}
    return [
        Program(
            name=name,
            # Split first: a home may have spaces in its path.
            command=(sys.executable, "-m", *(word.format(**values) for word in process.command.split())),
            environment=environment,
            log=home / "logs" / f"{name}.log",
            is_ready=process.is_ready(ports),
            after=process.after,
            grace_seconds=process.grace_seconds,
        )
        for name, process in PROCESSES.items()
        if not (options.real and name == "sandbox")
    ]


def _bring_up(held: contextlib.ExitStack, options: UpOptions, prepare: Prepare, say: Callable[[str], None]) -> Stack:
    outer = outer_environment(os.environ, options.real)
    home = servers.make_home(options.home)
    supervisor = held.enter_context(servers.supervised(home, say))
    stored = servers.start(home, supervisor, durable=True, say=say)
    ports = servers.kept_ports(home) | asked_port(options)
    environment = outer | settings(stored, ports, outer, options.real)
    stored.create_database(servers.DATABASE)
    stored.create_bucket(servers.BUCKET)
    migrate(environment)
    prepared = prepare(environment)
    environment |= prepared
    supervisor.start(programs(home, ports, options, environment))
    supervisor.wait_ready()
    addresses = _addresses(stored, ports, options.real)
    servers.announce(home, addresses)
    return Stack(environment, prepared, addresses, supervisor)


def _answers(port: int, path: str) -> Callable[[Run], bool]:
    """Ready when a GET gives a status below 500."""

    def probe(_: Run) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return servers.ask(port, "GET", path, seconds=1) < 500
        return False

    return probe


def asked_port(options: UpOptions) -> dict[str, int]:
    """The API's port where one was asked for. `PortTaken` names who has it: nobody asked for another."""
    if options.port is None:
        return {}
    if not servers.is_free(options.port):
        raise servers.PortTaken(f"Port {options.port} is taken by {port_owner(options.port)}: choose another --port.")
    return {"api": options.port}


def _addresses(stored: servers.Servers, ports: Mapping[str, int], real: bool) -> dict[str, str]:
    pages = {
        "API": f"http://{servers.HOST}:{ports['api']}/docs",
        "Flower": f"http://{servers.HOST}:{ports['flower']}",
        "S3": stored.s3_endpoint_url,
    }
    return pages if real else pages | {"sandbox": f"http://{servers.HOST}:{ports['sandbox']}"}


@contextlib.contextmanager
def _in_plain_words(home: Path) -> Iterator[None]:
    """A full disk and a closed folder as `LocalError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise LocalError(f"{home.resolve()} cannot be written: {error.strerror} ({error.filename}).") from error
