"""Whether the database can be worked on; asked of each new connection, before anything else is.

It must be PostgreSQL 18 or later (the schema's ids are its uuidv7()), and the session must be ours: the bounds on
every statement are settings of the session, and psycopg keeps its prepared statements there. A pooler such as PgBouncer
refuses those settings or drops them without a word, so what was asked for is read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

OLDEST = 18
_PROBE = "lock_timeout"  # a setting that every session of ours asks for
_REFUSED = "unsupported startup parameter"  # PgBouncer's words
_POOLER = (
    "a connection pooler (PgBouncer?) stands before the database, and drops the session's settings: without them no "
    "statement has a time limit. Give the address of PostgreSQL itself; Noria keeps its own pool"
)


class Unfit(psycopg.OperationalError):
    """The database answers and cannot be worked on: why, and what to do.

    A failure of the connection, so that an answer that cost money is kept until the database is put right.
    """


def options(session: Mapping[str, str]) -> str:
    """The session's settings as libpq's `options`."""
    return " ".join(f"-c {name}={value}" for name, value in session.items())


def checked(engine: Engine, session: Mapping[str, str]) -> Engine:
    """The engine, whose every connection is checked as it is made; `session` is what its `options` ask for."""
    event.listen(engine, "do_connect", partial(_connect, session))
    return engine


def why_unfit(engine: Engine) -> str | None:
    """Why the database cannot be worked on; None where it can, or does not answer, which may pass."""
    try:
        engine.connect().close()
    except DBAPIError as error:
        return str(error.orig) if isinstance(error.orig, Unfit) else None
    return None


def check_version(number: int) -> None:
    """Raises Unfit for a server that is too old, by its version as libpq numbers it: 180001."""
    if number // 10_000 < OLDEST:
        raise Unfit(f"the database is PostgreSQL {number // 10_000}: Noria needs PostgreSQL {OLDEST} or later")


def _connect(session: Mapping[str, str], dialect: Any, _: object, arguments: Any, named: Any) -> Any:
    try:
        connection = dialect.connect(*arguments, **named)
    except psycopg.OperationalError as error:
        if _REFUSED in str(error):
            raise Unfit(_POOLER) from error
        raise
    try:
        _check(connection, session)
    except psycopg.Error:
        connection.close()
        raise
    return connection


def _check(connection: psycopg.Connection[Any], session: Mapping[str, str]) -> None:
    check_version(connection.info.server_version)
    held = connection.execute(f"select current_setting('{_PROBE}')").fetchone()
    connection.rollback()
    if held != (session[_PROBE],):
        raise Unfit(_POOLER)
