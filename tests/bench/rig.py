"""The stack that is measured: all of `noria up` in a folder of its own, with limits that bound nothing.

The only module of the bench that knows how Noria's processes are started; the programs that are older know it too.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, text

from ops.local import servers, up
from ops.local.supervise import Program, Run, Supervisor
from ops.sandbox.testing import Sandbox
from tests.bench import usage
from tests.bench.asking import Door

# A model for each load, since run times are learned by model.
STEADY, FAST, LARGE, CLOSED = "wanx2.1-t2v-turbo", "wan2.2-t2v-plus", "wanx2.1-t2v-plus", "wan2.5-t2v-preview"
SIZES = {STEADY: "832*480", FAST: "832*480", LARGE: "1280*720", CLOSED: "832*480"}
SERVERS = ("postgres", "valkey", "seaweedfs")
WORKERS = ("worker-control", "worker-rest", "clock")
PROJECT = "bench"
_AT_ONCE, _RATE, _QUERIES = 20_000, 1000, 1000
_PATIENCE = 30.0  # seconds


@dataclass
class Rig:
    """Everything, running."""

    home: Path
    stack: up.Stack
    sandbox: Sandbox
    door: Door
    engine: Engine
    servers: servers.Servers
    say: Callable[[str], None]

    @property
    def environment(self) -> Mapping[str, str]:
        """Of Noria's processes."""
        return self.stack.environment

    def sql(self, statement: str, **values: Any) -> Any:
        """The rows of a statement, in a transaction of its own."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return result.all() if result.returns_rows else None

    def count(self, which: str) -> int:
        """Jobs of which that is true."""
        return int(self.sql(f"select count(*) from jobs where {which}")[0][0])

    def cpu(self, **more: int) -> dict[str, float]:
        """CPU seconds so far by process, servers and others beside Noria's included."""
        return usage.cpu_seconds({**self.stack.processes, **more})

    def quiet(self) -> None:
        """Waits until no job and no delivery of Noria's is at work."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if not self.sql(_AT_WORK, closed=CLOSED)[0][0]:
                return
            time.sleep(0.2)
        self.say("Something is still at work; it is measured with what follows.")

    @contextlib.contextmanager
    def beside(self, programs: Sequence[Program]) -> Iterator[dict[str, int]]:
        """Programs of a peer, for as long as the block lasts: their process ids by name."""
        with Supervisor(self.home, self.say) as supervisor:
            supervisor.start(programs)
            supervisor.wait_ready()
            yield supervisor.pids()

    def program(
        self, name: str, command: str, is_ready: Callable[[Run], bool], environment: Mapping[str, str], **more: Any
    ) -> Program:
        """A program of a peer; `command` is what `python -m` runs, or begins with a slash."""
        words = command.split()
        return Program(
            name=name,
            command=tuple(words) if command.startswith("/") else (sys.executable, "-m", *words),
            environment={**self.environment, **environment},
            log=self.home / "logs" / f"{name}.log",
            is_ready=is_ready,
            cwd=up.PROJECT,
            **more,
        )


@contextlib.contextmanager
def running(home: Path, say: Callable[[str], None]) -> Iterator[Rig]:
    """All of it, in a home that is fresh; `LocalError` tells a person why it cannot be."""

    def prepare(settings: Mapping[str, str]) -> dict[str, str]:
        limits = {model: {"concurrency": 0 if model == CLOSED else _AT_ONCE, "rps": _RATE} for model in SIZES}
        return {
            "BENCH_KEY": _key(settings),
            "NORIA_LIMITS": json.dumps(limits),
            "NORIA_API_RATE": "100000",
            "NORIA_POLL_QPS": str(_QUERIES // 2),
            "NORIA_POSTERS": "false",  # the chain beside it makes none
        }

    with up.stack(up.UpOptions(home), prepare, say) as made:
        sandbox = Sandbox(made.addresses["sandbox"])
        sandbox.set(
            limits={"*": {"concurrency": _AT_ONCE, "rps": _RATE, "rpm": 60 * _RATE}},
            queries_per_second=_QUERIES,
            queue_seconds=0,
        )
        engine = create_engine(made.environment["NORIA_DATABASE_URL"], poolclass=NullPool)
        door = Door(made.addresses["API"].removesuffix("/docs"), made.prepared["BENCH_KEY"])
        yield Rig(home.resolve(), made, sandbox, door, engine, servers.described(home.resolve()), say)


def _key(settings: Mapping[str, str]) -> str:
    command = (sys.executable, "-c", "import ops.cli; ops.cli.main()", "keys", "create", PROJECT)
    made = subprocess.run(command, env=dict(settings), cwd=up.PROJECT, capture_output=True, text=True, check=True)
    return made.stdout.strip()


_AT_WORK = """
    select (select count(*) from jobs where finished_at is null and model <> :closed)
         + (select count(*) from deliveries where state = 'waiting' and tries = 0)
"""
