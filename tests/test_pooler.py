"""A real PgBouncer before the database, in transaction mode, with two sessions for everybody (ADR 0060)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from others import running_pgbouncer
from serving import settings_of
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from stage import stage

from api import callers
from ops.sandbox.testing import Sandbox
from worker import database, keys
from worker.states import State
from worker.webhooks import feed

HELD = text("select current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('jit')")
OURS = "select current_setting('statement_timeout')"


@pytest.fixture
def pooled(environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings, with a pooler before the database."""
    with running_pgbouncer(tmp_path, environment["NORIA_DATABASE_URL"], "default_pool_size = 2") as url:
        yield environment | {"NORIA_DATABASE_URL": url}


def engine(environment: dict[str, str], **session: str) -> Engine:
    return database.engine(settings_of(environment), threads=8, **session)


def test_jobs_go_all_their_way_and_nothing_is_done_twice(pooled: dict[str, str], sandbox: Sandbox) -> None:
    with stage(pooled, sandbox) as play:
        jobs = [play.submit() for _ in range(8)]

        def drive(_: int) -> None:
            play.drive(lambda: [play.job(job).state for job in jobs], lambda states: {*states} == {State.SUCCEEDED})

        with ThreadPoolExecutor(4) as threads:  # twice as many as there are sessions
            list(threads.map(drive, range(4)))

        # a call that a busy thread sends late is refused for the provider's rate, or not sent: neither is paid for
        calls = [each for job in jobs for each in play.attempts(job)]
        made = [each for each in calls if each.outcome not in ("refused", "not_sent")]
        paid = [task["task_id"] for task in sandbox.ledger()["tasks"] if task["billed_micros"]]
        assert [each.outcome for each in made] == ["accepted"] * 8
        assert sorted(paid) == sorted(each.task_id for each in made)
        with play.ctx.engine.connect() as connection:
            assert database.is_pooled(connection)


def test_every_transaction_has_its_own_time_limits_and_leaves_none_behind(
    pooled: dict[str, str], environment: dict[str, str]
) -> None:
    """Two engines with other limits, and a stranger with none, take turns at the same two sessions."""
    ours, reader = engine(pooled), engine(pooled, statement_timeout="5s")
    reader = reader.execution_options(isolation_level="AUTOCOMMIT")
    stranger = psycopg.connect(pooled["NORIA_DATABASE_URL"].replace("+psycopg", ""), autocommit=True)

    def look(made: Engine) -> set[tuple[str, ...]]:
        found = set()
        for _ in range(50):
            with made.connect() as connection:
                found.add(tuple(connection.execute(HELD).one()))
                connection.commit()  # for what is rolled back leaves nothing behind anyway
        return found

    with ThreadPoolExecutor(4) as threads, stranger:
        held = list(threads.map(look, (ours, reader, ours, reader)))
        strange = {stranger.execute(OURS).fetchone() for _ in range(20)}

    assert held == [{("15s", "5s", "off")}, {("5s", "5s", "off")}] * 2
    assert strange == {("0",)}
    for made in (ours, reader):
        made.dispose()


def test_nothing_is_prepared_in_a_session_that_may_be_anothers_next(pooled: dict[str, str]) -> None:
    made, stranger = engine(pooled), psycopg.connect(pooled["NORIA_DATABASE_URL"].replace("+psycopg", ""))
    whose = text("select pg_backend_pid()")

    with made.connect() as connection, stranger:
        for _ in range(10):  # psycopg prepares what is executed five times
            session = connection.execute(whose).scalar_one()
            connection.commit()
        taken = stranger.execute("select pg_backend_pid()").fetchone()
        another = connection.execute(whose).scalar_one()

    assert taken == (session,)
    assert another != session
    made.dispose()


def test_a_statement_that_takes_too_long_is_ended_through_it(pooled: dict[str, str]) -> None:
    made = engine(pooled, statement_timeout="50ms")

    for outside in (made, made.execution_options(isolation_level="AUTOCOMMIT")):
        with outside.connect() as connection, pytest.raises(DBAPIError, match="statement timeout"):
            connection.execute(text("select pg_sleep(5)"))
    made.dispose()


def test_the_use_of_a_key_is_noted_through_it(pooled: dict[str, str]) -> None:
    made = engine(pooled)
    with made.begin() as connection:
        project = keys.create_project(connection, "spring")
        _, plain = keys.new_key(connection, project)

    found = callers.Callers(made)._look_up(keys.digest(plain), None)

    assert found is not None
    with made.connect() as connection:
        assert connection.execute(text("select last_used_at is not null from api_keys")).scalar_one()
    made.dispose()


def test_nobody_listens_through_it(pooled: dict[str, str]) -> None:
    """It would be another's session that hears, from then on; a look each second finds the news."""
    made = engine(pooled)

    with feed.listening(made) as connection:
        feed.wait(connection, 0.01)
        heard = connection.execute(text("select pg_listening_channels()")).all()

    assert heard == []
    made.dispose()


def test_a_pooler_that_keeps_no_transaction_together_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    with running_pgbouncer(tmp_path, environment["NORIA_DATABASE_URL"], "pool_mode = statement") as url:
        why = database.why_unfit(engine(environment | {"NORIA_DATABASE_URL": url}))

    assert why is not None
    assert "its pool_mode must be transaction or session" in why
