"""Polling with thousands in flight: how soon a task's end is noticed, and how many queries that takes.

    python -m tests.bench.polling --server postgresql+psycopg://app@127.0.0.1:5432/postgres

A sandbox of its own gets tasks made over the last minutes and those to come, staggered so that as many end each second
as are made; their jobs are put into a database of its own as running. Then ticks and looks go on as in a worker, and
the sandbox's books say what was asked of it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sqlalchemy import Connection, create_engine, insert, make_url, text

from ops.sandbox.options import Options
from ops.sandbox.orders import Order
from ops.sandbox.tasks import Task
from ops.sandbox.testing import Sandbox, running
from worker import context, keys, log, tick
from worker.lanes import query_budget
from worker.lanes.query_budget import Times
from worker.runner import Runner
from worker.settings import Settings
from worker.tables import Attempt, Base, Job, RunTime

MODEL, REGION, KEY, OWNER = "wan2.5-t2v-preview", "cn-beijing", "sk-bench", "bench"
CLIP = {"prompt": "a kitten", "size": "832*480", "duration": 5}
ORDER = Order(MODEL, "video", "a kitten", "832*480", "480P", "16:9", 5, 0, 1, True, True)
SPREAD = 0.3  # of run times, about their mean
SETTLING = 15.0  # seconds at the start and at the end that are not measured


@dataclass(frozen=True)
class Load:
    """How many tasks are in flight, how many end each second, and for how long, in seconds."""

    in_flight: int
    per_second: float
    seconds: float

    @property
    def run_seconds(self) -> float:
        """How long a task runs, on average."""
        return self.in_flight / self.per_second


def main() -> None:
    """Measure, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--server", required=True, help="an address of PostgreSQL; a database is made there and dropped"
    )
    parser.add_argument("--in-flight", type=int, default=2000)
    parser.add_argument("--per-second", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=100)
    said = parser.parse_args()
    log.configure("ERROR")
    print(json.dumps(measure(said.server, Load(said.in_flight, said.per_second, said.seconds)), indent=2))


def measure(server: str, load: Load) -> dict[str, Any]:
    """How soon ends were noticed (seconds), and the queries, in all and a job."""
    with tempfile.TemporaryDirectory() as folder, _database(server) as url:
        journal = Path(folder) / "tasks.jsonl"
        began = time.time() + 5
        tasks = list(_tasks(load, began))
        journal.write_text("".join(json.dumps({"made": asdict(task), "concurrency": None}) + "\n" for task in tasks))
        with running(Options(owners={KEY: OWNER}), state=journal) as sandbox:
            runner = _runner(url, sandbox)
            with runner.ctx.engine.begin() as connection:
                _put_to_work(connection, runner, tasks)
            time.sleep(max(0.0, began - time.time()))
            return _measured(runner, sandbox, tasks, load)


def _measured(runner: Runner, sandbox: Sandbox, tasks: Sequence[Task], load: Load) -> dict[str, Any]:
    began, used = time.time(), time.process_time()
    _work(runner, SETTLING)
    before, start = sandbox.ledger(), time.time()
    _work(runner, load.seconds - 2 * SETTLING)
    after, end = sandbox.ledger(), time.time()
    _work(runner, SETTLING)
    noticed = _noticed(runner)
    ends = {task.id: task.submitted_at + task.run_seconds for task in tasks}
    measured = [task_id for task_id, ended in ends.items() if start <= ended <= end]
    late = sorted(noticed[task_id] - ends[task_id] for task_id in measured if task_id in noticed)
    queries = {
        name: after["calls"][OWNER].get(name, 0) - before["calls"][OWNER].get(name, 0) for name in ("get", "list")
    }
    return {
        "ended": len(measured),
        "not noticed": len(measured) - len(late),
        "noticed after, seconds": {"median": median(late), "p95": quantiles(late, n=20)[18], "most": late[-1]},
        "queries": queries,
        "queries a job": round(sum(queries.values()) / len(measured), 2),
        "queries a second, most": after["peaks"]["per_second"][OWNER]["queries"],
        "throttled": after["throttled"],
        "CPU share of this process, sandbox and all": round((time.process_time() - used) / (time.time() - began), 2),
    }


