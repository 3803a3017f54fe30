"""A million jobs that have ended are pruned while jobs are claimed: what ticks take without it, and beside it.

    python -m tests.bench prune
    python -m tests.bench.pruning --jobs 100000

A database of its own, with the durability of production, no API and no worker. Each job has an attempt, three events,
an output whose object is gone, a delivery and two lines of the ledger. All that prunes is the engine's own; what is
timed beside it are the same rounds as in `tables`: ticks, and a claim of 200 rows.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, create_engine, text

from ops.cli import show
from ops.local import servers
from tests.bench import seeding, tables
from tests.bench.figures import Figure, markdown, percentile
from worker import retention, settings
from worker.storage import Bucket

NAME = "pruning beside claims"
_ROUNDS, _PAUSE = 60, 0.05  # rounds before, and seconds between two: claims come once a second, not without end
_KEPT = {"outputs": 30, "deliveries": 30, "rows": 60}
_HOUR = 3600.0


def measure(jobs: int, say: Callable[[str], None] = show.ERR.print) -> list[Figure]:
    """On servers of its own."""
    with tempfile.TemporaryDirectory(prefix="noria-bench-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
        with servers.servers(Path(folder) / "home", say=say) as made, tables.database(made) as engine:
            given = {name.removeprefix("NORIA_").lower(): value for name, value in made.environment().items()}
            bucket = Bucket(settings.Settings.model_validate(given))
            return _measured(engine, bucket, jobs, say)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    print(markdown(measure(parser.parse_args().jobs)))


def _measured(engine: Engine, bucket: Bucket, jobs: int, say: Callable[[str], None]) -> list[Figure]:
    project = tables.begin(engine)
    began = time.monotonic()
    _seed(engine, project, jobs)
    say(f"{jobs:,} ended jobs: {time.monotonic() - began:.0f} s to make")
    tables.put_at_work(engine, project)
    alone = _rounds(engine, lambda n: n >= _ROUNDS)
    run = _Run(engine, bucket)
    run.start()
    beside = _rounds(engine, lambda _: not run.is_alive())
    run.join()
    left, booked = _left(engine)
    figures = [
        Figure(NAME, f"{jobs:,} jobs: pruned", "jobs a second", run.jobs / run.seconds),
        Figure(NAME, f"{jobs:,} jobs: rows deleted", "a second", run.rows / run.seconds),
        Figure(NAME, "all of it", "s", run.seconds),
        Figure(NAME, "ended jobs that are left", "", left),
        Figure(NAME, "lines of the ledger that are left", "", booked),
    ]
    return figures + _latencies("without pruning", alone) + _latencies("while pruning", beside)


class _Run(threading.Thread):
    """The prune of everything, on connections of its own."""

    def __init__(self, engine: Engine, bucket: Bucket) -> None:
        super().__init__(name="prune")
        self._engine, self._bucket = create_engine(engine.url), bucket
        self.jobs, self.rows, self.seconds = 0, 0, 1.0

    def run(self) -> None:
        """All that is due in seventy days."""
        before, began = _counted(self._engine), time.monotonic()
        later = datetime.now(UTC) + timedelta(days=70)
        went = retention.prune(self._engine, self._bucket, None, later, _HOUR)
        self.seconds = time.monotonic() - began
        self.jobs = sum(one.rows for one in went if one.what == "rows")
        self.rows = before - _counted(self._engine)
        self._engine.dispose()


def _rounds(engine: Engine, is_enough: Callable[[int], bool]) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {}
    n = 0
    while not is_enough(n):
        for name, milliseconds in tables.claimed(engine).items():
            took.setdefault(name, []).append(milliseconds)
        n += 1
        time.sleep(_PAUSE)
    return took


def _latencies(beside: str, took: dict[str, list[float]]) -> list[Figure]:
    return [
        Figure(NAME, f"{name}, {beside}: p{round(share * 100)}", "ms", percentile(values, share))
        for name, values in took.items()
        for share in (0.5, 0.99)
    ]


def _seed(engine: Engine, project: uuid.UUID, jobs: int) -> None:
    seeding.ended(engine, project, 0, jobs)
    with engine.begin() as connection:
        connection.exec_driver_sql("set local session_replication_role = replica")
        for statement in _MORE:
            connection.execute(statement)
        connection.execute(_KEEP, {"retention": str(_KEPT).replace("'", '"')})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("vacuum analyze")


def _counted(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(_ROWS).scalar_one())


def _left(engine: Engine) -> tuple[int, int]:
    with engine.connect() as connection:
        row = connection.execute(_LEFT).one()
    return row.jobs, row.booked


_KEEP = text("update projects set retention = cast(:retention as jsonb)")
_MORE = (
    text(
        "insert into events (job_id, project_id, sequence, type, entered, at)"
        " select id, project_id, n, 'job.queued', 'queued', created_at from jobs, generate_series(1, 2) as n"
    ),
    text("update outputs set pruned_at = now()"),
    text(
        "insert into deliveries (project_id, job_id, event_id, url, body, state, run_at, created_at, finished_at)"
        " select project_id, job_id, id, 'https://example.com/hook', repeat('x', 400), 'delivered', null, at, at"
        "   from events where sequence = 6"
    ),
    text(
        "insert into ledger (project_id, job_id, attempt_id, entry, micros, reserved_at)"
        " select project_id, id, case entry when 'settle' then attempt_id end, entry, 1200000, created_at"
        "   from jobs, unnest(array['reserve', 'settle']) as entry"
    ),
)
_ROWS = text(
    "select (select count(*) from jobs) + (select count(*) from attempts) + (select count(*) from events)"
    " + (select count(*) from outputs) + (select count(*) from deliveries)"
)
_LEFT = text(
    "select (select count(*) from jobs where finished_at is not null) as jobs, (select count(*) from ledger) as booked"
)


if __name__ == "__main__":
    main()
