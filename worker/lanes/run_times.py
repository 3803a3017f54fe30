"""What was learned of run times: how long the last tasks of each model and shape took.

A tick sets them anew each half minute, from the tasks' rows; processes read them again as often.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, func, select, true
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import database
from worker.catalog import Catalog
from worker.claims import Now
from worker.tables import Job, Lane, RunTime

_REREAD_SECONDS = 30.0
_FROM, _AT_LEAST, _OVER = 300, 5, timedelta(days=7)
_EARLY = 0.02  # the share of tasks that may have ended before their first look


@dataclass(frozen=True)
class Times:
    """Seconds within which hardly any task of a model and shape has ended, and half of them have."""

    early: float
    median: float


class Learned:
    """What was learned of run times, read every half minute at the most."""

    def __init__(self, engine: Engine, catalog: Catalog, patience: timedelta) -> None:
        self._engine = engine
        self._patience = patience
        self._catalog = catalog
        self._times: dict[tuple[str, str], Times] = {}
        self._read_at = -math.inf

    def times(self, job: Job) -> Times | None:
        """The run times of tasks such as the job's; None where they are not learned."""
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            self._read_at = time.monotonic()
            self._times = database.read(self._engine, run_times, self._patience)
        return self._times.get((job.model, self.shape(job)))

    def shape(self, job: Job) -> str:
        """What of the job's request its run time depends on."""
        return shape(self._catalog, job.input)


def shape(catalog: Catalog, wanted: Mapping[str, Any]) -> str:
    """What of an input a task's run time depends on: "720P 5" for five seconds of clip, "1280*1280 2" for pictures."""
    size = str(wanted.get("size") or "")
    parts = (wanted.get("resolution") or catalog.tier(size) or size, wanted.get("duration"), wanted.get("n"))
    return " ".join(str(part) for part in parts if part)


def learn(connection: Connection, now: Now) -> None:
    """Sets the run times of each model and shape to the quantiles of its last tasks, where there are enough to tell."""
    last = (
        select(Job.shape, Job.run_seconds)
        .where(Job.lane_id == Lane.id, Job.run_seconds.is_not(None), Job.created_at > now - _OVER)
        # Not by id: then the planner may read all jobs, backwards, for each lane that has few.
        .order_by(Job.created_at.desc())
        .limit(_FROM)
        .correlate(Lane)
        .lateral("last")
    )
    early, median = (func.percentile_cont(share).within_group(last.c.run_seconds) for share in (_EARLY, 0.5))
    learned = (
        select(Lane.model, last.c.shape, early, median)
        .join(last, true())
        .where(last.c.shape.is_not(None))
        .group_by(Lane.model, last.c.shape)
        .having(func.count() >= _AT_LEAST)
    )
    fresh = upsert(RunTime).from_select(["model", "shape", "early", "median"], learned)
    told = fresh.on_conflict_do_update(
        index_elements=[RunTime.model, RunTime.shape],
        set_={"early": fresh.excluded.early, "median": fresh.excluded.median},
    )
    connection.execute(told)


def run_times(connection: Connection) -> dict[tuple[str, str], Times]:
    """What was learned, by model and shape."""
    rows = connection.execute(select(*RunTime.__table__.c))
    return {(row.model, row.shape): Times(row.early, row.median) for row in rows}
