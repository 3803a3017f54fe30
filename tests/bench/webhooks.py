"""(h) How fast webhooks flow: to one healthy receiver, to a hundred, and with a dead one among these."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench import seeding, usage
from tests.bench.figures import Figure, percentile
from tests.bench.receivers import receiving
from tests.bench.rig import Rig

NAME = "webhooks"
_MANY = 100
_STOPPED = ("worker-control", "worker-rest", "clock")


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """Deliveries that are all due at once; a part that takes too long is broken off, and its rate told."""
    waiting, patience = (200, 10.0) if quick else (1_000, 100.0)
    return [
        *_told(rig, "one receiver", 1, 0, waiting, patience),
        *_told(rig, f"{_MANY} receivers", _MANY, 0, waiting, patience),
        *_told(rig, f"{_MANY - 1} receivers and a dead one", _MANY - 1, 1, waiting, patience),
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
        rig.sql(
            "update deliveries set state = 'exhausted', run_at = null, claimed = null, finished_at = now()"
            " where state = 'waiting'"
        )
    seconds = took[-1] if is_done else patience
    ours = used["worker-control"] + used["worker-rest"] + used["clock"]
    return [
        Figure(NAME, f"{name}: {expected:,} deliveries", "a second", len(took) / seconds),
        Figure(NAME, f"{name}: p95 told after", "s", percentile(took, 0.95) if is_done else None),
        Figure(NAME, f"{name}: last told after", "s", took[-1] if is_done else None),
        Figure(NAME, f"{name}: workers and clock", "ms CPU a delivery", ours / max(1, len(took)) * 1000),
    ]


@contextmanager
def _stopped(rig: Rig) -> Iterator[None]:
    """Workers and clock stand still, so that nothing is sent before all of it is due."""
    rig.quiet()
    pids = [rig.stack.processes[name] for name in _STOPPED]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
