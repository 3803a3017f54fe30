"""The rows of a message: one step for each, one after the other, on the message's thread.

Moves of steps that may be repeated are put on record together, about a second after the first at the latest; rows that
a slow one holds up are given back. A thread beside the message's sees to both, since one step may take longer than the
other rows' leases: a copy may.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from threading import Event
from typing import TypeVar

from worker import steps, timeouts, work
from worker.context import Clock
from worker.runner.recorder import Recorder
from worker.states import Move
from worker.tables import Job

_AT_MOST = timedelta(seconds=1)  # that a move waits for others

T = TypeVar("T")


class Together:
    """Rows taken at the clock's start: those that have not begun, and the moves that are not on record yet."""

    def __init__(self, runner: Recorder, taken: Sequence[Job], clock: Clock) -> None:
        self._runner, self._clock = runner, clock
        self._left, self._moved = deque(taken), deque[tuple[Job, Move]]()
        self._until = clock() + timeouts.WORKING
        self._has_ended = Event()

    def carry_out(self) -> None:
        """All of them, or as many as there is time for."""
        with ThreadPoolExecutor(1, "beside") as thread:
            watching = thread.submit(self._watch) if len(self._left) > 1 else None
            try:
                self._each()
            finally:
                self._has_ended.set()
        self._settle()
        if watching:
            watching.result()

    def _each(self) -> None:
        while job := next(iter(_taken(self._left, 1)), None):
            if not work.of(job).repeatable:
                self._runner.carry_out(job, self._clock)
            elif move := self._runner.guarded(job, partial(next, steps.of(job)(self._runner.ctx, job, self._clock))):
                self._moved.append((job, move))
            if self._clock() > self._until:
                return

    def _watch(self) -> None:
        while not self._has_ended.wait(_AT_MOST.total_seconds()):
            self._settle()

    def _settle(self) -> None:
        """Puts on record what is done, and gives back what comes too late."""
        try:
            self._runner.put(_taken(self._moved), self._clock)
        finally:
            if self._clock() > self._until and (late := _taken(self._left)):
                self._runner.let_go(late)


def _taken(rows: deque[T], most: int | None = None) -> list[T]:
    """The first of the rows, or all; each is given once, whichever thread asks."""
    found: list[T] = []
    with suppress(IndexError):
        while most is None or len(found) < most:
            found.append(rows.popleft())
    return found
