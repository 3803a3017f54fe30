"""What a failure of the database does: what is waited out, what is given back, and what the log says of it."""

from __future__ import annotations

import json
import logging
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg import sql
from pydantic import BaseModel, ValidationError
from serving import settings_of
from sqlalchemy import event, exc, text
from stage import Stage, stage

from ops.local.servers import Servers
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import database, log, timeouts
from worker.context import Clock
from worker.settings import Settings
from worker.states import State
from worker.tick import Message

ASKED = {"prompt": "Name three colours.", "max_tokens": 200}
CANARY = "canary-in-the-prompt"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(call_seconds=0, run_seconds=0.1, queue_seconds=0)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    sandbox.reset()
    sandbox.set(call_seconds=0, run_seconds=0.1, queue_seconds=0)
    with stage(environment, sandbox) as made:
        yield made


class Outage:
    """The test's database, made read-only, or its sessions ended, as a failover or a restart does."""

    def __init__(self, servers: Servers, play: Stage) -> None:
        self._servers = servers
        self._name = sql.Identifier(play.ctx.engine.url.database or "")
        self.seen = threading.Event()  # the engine has met a failure
        event.listen(play.ctx.engine, "handle_error", lambda _: self.seen.set())

    def begin(self) -> None:
        """New sessions can read only, and there are no others."""
        self._alter("ALTER DATABASE {} SET default_transaction_read_only = on")
        self.cut()

    def end(self) -> None:
        """New sessions can write; those that are open can not."""
        self._alter("ALTER DATABASE {} RESET default_transaction_read_only")

    def cut(self) -> None:
        """Ends every session."""
        ended = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
        with self._servers.connect() as connection:
            connection.execute(ended, [self._name.as_string().strip('"')])

    def _alter(self, statement: str) -> None:
        with self._servers.connect() as connection:
            connection.execute(sql.SQL(statement).format(self._name))  # type: ignore[arg-type]


@pytest.fixture
def outage(servers: Servers, play: Stage) -> Outage:
    return Outage(servers, play)


# What is waited out


AWAY = [
    *("08000", "08001", "08003", "08004", "08006", "08P01"),
    *("0A000", "25006", "25P03", "25P04", "26000"),
    *("40001", "40003", "40P01"),
    *("53000", "53100", "53200", "53300", "53400"),
    *("55000", "55006", "55P03"),
    *("57000", "57014", "57P01", "57P02", "57P03", "57P04", "57P05"),
    *("58000", "58030", "XX000"),
]
OURS = ["21000", "22003", "22P02", "22P05", "23502", "23505", "23514", "25P02", "42501", "42601", "42P01", "XX001"]


def failed(state: str | None, kind: type[exc.DBAPIError] = exc.OperationalError) -> exc.DBAPIError:
    driver = psycopg.OperationalError("it failed")
    driver.sqlstate = state
    return kind("select 1", {}, driver)


@pytest.mark.parametrize("state", AWAY)
def test_a_database_that_will_be_back_is_waited_for(state: str) -> None:
    assert database.is_away(failed(state))


@pytest.mark.parametrize("state", OURS)
def test_a_statement_that_is_wrong_is_not_repeated(state: str) -> None:
    assert not database.is_away(failed(state, exc.ProgrammingError))


def test_each_row_of_the_table_is_needed() -> None:
    used = {state if state in database.AWAY else state[:2] for state in AWAY}

    assert used == set(database.AWAY)


def test_without_a_code_it_is_the_connection_that_failed_or_the_drivers_word_about_a_value() -> None:
    assert database.is_away(failed(None))
    assert database.is_away(exc.TimeoutError("no connection is free"))
    assert not database.is_away(failed(None, exc.DataError))
    assert not database.is_away(exc.NoResultFound())


def test_an_answer_that_was_paid_for_is_kept_while_the_server_is_read_only(play: Stage, outage: Outage) -> None:
    job = play.submit("text", "qwen-plus", input=ASKED)
    taken, step, clock = play.begin(job)
    begun = play.ctx.record(taken, next(step), clock)
    answered = step.send(begun)  # type: ignore[attr-defined]
    outage.begin()

    with ThreadPoolExecutor(1) as pool:
        recording = pool.submit(play.ctx.record, begun, answered, clock)
        assert outage.seen.wait(10)
        outage.end()
        recording.result(20)

    assert play.until(job).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["creates"] == 1


@pytest.mark.parametrize("state", ["53100", "53200", "58030", "40P01", "55P03", "57014"])
def test_an_answer_that_was_paid_for_outlasts_what_the_server_lacks(play: Stage, outage: Outage, state: str) -> None:
    job = play.submit("text", "qwen-plus", input=ASKED)
    taken, step, clock = play.begin(job)
    begun = play.ctx.record(taken, next(step), clock)
    answered = step.send(begun)  # type: ignore[attr-defined]
    play.sql(
        "create function lacks() returns trigger language plpgsql as"
        f" $$ begin raise exception 'it lacks something' using errcode = '{state}'; end $$"
    )
    play.sql("create trigger lacks before update on attempts for each row execute function lacks()")

    with ThreadPoolExecutor(1) as pool:
        recording = pool.submit(play.ctx.record, begun, answered, clock)
        assert outage.seen.wait(10)
        play.sql("drop trigger lacks on attempts")
        recording.result(20)

    assert play.until(job).state == State.SUCCEEDED
    assert play.sandbox.ledger()["totals"]["creates"] == 1


