"""(c) Thousands in flight: how soon a task's end is noticed, how many queries that takes, and what the worker uses.

    python -m tests.bench.polling --in-flight 4000 --per-second 26.7 --spread 0.4

A sandbox of its own gets tasks made over the last minutes and those to come, staggered so that as many end each second
as are made; their jobs are put into a database of its own as running. One worker and the clock then look at them, and
the sandbox's books say what was asked of it. Nobody copies, so a job rests in `copying` once its end is on record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, insert, text

from ops.cli import show
from ops.local import servers as embedded
from ops.local import up
from ops.local.supervise import Program, Run, Supervisor, has_logged
from ops.sandbox.orders import Order
from ops.sandbox.tasks import Task
from ops.sandbox.testing import Sandbox
from tests.bench import usage
from tests.bench.figures import Figure, percentile, shown
from tests.bench.rig import Rig
from worker import keys
from worker.catalog import load as load_catalog
from worker.lanes import query_budget, slots
from worker.settings import Settings
from worker.tables import Attempt, Base, Job, RunTime

MODEL, REGION, KEY, OWNER = "wan2.5-t2v-preview", "cn-beijing", "sk-bench", "bench"
CLIP = {"prompt": "a kitten", "size": "832*480", "duration": 5}
ORDER = Order(MODEL, "video", "a kitten", "832*480", "480P", "16:9", 5, 0, 1, True, True)
_IDLE = 15.0  # seconds with all of the tasks in flight and none due, of which the last ten are measured
_PUT_A_SECOND = 600  # tasks that are made ready in a second
_SETTLING = 15.0  # seconds from the first end, and before the last, that are not measured
_AT_ONCE = 2000  # rows of an insert


@dataclass(frozen=True)
class Load:
    """How many tasks are in flight, how many end each second, how far run times lie about their mean, for how long."""

    in_flight: int
    per_second: float
    spread: float
    seconds: float

    @property
    def run_seconds(self) -> float:
        """How long a task runs, on average."""
        return self.in_flight / self.per_second

    @property
    def name(self) -> str:
        """What the scenario is called."""
        least, most = (self.run_seconds * (1 + way * self.spread) for way in (-1, 1))
        return f"{self.in_flight:,} in flight of {least:.0f} to {most:.0f} s"


@dataclass(frozen=True)
class _Books:
    """What was used and asked so far."""

    at: float
    cpu: dict[str, float]
    queries: dict[str, int]


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """Few and short, and ten thousand."""
    loads = [Load(600, 10, 0.5, 45)]
    if not quick:
        loads.append(Load(10_000, 10, 0.3, 75))
    return [figure for load in loads for figure in measured(rig.home, rig.servers, load, rig.say)]


def measured(home: Path, stored: embedded.Servers, load: Load, say: Callable[[str], None]) -> list[Figure]:
    """The figures of one load, on servers that run."""
    port = _free_port()
    with _engine(stored, load) as engine, Supervisor(home, say) as supervisor:
        environment = _environment(stored, engine, f"http://127.0.0.1:{port}")
        lane = _prepare(engine, Settings.model_validate(_named(environment)))
        supervisor.start([_program(home, *process, environment) for process in _PROCESSES])
        supervisor.wait_ready()
        began = time.time() + _IDLE + load.in_flight / _PUT_A_SECOND
        tasks = list(_tasks(load, began))
        journal = home / f"tasks-{load.in_flight}.jsonl"
        journal.write_text("".join(json.dumps({"made": asdict(task), "concurrency": None}) + "\n" for task in tasks))
        supervisor.start([_program(home, "provider", _sandbox(journal, port), has_logged("sandbox ready"), {})])
        _put_to_work(engine, lane, tasks, began)
        supervisor.wait_ready()
        return _watched(engine, Sandbox(f"http://127.0.0.1:{port}"), supervisor.pids(), tasks, load, began)


def _watched(
    engine: Engine, sandbox: Sandbox, pids: Mapping[str, int], tasks: Sequence[Task], load: Load, began: float
) -> list[Figure]:
    def books() -> _Books:
        calls = sandbox.totals()["calls"].get(OWNER, {})
        return _Books(time.time(), usage.cpu_seconds(pids), {name: calls.get(name, 0) for name in ("get", "list")})

    idle = (_at(began - _IDLE + 4, books), _at(began - 1, books))
    start = _at(began + _SETTLING, books)
    end = _at(began + load.seconds - _SETTLING, books)
    memory = _memory(pids["looks"])
    time.sleep(_SETTLING)
    noticed = _noticed(engine)
    queries = {name: end.queries[name] - start.queries[name] for name in end.queries}
    seen = sum(start.at <= at <= end.at for at in noticed.values())
    ends = {task.id: task.submitted_at + task.run_seconds for task in tasks}
    late = [noticed.get(task_id, time.time()) - ended for task_id, ended in ends.items() if start.at <= ended <= end.at]

    def cores(books: tuple[_Books, _Books], name: str) -> float:
        return usage.difference(books[0].cpu, books[1].cpu)[name] / (books[1].at - books[0].at)

    found = (
        ("ends", "a second", len(late) / (end.at - start.at)),
        ("ends noticed", "a second", seen / (end.at - start.at)),
        ("noticed after, p50", "s", percentile(late, 0.5)),
        ("noticed after, p95", "s", percentile(late, 0.95)),
        ("noticed after, at most", "s", max(late)),
        ("queries a job", "", sum(queries.values()) / max(1, seen)),
        ("queries that fetch an end", "%", 100 * seen / max(1, sum(queries.values()))),
        ("lists", "a second", queries["list"] / (end.at - start.at)),
        ("single queries", "a second", queries["get"] / (end.at - start.at)),
        ("queries in one second, most", "", sandbox.totals()["peaks"][OWNER]["queries"]),
        ("queries refused", "", sum(sandbox.totals()["throttled"].values())),
        ("worker, memory", "MB", memory),
        ("worker, none of them due", "cores", cores(idle, "looks")),
        ("worker", "cores", cores((start, end), "looks")),
        ("sandbox", "cores", cores((start, end), "provider")),
    )
    return [Figure(load.name, name, unit, value) for name, unit, value in found]


def _at(moment: float, look: Callable[[], _Books]) -> _Books:
    time.sleep(max(0.0, moment - time.time()))
    return look()


def _tasks(load: Load, began: float) -> Iterator[Task]:
    """Tasks made at a steady rate, from long enough ago until the end; those that have ended by now are left out."""
    dice = random.Random(7)
    first = -round(load.in_flight * (1 + load.spread))
    for n in range(first, round(load.seconds * load.per_second)):
        submitted_at = began + n / load.per_second
        run_seconds = load.run_seconds * dice.uniform(1 - load.spread, 1 + load.spread)
        if submitted_at + run_seconds > began:
            yield _task(submitted_at, run_seconds)


def _task(submitted_at: float, run_seconds: float) -> Task:
    return Task(
        id=str(uuid.uuid4()),
        owner=OWNER,
        order=ORDER,
        request_id=str(uuid.uuid4()),
        body_sha256="",
        received_at=submitted_at,
        submitted_at=submitted_at,
        queue_seconds=0,
        run_seconds=run_seconds,
        failure=None,
        failed_pictures=0,
        price_micros=1_500_000,
        is_async=True,
    )


_WORKER = "celery -A worker.tasks worker -P threads -c 32 -Q tick,provider -n looks@%h --loglevel INFO"
_CLOCK = "celery -A worker.tasks beat -s {home}/looks-clock --loglevel INFO"
_PROCESSES = (("looks", _WORKER, has_logged(" ready.")), ("ticks", _CLOCK, has_logged("maxinterval")))


def _program(
    home: Path, name: str, command: str, is_ready: Callable[[Run], bool], environment: Mapping[str, str]
) -> Program:
    words = command.format(home=home).split()
    log = home / "logs" / f"{name}.log"
    return Program(name, (sys.executable, "-m", *words), environment, log, is_ready, cwd=up.PROJECT)


def _sandbox(journal: Path, port: int) -> str:
    owners = json.dumps({KEY: OWNER}, separators=(",", ":")).replace("{", "{{").replace("}", "}}")
    return f"ops.sandbox --port {port} --state {journal} --set owners={owners}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _environment(stored: embedded.Servers, engine: Engine, url: str) -> dict[str, str]:
    account = {"owner": OWNER, "region": REGION, "url": url, "key": KEY}
    return {
        **stored.environment(),
        "NORIA_DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "NORIA_BROKER_URL": stored.broker_url.rpartition("/")[0] + "/2",
        "NORIA_ACCOUNTS": json.dumps([account]),
    }


def _named(environment: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix("NORIA_").lower(): value for name, value in environment.items()}


def _prepare(engine: Engine, settings: Settings) -> int:
    """Makes the tables and the lane; its id."""
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        slots.sync(connection, load_catalog(), settings)
        # what is known of run times stays as it is put there
        connection.execute(text("insert into duties (name, due_at) values ('learn', now() + interval '1 day')"))
        return int(connection.execute(text("select id from lanes where model = :model"), {"model": MODEL}).scalar_one())


def _put_to_work(engine: Engine, lane: int, tasks: Sequence[Task], began: float) -> None:
    """The tasks' jobs, running, none due before `began`; and what is known of their run times."""
    run = sorted(task.run_seconds for task in tasks)
    early = run[len(run) // 50]
    shape = query_budget.shape(load_catalog(), CLIP)
    with engine.begin() as connection:
        connection.execute(insert(RunTime).values(model=MODEL, shape=shape, early=early, median=median(run)))
        project = keys.create_project(connection, "bench").id
        for start in range(0, len(tasks), _AT_ONCE):
            _insert(connection, project, lane, tasks[start : start + _AT_ONCE], early, began)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))


