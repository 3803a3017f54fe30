"""The addresses of the database and the broker: what is understood, what is refused, and what is never trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from image import Image
from kombu.exceptions import OperationalError as BrokerAway
from pydantic import ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from relay import Relay, Rewrite, drops_options, hides_the_process, older, refuses_options
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from test_egress import _self_signed

from tests.chaos.lines import running
from worker import broker, database
from worker.settings import Settings, addresses

POOLER = "a connection pooler (PgBouncer?) stands before it: give the address of PostgreSQL itself"
OLD = "the database is PostgreSQL 14: Noria needs"


def known(**said: Any) -> Settings:
    return Settings.model_validate({"database_url": "", "broker_url": "", **said})


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_databases_address_is_understood_as_people_write_it(scheme: str) -> None:
    url = known(database_url=f"{scheme}://noria:p%40ss@db:5433/noria?sslmode=require").database_url

    assert url.get_secret_value() == "postgresql+psycopg://noria:p%40ss@db:5433/noria?sslmode=require"


@pytest.mark.parametrize(
    ("end", "attributes"),
    [("", "read-write"), ("?connect_timeout=3&target_session_attrs=primary", "primary")],
)
def test_of_several_databases_the_one_that_writes_is_meant(end: str, attributes: str) -> None:
    url = known(database_url=f"postgres://noria:p%40ss@a:5433,b/noria{end}").database_url.get_secret_value()

    _, meant = create_engine(url).dialect.create_connect_args(make_url(url))

    assert (meant["host"], meant["port"], meant["dbname"]) == ("a,b", "5433,", "noria")
    assert (meant["password"], meant["target_session_attrs"]) == ("p@ss", attributes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mysql://noria:s3cr3t@db/noria", "must begin with postgresql://"),
        ("postgresql+asyncpg://noria:s3cr3t@db/noria", "must begin with postgresql://"),
        ("db:5432/noria", "must begin with postgresql://"),
        ("postgresql://noria:s3cr3t@db:port/noria", "cannot be read"),
    ],
)
def test_another_databases_address_is_refused_without_its_password(text: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why) as refused:
        known(database_url=text)

    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("valkey://:pw@h:6379/0", "redis://:pw@h:6379/0"),
        ("valkeys://:pw@h:6379/0", "rediss://:pw@h:6379/0"),
        ("rediss://h/0?ssl_cert_reqs=none", "rediss://h/0?ssl_cert_reqs=none"),
        ("redis://h", "redis://h"),
        ("sentinel://:pw@h,h2:26380/1?master=m", "sentinel://:pw@h,h2:26380/1?master=m"),
        ("sentinels://:pw@h/1?master=m&ssl_ca_certs=f", "sentinels://:pw@h/1?master=m&ssl_ca_certs=f"),
    ],
)
def test_a_brokers_address_is_understood_as_people_write_it(text: str, read: str) -> None:
    assert known(broker_url=text).broker_url.get_secret_value() == read


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sentinel://:s3cr3t@h:26379,h2/0", "must name hosts and master, as in sentinel://"),
        ("sentinel://:s3cr3t@h,,h2/0?master=m", "must name hosts and master, as in sentinel://"),
        ("sentinel://:s3cr3t@h:port/0?master=m", "cannot be read"),
        (
            "sentinel://:s3cr3t@h/0?master=m&ssl_cert_reqs=none",
            "has the option ssl_cert_reqs: sentinel:// takes master, sentinel_username, sentinel_password; for TLS: "
            "sentinels://",
        ),
        ("sentinels://:s3cr3t@h/0?master=m&ssl_cert_reqs=0", "has ssl_cert_reqs=0: it must be one of"),
        ("sentinel://:s3cr3t@h/noria?master=m", "must end with a database's number"),
        ("amqp://guest:s3cr3t@h//", "must begin with redis://"),
        ("h:6379", "must begin with redis://"),
        ("redis://:s3cr3t@h:port/0", "cannot be read"),
        ("redis://:123?s3cr3t@h/0", "cannot be read"),
        ("redis://:123#s3cr3t@h/0", "cannot be read"),
        ("redis://:s3cr3t@h/noria", "must end with a database's number"),
        ("redis://:s3cr3t@h/0?ssl_cert_reqs=none", "has the option ssl_cert_reqs"),
        ("redis://:s3cr3t@h/0?socket_timeout=5", "has the option socket_timeout"),
        ("rediss://:s3cr3t@h/0?ssl_cert_reqs=CERT_NONE", "has ssl_cert_reqs=CERT_NONE: it must be one of"),
        ("rediss://:s3cr3t@h/0?ssl_check_hostname=0", "has ssl_check_hostname=0: it must be one of"),
    ],
)
def test_another_brokers_address_is_refused_without_its_password(text: str, why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        known(broker_url=text)

    assert why in str(refused.value)
    assert "s3cr3t" not in str(refused.value)


def test_an_address_of_sentinels_says_whom_they_watch_and_how_to_sign_in() -> None:
    url = "sentinel://noria:p%40w@h,[::1]:26380/1?master=m&sentinel_username=s&sentinel_password=o%26n"

    app = broker.celery_app(known(broker_url=url))

    assert addresses.sentinels(url) == addresses.Sentinels(
        hosts=(("h", 26379), ("::1", 26380)),
        master="m",
        database=1,
        own={"username": "s", "password": "o&n"},
        redis={"username": "noria", "password": "p@w"},
        user="noria:p%40w",
    )
    assert app.conf.broker_url == "sentinel://noria:p%40w@h:26379/1;sentinel://noria:p%40w@[::1]:26380/1"
    assert app.conf.broker_transport_options["master_name"] == "m"


def test_an_address_that_is_empty_in_the_environment_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORIA_DATABASE_URL", "")

    with pytest.raises(ValidationError, match="Field required"):
        Settings(broker_url=known().broker_url)  # type: ignore[call-arg]


def test_a_key_that_stands_in_a_wrong_setting_is_not_shown() -> None:
    with pytest.raises(ValidationError) as refused:
        known(accounts=[{"url": "https://dashscope.aliyuncs.com", "key": "sk-s3cr3t", "keys": "sk-s3cr3t"}])

    assert "sk-s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [("ACCOUNTS", '[{"key": "sk-s3cr3t"}', "must be JSON"), ("SOURCE_HOSTS", "(", "must be a regular expression")],
)
def test_a_setting_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.setenv(f"NORIA_{name}", value)

    with pytest.raises(ValidationError, match=why) as refused:
        Settings(database_url="", broker_url="")  # type: ignore[arg-type]

    assert refused.value.errors()[0]["loc"] == (name.lower(),)
    assert "sk-s3cr3t" not in str(refused.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A server's TLS, and the file of who signed its certificate: itself."""
    tls, pem = _self_signed()
    file = tmp_path_factory.mktemp("tls") / "ca.pem"
    file.write_bytes(pem)
    return tls, file


