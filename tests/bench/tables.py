"""(f, g) Lists, a tick, claims and admission beside ten thousand finished jobs, and up to ten million.

    python -m tests.bench.tables --rows 10000000

A database of its own, with no API and no worker: what is timed is the statements and what Python makes of their rows.
Each size is measured again while another session keeps a snapshot open: what rows were before cannot be cleaned up
then, and due rows are claimed and let go twenty times, so that there is much of it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from ops.cli import show
from ops.local import servers, up
from tests.bench import seeding
from tests.bench.figures import Figure, markdown, percentile
from tests.bench.rig import Rig
from worker import catalog, claims, settings, tick
from worker.jobs import metrics, reading
from worker.jobs.reading import Filter
from worker.lanes import slots
from worker.moves import fair_queue
from worker.tables import Job

NAME = "large tables"
_PROJECT, _DATABASE = "tables", "noria_tables"
_PAGE, _DUE, _WAITING, _ROUNDS, _LOOKS = 100, 200, 200, 20, 5


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """Each size in turn, in a database beside the stack's."""
    return _measured(rig.servers, (10_000,) if quick else (10_000, 200_000), rig.say)


def main() -> None:
    """Measure on servers of its own, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="noria-bench-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
        with servers.servers(Path(folder) / "home", say=show.ERR.print) as made:
            print(markdown(_measured(made, rows, show.ERR.print)))


def _measured(made: servers.Servers, sizes: Sequence[int], say: Callable[[str], None]) -> list[Figure]:
    figures: list[Figure] = []
    with database(made) as engine:
        project, there = begin(engine), 0
        for size in sizes:
            began = time.monotonic()
            seeding.ended(engine, project, there, size)
            there = size
            say(f"{size:,} finished jobs: {time.monotonic() - began:.0f} s to make")
            figures += _lists(engine, project, size)
            figures += _work(engine, project, f"{size:,} rows")
            figures += _scrapes(engine, size)
            with snapshot(engine):
                figures += _work(engine, project, f"{size:,} rows and an old snapshot", _ROUNDS)
    return figures


def _lists(engine: Engine, project: uuid.UUID, size: int) -> Iterator[Figure]:
    """Each list on a connection of its own, so that its first look plans anew: that one, and the median of the rest."""
    with engine.connect() as connection:
        middle = connection.execute(_MIDDLE, {"project": project}).scalar_one()
    for name, wanted in {
        "first page": Filter(),
        "state=failed": Filter(states=("failed",)),
        "state=held": Filter(states=("held",)),
        "kind=speech, a few old ones": Filter(kind="speech"),
        "created_before the middle": Filter(created_before=middle),
        "kind, state and created_before": Filter(kind="speech", states=("failed", "expired"), created_before=middle),
        "custom_id": Filter(custom_id="row-7"),
        "metadata": Filter(metadata={"sku": "A7"}),
        "q that finds nothing": Filter(q="no such words"),
    }.items():
        with engine.connect() as connection:
            took = [timed(lambda c=connection, w=wanted: _list(c, project, w)) for _ in range(_LOOKS)]  # type: ignore[misc]
        yield Figure(NAME, f"{size:,} rows, {name}: first look", "ms", took[0])
        yield Figure(NAME, f"{size:,} rows, {name}", "ms", percentile(took[1:], 0.5))


def _scrapes(engine: Engine, size: int) -> Iterator[Figure]:
    """What Prometheus asks for, on a connection of its own: the first, and the median of the rest."""
    with engine.connect() as connection:
        took = [timed(lambda: metrics.written(connection, _now(connection))) for _ in range(_LOOKS)]
    yield Figure(NAME, f"{size:,} rows, metrics: first look", "ms", took[0])
    yield Figure(NAME, f"{size:,} rows, metrics", "ms", percentile(took[1:], 0.5))


def _list(connection: Connection, project: uuid.UUID, wanted: Filter) -> None:
    last = reading.last_to_look_at(connection, project, wanted) if wanted.q else None
    found = reading.page(connection, project, Filter(**{**vars(wanted), "last": last}), _PAGE + 1)
    reading.documents(connection, _PROJECT, found[:_PAGE], _now(connection))


def _work(engine: Engine, project: uuid.UUID, beside: str, rounds: int = 0) -> list[Figure]:
    """A tick with nothing to do and one with due rows, a claim of them, taking them, and an admission."""
    put_at_work(engine, project)
    for _ in range(rounds):
        claimed(engine)
    took: dict[str, list[float]] = {}
    for _ in range(_LOOKS):
        for name, seconds in claimed(engine).items():
            took.setdefault(name, []).append(seconds)
    with engine.begin() as connection:
        connection.execute(_STOP)
    return [Figure(NAME, f"{beside}: {name}", "ms", percentile(values, 0.5)) for name, values in took.items()]


def put_at_work(engine: Engine, project: uuid.UUID) -> None:
    """So many jobs that are at the provider, and so many that wait for a slot."""
    with engine.begin() as connection:
        connection.execute(_RUN, {"project": project, "jobs": _DUE, "waiting": _WAITING})


def claimed(engine: Engine) -> Mapping[str, float]:
    """What each step of one round takes; afterwards all is as before, but for what the rows were meanwhile."""
    due = next(each for each in tick._WORK if each.group.queue == "provider" and each.limit >= _DUE)
    with engine.connect() as connection:
        idle = timed(lambda: tick.run(connection))
        connection.execute(_DUE_NOW)
        full = timed(lambda: tick.run(connection))
        connection.rollback()
        connection.execute(_DUE_NOW)
        admitting = timed(lambda: fair_queue.admit(connection, _now(connection)))
        connection.rollback()
    with engine.begin() as connection:
        connection.execute(_DUE_NOW)
        made: list[claims.Claim] = []
        claiming = timed(lambda: made.extend(_claim(connection, due)))
    numbers = [(claim.id, claim.number) for claim in made]
    with engine.begin() as connection:
        taking = timed(lambda: claims.take(connection, Job, numbers, timedelta(minutes=1)))
        connection.execute(_LATER)
    return {
        "an idle tick": idle,
        f"a tick with {_DUE} due and {_WAITING} waiting": full,
        f"admission of {_WAITING}": admitting,
        f"claiming {_DUE}": claiming,
        f"taking {_DUE}": taking,
    }


def _claim(connection: Connection, due: Any) -> list[claims.Claim]:
    return claims.claim_due(connection, Job, due.due, due.order, _DUE, _now(connection))


def timed(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1000


def _now(connection: Connection) -> Any:
    return connection.exec_driver_sql("select statement_timestamp()").scalar_one()


@contextmanager
def database(made: servers.Servers) -> Iterator[Engine]:
    """A database with Noria's schema and lanes; gone at the end."""
    made.create_database(_DATABASE)
    up.migrate(made.environment(database=_DATABASE))
    engine = create_engine(made.url_of(_DATABASE), connect_args={"options": "-c timezone=UTC -c jit=off"})
    try:
        yield engine
    finally:
        engine.dispose()
        with made.connect() as connection:
            connection.execute(f"drop database {_DATABASE} with (force)".encode())


