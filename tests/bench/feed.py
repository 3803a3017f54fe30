"""The feed beside ten million events, and the log and redelivery of an endpoint beside a million deliveries.

A database of its own, with no API and no worker: what is timed is the statements and what Python makes of their rows.
Buffers are pages of 8 kB that Postgres looked at. A hundred events are of one job; a third are such as nobody is told.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, TextClause, create_engine, text

from ops.cli import show
from ops.local import servers
from tests.bench import tables
from tests.bench.figures import Figure, percentile
from worker import keys
from worker.tables import WebhookEndpoint
from worker.webhooks import feed, registry
from worker.webhooks.feed import Place
from worker.webhooks.registry import Wanted, Which

NAME = "feed"
_XIDS = 500  # that the events are of: a new database has given out so many
_FEW, _JOB, _AT_ONCE, _LATE = 5000, 100, 1_000_000, 10_000
_PAGE, _LOOKS = 100, 5


def measure(quick: bool) -> list[Figure]:
    """Ten million events and a million deliveries; with `quick` a hundredth of them."""
    count = 100_000 if quick else 10_000_000
    with tempfile.TemporaryDirectory(prefix="noria-bench-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
        with servers.servers(Path(folder) / "home", say=show.ERR.print) as made, tables.database(made) as engine:
            began = time.monotonic()
            with engine.begin() as connection:
                many, few = (keys.create_project(connection, name).id for name in ("many", "few"))
                endpoint = registry.make(connection, many, Wanted("https://shop.example/", None, ""))
            _seed(engine, many, few, endpoint, count)
            show.ERR.print(f"{count:,} events: {time.monotonic() - began:.0f} s to make")
            return [
                *_pages(engine, many, few, count),
                *_behind_an_open_transaction(engine, many),
                *_log(engine, endpoint),
                *_redelivery(engine, endpoint),
            ]


def _seed(engine: Engine, many: uuid.UUID, few: uuid.UUID, endpoint: WebhookEndpoint, count: int) -> None:
    """Rows first and indexes then, since an index that grows row by row takes several times as long."""
    said = {"many": many, "few": few, "each": _FEW, "job": _JOB, "xids": _XIDS, "count": count}
    told = {"endpoint": endpoint.id, "receiver": endpoint.receiver}
    with engine.begin() as connection:
        connection.exec_driver_sql("set local session_replication_role = replica")  # no look for what they refer to
        connection.exec_driver_sql("set local maintenance_work_mem = '512MB'")
        connection.execute(_JOBS, {"many": many, "few": few, "jobs": count // _JOB})
        connection.exec_driver_sql("drop index ix_events_told")
        connection.exec_driver_sql("alter table events drop constraint uq_events_job_id_sequence")
        for start in range(0, count, _AT_ONCE):
            connection.execute(_EVENTS, {**said, "start": start, "end": min(count, start + _AT_ONCE)})
        connection.exec_driver_sql(
            "alter table events add constraint uq_events_job_id_sequence unique (job_id, sequence)"
        )
        connection.exec_driver_sql(_TOLD)
        connection.execute(_DELIVERIES, {"many": many, **told})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("vacuum analyze events, deliveries, jobs")


def _pages(engine: Engine, many: uuid.UUID, few: uuid.UUID, count: int) -> Iterator[Figure]:
    middle = Place(_XIDS // 2, count // 2)
    for name, project, place in (
        ("from the beginning", many, Place()),
        ("in the middle", many, middle),
        ("at the end", many, Place(_XIDS, count - 2 * _PAGE)),
        ("of a project with few events, from the beginning", few, Place()),
        ("of a project with few events, in the middle", few, middle),
    ):
        yield from _page(engine, project, place, name)


def _behind_an_open_transaction(engine: Engine, project: uuid.UUID) -> Iterator[Figure]:
    """What came after a transaction began that is open still is not shown, however much it is."""
    beside = create_engine(engine.url, poolclass=NullPool)
    with engine.begin() as connection:
        last = connection.exec_driver_sql("select max(xid), max(id) from events").one()
    with beside.connect() as old:
        old.exec_driver_sql("select pg_current_xact_id()")
        with engine.begin() as connection:
            connection.execute(_AFTER, {"project": project, "count": _LATE})
        yield from _page(engine, project, Place(*last), f"with {_LATE:,} behind an open transaction")
    yield from _page(engine, project, Place(*last), "after that transaction's end")


def _page(engine: Engine, project: uuid.UUID, place: Place, name: str) -> Iterator[Figure]:
    bound = {"project": project, "xid": place.xid, "id": place.id, "limit": _PAGE + 1, "walked": feed._WALKED}
    yield from _looked(
        engine, f"page {name}", lambda connection: feed.page(connection, project, place, _PAGE), feed._PAGE, bound
    )


def _log(engine: Engine, endpoint: WebhookEndpoint) -> Iterator[Figure]:
    with engine.begin() as connection:
        middle = connection.execute(_MIDDLE, {"endpoint": endpoint.id}).scalar_one()
    for name, which, before in (
        ("newest", Which(), None),
        ("in the middle", Which(), middle),
        ("exhausted", Which(("exhausted",)), None),
        ("of the last hour", Which(since=datetime.now(UTC)), None),
    ):
        bound = registry._bound(endpoint, which) | {"before": before or registry._LAST, "limit": _PAGE}

        def look(connection: Connection, which: Which = which, before: uuid.UUID | None = before) -> Any:
            return registry.deliveries(connection, endpoint, which, before, _PAGE)

        yield from _looked(engine, f"log, {name}", look, registry._LOG, bound)


def _redelivery(engine: Engine, endpoint: WebhookEndpoint) -> Iterator[Figure]:
    """Ten thousand a call, the most there are; taken back each time."""
    now = datetime.now(UTC)
    for state in ("exhausted", "delivered"):
        which = Which((state,))

        def again(connection: Connection, which: Which = which) -> Any:
            return registry.redeliver(connection, endpoint, which, None, now)

        bound = registry._bound(endpoint, which) | {"after": registry._FIRST, "limit": registry.REDELIVERED, "now": now}
        bound |= {"url": endpoint.url, "receiver": endpoint.receiver}
        yield from _looked(engine, f"redelivery of 10,000 {state}", again, registry._REDELIVER, bound)


def _looked(
    engine: Engine, name: str, look: Callable[[Connection], Any], statement: TextClause, bound: dict[str, Any]
) -> Iterator[Figure]:
    """Its first look on a connection of its own, the median of the rest, and the buffers of one."""
    explained = text(f"explain (analyze, buffers, format json) {statement.text}")
    took: list[float] = []
    with engine.connect() as connection:
        for _ in range(_LOOKS):
            took.append(tables.timed(lambda: look(connection)))
            connection.rollback()
        (plan,) = connection.execute(explained, bound).scalar_one()
        connection.rollback()
    buffers = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    yield Figure(NAME, f"{name}: first look", "ms", took[0])
    yield Figure(NAME, name, "ms", percentile(took[1:], 0.5))
    yield Figure(NAME, name, "buffers", buffers)


# Of the first job of every so many the few are the project's; ids of jobs are their numbers.
_ID = "cast(lpad(to_hex({}), 32, '0') as uuid)"
_JOBS = text(
    f"""
    insert into jobs (id, project_id, kind, model, input, state, run_at, finished_at)
    select {_ID.format("n")}, case when n % 50 = 0 then cast(:few as uuid) else :many end, 'text-to-video',
           'wan2.5-t2v-preview', '{{}}', 'succeeded', null, now()
      from generate_series(0, cast(:jobs as int) - 1) as n
    """
)
_EVENTS = text(
    f"""
    insert into events (job_id, project_id, sequence, type, entered, at, xid)
    select {_ID.format("n / cast(:job as int)")},
           case when n % cast(:each as int) = 0 then cast(:few as uuid) else :many end,
           n % cast(:job as int), (array['job.queued', 'job.admitted', 'job.submitted', 'job.running', 'job.copying',
                                         'job.succeeded'])[n % 6 + 1],
           'queued', now(), 1 + n * cast(:xids as bigint) / :count
      from generate_series(cast(:start as int), cast(:end as int) - 1) as n
    """
)
_TOLD = """
    create index ix_events_told on events (project_id, xid, id)
     where type not in ('job.noted', 'job.admitted', 'job.uncertain', 'job.gathering', 'job.copying')
"""
_DELIVERIES = text(
    """
    insert into deliveries (project_id, job_id, event_id, endpoint_id, url, receiver, body, state, tries, run_at,
                            finished_at, last_status)
    select :many, job_id, id, :endpoint, 'https://shop.example/', :receiver, '{"type":"job.succeeded"}',
           case when id % 60 = 0 then 'exhausted' else 'delivered' end, 1, null, now(), 204
      from events where project_id = :many and id % 6 = 0 and id % 10 < 6
    """
)
_AFTER = text(
    """
    insert into events (job_id, project_id, sequence, type, entered)
    select (select id from jobs where project_id = :project limit 1), :project, 1000 + n, 'job.queued', 'queued'
      from generate_series(1, :count) as n
    """
)
_MIDDLE = text(
    "select id from deliveries where endpoint_id = :endpoint and state = 'delivered' order by id desc"
    " offset (select count(*) / 2 from deliveries) limit 1"
)
