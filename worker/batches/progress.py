"""How far batches are: their jobs by state, what they cost, what was kept, when they end.

All is counted from the rows of the jobs, never kept in a counter, so it cannot drift. One statement reads one index:
`ix_jobs_batch` has all that is asked for, so rows are looked at only where they have just changed. What a job that was
made again had cost before is in the ledger, and no longer in its row; a parent's cost is there once it has ended.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, Connection, Row, Text, Uuid, bindparam, column, func, select, tuple_

from worker import claims, money, work
from worker.batches import forecast
from worker.batches.document import BatchCost, BatchReview, Jobs
from worker.states import AT_REST, TERMINAL, State
from worker.tables import Batch, Job

_Group = tuple[str, str]  # a kind and a model

_SENT = frozenset({State.SUBMITTING, State.UNCERTAIN, State.RUNNING})


@dataclass(frozen=True)
class Progress:
    """How far a batch is; `review` None: nobody is to look at its jobs; `finish_at` None: not known, or it waits."""

    jobs: Jobs
    cost: BatchCost
    review: BatchReview | None
    finish_at: datetime | None


def of(connection: Connection, batches: Sequence[Batch], now: datetime) -> dict[uuid.UUID, Progress]:
    """The progress of each batch; all are of one project."""
    found: dict[uuid.UUID, list[Row[Any]]] = {batch.id: [] for batch in batches}
    for row in connection.execute(_GROUPS, {"batches": list(found)}):
        found[row.batch_id].append(row)
    ends = _finish_at(connection, batches, found, now)
    return {batch_id: _progress(rows, ends[batch_id]) for batch_id, rows in found.items()}


def _progress(rows: Sequence[Row[Any]], finish_at: datetime | None) -> Progress:
    actual = sum(int(row.cost or 0) for row in rows)
    return Progress(_jobs(rows), _cost(rows, actual), _review(rows, actual), finish_at)


def _jobs(rows: Iterable[Row[Any]]) -> Jobs:
    states: Counter[str] = Counter()
    for row in rows:
        states[row.state] += row.jobs
    unfinished = sum(jobs for state, jobs in states.items() if state not in TERMINAL)
    by_state = {str(state): states[state] for state in State if states[state]}
    return Jobs(total=states.total(), unfinished=unfinished, by_state=by_state)


def _cost(rows: Sequence[Row[Any]], actual: int) -> BatchCost:
    to_come = sum(int(row.unbilled or 0) for row in rows if row.state not in TERMINAL)
    known = [int(row.estimate) for row in rows if row.estimate is not None]
    estimated = money.shown(sum(known)) if known else None
    return BatchCost(estimated=estimated, actual=_amount(actual), to_come=_amount(to_come))


def _amount(micros: int) -> str:
    shown = money.shown(micros)
    assert shown is not None, "an amount is given"
    return shown


def _review(rows: Sequence[Row[Any]], actual: int) -> BatchReview | None:
    if not any(row.reviewed for row in rows):
        return None
    approved = sum(row.approved for row in rows)
    return BatchReview(
        waiting=sum(row.jobs for row in rows if row.state == State.AWAITING_REVIEW),
        approved=approved,
        rejected=sum(row.jobs for row in rows if row.state == State.REJECTED),
        cost_per_approved=money.shown(round(actual / approved)) if approved else None,
    )


def _finish_at(
    connection: Connection, batches: Sequence[Batch], found: Mapping[uuid.UUID, Sequence[Row[Any]]], now: datetime
) -> dict[uuid.UUID, datetime | None]:
    """When each batch ends: with the last of its kinds and models. None: it is paused, waits for people, or unknown."""
    moving = {
        batch.id: [row for row in found[batch.id] if row.state not in AT_REST] if batch.paused_at is None else []
        for batch in batches
    }
    rows = [row for some in moving.values() for row in some]
    waiting = _behind_the_line(connection, rows, batches[0].project_id, now)
    sent = _sent(connection, rows, now)
    ends: dict[uuid.UUID, datetime | None] = {}
    for batch_id, some in moving.items():
        known = [_end(row, waiting, sent, now) for row in some]
        ends[batch_id] = max(filter(None, known)) if known and None not in known else None
    return ends


def _end(
    row: Row[Any], waiting: Mapping[_Group, datetime | None], sent: Mapping[Any, datetime], now: datetime
) -> datetime | None:
    """When the last of a group of jobs ends: what is being copied, now; what waits, behind all that waits."""
    if row.state == State.COPYING:
        return now
    return sent[_of(row)] if row.state in _SENT else waiting[row.kind, row.model]


def _behind_the_line(
    connection: Connection, rows: Sequence[Row[Any]], project_id: uuid.UUID, now: datetime
) -> dict[_Group, datetime | None]:
    """The ends of what waits, and of what is made in parts, by kind and model.

    One forecast for all batches, since they stand in one another's line: their jobs are among what it finds waiting, so
    it is asked for one more of each.
    """
    last = {(row.kind, row.model): 1 for row in rows if row.state not in _SENT and row.state != State.COPYING}
    spans = forecast.spans(connection, last, project_id, now) if last else {}
    return {group: now + span if span is not None else None for group, span in spans.items()}


def _sent(connection: Connection, rows: Sequence[Row[Any]], now: datetime) -> dict[Any, datetime]:
    """The ends of what is with the provider: a run time after the newest began, which stands still while it runs.

    Not before now: what runs longer than others may end at any moment.
    """
    groups = list(dict.fromkeys(_of(row) for row in rows if row.state in _SENT))
    if not groups:
        return {}
    ids, kinds, models = zip(*groups, strict=True)
    began = connection.execute(_BEGAN, {"batches": list(ids), "kinds": list(kinds), "models": list(models)})
    runs = forecast.run_times(connection, sorted(set(models)))
    return {_of(row): max(now, (row.began or now) + timedelta(seconds=runs[row.model])) for row in began}


def _of(row: Row[Any]) -> tuple[uuid.UUID, str, str]:
    return row.batch_id, row.kind, row.model


# Built once: to build a statement costs more than to run it. The function is migration 0009's, which says why.
_FOUND = func.batch_groups(bindparam("batches", type_=ARRAY(Uuid))).table_valued(
    column("batch_id", Uuid),
    "kind",
    "model",
    "state",
    *("jobs", "reviewed", "approved", "estimate", "cost", "unbilled"),
)
_GROUPS = select(_FOUND)
# when the newest of each group began that is with the provider: one look into `ix_jobs_batch` for each
_ASKED = claims.unnested("asked", batches=Uuid(), kinds=Text(), models=Text())
_BEGAN = select(
    _ASKED.c.batches.label("batch_id"),
    _ASKED.c.kinds.label("kind"),
    _ASKED.c.models.label("model"),
    select(func.max(func.coalesce(Job.started_at, Job.submitted_at)))
    .where(
        tuple_(Job.batch_id, Job.kind, Job.model) == tuple_(_ASKED.c.batches, _ASKED.c.kinds, _ASKED.c.models),
        work.in_states(*sorted(_SENT)),
    )
    .correlate(_ASKED)
    .scalar_subquery()
    .label("began"),
)