def _work(runner: Runner, seconds: float) -> None:
    """A tick each second, and the looks that it asks for on threads, as in a worker."""
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(16) as pool:
        while time.monotonic() < until:
            with runner.ctx.engine.begin() as connection:
                messages = tick.run(connection)
            for message in messages:
                if message.task == "noria.poll":
                    pool.submit(runner.poll, message.numbers)
            time.sleep(1 - time.monotonic() % 1)


def _tasks(load: Load, began: float) -> Iterator[Task]:
    """Tasks made at a steady rate, from long enough ago until the end; those that have ended by now are left out."""
    dice = random.Random(7)
    first = -round(load.in_flight * (1 + SPREAD))
    for n in range(first, round(load.seconds * load.per_second)):
        submitted_at = began + n / load.per_second
        run_seconds = load.run_seconds * dice.uniform(1 - SPREAD, 1 + SPREAD)
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


def _runner(url: str, sandbox: Sandbox) -> Runner:
    account = {"owner": OWNER, "region": REGION, "url": sandbox.url, "key": KEY}
    settings = Settings.model_validate({"database_url": url, "broker_url": "redis://-", "accounts": [account]})
    ctx = context.make(settings)
    with ctx.engine.begin() as connection:
        Base.metadata.create_all(connection)
        tick.prepare(connection, ctx)
    return Runner(ctx, lambda: None, lambda _: None)


def _put_to_work(connection: Connection, runner: Runner, tasks: Sequence[Task]) -> None:
    """The tasks' jobs, running and looked at last when they were made; and what is known of their run times."""
    shape = query_budget.shape(runner.ctx.catalog, CLIP)
    run = sorted(task.run_seconds for task in tasks)
    times = Times(run[len(run) // 50], median(run))
    connection.execute(insert(RunTime).values(model=MODEL, shape=shape, early=times.early, median=times.median))
    lane = connection.execute(text("select id from lanes where model = :model"), {"model": MODEL}).scalar_one()
    project = keys.create_project(connection, "bench")
    for task in tasks:
        made = datetime.fromtimestamp(task.submitted_at, UTC)
        attempt, job = uuid.uuid4(), uuid.uuid4()
        of_job = {
            "id": job, "project_id": project.id, "kind": "text-to-video", "model": MODEL, "input": CLIP,
            "state": "running", "state_at": made, "run_at": query_budget.first_look(made, times, False), "sequence": 1,
            "lane_id": lane, "account": "default", "region": REGION, "attempts": 1, "attempt_id": attempt,
            "task_id": task.id, "task_status": "PENDING", "submitted_at": made, "started_at": made, "billed": "unknown",
        }  # fmt: skip
        of_attempt = {
            "id": attempt, "job_id": job, "project_id": project.id, "number": 1, "owner": OWNER, "account": "default",
            "region": REGION, "model": MODEL, "request_hash": b"", "outcome": "accepted", "task_id": task.id,
        }  # fmt: skip
        connection.execute(insert(Job), of_job)
        connection.execute(insert(Attempt), of_attempt)


def _noticed(runner: Runner) -> dict[str, float]:
    """When each task's end was on record, epoch seconds."""
    ended = text("select task_id, extract(epoch from state_at)::float8 as at from jobs where state = 'copying'")
    with runner.ctx.engine.connect() as connection:
        return {row.task_id: row.at for row in connection.execute(ended)}


@contextmanager
def _database(server: str) -> Iterator[str]:
    """The address of a database of its own; dropped afterwards."""
    name = f"noria_bench_{uuid.uuid4().hex[:8]}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database {name}"))
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"drop database {name} with (force)"))
        admin.dispose()


if __name__ == "__main__":
    main()
