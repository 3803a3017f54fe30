"""What chaos asks of the API: clips and pictures, a few narrations and summaries, batches, and a schedule."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from api.client import ApiError, Client
from ops.cli import reach
from tests.chaos import stack
from tests.chaos.stack import READ, SPOKEN

CANARY = "heron-"  # begins every prompt, so that one in a log is found
_FAMILY_EVERY, _FAMILY_FIRST = 13, 7  # jobs
_CANCELED_EVERY = 40
ROWS = 14  # of a batch
_CANCELED_BATCHES = 3  # one in so many
_ACCEPTED_SECONDS = 120.0  # in which the API must have taken a submission

T = TypeVar("T")


@dataclass
class Load:
    """What is asked of the API, and what it promised: `custom_id` → job id, and the id of the schedule."""

    bodies: Sequence[Mapping[str, Any]]
    accepted: dict[str, str] = field(default_factory=dict)
    schedule: str = ""
    hook: str = ""


def load(count: int, hook: str) -> Load:
    """So many submissions, which can all be told apart."""
    return Load(list(_bodies(count, hook)), hook=hook)


def submit(door: reach.Door, load: Load, n: int) -> None:
    """Submits one job under one Idempotency-Key, as often as it takes; a few are canceled right after."""
    body = load.bodies[n]
    job = _persist(door, lambda client: client.submit(body, idempotency_key=body["custom_id"]))
    load.accepted[body["custom_id"]] = str(job.id)
    if n % _CANCELED_EVERY == _CANCELED_EVERY - 1:
        _persist(door, lambda client: client.cancel(job.id))


def send_batch(door: reach.Door, load: Load, n: int) -> None:
    """Sends one file twice, each time as often as it takes: its rows are made once. One in three is canceled."""
    bodies = itertools.islice(_bodies(ROWS, load.hook), ROWS)
    rows = [{**body, "custom_id": f"batch-{n}-{row}"} for row, body in enumerate(bodies)]
    file = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    first, again = (_sent(door, file, {"webhook_url": load.hook}, f"batch-{n}-{time}") for time in (1, 2))
    for item in _persist(door, lambda client: list(client.batch_items(again))):
        assert item.job is not None
        load.accepted[item.custom_id or ""] = str(item.job.id)
    if n % _CANCELED_BATCHES == 0:
        _persist(door, lambda client: client.change_batch(first, "cancel"))


def set_clock(door: reach.Door, load: Load) -> None:
    """Makes a schedule that fires each minute, and asks for one run at once."""
    words = {"prompt": f"{CANARY}{{{{run}}}}: how many minutes has an hour?", "max_tokens": 50}
    template = {"kind": "text", "model": READ, "input": words, "custom_id": "run-{{run}}"}
    body = {"name": "each minute", "cron": "* * * * *", "template": template, "overlap": "queue"}
    load.schedule = _persist(door, lambda client: client.make_schedule(body).as_json())["id"]
    _persist(door, lambda client: client.run_schedule(load.schedule, idempotency_key="first"))


def stop_clock(door: reach.Door, load: Load) -> None:
    """Pauses the schedule, and takes down what its runs submitted as promised."""
    _persist(door, lambda client: client.pause_schedule(load.schedule))
    for run in _persist(door, lambda client: list(client.runs(load.schedule))):
        if run.job_id:
            load.accepted[f"run-{run.id}"] = str(run.job_id)


def _sent(door: reach.Door, file: bytes, options: Mapping[str, Any], key: str) -> str:
    """The id of the batch, committed."""
    draft = _persist(door, lambda client: client.make_batch("rows.jsonl", io.BytesIO(file), options, key))
    assert not draft.rows.bad, draft.report
    return str(_persist(door, lambda client: client.commit_batch(draft.id)).id)


def _bodies(count: int, hook: str) -> Iterator[dict[str, Any]]:
    models = itertools.cycle(stack.models().items())
    families = itertools.cycle((_narration, _calls, _batch))
    for n in range(count):
        if n % _FAMILY_EVERY == _FAMILY_FIRST:
            wanted = next(families)(n)
        else:
            model, kind = next(models)
            wanted = {"kind": kind, "model": model, "input": {"prompt": f"{CANARY}{n} over the reeds"}}
        yield {**wanted, "custom_id": f"chaos-{n}", "webhook_url": hook}


def _narration(n: int) -> dict[str, Any]:
    """Of three to ten segments."""
    verses = [
        f"{CANARY}{n}第{verse}节：水车日夜不停地转动，把河水一桶一桶地提上来。" for verse in range(18 + n % 7 * 6)
    ]
    return {"kind": "speech", "model": SPOKEN, "input": {"text": "".join(verses)}}


def _calls(n: int) -> dict[str, Any]:
    return _summary(n, "calls")


def _batch(n: int) -> dict[str, Any]:
    return _summary(n, "batch")


def _summary(n: int, mode: str) -> dict[str, Any]:
    """Of six documents, and a digest over them."""
    documents = [{"id": f"d{d}", "text": f"{CANARY}{n} has page {d}. It says little."} for d in range(6)]
    return {"kind": "summary", "model": READ, "input": {"documents": documents, "mode": mode, "digest": True}}


def _persist(door: reach.Door, ask: Callable[[Client], T]) -> T:
    """What the API answers; asked again while it is away."""
    deadline = time.monotonic() + _ACCEPTED_SECONDS
    while True:
        try:
            with reach.api(door) as client:
                return ask(client)
        except (ApiError, reach.NotReachable):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
