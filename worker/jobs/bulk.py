"""Many jobs canceled, or made again, at a person's word: by their ids, or by a filter; a few hundred a transaction.

Each transaction is whole by itself and may be repeated, so one that lost against another (a deadlock, a lock that
others held for too long) is tried again, and a call that broke off is simply made again.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Literal, TypeVar

from pydantic import Field
from sqlalchemy import Connection, Engine, select

from worker import database, money
from worker.claims import NOW
from worker.document import Amount, Answer
from worker.jobs import reading
from worker.jobs.reading import Filter
from worker.money import budgets
from worker.moves import bulk
from worker.moves.bulk import AGAIN, MADE, Fate, Fates, chunks
from worker.states import TERMINAL, State

MOST = 10_000  # jobs a call
_NAMED = 100  # refused jobs that an answer names
_PATIENCE = timedelta(seconds=10)  # how long one transaction is tried again

Action = Literal["cancel", "retry"]
T = TypeVar("T")

_CHANGED = MADE | {"canceled"}
_NOT_FOUND = Fate("not_found", "the project has no such job")
# the states of jobs for which the action may do something
_FOR: Mapping[str, frozenset[State]] = {"cancel": frozenset(State) - TERMINAL, "retry": AGAIN}


class RefusedJob(Answer):
    """A job for which nothing was done, and why."""

    id: uuid.UUID
    code: str = Field(examples=["attempt_open"])
    message: str


class BulkCost(Answer):
    """In CNY: what jobs that are canceled were to cost, and what jobs that are made again cost at most, again."""

    currency: Literal["CNY"] = "CNY"
    estimated: Amount
    unpriced: int = Field(description="of these jobs, those without a known price")


class BulkDocument(Answer):
    """What became of many jobs, or would become of them: each job has one outcome."""

    object: Literal["bulk"] = "bulk"
    action: Action
    dry_run: bool = Field(description="true: nothing was changed")
    jobs: int = Field(description="that were looked at")
    outcomes: dict[str, int] = Field(
        description="canceled, requested, too_late, already_finished; retried, held (until the budget has room);"
        " or the code of a refusal",
        examples=[{"canceled": 212, "requested": 14, "too_late": 3}],
    )
    cost: BulkCost
    refused: list[RefusedJob] = Field(description=f"the first {_NAMED}")
    has_more: bool = Field(description="the filter finds more jobs than one call may look at")
    next_cursor: str | None = Field(description="give it as `cursor`, with the same filter, to go on")


@dataclass
class Done:
    """What became of jobs, as it is found out."""

    fates: Fates = field(default_factory=dict)
    next_cursor: uuid.UUID | None = None

    @property
    def moved(self) -> list[uuid.UUID]:
        """The jobs whose state has changed."""
        return [job_id for job_id, fate in self.fates.items() if fate.outcome in _CHANGED]

    def document(self, action: Action, dry_run: bool) -> BulkDocument:
        """As the API tells it."""
        fates = self.fates.values()
        estimates = [fate.estimate for fate in fates if fate.outcome in _CHANGED]
        refused = [RefusedJob(id=i, code=fate.outcome, message=fate.why) for i, fate in self.fates.items() if fate.why]
        return BulkDocument(
            action=action,
            dry_run=dry_run,
            jobs=len(fates),
            outcomes=dict(Counter(fate.outcome for fate in fates).most_common()),
            cost=BulkCost(
                estimated=money.shown(sum(filter(None, estimates))) or "",
                unpriced=estimates.count(None),
            ),
            refused=refused[:_NAMED],
            has_more=self.next_cursor is not None,
            next_cursor=str(self.next_cursor) if self.next_cursor else None,
        )


def found(
    connection: Connection, project_id: uuid.UUID, action: Action, wanted: Filter
) -> tuple[list[uuid.UUID], uuid.UUID | None]:
    """The newest jobs that the filter finds and for which the action may do something; and where to go on, if so."""
    states = [state for state in _FOR[action] if not wanted.states or state in wanted.states]
    if not states:
        return [], None
    ids = reading.ids(connection, project_id, replace(wanted, states=tuple(sorted(states))), MOST + 1)
    return ids[:MOST], ids[MOST - 1] if len(ids) > MOST else None


def foreseen(
    connection: Connection, project_id: uuid.UUID, action: Action, ids: Sequence[uuid.UUID], room: int
) -> Fates:
    """What the action would lead to; changes nothing."""
    fates: Fates = {}
    budget = budgets.seen(connection, project_id)
    for some in chunks(ids):
        fates |= (
            bulk.would_cancel(connection, project_id, some)
            if action == "cancel"
            else bulk.would_retry(connection, project_id, some, budget, _left(room, fates))
        )
    return _with_unknown(ids, fates)


def carry_out(engine: Engine, project_id: uuid.UUID, action: Action, ids: Sequence[uuid.UUID], room: int) -> Fates:
    """Does it; `room` is how many jobs may be made again."""
    fates: Fates = {}
    for some in chunks(ids):
        act = partial(_act, project_id=project_id, action=action, ids=some, room=_left(room, fates))
        fates |= in_turn(engine, act)
    return _with_unknown(ids, fates)


def in_turn(engine: Engine, act: Callable[[Connection, datetime], T]) -> T:
    """What `act` returns, in a transaction of its own at Postgres's time; tried again where it lost against others."""

    def once(connection: Connection) -> T:
        return act(connection, connection.execute(_NOW).scalar_one())

    return database.write(engine, once, "many jobs at once", _PATIENCE)


def _act(
    connection: Connection,
    now: datetime,
    *,
    project_id: uuid.UUID,
    action: Action,
    ids: Sequence[uuid.UUID],
    room: int,
) -> Fates:
    if action == "cancel":
        return bulk.cancel(connection, project_id, ids, now)
    return bulk.retry(connection, project_id, ids, now, room)


def _left(room: int, fates: Fates) -> int:
    return max(0, room - sum(fate.outcome in MADE for fate in fates.values()))


def _with_unknown(ids: Sequence[uuid.UUID], fates: Fates) -> Fates:
    """In the order in which they were asked for; another project's jobs do not exist."""
    return {job_id: fates.get(job_id, _NOT_FOUND) for job_id in ids}


# Built once: to build a statement costs more than to run it.
_NOW = select(NOW)
