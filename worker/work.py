"""What each job wants, by its mode and state: how its messages go, and for how long a worker may have it.

`tick` claims by it, `runner` takes by it, and `steps` says what is then done. All leases of jobs are looked up here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Interval, and_, case, func, literal, literal_column, not_, true

from worker import timeouts
from worker.catalog import Variant
from worker.claims import NOW, SENT, TAKEN
from worker.states import Mode, State
from worker.tables import Job


@dataclass(frozen=True)
class Group:
    """Rows that travel alike.

    `queue` where their messages go; `rows` in one message at most. Few rows are spread over `messages` messages, since
    threads work through these side by side. `on_their_way` at most, which the queue can start within half a lease;
    `urgent` of these are kept for links that die soon; `per_project` of these may be one project's.
    """

    queue: str
    rows: int
    on_their_way: int
    messages: int = 1
    urgent: int = 0
    per_project: int | None = None
    task: str = "noria.work"
    busy: tuple[str, ...] = (SENT,)  # claims that count as on their way; with TAKEN, no more are in work at once


@dataclass(frozen=True)
class Work:
    """The group that a row travels with, and its lease once a worker has taken it.

    `repeatable`: all that its step does may be done again at no cost, so its moves are put on record with others'.
    """

    group: Group
    lease: timedelta
    repeatable: bool = False


COPIES = Group("transfer", rows=8, on_their_way=64, messages=4, urgent=16)
CREATES = Group("provider", rows=8, on_their_way=64, messages=4)
CALLS = Group("calls", rows=1, on_their_way=32)
# Calls of Batch Chat wait for minutes, each on a thread: half of a process's threads as it is deployed, so that other
# calls go on beside them. They are the rows of CALLS whose model is that variant.
CHATS = Group("calls", rows=1, on_their_way=16, busy=(SENT, TAKEN))
BEGINNINGS = Group("transfer", rows=8, on_their_way=64)
GATHERINGS = Group("transfer", rows=1, on_their_way=8, per_project=4)  # one may read links for minutes
BATCHES = Group("transfer", rows=1, on_their_way=16)  # a file may take minutes to upload; looks cost no task query
# All that is due: one listing answers for the rows of a message, and two listings mostly show the same.
LOOKS = Group("provider", rows=12_000, on_their_way=12_000, task="noria.poll")

_SUBMIT, _CALL, _BATCH, _FIND, _GATHER, _POLL = (
    timeouts.LEASES[name] for name in ("submit", "call", "batch", "reconcile", "gather", "poll")
)
_COPY = (
    timeouts.COPY[1] + timeouts.BUCKET_OVERRUN + timeouts.WORKING
)  # the longest, of one output; `LEASE` has what it is at first

WORK: dict[tuple[Mode, State], Work] = {
    (Mode.TASK, State.ADMITTED): Work(CREATES, _SUBMIT),
    (Mode.TASK, State.SUBMITTING): Work(CREATES, _SUBMIT),
    (Mode.TASK, State.UNCERTAIN): Work(CREATES, _FIND),
    (Mode.TASK, State.RUNNING): Work(LOOKS, _POLL),
    (Mode.TASK, State.COPYING): Work(COPIES, _COPY, repeatable=True),
    (Mode.CALL, State.ADMITTED): Work(CALLS, _CALL),
    (Mode.CALL, State.SUBMITTING): Work(CALLS, _SUBMIT),
    (Mode.CALL, State.UNCERTAIN): Work(CALLS, _FIND),
    (Mode.CALL, State.RUNNING): Work(LOOKS, _POLL),  # a person gave it a task
    (Mode.CALL, State.COPYING): Work(COPIES, _COPY, repeatable=True),
    (Mode.BATCH, State.ADMITTED): Work(BATCHES, _BATCH),
    (Mode.BATCH, State.SUBMITTING): Work(BATCHES, _SUBMIT),
    (Mode.BATCH, State.UNCERTAIN): Work(BATCHES, _FIND),
    (Mode.BATCH, State.RUNNING): Work(BATCHES, _POLL, repeatable=True),
    (Mode.BATCH, State.COPYING): Work(COPIES, _COPY),
    (Mode.PARENT, State.QUEUED): Work(BEGINNINGS, _GATHER),
    (Mode.PARENT, State.GATHERING): Work(GATHERINGS, _GATHER),
    (Mode.PARENT, State.COPYING): Work(COPIES, _COPY),
}


GROUPS = (*dict.fromkeys(wants.group for wants in WORK.values()), CHATS)


def rows_of(group: Group) -> tuple[frozenset[Mode], frozenset[State], ColumnElement[bool]]:
    """In which modes and states the rows of a group are, and what else is true of them."""
    like = CALLS if group is CHATS else group
    modes, states = zip(*(key for key, wants in WORK.items() if wants.group is like), strict=True)
    is_chat = Job.model.endswith(f"@{Variant.CHAT}")
    apart = {CHATS: is_chat, CALLS: not_(is_chat)}
    return frozenset(modes), frozenset(states), apart.get(group, true())


def of(job: Job) -> Work:
    """What the job wants now."""
    return WORK[Mode(job.mode), State(job.state)]


def of_create(mode: str) -> timedelta:
    """The lease of a job whose create call begins: a whole one, since what came before may have used up its first."""
    return _CALL if mode == Mode.CALL else _SUBMIT


def in_states(*states: State) -> ColumnElement[bool]:
    """Whether a job is in one of these states; literals, so that the planner can match the partial indexes."""
    return Job.state.in_([literal_column(f"'{state}'") for state in states])


def of_modes(*modes: Mode) -> ColumnElement[bool]:
    """Whether a job is carried out in one of these modes; literals, too."""
    return Job.mode.in_([literal_column(f"'{mode}'") for mode in modes])


def _span(span: timedelta) -> ColumnElement[timedelta]:
    return literal(span, Interval)


# `timeouts.copying` in SQL, for each output that there may be.
_TRIED = NOW - Job.state_at
_ONE_COPY = func.least(func.greatest(_span(timeouts.COPY[0]), _TRIED + _TRIED), _span(timeouts.COPY[1]))
_COPYING = (_ONE_COPY + _span(timeouts.BUCKET_OVERRUN + 3 * timeouts.WORKING)).op("*", return_type=Interval())(
    func.greatest(1, func.jsonb_array_length(Job.sources))
)

# The lease of a job's row that is taken now.
LEASE: ColumnElement[timedelta] = case(
    (Job.state == State.COPYING, _COPYING),
    *((and_(Job.mode == mode, Job.state == state), _span(wants.lease)) for (mode, state), wants in WORK.items()),
    else_=_span(_SUBMIT),
)
