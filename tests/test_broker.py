"""What Flower hears of a job whose moves are told by different processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
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
