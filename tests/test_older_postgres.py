"""Noria on the oldest PostgreSQL that it takes, which lacks what its schema is made of on a newer one (ADR 0059)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from others import Postgres, debians_postgres, free_ports, made_cluster, running_postgres
from stage import stage

from ops.local.servers import Servers
from ops.sandbox.testing import Sandbox
from worker.jobs import submission
from worker.states import State

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def older(servers: Servers, worker_number: int) -> Iterator[Postgres]:
    """A PostgreSQL of the machine's, with a migrated database `noria`; skipped where it is the newest."""
    cluster = made_cluster(debians_postgres(), servers.home.parent / f"older-{worker_number}")
    with running_postgres(cluster, free_ports(1)[0]) as made:
        if int(str(made.execute("show server_version_num")[0][0])) >= 180_000:
            pytest.skip("Debian's PostgreSQL is not older than the wheel's")
        made.execute("create database noria")
        environment = {"NORIA_DATABASE_URL": made.url("noria"), "PATH": ""}
        done = subprocess.run(
            (sys.executable, "-m", "alembic", "upgrade", "head"), cwd=PROJECT, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield made


def test_a_job_goes_all_its_way(older: Postgres, environment: dict[str, str], sandbox: Sandbox) -> None:
    with stage(environment | {"NORIA_DATABASE_URL": older.url("noria")}, sandbox) as play:
        job, canceled = play.submit(), play.submit()

        play.cancel(canceled)
        ended = [play.until(each).state for each in (job, canceled)]
        with play.ctx.engine.begin() as connection:
            submission.retry(connection, play.project.id, canceled.id, play.now())

        assert ended == [State.SUCCEEDED, State.CANCELED]
        assert play.until(canceled).state == State.SUCCEEDED
        assert play.states(canceled) == [
            "queued",
            "canceled",
            "queued",
            "admitted",
            "submitting",
            "running",
            "copying",
            "succeeded",
        ]


def test_ids_are_told_apart_and_sorted_by_when_they_were_made(older: Postgres) -> None:
    many = "select array_agg(id order by n), array_agg(id order by id) from (select n, uuidv7() as id from"
    before = datetime.now(UTC) - timedelta(milliseconds=1)

    made, in_order = older.execute(f"{many} generate_series(1, 10000) as n) as made", "noria")[0]
    after = datetime.now(UTC)

    assert isinstance(made, list)
    assert made == in_order
    assert len(set(made)) == 10_000
    assert {(each.version, each.variant) for each in made} == {(7, "specified in RFC 4122")}
    times = [datetime.fromtimestamp((each.int >> 80) / 1000, UTC) for each in (made[0], made[-1])]
    assert before <= times[0] <= times[1] <= after


def test_an_id_can_be_made_for_another_time(older: Postgres) -> None:
    found = older.execute("select uuidv7('-1 hour') < uuidv7(), uuidv7('-1 hour') > uuidv7('-61 minutes')", "noria")

    assert found == [(True, True)]
