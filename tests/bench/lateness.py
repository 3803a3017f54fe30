"""How late looks at running tasks are: their rows are read many times a second, and held against when they were due."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median, quantiles
from typing import Any

from sqlalchemy import Engine, text

SAMPLED_SECONDS = 0.05


@dataclass
class Lateness:
    """How long after they were due looks were claimed by a tick, and were done by a worker, in seconds."""

    claimed: list[float] = field(default_factory=list)
    looked: list[float] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """In words and numbers."""
        looks, ticks = _spread(self.looked), _spread(self.claimed)
        return {"looks": len(self.looked), "claimed late by, seconds": ticks, "looked late by, seconds": looks}


@dataclass
class _Due:
    """A look that is due: when, and where its row stood then."""

    at: datetime
    claim: int
    polls: int
    is_claimed: bool = False


@contextmanager
def watched(engine: Engine, kind: str) -> Iterator[Lateness]:
    """The lateness of the looks at tasks of that kind, as it grows for as long as the block lasts."""
    lateness, stop = Lateness(), threading.Event()

    def watch() -> None:
        waiting: dict[Any, _Due] = {}
        while not stop.wait(SAMPLED_SECONDS):
            with engine.connect() as connection:
                for row in connection.execute(text(_LOOKS), {"kind": kind}):
                    _compare(lateness, waiting, row)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lateness
    finally:
        stop.set()
        thread.join()


def _compare(lateness: Lateness, waiting: dict[Any, _Due], row: Any) -> None:
    due = waiting.get(row.id)
    if due and not due.is_claimed and row.claim != due.claim:
        lateness.claimed.append((row.now - due.at).total_seconds())
        due.is_claimed = True
    if due and (row.polls > due.polls or row.state != "running"):
        lateness.looked.append((row.now - due.at).total_seconds())
        del waiting[row.id]
    if row.state == "running" and row.claimed is None and row.id not in waiting:
        waiting[row.id] = _Due(row.run_at, row.claim, row.polls)


def _spread(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    return {
        "median": round(median(seconds), 2),
        "p95": round(quantiles(seconds, n=20)[18], 2),
        "most": round(max(seconds), 2),
    }


_LOOKS = "select id, polls, run_at, claim, claimed, state, clock_timestamp() as now from jobs where kind = :kind"
