"""What an endpoint works with: one value per app, made at its start, handed out by `Here`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Connection, Engine

from api.gates import Gates, gates
from api.limits import Rates, Waiting
from api.probes import Probes, probes
from api.streams import Watch
from worker import broker, catalog
from worker import context as worker_context
from worker.broker import Sender
from worker.catalog import Catalog
from worker.database import engine
from worker.jobs import flower
from worker.settings import Settings
from worker.storage import Bucket
from worker.tables import Job, Project

_CONNECTIONS = 28  # as many as the gates let handlers run that hold one; looks at keys are short


@dataclass(frozen=True)
class Context:
    """The process's settings, catalog, database, bucket, word to the broker, and limits."""

    settings: Settings
    catalog: Catalog
    engine: Engine
    beside: Engine  # for whether the database answers, whatever the requests hold of the other
    bucket: Bucket
    sender: Sender
    rates: Rates
    waiting: Waiting
    watch: Watch
    probes: Probes
    gates: Gates

    @cached_property
    def provider(self) -> worker_context.Context:
        """What a step works with, for the few requests that ask the provider itself; made at the first of them."""
        return replace(worker_context.make(self.settings, patience=timedelta(0)), engine=self.engine)

    def tell(self, job: Job, project: Project) -> None:
        """Tells Flower of the job's state, and asks for a tick; waits for nobody."""
        if event := flower.event(job, project.name, []):
            self.sender.tell(event)
        self.sender.hint()


def make(settings: Settings) -> Context:
    """The context of this process; opens no connection yet."""
    database, beside = engine(settings, threads=_CONNECTIONS), engine(settings, threads=2)
    bucket = Bucket(settings)
    celery = broker.celery_app(settings)
    return Context(
        settings=settings,
        catalog=catalog.load(),
        engine=database,
        beside=beside,
        bucket=bucket,
        sender=Sender(celery),
        rates=Rates(settings.api_rate),
        waiting=Waiting(settings.max_waiting),
        watch=Watch(database),
        probes=probes(settings, beside, bucket),
        gates=gates(settings.max_input_bytes),
    )


def moment(connection: Connection) -> datetime:
    """Postgres's time now, in the transaction that uses it."""
    now: datetime = connection.exec_driver_sql("select statement_timestamp()").scalar_one()
    return now


async def here(request: Request) -> Context:
    """The app's context."""
    context: Context = request.app.state.context
    return context


Here = Annotated[Context, Depends(here)]
