"""The usual Celery chain: create, then a look that is delayed and retried, then the copy, then the webhook."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import os
from typing import Any

import httpx
from celery import Celery
from sqlalchemy.exc import OperationalError

from tests.bench.peers import parts

app = Celery("chain", broker=os.environ["BENCH_BROKER_URL"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

_FAILS = (httpx.HTTPError, OperationalError)


@app.task(name="chain.start", autoretry_for=_FAILS, retry_backoff=True)
def create(clip_id: int) -> None:
    """Makes the task."""
    look.apply_async((clip_id, parts.create(clip_id)), countdown=parts.POLL_SECONDS)


@app.task(bind=True, max_retries=None)
def look(self: Any, clip_id: int, task_id: str) -> None:
    """Looks at the task, and again a little later while it runs."""
    try:
        link = parts.look(task_id)
    except httpx.HTTPError as error:
        raise self.retry(exc=error, countdown=parts.POLL_SECONDS) from error
    if link is None:
        raise self.retry(countdown=parts.POLL_SECONDS)
    store.delay(clip_id, link)


@app.task(autoretry_for=_FAILS, retry_backoff=True)
def store(clip_id: int, link: str) -> None:
    """Copies the output."""
    parts.store(clip_id, link)
    tell.delay(clip_id)


@app.task(autoretry_for=_FAILS, retry_backoff=True, max_retries=10)
def tell(clip_id: int) -> None:
    """Calls the user back."""
    parts.tell(clip_id)