def test_what_follows_an_answer_is_read_however_the_sessions_end(play: Stage, outage: Outage) -> None:
    job = play.submit()
    taken, step, clock = play.begin(job)
    begun = play.ctx.record(taken, next(step), clock)
    outage.cut()

    answered = step.send(begun)  # type: ignore[attr-defined]

    assert answered.columns["task_id"]
    assert outage.seen.is_set()


def test_no_connection_to_a_server_that_was_read_only_is_used_again(play: Stage, outage: Outage) -> None:
    change = text("update owners set seen_at = now()")
    outage.begin()
    play.ctx.engine.dispose()
    with play.ctx.engine.connect() as idle:
        idle.execute(text("select 1"))  # a second one, made while the server is read-only
        with pytest.raises(exc.DBAPIError), play.ctx.engine.begin() as connection:
            connection.execute(change)
    outage.end()

    for _ in range(3):
        with play.ctx.engine.begin() as connection:
            connection.execute(change)


def test_a_connection_that_idled_is_tried_before_it_is_used(play: Stage, outage: Outage) -> None:
    engine = database.engine(play.ctx.settings, threads=2, probe_after=timedelta(0))
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    outage.cut()

    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1
    engine.dispose()


def test_a_busy_connection_is_not_tried(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(play.ctx.engine.dialect, "do_ping", lambda connection: tried.append(connection) or True)

    play.until(play.submit())

    assert tried == []


# What is no crash


@contextmanager
def cut_before(play: Stage, outage: Outage, fragment: str) -> Iterator[None]:
    """Within it every session ends right before a statement that has the fragment."""

    def cut(_: Any, __: Any, statement: str, *___: Any) -> None:
        if fragment in statement:
            outage.cut()

    event.listen(play.ctx.engine, "before_cursor_execute", cut)
    yield
    event.remove(play.ctx.engine, "before_cursor_execute", cut)


def due(play: Stage) -> list[Message]:
    play.sql("update jobs set run_at = now() - interval '1 s'")
    return play.tick()


def test_a_database_that_restarts_again_and_again_makes_no_job_a_killer_of_workers(play: Stage, outage: Outage) -> None:
    job = play.submit()
    taken, step, clock = play.begin(job)
    play.ctx.record(taken, next(step), clock)
    play.play(due(play))
    assert play.job(job).state == State.UNCERTAIN
    with cut_before(play, outage, "WHERE attempts.owner ="):
        for _ in range(timeouts.CRASHES + 1):
            play.play(due(play))

            assert (play.job(job).claimed, play.job(job).crashes) == (None, 0)

    assert play.until(job).state == State.SUCCEEDED


@pytest.mark.parametrize("run_seconds", [0, 60])  # the look ends in a move, or in a wait
def test_a_lease_that_lapses_while_its_worker_waits_for_the_database_is_no_crash(
    play: Stage, run_seconds: float
) -> None:
    play.sandbox.set(run_seconds=run_seconds)
    job = play.until(play.submit(), State.RUNNING)
    for _ in range(timeouts.CRASHES + 1):
        play.lapse(job)
        taken, clock = play.take(job), Clock(play.now())
        play.lapse(job)
        play.tick()  # claims it anew, before its worker comes to a word
        assert play.job(job).crashes == 1

        play.runner.carry_out(taken, clock)

        assert (play.job(job).state, play.job(job).crashes) == (State.RUNNING, 0)


# What the log shows


class Asked(BaseModel):
    number: int


def refused_by_postgres(connection: sqlalchemy.Connection, statement: str, value: Any) -> None:
    connection.execute(text(statement), {"value": value})


REFUSED = {
    "an infinity in JSON": ("select cast(:value as jsonb)", f'{{"a": 1e999, "prompt": "{CANARY}", "b": Infinity}}'),
    "half a JSON": ("select cast(:value as jsonb)", f'{{"{CANARY}": '),
    "a number too long": ("select cast(:value as bigint)", "9" * 30 + CANARY),
    "a row that fits no check": ("insert into jobs (kind, model) values (:value, 'x')", CANARY),
    "a NUL": ("select :value", CANARY + "\0"),
}


@pytest.mark.parametrize("what", list(REFUSED))
@pytest.mark.parametrize("way", ["ours", "a library's", "as text"])
def test_what_postgres_says_of_a_value_is_not_logged(
    engine: sqlalchemy.Engine, written: Callable[[], str], what: str, way: str
) -> None:
    with pytest.raises(exc.DBAPIError) as caught, engine.begin() as connection:
        refused_by_postgres(connection, *REFUSED[what])

    if way == "ours":
        log.get("noria").error("a step failed", exc_info=caught.value, cause=caught.value, why=[caught.value])
    elif way == "a library's":
        logging.getLogger("celery").error("failed", exc_info=caught.value)
    else:
        logging.getLogger("celery").error("raised %r: %s", caught.value, str(caught.value))
        logging.getLogger("celery").error(f"raised {caught.value!r}")  # noqa: G004 - as some libraries do

    said = written()
    assert CANARY not in said
    assert way == "as text" or type(caught.value.orig).__name__ in said
    assert way == "as text" or (caught.value.orig.sqlstate or "") in said  # type: ignore[union-attr]


def test_postgres_itself_logs_no_value_either(servers: Servers, engine: sqlalchemy.Engine) -> None:
    name = f"name{uuid.uuid4().hex}"
    asked = f"select cast(:value as jsonb) as {name}"
    with engine.connect() as connection:
        pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        with pytest.raises(exc.DBAPIError):
            refused_by_postgres(connection, asked, REFUSED["an infinity in JSON"][1])

    (logged,) = [path.read_text() for path in (servers.home / "logs").glob("postgres*") if name in path.read_text()]
    assert CANARY not in "".join(line for line in logged.splitlines() if f"[{pid}]" in line)


def raise_over(value: str) -> None:
    try:
        {}[value]
    except KeyError:
        Asked(number=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("raised", [raise_over, int, float, json.loads, partial(str.encode, encoding="ascii")])
def test_what_an_exception_was_raised_over_is_not_logged(
    written: Callable[[], str], raised: Callable[[str], Any]
) -> None:
    with pytest.raises((ValueError, ValidationError)) as caught:
        raised(f"{CANARY}, é")

    log.get("noria").error("a step failed", exc_info=caught.value, cause=caught.value)
    logging.getLogger("celery").error("failed: %r", caught.value, exc_info=caught.value)
    sys.excepthook(type(caught.value), caught.value, caught.value.__traceback__)

    said = written()
    assert CANARY not in said
    assert said.count("test_database.py") >= 3, "where it was raised is shown"


def test_what_is_handed_over_inside_of_other_values_is_cleaned_too(written: Callable[[], str]) -> None:
    log.get("noria").info("told", rows=[{"prompt": CANARY, "link": "https://a.com/x?Signature=abc&Expires=1"}])

    said = written()
    assert CANARY not in said
    assert "abc" not in said


def test_a_log_that_cannot_be_written_does_not_show_its_lines_elsewhere(
    written: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: str) -> int:
        raise OSError("the disk is full")

    (ours,) = [one for one in logging.getLogger().handlers if type(one) is logging.StreamHandler]
    ours.stream.write = broken

    logging.getLogger("celery").error("failed: %s", CANARY)

    assert CANARY not in capsys.readouterr().err


def test_a_message_that_fails_is_logged_by_us_and_not_by_celery(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, written: Callable[[], str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    from worker import tasks

    @tasks._task("noria.test")
    def fails() -> None:
        raise ValueError(CANARY)

    fails.apply()

    said = written()
    assert "a message failed" in said
    assert CANARY not in said


def test_settings_that_are_wrong_are_named_without_their_values() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"database_url": CANARY, "poll_qps": CANARY})

    assert "broker_url" in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "redis://:s3cr3t@cache:6379/0",
        "sentinel://:s3cr3t@a:26379,b/0?master=m&sentinel_password=s3cr3t",
        "postgresql://noria:s3cr3t@db/noria",
        "https://oapi.dingtalk.com/robot/send?access_token=s3cr3t",
        "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=s3cr3t",
        "https://open.feishu.cn/open-apis/bot/v2/hook/s3cr3t",
        "https://b.oss-cn-beijing.aliyuncs.com/k?x-oss-security-token=s3cr3t",
    ],
)
def test_no_secret_of_an_address_gets_through_the_second_wall(text: str) -> None:
    assert "s3cr3t" not in log.redact(f"no answer from {text}: it ended")
    assert log.redact(text).startswith(text.partition("://")[0])


def test_the_columns_of_a_result_are_described_once_a_statement(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, described = database.engine(settings_of(environment), threads=1), []

    def column(cursor: psycopg.Cursor[Any], n: int) -> psycopg.Column:
        described.append(n)
        return psycopg.Column(cursor, n)

    monkeypatch.setattr(database, "Column", column)
    statement = sqlalchemy.select(sqlalchemy.literal(1).label("a"), sqlalchemy.literal("x").label("b"))
    with made.connect() as connection:
        first = dict(connection.execute(statement).mappings().one())
        described.clear()
        again = dict(connection.execute(statement).mappings().one())
        described_again = list(described)
        cursor = connection.connection.cursor()
        plain = psycopg.Cursor(cursor.connection)
        for one in (cursor, plain):
            one.execute("select 1 as a, 'x' as b")
        alike = [[repr(column) for column in one.description or ()] for one in (cursor, plain)]
        nothing = [one.execute("set local lock_timeout = '1s'").description for one in (cursor, plain)]
        empty = len(connection.exec_driver_sql("select from generate_series(1, 2)").all())
    made.dispose()

    assert first == again == {"a": 1, "b": "x"}
    assert described_again == []
    assert (alike[0], nothing, empty) == (alike[1], [None, None], 2)