@pytest.fixture
def over_tls(broker_url: str, certificate: tuple[Any, Path]) -> Iterator[tuple[str, Relay]]:
    """The broker's address through TLS of a certificate that nobody knows."""
    parts = urlsplit(broker_url)
    line = Relay(parts.port or 0, tls=certificate[0])
    with running(line):
        yield f"rediss://:{parts.password}@127.0.0.1:{line.port}{parts.path}", line


def test_no_password_goes_to_a_server_whose_certificate_is_not_trusted(over_tls: tuple[str, Relay]) -> None:
    url, line = over_tls
    settings = known(broker_url=url)

    with pytest.raises(BrokerAway, match="certificate verify failed"), broker.celery_app(settings) as app:
        broker.publish(app, broker.TICK, "tick", [])
    with pytest.raises(RedisConnectionError), redis.Redis.from_url(settings.broker_url.get_secret_value()) as client:
        client.ping()
    assert line.passed == b""


@pytest.mark.parametrize("option", ["ssl_ca_certs={file}", "ssl_cert_reqs=none"])
def test_an_option_of_tls_means_the_same_to_the_engine_and_to_doctor(
    option: str, over_tls: tuple[str, Relay], certificate: tuple[Any, Path]
) -> None:
    settings = known(broker_url=f"{over_tls[0]}?{option.format(file=certificate[1])}")
    url = settings.broker_url.get_secret_value()

    with broker.celery_app(settings) as app:
        broker.publish(app, broker.TICK, "tick", [])

    with redis.Redis.from_url(url) as client:
        assert client.llen("noria:tick") == 1


