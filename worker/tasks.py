"""The Celery tasks, and the process's start: `celery -A worker.tasks worker`, `beat` and `flower`.

Ten tasks: `tick` finds what is due, `work` carries out one step for each row, `poll` looks at many tasks, `deliver`
sends webhooks, `complete` ends batches, `fire` submits the jobs of schedules, `sweep` looks for tasks that no job owns,
`prune` lets go what projects no longer keep, `quotas` looks at what the provider tells of limits,
`posters` makes small stills of outputs.
Their messages hold ids and claim numbers, nothing else.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from typing import Any

from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown
from sqlalchemy.exc import SQLAlchemyError

from worker import broker, catalog, context, database, log, settings, tick, tracing
from worker.claims import Numbers
from worker.runner import Runner

_settings = settings.load()
app = broker.celery_app(_settings)
sender = broker.Sender(app)
_log = log.get(__name__)


@cache
def _runner() -> Runner:
    """Made at the first use, so that beat and Flower open no database."""
    ctx = context.make(_settings)
    with ctx.engine.begin() as connection:
        tick.prepare(connection, ctx)
    return Runner(ctx, sender.hint, sender.tell)


@setup_logging.connect
def _logging(**_: Any) -> None:
    log.configure(_settings.log_level)


@worker_init.connect
def _trace(**_: Any) -> None:
    tracing.start("noria-worker")


@worker_init.connect
def _check_catalog(**_: Any) -> None:
    try:
        _log.info("catalog", digest=catalog.load().digest)
    except catalog.CatalogError as error:
        sys.exit(str(error))


@worker_init.connect
def _check_database(**_: Any) -> None:
    engine = database.engine(_settings, threads=1)
    if why := database.why_unfit(engine):
        sys.exit(f"NORIA_DATABASE_URL: {why}.")
    with suppress(SQLAlchemyError):  # it may be away
        if why := database.why_off(engine):
            _log.warning("the clock is off", why=why)


@worker_init.connect
def _check_broker(**_: Any) -> None:
    if why := broker.why_unfit(_settings):
        sys.exit(f"NORIA_BROKER_URL: {why}.")


@worker_ready.connect
def _ready(**said: Any) -> None:
    """Flower knows only what it heard, so the unfinished jobs are told again."""
    broker.look_for_free_threads(said["sender"])
    _runner().tell_unfinished()
    broker.forget_ticks(app)
    sender.hint()


@worker_shutdown.connect
def _stop_sender(**_: Any) -> None:
    sender.stop(seconds=3)
    tracing.stop()


def _task(name: str) -> Callable[[Callable[..., None]], Any]:
    def made(run: Callable[..., None]) -> Any:
        @wraps(run)
        def logged(*sent: Any) -> None:
            try:
                run(*sent)
            except Exception:  # noqa: BLE001 - Celery would log the exception's text, which may quote a prompt
                _log.exception("a message failed; its rows wait for their lease", task=name)

        # Flower shows jobs, not the messages that move them
        return app.task(name=name, send_events=False, ignore_result=True)(logged)

    return made


@_task(broker.TICK)
def run_tick() -> None:
    """One tick, and its messages."""
    _runner().tick(_publish)


@_task("noria.work")
def work(sent: list[list[Any]]) -> None:
    """One step for each row."""
    _runner().work(_numbers(sent))


@_task("noria.poll")
def poll(sent: list[list[Any]]) -> None:
    """One look at each task."""
    _runner().poll(_numbers(sent))


@_task("noria.deliver")
def deliver(sent: list[list[Any]]) -> None:
    """One try of each webhook."""
    _runner().deliver(_numbers(sent))


@_task("noria.complete")
def complete(sent: list[list[Any]]) -> None:
    """The end of each batch of which nothing is unfinished."""
    _runner().complete(_numbers(sent))


@_task("noria.fire")
def fire(_: list[list[Any]]) -> None:
    """The schedules whose time has come."""
    _runner().fire()


@_task("noria.sweep")
def sweep(_: list[list[Any]]) -> None:
    """The look for tasks that no job owns."""
    _runner().sweep()


@_task("noria.prune")
def prune(_: list[list[Any]]) -> None:
    """A part of what projects no longer keep."""
    _runner().prune()


@_task("noria.quotas")
def quotas(_: list[list[Any]]) -> None:
    """The look at what the provider tells of models and limits."""
    _runner().import_quotas()


@_task("noria.posters")
def posters(_: list[list[Any]]) -> None:
    """Some of the posters that are wanted."""
    _runner().make_posters()


def _publish(message: tick.Message) -> None:
    broker.publish(app, message.task, message.queue, [[claim.as_message() for claim in message.claims]])


def _numbers(sent: list[list[Any]]) -> Numbers:
    return [(uuid.UUID(row_id), int(number)) for row_id, number in sent]
