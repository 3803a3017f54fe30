"""Brokers as people have them: behind sentinels, with TLS and a user of few rights, and a cluster, which is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State
from flower.utils.broker import RedisSentinel
from kombu.exceptions import OperationalError as BrokerAway
from others import Process, free_ports, process, redis_with_tls, valkey
from redis import Redis, RedisError
from relay import Relay
from test_broker import hearing
from test_egress import _self_signed, signed

from api import limits
from ops.cli import doctor  # noqa: F401 - first, for its checks import each other
from ops.doctor import Exam, Found, Verdict, services
from ops.local.servers import HOST
from tests.chaos.lines import running
from worker import broker, catalog, database
from worker.settings import Settings
from worker.storage import Bucket

PATIENCE = 45.0  # seconds
PROJECT = Path(__file__).resolve().parents[1]
TLS_FILES = (("cert", "ca"), ("key", "key"), ("ca-cert", "ca"))


def settings(url: str) -> Settings:
    return Settings.model_validate({"database_url": "postgresql://h/noria", "broker_url": url})


def examined(url: str) -> list[Found]:
    """What doctor finds of that broker."""
    known = settings(url)
    return list(services.broker(Exam(known, catalog.load(), database.engine(known, 1), Bucket(known))))


def assert_that(holds: bool) -> None:
    assert holds


def eventually(act: Callable[[], Any]) -> Any:
    """What `act` gives, once it raises nothing."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# Sentinels


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[str, Process]]:
    """The address of two Valkeys with three sentinels, and the process of the one that is the master."""
    first, second, *watching = free_ports(5)
    sign_in = ("requirepass pw", "masterauth pw")
    with ExitStack() as running:
        master = running.enter_context(valkey(tmp_path / "first", first, *sign_in))
        running.enter_context(valkey(tmp_path / "second", second, *sign_in, f"replicaof {HOST} {first}"))
        for port in watching:
            lines = (
                f"sentinel monitor wheel {HOST} {first} 2",
                *("sentinel auth-pass wheel pw", "requirepass own", "sentinel sentinel-pass own"),
                *("sentinel down-after-milliseconds wheel 300", "sentinel failover-timeout wheel 3000"),
            )
            running.enter_context(valkey(tmp_path / str(port), port, *lines, sentinel=True))
        each = [Redis(HOST, port, password="own", decode_responses=True) for port in watching]

        def knows() -> None:
            for one in each:
                (seen,) = one.sentinel_masters().values()
                assert (seen["num-slaves"], seen["num-other-sentinels"]) == (1, 2)

        eventually(knows)
        hosts = ",".join(f"{HOST}:{port}" for port in watching)
        yield f"sentinel://:pw@{hosts}/3?master=wheel&sentinel_password=own", master


@contextlib.contextmanager
def worker(environment: dict[str, str], url: str, home: Path) -> Iterator[Celery]:
    """A worker on that broker, once it has answered; what asks it."""
    command = (sys.executable, "-m", "celery", "-A", "worker.tasks", "worker", "-P", "threads", "-c", "2")
    app = broker.celery_app(settings(url))
    named = environment | {"NORIA_BROKER_URL": url, "PATH": os.defpath, "PYTHONPATH": str(PROJECT)}
    with process((*command, "-Q", "tick,provider"), home, lambda: is_at_work(app), environment=named):
        yield app
    app.close()


def is_at_work(app: Celery) -> bool:
    """Whether a worker answers, and takes what is published: both ways of messages."""
    with contextlib.suppress(RedisError, BrokerAway):
        broker.publish(app, broker.TICK, "tick", [])
        if broker.consumers(app, 0.5).get("tick"):
            with app.connection_for_read() as connection:
                return connection.default_channel._size("tick") == 0
    return False


def test_a_worker_and_publishers_go_on_when_the_sentinels_name_another_master(
    watched: tuple[str, Process], environment: dict[str, str], tmp_path: Path
) -> None:
    url, master = watched
    rates = limits.Rates(settings(url))
    with worker(environment, url, tmp_path) as app:
        rates.spend(uuid.uuid4())
        before = broker.client(settings(url), 1).info("replication")

        master.end(signal.SIGKILL)

        eventually(lambda: assert_that(is_at_work(app)))
        after = broker.client(settings(url), 1)
        assert before["connected_slaves"] == 1
        assert after.info("replication")["connected_slaves"] == 0

        def counts() -> bool:
            key = uuid.uuid4()
            rates.spend(key)
            return bool(list(after.scan_iter(f"noria:api*{key}*")))

        eventually(lambda: assert_that(counts()))


