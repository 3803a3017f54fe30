"""What `together` and `looks` need of the runner, which makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, Row

from worker.claims import Numbers
from worker.context import Clock, Context
from worker.states import Move
from worker.tables import Job

T = TypeVar("T")


class Recorder(Protocol):
    """Takes rows, puts moves on record, and gives rows back; `Runner` says how."""

    @property
    def ctx(self) -> Context: ...
    def take(self, numbers: Numbers, columns: tuple[ColumnElement[Any], ...] | None = None) -> Sequence[Row[Any]]: ...
    def guarded(self, job: Job, act: Callable[[], T]) -> T | None: ...
    def carry_out(self, job: Job, clock: Clock) -> None: ...
    def put(self, moved: Sequence[tuple[Job, Move]], clock: Clock) -> None: ...
    def let_go(self, jobs: Sequence[Job]) -> None: ...
