"""Messages between hosts whose clocks differ, and what Flower hears of a job that different processes move."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import time_machine
from celery import Celery
from celery.beat import Service
from celery.events.state import State
from pydantic import SecretStr

from tests.stage import Stage
from worker import broker

PATIENCE = 10.0  # seconds

Hear = Callable[..., None]


@pytest.fixture
def app(play: Stage, broker_url: str) -> Celery:
    return broker.celery_app(play.ctx.settings.model_copy(update={"broker_url": SecretStr(broker_url)}))


@contextmanager
def hearing(app: Celery, flower: State) -> Iterator[Hear]:
    """Hears as Flower does: what it yields hears on until something holds, or nothing comes."""
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": flower.event})
        with receiver.consumer_context(wakeup=False) as (line, _, _):
            with suppress(TimeoutError):
                line.drain_events(timeout=0.1)  # subscribes

            def hear(until: Callable[[], bool], patience: float = PATIENCE) -> None:
                while not until():
                    line.drain_events(timeout=patience)

            yield hear


@pytest.fixture
def ticks(broker_url: str) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The ticks that wait, as their headers."""
    with redis.Redis.from_url(broker_url) as client:
        yield lambda: [json.loads(each)["headers"] for each in client.lrange("noria:tick", 0, -1)]


Ticks = Callable[[], list[dict[str, Any]]]


def said(word: str, job: str) -> dict[str, Any]:
    return {"type": f"task-{word}", "uuid": job}


def test_flower_ends_on_the_state_that_was_entered_last_whichever_process_is_slower(app: Celery) -> None:
    control, transfer = broker.Sender(app), broker.Sender(app)
    heard: list[tuple[str, str]] = []
    flower = State(callback=lambda _, event: heard.append((event["type"], event["uuid"])))

    with hearing(app, flower) as hear:
        control.tell(said("received", "other"))
        hear(lambda: ("task-received", "other") in heard)
        control.tell(said("copying", "job"))  # rests for a moment, while the copy is made elsewhere
        transfer.tell(said("awaiting_review", "job"))
        hear(lambda: {("task-copying", "job"), ("task-awaiting_review", "job")} <= {*heard})

    assert flower.tasks["job"].state == "AWAITING_REVIEW"


def test_a_process_that_stops_tells_at_once_what_it_would_have_told_late(app: Celery) -> None:
    sender, flower = broker.Sender(app), State()

    with hearing(app, flower) as hear:
        sender.tell(said("awaiting_review", "job"))
        sender.stop(seconds=3)  # fewer than it would wait
        hear(lambda: "job" in flower.tasks, patience=0.5)

    assert flower.tasks["job"].state == "AWAITING_REVIEW"


def test_a_tick_is_good_by_every_clock(app: Celery, ticks: Ticks) -> None:
    broker.publish(app, broker.TICK, "tick", [])

    assert [tick["expires"] for tick in ticks()] == [None]


def test_the_clock_ticks_on_when_its_hosts_time_is_set_back(app: Celery, ticks: Ticks) -> None:
    scheduler = Service(app, scheduler_cls=app.conf.beat_scheduler).scheduler  # as `celery beat` does

    def ticks_once_more() -> bool:
        before, ends = len(ticks()), time.monotonic() + PATIENCE
        while len(ticks()) == before and time.monotonic() < ends:
            time.sleep(max(0.0, scheduler.tick()))
        return len(ticks()) > before

    assert ticks_once_more()
    with time_machine.travel(datetime.now(UTC) - timedelta(hours=8), tick=True):
        assert ticks_once_more()
    assert {tick["expires"] for tick in ticks()} == {None}


def test_a_worker_that_starts_forgets_the_ticks_that_piled_up(app: Celery, ticks: Ticks) -> None:
    for _ in range(3):
        broker.publish(app, broker.TICK, "tick", [])
    broker.publish(app, "noria.work", "provider", [[]])

    broker.forget_ticks(app)

    assert ticks() == []
    with app.connection_for_read() as connection:
        assert connection.default_channel.queue_purge("provider") == 1