def test_sentinels_and_the_master_that_they_name_are_spoken_to_over_tls(
    environment: dict[str, str], tmp_path: Path
) -> None:
    program, (master, watching) = redis_with_tls(), free_ports(2)
    pem, key = signed()
    (tmp_path / "ca.pem").write_bytes(pem)
    (tmp_path / "key.pem").write_bytes(key)
    tls = (*(f"tls-{what}-file {tmp_path}/{file}.pem" for what, file in TLS_FILES), "tls-auth-clients no")
    watch = (f"sentinel monitor wheel {HOST} {master} 1", "sentinel auth-pass wheel pw", "tls-replication yes")
    with ExitStack() as servers:
        for name, port, lines in (("one", master, ("requirepass pw",)), ("watch", watching, watch)):
            said = (*lines, *tls, "port 0", f"tls-port {port}")
            servers.enter_context(valkey(tmp_path / name, port, *said, sentinel=name == "watch", program=program))
        url = f"sentinels://:pw@{HOST}:{watching}/0?master=wheel&ssl_ca_certs={tmp_path}/ca.pem"
        unknown = url.partition("&")[0]

        with worker(environment, url, tmp_path):
            limits.Rates(settings(url)).spend(uuid.uuid4())
            flower = servers.enter_context(contextlib.closing(broker.celery_app(settings(url))))
            counted = RedisSentinel(
                flower.connection().as_uri(include_password=True),
                broker_options=flower.conf.broker_transport_options,
                broker_use_ssl=flower.conf.broker_use_ssl,
            )

            assert asyncio.run(counted.queues(["tick"])) == [{"name": "tick", "messages": 0}]
            assert Verdict.FAILURE not in {found.verdict for found in examined(url)}
            with pytest.raises(RedisError, match="No master found"):
                broker.client(settings(unknown), 3).ping()


def test_a_worker_that_starts_empties_the_line_of_ticks_whatever_it_reads(
    environment: dict[str, str], broker_url: str, tmp_path: Path
) -> None:
    app = broker.celery_app(settings(broker_url))
    for _ in range(3):
        broker.publish(app, broker.TICK, "tick", [])
    command = (
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker.tasks",
        "worker",
        "-P",
        "threads",
        "-c",
        "1",
        "-Q",
        "webhook",
    )
    named = environment | {"PATH": os.defpath, "PYTHONPATH": str(PROJECT)}

    def are_gone() -> bool:
        """But for the one that it asks for itself."""
        with app.connection_for_read() as connection:
            return connection.default_channel._size("tick") < 3

    assert not are_gone()
    with process(command, tmp_path, are_gone, environment=named):
        app.close()


# TLS, and a user of few rights


def test_the_rights_that_are_written_down_are_enough_over_tls(environment: dict[str, str], tmp_path: Path) -> None:
    """Those of ops/valkey.acl: for a worker, its publishers, Flower's events, the counting of requests, and doctor."""
    (port,) = free_ports(1)
    tls, pem = _self_signed()
    (tmp_path / "ca.pem").write_bytes(pem)
    rights = (PROJECT / "ops" / "valkey.acl").read_text().replace("PASSWORD", "p%w")
    (tmp_path / "users.acl").write_text(f"user default on >admin ~* &* +@all\n{rights}")

    with valkey(tmp_path, port, f"aclfile {tmp_path}/users.acl"), running(line := Relay(port, tls=tls)):
        url = f"rediss://noria:p%25w@{HOST}:{line.port}/0?ssl_ca_certs={tmp_path}/ca.pem"
        flower = State()
        with worker(environment, url, tmp_path) as app, hearing(app, flower) as hear:
            sender = broker.Sender(app)
            sender.tell({"type": "task-received", "uuid": "job"})
            sender.stop(3)
            hear(lambda: "job" in flower.tasks)
            limits.Rates(settings(url)).spend(uuid.uuid4())
            found = examined(url)
        denied = Redis(HOST, port, password="admin").acl_log()

    assert denied == []
    assert Verdict.FAILURE not in {each.verdict for each in found}


# A cluster


def test_a_cluster_is_refused_with_a_word(environment: dict[str, str], tmp_path: Path) -> None:
    port = free_ports(1)[0]
    url = f"redis://{HOST}:{port}/0"
    named = environment | {"NORIA_BROKER_URL": url, "PATH": os.defpath}
    command = (sys.executable, "-m", "celery", "-A", "worker.tasks", "worker", "-P", "threads", "-c", "1", "-Q", "tick")

    with valkey(tmp_path, port, "cluster-enabled yes"):
        done = subprocess.run(command, cwd=PROJECT, env=named, capture_output=True, text=True, timeout=60, check=False)
        (found,) = examined(url)

    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("NORIA_BROKER_URL: it is a Redis Cluster")
    assert (found.verdict, found.what[:22]) == (Verdict.FAILURE, "it is a Redis Cluster,")
