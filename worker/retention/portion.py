"""A portion of pruning: a short transaction, one at a time however many runs there are, and a rest after it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

_REST = 2.0  # seconds at the most


@contextmanager
def begun(engine: Engine, project: uuid.UUID) -> Iterator[Connection]:
    """The transaction of a portion of the project's; a legal hold that is being added waits until it is over."""
    with engine.begin() as connection:
        connection.execute(_LOCK, {"project": project})
        yield connection


def rest(began: float) -> None:
    """Waits as long as the work since then took, so that pruning has half of the time, and claims the rest."""
    time.sleep(min(time.monotonic() - began, _REST))


_LOCK = text("select pg_advisory_xact_lock(x'4e6f72697052'::bigint) from projects where id = :project for share")
