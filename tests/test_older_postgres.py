"""Noria on the oldest PostgreSQL that it takes, which lacks what its schema is made of on a newer one (ADR 0059)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from others import Postgres, debians_postgres, free_ports, made_cluster, migrated, running_postgres
from serving import settings_of
from sqlalchemy.exc import DBAPIError
from stage import stage
from test_egress import signed

from ops.local.servers import Servers
from ops.sandbox.testing import Sandbox
from worker import database
from worker.jobs import submission
from worker.states import State


@pytest.fixture(scope="module")
def older(servers: Servers, worker_number: int) -> Iterator[Postgres]:
    """A PostgreSQL of the machine's, with a migrated database `noria`; skipped where it is the newest."""
    cluster = made_cluster(debians_postgres(), servers.home.parent / f"older-{worker_number}")
    for name, content in zip(("server.crt", "server.key"), signed(), strict=True):
        (cluster.home / "postgres" / name).touch(0o600)
        (cluster.home / "postgres" / name).write_bytes(content)
    with running_postgres(cluster, free_ports(1)[0], "ssl=on") as made:
        if int(str(made.execute("show server_version_num")[0][0])) >= 180_000:
            pytest.skip("Debian's PostgreSQL is not older than the wheel's")
        migrated(made)
        yield made


def test_a_job_goes_all_its_way(older: Postgres, environment: dict[str, str], sandbox: Sandbox) -> None:
    """And over TLS, whose certificate is verified."""
    url = f"{older.url('noria')}?sslmode=verify-full&sslrootcert={older.home}/postgres/server.crt"
    with stage(environment | {"NORIA_DATABASE_URL": url}, sandbox) as play:
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
        assert play.sql("select ssl from pg_stat_ssl where pid = pg_backend_pid()")[0]["ssl"]


def test_a_database_whose_certificate_is_not_trusted_is_told_no_password(older: Postgres, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(signed()[0])
    url = f"{older.url('noria')}?sslmode=verify-full&sslrootcert={tmp_path}/other.pem"

    with pytest.raises(DBAPIError, match="certificate verify failed"):
        database.engine(settings_of({"NORIA_DATABASE_URL": url, "NORIA_BROKER_URL": ""}), threads=1).connect()


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
