"""The database's primary dies while jobs run, and its standby takes over."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from others import PASSWORD, Postgres, free_ports, made_cluster, migrated, running_postgres
from sqlalchemy.exc import SQLAlchemyError
from stage import Stage, stage

from ops import audit
from ops.local import postgres
from ops.local.servers import HOST, Servers, find_binaries
from ops.sandbox.options import Options
from ops.sandbox.testing import running
from worker import database
from worker.states import TERMINAL, State
from worker.tables import Job

JOBS = 6
PATIENCE = 60.0  # seconds
# a commit waits for the standby, where one is named
SETTINGS = ("synchronous_commit=on", "wal_keep_size=64MB")


@pytest.fixture
def servers_home(servers: Servers, worker_number: int) -> Path:
    """A folder in memory, if the others' are."""
    return servers.home.parent / f"failover-{worker_number}"


@pytest.fixture
def primary(servers_home: Path) -> Iterator[Postgres]:
    cluster = made_cluster(find_binaries()["postgres"].parent, servers_home / "primary")
    with running_postgres(cluster, free_ports(1)[0], *SETTINGS) as made:
        migrated(made)
        yield made


@pytest.fixture
def standby(primary: Postgres, servers_home: Path) -> Iterator[Postgres]:
    """A copy of the primary that follows it, so closely that a commit waits for it."""
    binaries, home = find_binaries()["postgres"].parent, servers_home / "standby"
    home.mkdir(mode=0o711)
    source = f"host={HOST} port={primary.port} user=noria password={PASSWORD} application_name=standby"
    command = (binaries / "pg_basebackup", "-d", source, "-D", home / "postgres", "-R", "-c", "fast", "-N")
    user = postgres.find_identity(binaries / "postgres")
    subprocess.run(command, check=True, env={"LC_ALL": "C"}, preexec_fn=user.before_exec)
    with running_postgres(made_cluster(binaries, home), free_ports(1)[0], *SETTINGS) as made:
        primary.execute("alter system set synchronous_standby_names = 'standby'")
        primary.execute("select pg_reload_conf()")
        while primary.execute("select sync_state from pg_stat_replication") != [("sync",)]:
            time.sleep(0.05)
        yield made


def drive(play: Stage, jobs: Sequence[Job], is_over: threading.Event) -> None:
    """Ticks and works as processes do, whatever the database does, until all jobs have ended."""
    while not is_over.is_set():
        try:
            play.play(play.tick())
            play.hurry()
            if {play.job(job).state for job in jobs} <= TERMINAL:
                return
        except SQLAlchemyError as error:
            if not database.is_away(error):
                raise
        time.sleep(0.02)


def test_jobs_go_on_at_the_standby_and_nothing_is_paid_twice(
    primary: Postgres, standby: Postgres, environment: dict[str, str]
) -> None:
    url = f"postgresql://noria:{PASSWORD}@{HOST}:{primary.port},{HOST}:{standby.port}/noria"
    named = environment | {"NORIA_DATABASE_URL": url}
    with running(Options(run_seconds=1, queue_seconds=0)) as sandbox, stage(named, sandbox) as play:
        jobs, is_over = [play.submit() for _ in range(JOBS)], threading.Event()
        working = [threading.Thread(target=drive, args=(play, jobs, is_over)) for _ in range(2)]
        for thread in working:
            thread.start()
        while State.RUNNING not in {play.job(job).state for job in jobs}:
            time.sleep(0.02)

        primary.process.end(signal.SIGKILL)
        standby.execute("select pg_promote()")
        standby.execute("update jobs set run_at = now() where claimed is not null", "noria")  # leases take minutes
        for thread in working:
            thread.join(PATIENCE)
        is_over.set()

        assert {play.job(job).state for job in jobs} == {State.SUCCEEDED}
        assert sandbox.ledger()["totals"]["tasks"] == JOBS
        assert audit.audit(play.ctx.engine) == []
