"""The database: its pool of connections, and which of its failures are waited out.

A failure is "away" when the same statement may succeed a little later, with nobody mending our code or the data.
Whoever holds an answer that was paid for waits for that: `until_it_holds`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker import log
from worker.database import requirements
from worker.settings import Settings

PATIENCE = timedelta(minutes=15)  # how long a word is kept for a database that is away
_PAUSE = (0.2, 5.0)  # seconds between two tries: the first, and the longest
_PROBE_AFTER = timedelta(seconds=30)  # of idling; a busy connection is not probed
_SESSION = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "timezone": "UTC",
    "jit": "off",
}

_log = log.get(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class _Away:
    """Why a failure passes by itself, and whether another connection has to be made for that."""

    reason: str
    reconnects: bool = False


# By SQLSTATE, or by its first two digits for a whole class (PostgreSQL docs, appendix A).
AWAY = {
    "08": _Away("the connection was lost, or a pooler does not reach the server", reconnects=True),
    "0A000": _Away("a cached plan does not fit the tables any more, since they were migrated", reconnects=True),
    "25006": _Away("the server is read-only: a standby, a primary that was demoted, a full disk", reconnects=True),
    "25P03": _Away("the server ended a session that idled in a transaction", reconnects=True),
    "25P04": _Away("the server ended a transaction that took too long", reconnects=True),
    "26000": _Away("the prepared statement is another session's: a pooler changed the session", reconnects=True),
    "40": _Away("a deadlock, or a conflict with another transaction or with a standby's replay"),
    "53": _Away("the server lacks something: disk, memory, connections"),
    "55": _Away("a row or an object is locked, or not ready"),
    "57014": _Away("the statement took too long, or was ended by the operator"),
    "57": _Away("the server starts, stops or recovers, or ended the session", reconnects=True),
    "58": _Away("an error of the server's disk or system"),
    "XX000": _Away("an error inside the server, or in a pooler that has no better code; not damaged data"),
}


def engine(settings: Settings, threads: int, probe_after: timedelta = _PROBE_AFTER) -> Engine:
    """The database: a pooled connection for each thread that may want one at once, with bounds on every statement."""
    made = create_engine(
        settings.database_url.get_secret_value(),
        pool_size=threads,
        max_overflow=4,
        pool_timeout=10,
        pool_recycle=1800,
        pool_use_lifo=True,  # a few busy connections, rather than all of them idle by turns
        hide_parameters=True,  # prompts and keys are parameters
        connect_args={
            "connect_timeout": 5,
            "options": requirements.options(_SESSION),
            "application_name": "noria",
            # a database host that vanished is noticed in half a minute, not in two hours
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    )
    event.listen(made, "handle_error", _reconnect)
    _probe_idle(made, probe_after.total_seconds())
    return requirements.checked(made, _SESSION)


def until_it_holds(write: Callable[[], T], what: str, patience: timedelta = PATIENCE) -> T:
    """The result of `write`, tried again while the database is away; what it raises otherwise passes."""
    give_up, pause = time.monotonic() + patience.total_seconds(), _PAUSE[0]
    while True:
        try:
            return write()
        except SQLAlchemyError as error:
            if time.monotonic() > give_up or not is_away(error):
                raise
            _log.warning("the database is away, trying again", what=what, cause=log.words(error))
        time.sleep(pause)
        pause = min(_PAUSE[1], pause * 2)


def read(engine: Engine, look: Callable[[Connection], T], patience: timedelta) -> T:
    """What `look` finds, on a connection of its own, tried again while the database is away."""

    def once() -> T:
        with engine.connect() as connection:
            return look(connection)

    return until_it_holds(once, "a read", patience)


def write(engine: Engine, change: Callable[[Connection], T], what: str, patience: timedelta) -> T:
    """What `change` returns, in a transaction of its own, tried again while the database is away."""

    def once() -> T:
        with engine.begin() as connection:
            return change(connection)

    return until_it_holds(once, what, patience)


def is_away(error: BaseException) -> bool:
    """Whether the same may succeed later: the database did not answer, or answered by what `AWAY` lists."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or _away(error.orig) is not None:
        return True
    # without a code it is the connection that failed, unless it is the driver's own word about a value
    return _sqlstate(error.orig) is None and isinstance(error, OperationalError | InterfaceError)


def _away(driver: BaseException | None) -> _Away | None:
    state = _sqlstate(driver) or ""
    return AWAY.get(state) or AWAY.get(state[:2])


def _sqlstate(driver: BaseException | None) -> str | None:
    return getattr(driver, "sqlstate", None)


def _reconnect(failed: Any) -> None:
    """Throws the pool's connections away where they lead to a server that has to be left."""
    if (away := _away(failed.original_exception)) and away.reconnects:
        failed.is_disconnect = True


def _probe_idle(made: Engine, seconds: float) -> None:
    """Tries a connection that idled, before it is used; all are made anew where it is dead."""

    def note(_: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    def probe(connection: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", math.inf) < seconds:
            return
        try:
            made.dialect.do_ping(connection)
        except made.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    event.listen(made, "checkin", note)
    event.listen(made, "checkout", probe)