def test_flower_is_told_of_the_brokers_tls_too() -> None:
    url = "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_check_hostname=false"

    app = broker.celery_app(known(broker_url=url))

    assert app.conf.broker_use_ssl == addresses.tls(url)
    assert app.conf.broker_use_ssl == {
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": "/ca.pem",
        "ssl_check_hostname": False,
    }
    assert "ssl" not in app.conf.broker_url


@contextlib.contextmanager
def through(rewrite: Rewrite, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The settings, with something before the database."""
    url = environment["NORIA_DATABASE_URL"]
    line = Relay(urlsplit(url).port or 0, rewrite)
    with running(line):
        yield environment | {"NORIA_DATABASE_URL": url.replace(f":{urlsplit(url).port}/", f":{line.port}/")}


@pytest.mark.parametrize("rewrite", [drops_options, refuses_options, hides_the_process])
def test_a_pooler_before_the_database_is_noticed_at_the_first_connection(
    rewrite: Rewrite, environment: dict[str, str]
) -> None:
    with through(rewrite, environment) as changed:
        engine = database.engine(known(database_url=changed["NORIA_DATABASE_URL"]), threads=1)

        with engine.connect() as connection:
            held = connection.exec_driver_sql("select current_setting('lock_timeout')").scalar_one()

            assert (database.is_pooled(connection), held) == (True, "5s")
        engine.dispose()


def test_an_older_postgres_is_refused() -> None:
    with pytest.raises(database.Unfit, match="is PostgreSQL 14: Noria needs PostgreSQL 15"):
        database.check_version(140_019)

    database.check_version(150_000)
    database.check_version(190_001)


STARTS = {
    "migrate": "python -m alembic upgrade head",
    "api": "python -m uvicorn api.app:app --host 127.0.0.1 --port 0",
    "worker": "python -m celery -A worker.tasks worker -P threads -c 1 -Q tick,provider",
    "doctor": "noria doctor",
}


@pytest.mark.parametrize(
    ("start", "rewrite", "why"),
    [("migrate", drops_options, POOLER), *((start, older(14), OLD) for start in STARTS)],
)
def test_a_process_does_not_start_on_a_database_that_cannot_be_worked_on(
    start: str, rewrite: Rewrite, why: str, image: Image, environment: dict[str, str]
) -> None:
    with through(rewrite, environment) as changed:
        done = image.run(STARTS[start], changed)

    assert done.returncode != 0
    assert why in done.stdout + done.stderr
    assert start == "doctor" or done.stderr.strip().splitlines()[-1].startswith(f"NORIA_DATABASE_URL: {why}")


def test_a_database_that_is_away_may_come_back_and_is_not_refused() -> None:
    nobody = known(database_url="postgresql://noria:pw@127.0.0.1:9/noria")

    assert database.why_unfit(database.engine(nobody, threads=1)) is None


@pytest.mark.parametrize("line", ["python -m alembic upgrade head", "noria audit"])
def test_the_databases_short_name_is_understood_without_the_settings_too(
    line: str, image: Image, environment: dict[str, str]
) -> None:
    short = environment["NORIA_DATABASE_URL"].replace("postgresql+psycopg", "postgres")

    done = image.run(line, environment | {"NORIA_DATABASE_URL": short})

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", ["python -m alembic upgrade head", "noria projects list", "noria doctor"])
def test_an_address_that_is_no_databases_is_refused_in_a_sentence(
    line: str, image: Image, environment: dict[str, str]
) -> None:
    done = image.run(line, environment | {"NORIA_DATABASE_URL": "mysql://u:pw@h/n"})

    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "must begin with postgresql://" in " ".join(done.stderr.replace("│", "").split())


def test_a_message_that_is_taken_leaves_nothing_behind_in_redis(broker_url: str) -> None:
    """To keep it there until it is acknowledged takes two calls a message, and the row makes it again anyway."""
    app, taken = broker.celery_app(known(broker_url=broker_url)), list[Any]()
    broker.publish(app, broker.TICK, "tick", [])

    with redis.Redis.from_url(broker_url) as client, app.connection_for_read() as connection:
        with app.amqp.TaskConsumer(connection, callbacks=[lambda _, message: taken.append(message)]):
            connection.drain_events(timeout=10)
        kept = list(client.scan_iter("noria:unacked*"))

    assert len(taken) == 1
    assert kept == []
