"""The database: its pool of connections, what it must be, and which of its failures pass by themselves.

The database is "away" when the same statement may succeed a little later, without a change to our code or the data.
Whoever holds an answer that was paid for waits for that: `until_it_holds`.

It must be PostgreSQL 15 or later (ADR 0059). Where we are connected to it, the bounds on every statement are settings
of the session. A pooler such as PgBouncer refuses those or drops them, and may give each transaction another session:
then each transaction sets its bounds as it begins, and nothing else is expected of a session (ADR 0060). Which of the
two it is, each new connection finds out before its first use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg import Column
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker import log
from worker.settings import Settings

OLDEST = 15  # of PostgreSQL
PATIENCE = timedelta(minutes=15)  # how long a write is tried again while the database is away
_PAUSE = (0.2, 5.0)  # seconds between two tries: the first, and the longest
_PROBE_AFTER = timedelta(seconds=30)  # of idling; a busy connection is not probed
_SESSION = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "timezone": "UTC",
    "jit": "off",
}
_OFF = 60  # seconds, after which it is told
_PROBE = "lock_timeout"  # the setting that is read back: every session of ours sets it
_REFUSED = "unsupported startup parameter"  # PgBouncer's words
_EACH_ALONE = "statement pooling"  # PgBouncer's words
_UNBOUND = (
    "a pooler stands before the database that keeps no transaction together, so no statement would have a time limit: "
    "its pool_mode must be transaction or session"
)

_log = log.get(__name__)
T = TypeVar("T")


class Unfit(psycopg.OperationalError):
    """The database answers but cannot be used: why, and what to do.

    A failure of the connection, so that an answer that cost money is kept until the database is put right.
    """


class PoolerBetween(Unfit):
    """Something stands between us and PostgreSQL, and the session is not ours."""

    def __init__(self) -> None:
        super().__init__("a connection pooler (PgBouncer?) stands before it: give the address of PostgreSQL itself")


class Pooled(psycopg.Connection[Any]):
    """A connection through a pooler, which has a session only as long as a transaction lasts.

    What is done on one outside transactions, in SQLAlchemy's AUTOCOMMIT, is a transaction too: what it wrote needs a
    commit.
    """


# The errors that pass by themselves, by SQLSTATE or by its first two digits for a whole class (PostgreSQL docs,
# appendix A), and whether they pass on a new connection only.
AWAY = {
    "08": True,  # the connection was lost, or a pooler does not reach the server
    "0A000": True,  # a cached plan is older than the last migration
    "25006": True,  # the server is read-only: a standby, a primary that was demoted, a full disk
    "25P03": True,  # the server ended a session that idled in a transaction
    "25P04": True,  # the server ended a transaction that took too long
    "26000": True,  # the prepared statement is another session's: a pooler changed the session
    "40": False,  # a deadlock, or a conflict with another transaction or with a standby's replay
    "53": False,  # the server lacks something: disk, memory, connections
    "55": False,  # a row or an object is locked, or not ready
    "57014": False,  # the statement took too long, or was ended by the operator
    "57": True,  # the server starts, stops or recovers, or ended the session
    "58": False,  # an error of the server's disk or system
    "XX000": False,  # an error inside the server, or in a pooler that has no better code; not damaged data
}


class _Columns(Sequence[Column]):
    """The columns of a result, each described when it is looked at."""

    def __init__(self, cursor: psycopg.Cursor[Any], count: int) -> None:
        self._cursor, self._count = cursor, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, n: Any) -> Any:
        which = range(self._count)[n]
        return Column(self._cursor, which) if isinstance(which, int) else [self[i] for i in which]


class Cursor(psycopg.Cursor[Any]):
    """A cursor that describes its columns only when asked what they are.

    SQLAlchemy asks each result whether it has columns, and what they are only the first time a statement is run. To
    describe the columns of a job takes a twelfth of the time that it takes to read one.
    """

    @property
    def description(self) -> Any:
        """The columns; None where the statement returns no rows."""
        result = self.pgresult
        return _Columns(self, result.nfields) if result is not None and result.nfields else super().description


def engine(settings: Settings, threads: int, probe_after: timedelta = _PROBE_AFTER, **session: str) -> Engine:
    """A pool with a connection for each thread, and time limits on every statement; `session` sets others."""
    wanted = _SESSION | session
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
            "application_name": "noria",
            "cursor_factory": Cursor,
            # a database host that vanished is noticed in half a minute, not in two hours
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    )
    event.listen(made, "handle_error", _reconnect)
    _ping_idle(made, probe_after.total_seconds())
    event.listen(made, "do_connect", _Opening(made, wanted))
    return made


def checked(engine: Engine, session: Mapping[str, str]) -> Engine:
    """The engine, whose connections are to PostgreSQL itself, in sessions with those settings; they raise Unfit."""
    event.listen(engine, "do_connect", partial(_connect, session))
    return engine


def is_pooled(connection: Connection) -> bool:
    """Whether it goes through a pooler: then nothing of a session outlasts a transaction, such as LISTEN."""
    return isinstance(connection.connection.dbapi_connection, Pooled)


def why_unfit(engine: Engine) -> str | None:
    """Why the database cannot be used; None where it can, or where it does not answer, which may pass."""
    try:
        engine.connect().close()
    except DBAPIError as error:
        return str(error.orig) if isinstance(error.orig, Unfit) else None
    return None


def ahead(connection: Connection) -> timedelta:
    """By how much this host's clock is ahead of Postgres's; where it is behind, a negative span."""
    there: datetime = connection.execute(text("select clock_timestamp()")).scalar_one()
    return datetime.now(UTC) - there


def why_off(engine: Engine) -> str | None:
    """What is wrong with this host's clock; None where it is within a minute of Postgres's."""
    with engine.connect() as connection:
        seconds = round(ahead(connection).total_seconds())
    how = "ahead of" if seconds > 0 else "behind"
    return f"this host's clock is {abs(seconds)} s {how} the database's: run NTP" if abs(seconds) > _OFF else None


def check_version(number: int) -> None:
    """Raises Unfit for a server that is too old, by its version as libpq numbers it: 180001."""
    if number // 10_000 < OLDEST:
        raise Unfit(f"the database is PostgreSQL {number // 10_000}: Noria needs PostgreSQL {OLDEST} or later")


def until_it_holds(write: Callable[[], T], what: str, patience: timedelta = PATIENCE) -> T:
    """The result of `write`, tried again while the database is away; any other error passes."""
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
    """Whether the same may succeed later: no answer, or an error that `AWAY` lists."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or _needs_reconnect(error.orig) is not None:
        return True
    # Without a SQLSTATE the connection failed, unless the driver refused a value.
    return _sqlstate(error.orig) is None and isinstance(error, OperationalError | InterfaceError)


