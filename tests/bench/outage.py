"""The bucket away for hours: how many finished jobs are stored before their links die, and how soon after its return.

    python -m tests.bench.outage --jobs 500 --hours 20

Servers and a sandbox of its own run in a folder that goes with it. The jobs' tasks end while the bucket's address
refuses connections; hours pass by moving the sandbox's clock and the rows' times, a few at once, and after each such
step every copy is tried again. Then the bucket is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select, text

from ops.cli import show
from ops.local import servers
from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import context, keys, log, tick
from worker.claims import NOW
from worker.jobs import submission
from worker.runner import Runner
from worker.settings import Settings
from worker.storage import Bucket
from worker.tables import Base

MODEL = "wan2.5-t2v-preview"
CLIP = {"prompt": "a kitten", "size": "832*480", "duration": 5}
NOWHERE = "http://127.0.0.1:9"  # refuses connections
AT_ONCE, RATE = 50, 100.0  # tasks, and creates a second: what is measured comes after them
THREADS = 32
STEP = timedelta(hours=5)  # that pass at once
PATIENCE = 900.0  # seconds


def main() -> None:
    """Measure, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--hours", type=int, default=20)
    said = parser.parse_args()
    log.configure("CRITICAL")
    print(json.dumps(measure(said.jobs, said.hours), indent=2))


def measure(count: int, hours: int) -> dict[str, Any]:
    """How the jobs ended, and how long their copies took once the bucket was back."""
    with _rig() as (runner, sandbox):
        nowhere = Settings.model_validate({**runner.ctx.settings.model_dump(), "s3_endpoint_url": NOWHERE})
        away = replace(runner, ctx=replace(runner.ctx, bucket=Bucket(nowhere)))
        _submit(runner, count)
        _work(away, lambda: _counted(away, "state = 'copying' and error is not null and claimed is null") == count)
        for step in range(1, timedelta(hours=hours) // STEP + 1):
            _pass(away, sandbox, step * STEP)
            _work(away, lambda: not _counted(away, "run_at <= now() or claimed is not null"))
        next_try = _one(away, "select max(extract(epoch from run_at - now())) / 60 from jobs")
        _sql(runner, "update jobs set run_at = now()")
        began = time.monotonic()
        _work(runner, lambda: not _counted(runner, "finished_at is null"))
        return {
            "jobs": Counter(row.state for row in _sql(runner, "select state from jobs")),
            "tasks that were paid": sandbox.ledger()["totals"]["tasks"],
            "links that were dead by then": _counted(runner, "links_expire_at < now()"),
            "after its return the last one is tried within, minutes": round(float(next_try), 1),
            "and all are stored within, seconds": round(time.monotonic() - began, 1),
        }


def _submit(runner: Runner, count: int) -> None:
    wanted = submission.Submission("text-to-video", MODEL, input=CLIP)
    with runner.ctx.engine.begin() as connection:
        now = connection.execute(select(NOW)).scalar_one()
        project = keys.create_project(connection, "bench")
        prepared = submission.prepare(runner.ctx.catalog, runner.ctx.settings, wanted, now)
        for _ in range(count):
            submission.submit(connection, project, prepared, None, now)


def _pass(runner: Runner, sandbox: Sandbox, passed: timedelta) -> None:
    """A step later, for the links as for the rows; every copy is due."""
    sandbox.set(clock_offset_seconds=passed.total_seconds())
    _sql(
        runner,
        "update jobs set links_expire_at = links_expire_at - :step, deadline_at = deadline_at - :step,"
        " state_at = state_at - :step, run_at = now()",
        step=STEP,
    )


def _work(runner: Runner, enough: Callable[[], bool]) -> None:
    """Ticks, and the work that they ask for on threads, as in a worker."""
    tasks: dict[str, Callable[[Any], None]] = {
        "noria.work": runner.work,
        "noria.poll": runner.poll,
        "noria.sweep": lambda _: runner.sweep(),
    }
    give_up = time.monotonic() + PATIENCE
    with ThreadPoolExecutor(THREADS) as pool:
        while not enough():
            assert time.monotonic() < give_up, f"it does not come about in {PATIENCE} s"
            with runner.ctx.engine.begin() as connection:
                messages = tick.run(connection)
            for message in messages:
                pool.submit(tasks[message.task], message.numbers)
            time.sleep(0.2)


def _counted(runner: Runner, which: str) -> int:
    return int(_one(runner, f"select count(*) from jobs where {which}"))


def _one(runner: Runner, statement: str) -> Any:
    return _sql(runner, statement)[0][0]


def _sql(runner: Runner, statement: str, **values: Any) -> Any:
    with runner.ctx.engine.begin() as connection:
        result = connection.execute(text(statement), values)
        return result.all() if result.returns_rows else None


@contextmanager
def _rig() -> Iterator[tuple[Runner, Sandbox]]:
    """The engine on servers of its own, and a sandbox whose tasks end at once."""
    options = Options(run_seconds=0.1, queue_seconds=0, limits={"*": Limits(rps=RATE, concurrency=AT_ONCE)})
    with tempfile.TemporaryDirectory() as folder, running(options) as sandbox:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
        with servers.servers(Path(folder) / "home", durable=False, say=show.ERR.print) as stored:
            stored.create_database(servers.DATABASE)
            stored.create_bucket(servers.BUCKET)
            yield _runner(stored, sandbox), sandbox


def _runner(stored: servers.Servers, sandbox: Sandbox) -> Runner:
    said = {name.removeprefix("NORIA_").lower(): value for name, value in stored.environment().items()}
    ours = {"dashscope_url": sandbox.url, "dashscope_api_key": "sk-bench", "egress_allow": "127.0.0.0/8"}
    limits = {MODEL: {"concurrency": AT_ONCE, "rps": RATE}}
    ctx = context.make(Settings.model_validate({**said, **ours, "limits": limits}))
    with ctx.engine.begin() as connection:
        Base.metadata.create_all(connection)
        tick.prepare(connection, ctx)
    return Runner(ctx, lambda: None, lambda _: None)


if __name__ == "__main__":
    main()