def _insert(
    connection: Connection, project: uuid.UUID, lane: int, tasks: Sequence[Task], early: float, began: float
) -> None:
    jobs, attempts = list[dict[str, Any]](), list[dict[str, Any]]()
    for task in tasks:
        made = datetime.fromtimestamp(task.submitted_at, UTC)
        look = datetime.fromtimestamp(max(began, task.submitted_at + early), UTC)
        attempt, job = uuid.uuid4(), uuid.uuid4()
        jobs.append({
            "id": job, "project_id": project, "kind": "text-to-video", "model": MODEL, "input": CLIP,
            "state": "running", "state_at": made, "run_at": look, "sequence": 1,
            "lane_id": lane, "account": "default", "region": REGION, "attempts": 1, "attempt_id": attempt,
            "task_id": task.id, "task_status": "PENDING", "submitted_at": made, "started_at": made, "billed": "unknown",
        })  # fmt: skip
        attempts.append({
            "id": attempt, "job_id": job, "project_id": project, "number": 1, "owner": OWNER, "account": "default",
            "region": REGION, "model": MODEL, "request_hash": b"", "outcome": "accepted", "task_id": task.id,
        })  # fmt: skip
    connection.execute(insert(Job), jobs)
    connection.execute(insert(Attempt), attempts)


