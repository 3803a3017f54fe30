"""What each job wants, by its mode and state: how its messages go, and for how long a worker may have it. Data alone.

`tick` claims by it, `runner` takes by it, and `steps` says what is then done.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from worker import timeouts
from worker.states import Mode, State


@dataclass(frozen=True)
class Group:
    """Rows that travel alike.

    `queue` where their messages go; `rows` in one message; `on_their_way` at most, which the queue can start within
    half a lease; `urgent` of these are kept for links that die soon; `per_project` of these may be one project's.
    """

    queue: str
    rows: int
    on_their_way: int
    urgent: int = 0
    per_project: int | None = None
    task: str = "noria.work"


@dataclass(frozen=True)
class Work:
    """The group that a row travels with, and its lease once a worker has taken it."""

    group: Group
    lease: timedelta


COPIES = Group("transfer", rows=1, on_their_way=64, urgent=16)  # however many others there are
CREATES = Group("provider", rows=4, on_their_way=64)
CALLS = Group("calls", rows=1, on_their_way=32)
BEGINNINGS = Group("transfer", rows=8, on_their_way=64)
GATHERINGS = Group("transfer", rows=1, on_their_way=8, per_project=4)  # one may read links for minutes
BATCHES = Group("transfer", rows=1, on_their_way=16)  # a file may take minutes to upload, and looks are no task queries
LOOKS = Group("provider", rows=1000, on_their_way=3000, task="noria.poll")  # one list answers for many

_SUBMIT, _CALL, _BATCH, _FIND, _GATHER, _POLL = (
    timeouts.LEASES[name] for name in ("submit", "call", "batch", "reconcile", "gather", "poll")
)
_COPY = timeouts.COPY[1] + timeouts.BUCKET_OVERRUN  # the longest: `timeouts.copying` says how it grows

WORK: dict[tuple[Mode, State], Work] = {
    (Mode.TASK, State.ADMITTED): Work(CREATES, _SUBMIT),
    (Mode.TASK, State.SUBMITTING): Work(CREATES, _SUBMIT),
    (Mode.TASK, State.UNCERTAIN): Work(CREATES, _FIND),
    (Mode.TASK, State.RUNNING): Work(LOOKS, _POLL),
    (Mode.TASK, State.COPYING): Work(COPIES, _COPY),
    (Mode.CALL, State.ADMITTED): Work(CALLS, _CALL),
    (Mode.CALL, State.SUBMITTING): Work(CALLS, _SUBMIT),
    (Mode.CALL, State.UNCERTAIN): Work(CALLS, _FIND),
    (Mode.CALL, State.RUNNING): Work(LOOKS, _POLL),  # a person gave it a task
    (Mode.CALL, State.COPYING): Work(COPIES, _COPY),
    (Mode.BATCH, State.ADMITTED): Work(BATCHES, _BATCH),
    (Mode.BATCH, State.SUBMITTING): Work(BATCHES, _SUBMIT),
    (Mode.BATCH, State.UNCERTAIN): Work(BATCHES, _FIND),
    (Mode.BATCH, State.RUNNING): Work(BATCHES, _POLL),
    (Mode.BATCH, State.COPYING): Work(COPIES, _COPY),
    (Mode.PARENT, State.QUEUED): Work(BEGINNINGS, _GATHER),
    (Mode.PARENT, State.GATHERING): Work(GATHERINGS, _GATHER),
    (Mode.PARENT, State.COPYING): Work(COPIES, _COPY),
}