def _needs_reconnect(driver: BaseException | None) -> bool | None:
    """What `AWAY` says of the error; None: it is not listed."""
    state = _sqlstate(driver) or ""
    return AWAY.get(state, AWAY.get(state[:2]))


def _sqlstate(driver: BaseException | None) -> str | None:
    return getattr(driver, "sqlstate", None)


def _reconnect(failed: Any) -> None:
    """Throws the pool's connections away when the error asks for new ones."""
    if _needs_reconnect(failed.original_exception):
        failed.is_disconnect = True


def _ping_idle(made: Engine, seconds: float) -> None:
    """Pings a connection that was idle for that long before it is used; if it is dead, all are made anew."""

    def note(_: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    def ping(connection: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", math.inf) < seconds:
            return
        try:
            made.dialect.do_ping(connection)
        except made.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    event.listen(made, "checkin", note)
    event.listen(made, "checkout", ping)


class _Opening:
    """Opens connections with the session's settings, or through a pooler, from the first time that one is found."""

    def __init__(self, engine: Engine, session: Mapping[str, str]) -> None:
        self._engine = engine
        self._session = session
        self._begin = partial(_begin, _limits(session))
        self._is_pooled = False

    def __call__(self, dialect: Any, record: Any, arguments: Any, named: Any) -> Any:
        if not self._is_pooled:
            try:
                return _connect(self._session, dialect, record, arguments, named)
            except PoolerBetween:
                _log.warning("a pooler stands before the database: each transaction sets its time limits")
                # not before: an engine that anybody listens to takes 10 us more for each statement
                event.listen(self._engine, "begin", self._begin)
                self._is_pooled = True
        return _connect_pooled(self._session, arguments, named)


def _connect(session: Mapping[str, str], dialect: Any, _: object, arguments: Any, named: Any) -> Any:
    options = " ".join(f"-c {name}={value}" for name, value in session.items())
    try:
        connection = dialect.connect(*arguments, **named, options=options)
    except psycopg.OperationalError as error:
        if _REFUSED in str(error):
            raise PoolerBetween from error
        raise
    return _closed_if_not(_check_session, connection, session)


def _connect_pooled(session: Mapping[str, str], arguments: Any, named: Any) -> Pooled:
    # what is prepared in one session is not there in the next
    connection = Pooled.connect(*arguments, **named, prepare_threshold=None)
    return _closed_if_not(_check_transaction, connection, session)


_Opened = TypeVar("_Opened", bound=psycopg.Connection[Any])


def _closed_if_not(check: Callable[[_Opened, Mapping[str, str]], None], made: _Opened, session: Any) -> _Opened:
    try:
        check_version(made.info.server_version)
        check(made, session)
        made.rollback()
    except psycopg.Error:
        made.close()
        raise
    return made


def _check_session(connection: psycopg.Connection[Any], session: Mapping[str, str]) -> None:
    held = connection.execute(f"select current_setting('{_PROBE}'), pg_backend_pid()").fetchone()
    # a pooler tells each client of a process that there is not, since the processes change
    if held != (session[_PROBE], connection.info.backend_pid):
        raise PoolerBetween


def _check_transaction(connection: Pooled, session: Mapping[str, str]) -> None:
    try:
        connection.execute(_limits(session))
        held = connection.execute(f"select current_setting('{_PROBE}')").fetchone()
    except psycopg.OperationalError as error:
        raise Unfit(_UNBOUND) if _EACH_ALONE in str(error) else error from None
    if held != (session[_PROBE],):
        raise Unfit(_UNBOUND)


def _limits(session: Mapping[str, str]) -> str:
    """The statements that give a transaction those settings; what is not in one they do not touch."""
    return "; ".join(f"set local {name} = '{value}'" for name, value in session.items())


def _begin(limits: str, connection: Connection) -> None:
    """Gives a transaction through a pooler its settings, in one round trip; one without is told to begin."""
    if is_pooled(connection):
        is_outside = getattr(connection.connection.dbapi_connection, "autocommit", False)
        connection.exec_driver_sql(f"begin; {limits}" if is_outside else limits)