def _memory(pid: int) -> float:
    """The most that a process had resident so far, MB."""
    return float(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def _noticed(engine: Engine) -> dict[str, float]:
    """When each task's end was on record, epoch seconds."""
    ended = text("select task_id, extract(epoch from state_at)::float8 as at from jobs where state = 'copying'")
    with engine.connect() as connection:
        return {row.task_id: row.at for row in connection.execute(ended)}


@contextlib.contextmanager
def _engine(stored: embedded.Servers, load: Load) -> Iterator[Engine]:
    """A database of its own, empty."""
    name = f"looks_{load.in_flight}_{uuid.uuid4().hex[:6]}"
    stored.create_database(name)
    engine = create_engine(stored.url_of(name), poolclass=NullPool)
    yield engine
    engine.dispose()


def main() -> None:
    """Measure one load on servers of its own, and show what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, default=600)
    parser.add_argument("--per-second", type=float, default=10, help="ends a second")
    parser.add_argument("--spread", type=float, default=0.3, help="of run times, about their mean")
    parser.add_argument("--seconds", type=float, default=90)
    said = parser.parse_args()
    load = Load(said.in_flight, said.per_second, said.spread, said.seconds)
    with up.interruptible(), tempfile.TemporaryDirectory(prefix="noria-bench-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
        home = embedded.make_home(Path(folder) / "home")
        with embedded.servers(home, say=show.ERR.print) as stored:
            for figure in measured(home, stored, load, show.ERR.print):
                print(f"{figure.name:<32}{shown(figure.value):>10} {figure.unit}")


if __name__ == "__main__":
    main()
