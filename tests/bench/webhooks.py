"""(h) How fast webhooks flow: to one healthy receiver, to a hundred, and with a dead one among these.

Three parts have deliveries that are all due at once. The fourth is an afternoon: jobs of a hundred receivers end one
after the other, one receiver is dead, and each of the others is told so much after its job's end.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench import seeding, usage
from tests.bench.asking import Request, ask_all, clips
from tests.bench.figures import Figure, percentile
from tests.bench.receivers import receiving
from tests.bench.rig import CLOSED, SIZES, WORKERS, Rig

NAME = "webhooks"
_MANY = 100
_ENDS = 50  # jobs that end in a second
_GIVEN_UP = """
    update deliveries set state = 'exhausted', run_at = null, claimed = null, finished_at = now()
     where state = 'waiting'
"""
_EVENTS = "select event_id, job_id from deliveries where job_id = any(cast(:jobs as uuid[]))"


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """A part that takes too long is broken off, and its rate told."""
    one, many, patience, seconds = (200, 200, 10.0, 5) if quick else (5_000, 1_000, 100.0, 20)
    return [
        *_told(rig, "one receiver", 1, 0, one, patience),
        *_told(rig, f"{_MANY} receivers", _MANY, 0, many, patience),
        *_told(rig, f"{_MANY - 1} receivers and a dead one", _MANY - 1, 1, many, patience),
        *_one_by_one(rig, f"{_MANY - 1} receivers and a dead one, {_ENDS} ends a second", seconds, patience),
    ]


def _told(rig: Rig, name: str, healthy: int, dead: int, waiting: int, patience: float) -> list[Figure]:
    each = waiting // (healthy + dead)
    expected = each * healthy
    with receiving(healthy, dead) as mail:
        with _stopped(rig):
            seeding.deliveries(rig, mail.urls, each)
            cpu = rig.cpu()
            began = time.monotonic()
        is_done = mail.wait_for(expected, patience)
        took = sorted(came - began for came in mail.came.values())
        used = usage.difference(cpu, rig.cpu())
        rig.sql(_GIVEN_UP)
    seconds = took[-1] if is_done else patience
    ours = sum(used[name] for name in WORKERS)
    return [
        Figure(NAME, f"{name}: {expected:,} deliveries", "a second", len(took) / seconds),
        Figure(NAME, f"{name}: p95 told after", "s", percentile(took, 0.95) if is_done else None),
        Figure(NAME, f"{name}: last told after", "s", took[-1] if is_done else None),
        Figure(NAME, f"{name}: workers and clock", "ms CPU a delivery", ours / max(1, len(took)) * 1000),
    ]


def _one_by_one(rig: Rig, name: str, seconds: int, patience: float) -> list[Figure]:
    """Jobs that are canceled at an even pace, the receivers by turns; each is told when its job has ended."""
    with receiving(_MANY - 1, dead=1) as mail:
        urls = mail.urls * (_ENDS * seconds // _MANY)
        jobs = [answer.body["id"] for answer in ask_all(rig.door, _jobs(urls))]
        cpu = rig.cpu()
        ended = ask_all(rig.door, [("POST", f"/v1/jobs/{job}/cancel", None) for job in jobs], per_second=_ENDS)
        expected = [n for n, url in enumerate(urls) if url != mail.urls[-1]]
        is_done = mail.wait_for(len(expected), patience)
        used = usage.difference(cpu, rig.cpu())
        told = {f"evt_{row.event_id}": str(row.job_id) for row in rig.sql(_EVENTS, jobs=jobs)}
        rig.sql(_GIVEN_UP)
    came = {told[message]: at for message, at in mail.came.items()}
    # from the answer to the cancel, by which the end is on record
    took = [came[jobs[n]] - ended[n].asked_at - ended[n].seconds for n in expected if jobs[n] in came]
    ours = sum(used[name] for name in WORKERS)
    return [
        Figure(NAME, f"{name}: p50 told after", "s", percentile(took, 0.5)),
        Figure(NAME, f"{name}: p95 told after", "s", percentile(took, 0.95) if is_done else None),
        Figure(NAME, f"{name}: last told after", "s", max(took) if is_done else None),
        Figure(NAME, f"{name}: workers and clock", "ms CPU a delivery", ours / len(took) * 1000),
    ]


def _jobs(urls: list[str]) -> list[Request]:
    return [request for url in urls for request in clips(1, CLOSED, SIZES[CLOSED], webhook_url=url)]


@contextmanager
def _stopped(rig: Rig) -> Iterator[None]:
    """Workers and clock stand still, so that nothing is sent before all of it is due."""
    rig.quiet()
    pids = [rig.stack.processes[name] for name in WORKERS]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
