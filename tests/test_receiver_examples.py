"""The receivers that the README points to, run as they stand: what they take, refuse, and do once."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from serving import eventually
from stage import Stage

from worker import webhooks
from worker.tables import WebhookEndpoint
from worker.webhooks import registry
from worker.webhooks.registry import Wanted

ROOT = Path(__file__).resolve().parents[1]
NODE = shutil.which("node")
PROGRAMS = [
    pytest.param((sys.executable, "ops/receivers/receiver.py"), id="Python"),
    pytest.param(
        (NODE or "node", "ops/receivers/receiver.mjs"),
        id="Node",
        marks=pytest.mark.skipif(NODE is None, reason="there is no node on this machine"),
    ),
]
SECRET = webhooks.new_secret()
BODY = json.dumps({"type": "job.succeeded", "timestamp": "", "sequence": 3, "data": {"id": "0199"}})


@dataclass
class Example:
    """A receiver that runs; `lines` are what it did, each an event."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def post(self, headers: dict[str, str], body: str = BODY) -> int:
        return httpx.post(self.url, content=body.encode(), headers=headers, verify=False).status_code

    def lines(self) -> list[str]:
        """All that it did; it has ended then."""
        self.process.kill()
        return self.process.communicate()[0].splitlines()


Start = Callable[[str], Example]


@pytest.fixture(params=PROGRAMS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts the receiver with a secret and an inbox of its own, and waits until it listens."""
    with ExitStack() as stack:
        yield lambda secret: stack.enter_context(_running(request.param, secret, tmp_path))


@contextmanager
def _running(command: tuple[str, ...], secret: str, folder: Path) -> Iterator[Example]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"SECRET": secret, "PORT": str(port), "INBOX": str(folder / f"inbox-{port}"), "PATH": ""}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: _listens(port))
            yield Example(process, port)
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def _signed(at: datetime, secret: str = SECRET) -> dict[str, str]:
    return webhooks.signed("evt_7", BODY, secret, at)


def _deliver(play: Stage) -> None:
    while messages := [message for message in play.tick() if message.task == "noria.deliver"]:
        play.play(messages)


# Real deliveries


def test_a_receiver_takes_what_is_delivered(play: Stage, start: Start) -> None:
    example = start(SECRET)
    _register(play, example, SECRET)
    job = play.submit()

    _deliver(play)

    (delivery,) = play.deliveries()
    assert (delivery.state, delivery.last_status) == ("delivered", 204)
    assert example.lines() == [f"evt_{delivery.event_id} job.queued {job.id}"]


def test_a_receiver_with_another_secret_refuses_what_is_delivered(play: Stage, start: Start) -> None:
    example = start(webhooks.new_secret())
    _register(play, example, SECRET)
    play.submit()

    _deliver(play)

    (delivery,) = play.deliveries()
    assert (delivery.state, delivery.last_status) == ("waiting", 401)
    assert example.lines() == []


def test_while_a_secret_is_rotated_receivers_with_either_take_what_is_delivered(play: Stage, start: Start) -> None:
    before = start(SECRET)
    endpoint = _register(play, before, SECRET)
    with play.ctx.engine.begin() as connection:
        rotated = registry.rotate(connection, endpoint, play.now())
    after = start(rotated.secret)

    play.submit()
    _deliver(play)
    play.sql("update webhook_endpoints set url = :url", url=after.url)
    play.submit()
    _deliver(play)

    assert [(found.state, found.last_status) for found in play.deliveries()] == [("delivered", 204)] * 2
    assert (len(before.lines()), len(after.lines())) == (1, 1)


def _register(play: Stage, example: Example, secret: str) -> WebhookEndpoint:
    """An endpoint with that secret."""
    with play.ctx.engine.begin() as connection:
        endpoint = registry.make(connection, play.project.id, Wanted(example.url, ["job.queued"], ""))
    play.sql("update webhook_endpoints set secret = :secret", secret=secret)
    endpoint.secret = secret
    return endpoint


# What is not a delivery


@pytest.mark.parametrize("minutes", [-6, 6])
def test_what_was_signed_more_than_five_minutes_away_is_refused(start: Start, minutes: int) -> None:
    example = start(SECRET)
    now = datetime.now(UTC)

    away, near = (example.post(_signed(now + timedelta(minutes=m))) for m in (minutes, minutes - minutes // 3))

    assert (away, near) == (401, 204)


def test_what_is_changed_or_not_signed_is_refused(start: Start) -> None:
    example = start(SECRET)
    good = _signed(datetime.now(UTC))

    found = [
        example.post(good, BODY.replace("0199", "0198")),
        example.post({**good, "webhook-id": "evt_8"}),
        example.post({**good, "webhook-signature": "v1,"}),
        example.post({**good, "webhook-signature": "v1"}),
        example.post({**good, "webhook-signature": "v1,@@@a"}),
        example.post({**good, "webhook-signature": good["webhook-signature"].replace("v1,", "v2,")}),
        example.post({name: good[name] for name in good if name != "webhook-signature"}),
        example.post({}),
    ]

    assert found == [401] * 8
    assert example.lines() == []


def test_an_event_that_comes_twice_is_taken_twice_and_done_once(start: Start) -> None:
    example = start(SECRET)
    now = datetime.now(UTC)

    found = [example.post(_signed(now - timedelta(seconds=seconds))) for seconds in (60, 0)]

    assert found == [204, 204]
    assert example.lines() == ["evt_7 job.succeeded 0199"]


def test_a_body_that_is_too_long_is_refused(start: Start) -> None:
    example = start(SECRET)

    assert example.post(_signed(datetime.now(UTC)), "x" * ((1 << 20) + 1)) == 413
    assert example.post(_signed(datetime.now(UTC))) == 204