def begin(engine: Engine) -> uuid.UUID:
    """A project, and lanes that admit all that waits."""
    known = settings.Settings.model_validate({"database_url": "", "broker_url": ""})
    with engine.begin() as connection:
        slots.sync(connection, catalog.load(), known)
        connection.exec_driver_sql("update lanes set concurrency = 1000")
        made: uuid.UUID = connection.execute(_PROJECT_MADE, {"name": _PROJECT}).scalar_one()
    return made


@contextmanager
def snapshot(engine: Engine) -> Iterator[None]:
    """Another session's open transaction, as a dump or a report has it."""
    beside = create_engine(engine.url, poolclass=NullPool, isolation_level="REPEATABLE READ")
    with beside.connect() as connection:
        connection.exec_driver_sql("select count(*) from projects")
        yield


_PROJECT_MADE = text("insert into projects (name, webhook_secret) values (:name, 'whsec_') returning id")
_MIDDLE = text(
    "select created_at from jobs where project_id = :project order by id offset (select count(*) / 2 from jobs) limit 1"
)
_RUN = text(
    """
    with lane as (select * from lanes where model = 'wan2.5-t2v-preview' order by id limit 1)
    insert into jobs (project_id, kind, model, input, state, lane_id, account, region, run_at, sequence)
    select :project, 'text-to-video', lane.model, '{"prompt": "a heron", "size": "832*480"}',
           case when n <= :jobs then 'running' else 'queued' end, case when n <= :jobs then lane.id end,
           'default', lane.region, now() + interval '1 hour', 1
      from lane, generate_series(1, cast(:jobs as int) + :waiting) as n
    """
)
_DUE_NOW = text("update jobs set run_at = now(), claimed = null where finished_at is null")
_LATER = text("update jobs set run_at = now() + interval '1 hour', claimed = null where finished_at is null")
_STOP = text("delete from jobs where finished_at is null")


if __name__ == "__main__":
    main()
