"""The provider's tasks, and when each runs.

A task's status is never stored: it follows from its times and the clock, so that a thousand tasks in flight need
no timer. The times follow from a plan: in each lane (owner, model) tasks start in the order they came, as the
slots of the lane's concurrency fall free. Adding or cancelling a task plans the lane's waiting tasks anew.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum

from ops.sandbox.orders import Order
from ops.sandbox.text import Answer

NEVER = float("inf")


class Status(StrEnum):
    """A task's status, as the wire spells it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    UNKNOWN = "UNKNOWN"


@dataclass(slots=True)
class Task:
    """One thing in the making. Instants are epoch seconds of the sandbox's clock."""

    id: str
    owner: str
    order: Order
    request_id: str  # of the create
    body_sha256: str
    received_at: float  # when the create came
    submitted_at: float  # when the task came to be: later than `received_at` for one executed late
    queue_seconds: float  # it waits at least this long
    run_seconds: float
    failure: tuple[str, str] | None  # code and message
    failed_pictures: int
    price_micros: int  # billed if it succeeds, in micro-CNY
    is_async: bool  # a synchronous call's record is neither found nor listed
    answer: Answer | None = None  # of a text call
    usage: dict[str, int] = field(default_factory=dict)  # what it is paid for, by unit
    started_at: float = NEVER
    ended_at: float = NEVER
    canceled_at: float | None = None

    def status(self, now: float) -> Status:
        """Return the status at `now`, UNKNOWN before the task came to be."""
        if now < self.submitted_at:
            return Status.UNKNOWN
        if self.canceled_at is not None:
            return Status.CANCELED
        if now < self.started_at:
            return Status.PENDING
        if now < self.ended_at:
            return Status.RUNNING
        return Status.FAILED if self.failure else Status.SUCCEEDED

    def is_unfinished(self, now: float) -> bool:
        """Whether it takes, or will take, one of its lane's slots."""
        return self.canceled_at is None and now < self.ended_at

    def billed_micros(self, now: float) -> int:
        """Return what it has cost by `now`: only success is billed (Alibaba docs, "Model pricing")."""
        return self.price_micros if self.status(now) is Status.SUCCEEDED else 0


class Tasks:
    """All tasks of all owners."""

    def __init__(self) -> None:
        self.by_id: dict[str, Task] = {}
        self._lanes: defaultdict[tuple[str, str], list[Task]] = defaultdict(list)
        self._by_owner: defaultdict[str, list[Task]] = defaultdict(list)  # by submitted_at

    def add(self, task: Task, concurrency: int | None) -> None:
        """Take a task in and plan when it runs; `concurrency` None means that nothing makes it wait."""
        self.by_id[task.id] = task
        if not task.is_async:
            task.started_at, task.ended_at = task.received_at, task.received_at + task.run_seconds
            return
        insort(self._by_owner[task.owner], task, key=_submission)
        insort(self._lanes[_lane(task)], task, key=_submission)
        if concurrency is None:  # it waits for nobody, and nobody for it
            _schedule(task, [])
            return
        self._plan(_lane(task), concurrency, task.received_at)

    def cancel(self, task: Task, concurrency: int | None, now: float) -> None:
        """Cancel a pending task; those behind it move up."""
        task.canceled_at = now
        self._plan(_lane(task), concurrency, now)

    def find(self, task_id: str, owner: str, retention_seconds: float, now: float) -> Task | None:
        """Return an owner's task, None if it is another's, or has ended and been forgotten since."""
        task = self.by_id.get(task_id)
        if task is None or task.owner != owner or not task.is_async or now < task.submitted_at:
            return None
        ended_at = task.ended_at if task.canceled_at is None else task.canceled_at
        return task if now < ended_at + retention_seconds else None

    def between(self, owner: str, start: float, end: float) -> list[Task]:
        """Return an owner's tasks submitted from `start` to `end`, both included, newest first."""
        owned = self._by_owner[owner]
        first = bisect_left(owned, start, key=_submission)
        last = bisect_right(owned, end, key=_submission)
        return owned[first:last][::-1]

    def in_flight(self, owner: str, model: str, now: float) -> int:
        """Return how many tasks of a lane are pending or running."""
        lane = self._lanes[owner, model] = [task for task in self._lanes[owner, model] if task.is_unfinished(now)]
        return sum(task.submitted_at <= now for task in lane)

    def _plan(self, lane: tuple[str, str], concurrency: int | None, now: float) -> None:
        unfinished = [task for task in self._lanes[lane] if task.is_unfinished(now)]
        self._lanes[lane] = unfinished
        running = sorted(task.ended_at for task in unfinished if task.started_at <= now)
        slots = running[-concurrency:] if concurrency else []
        slots += [now] * ((concurrency or 0) - len(slots))
        heapq.heapify(slots)
        for task in unfinished:
            if task.started_at > now:
                _schedule(task, slots)


def _schedule(task: Task, slots: list[float]) -> None:
    ready_at = task.submitted_at + task.queue_seconds
    if not slots:
        task.started_at, task.ended_at = ready_at, ready_at + task.run_seconds
        return
    task.started_at = max(ready_at, slots[0])
    task.ended_at = task.started_at + task.run_seconds
    heapq.heapreplace(slots, task.ended_at)


def _lane(task: Task) -> tuple[str, str]:
    return task.owner, task.order.model


def _submission(task: Task) -> float:
    return task.submitted_at
