"""Alembic's entry: `alembic upgrade head`, with `NORIA_DATABASE_URL` saying where.

A system is at work while a migration runs, so each keeps two rules; `tests/test_migrations.py` holds the first.
Nobody is kept out of a large table for longer than a moment: a column comes with a constant default or none, an index
is built CONCURRENTLY, a check comes NOT VALID and is validated later, many rows are written in small transactions.
Nothing goes that the version before still uses: it goes one version later.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine, pool

import migrations
from worker import database
from worker.settings import addresses
from worker.tables import Base

# Migrations wait for no one for long: behind a waiting ALTER TABLE every query of that table waits too.
_SESSION = {"lock_timeout": "10s", "idle_in_transaction_session_timeout": "60s"}

# Columns that only processes of the version before use. They go with the next migration, when none of those runs.
LEAVING = {("jobs", "sync"), ("jobs", "fans_out")}


def _is_compared(found: Any, name: str | None, kind: str, _: bool, __: Any) -> bool:
    return kind != "column" or (found.table.name, name) not in LEAVING


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=True,
        include_object=_is_compared,
        transaction_per_migration=True,  # so that one may build an index while others write
    )
    with context.begin_transaction():
        context.run_migrations()


def _url() -> str:
    url = context.config.attributes.get("url") or os.environ.get("NORIA_DATABASE_URL")
    if not url:
        sys.exit("NORIA_DATABASE_URL is not set: say where the database is, e.g. postgresql://user:password@host/noria")
    try:
        return addresses.database_url(str(url))
    except ValueError as error:
        sys.exit(f"NORIA_DATABASE_URL {error}.")


def _write_out() -> None:
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run() -> None:
    """Migrates on a given connection (tests) or on one of its own; `--sql` only writes what it would do."""
    if context.is_offline_mode():
        _write_out()
        return
    given = context.config.attributes.get("connection")
    if given is not None:
        _migrate(given)
        return
    engine = create_engine(_url(), poolclass=pool.NullPool, hide_parameters=True)
    if why := database.why_unfit(database.checked(engine, _SESSION)):
        sys.exit(f"NORIA_DATABASE_URL: {why}.")
    with engine.connect() as connection:
        found = migrations.standing(connection)
        if found.is_ahead:  # a rollback: what is there serves this release too
            print(f"The schema is at {found.at}, ahead of this release's {found.head}: nothing was done.")
            return
        connection.rollback()
        _migrate(connection)


run()
