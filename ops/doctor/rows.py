"""What the database says of itself, and what the rows say of the clock, the workers and the work."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

import migrations
from ops.cli.show import seconds
from ops.doctor import Check, Exam, Found, Verdict, failure, warning, well
from worker import money as accounts

_SKEW = timedelta(seconds=2)
_DEAD_ROWS = 10_000
_FIX = "`noria doctor --fix` makes them due"


def database(exam: Exam) -> Iterator[Found]:
    """Reachable, of this version's schema, with a clock like this machine's, and open for writing."""
    with exam.engine.connect() as connection:
        version = connection.execute(text("show server_version")).scalar_one()
        yield well(f"PostgreSQL {version} answers")
        at = MigrationContext.configure(connection).get_current_revision()
        head = ScriptDirectory(str(Path(migrations.__path__[0]))).get_current_head()
        if at != head:
            yield failure(f"its schema is at {at or 'nothing'}, this version's is {head}", "alembic upgrade head")
        skew = datetime.now(UTC) - connection.execute(text("select clock_timestamp()")).scalar_one()
        if abs(skew) > _SKEW:
            what = f"its clock and this machine's differ by {seconds(abs(skew).total_seconds())}"
            yield warning(what, "run NTP on both; the database's clock is the one that counts")
    with exam.engine.begin() as connection:
        yield from _writable(connection)


def upkeep(exam: Exam) -> Iterator[Found]:
    """Transactions that hold up the clearing of dead rows, and whether it is done."""
    with exam.engine.connect() as connection:
        for row in connection.execute(text(_LONG)):
            what = f"a transaction of {row.application_name or 'somebody'} (pid {row.pid}) is open for {row.lasted}"
            yield warning(what, f"dead rows pile up behind it: end it, or select pg_terminate_backend({row.pid})")
        if connection.execute(text("show autovacuum")).scalar_one() != "on":
            yield failure("autovacuum is off", "switch it on: claims slow down within hours without it")
        for row in connection.execute(text(_BLOATED), {"dead": _DEAD_ROWS}):
            what = f"{row.relname} has {row.n_dead_tup} dead rows beside {row.n_live_tup}"
            yield warning(what, f"vacuum analyze {row.relname}; and look for long transactions")
        yield well("dead rows are cleared away")


def clock(exam: Exam) -> Iterator[Found]:
    """The tick does its duties in time, so it ticks: a clock sends, and a worker takes."""
    with exam.engine.connect() as connection:
        row = connection.execute(text(_DUTIES)).one()
    advice = "run `celery -A worker.tasks beat`, and a worker at the queue `tick`"
    if row.first_at is None:
        yield failure("it has never ticked: no worker has been started yet", advice)
    elif row.late:
        yield failure(f"it does not tick: a duty is late by {seconds(float(row.late))}", advice)
    else:
        yield well("it ticks")


def work(exam: Exam) -> Iterator[Found]:
    """Messages are taken, and what is due is done."""
    with exam.engine.connect() as connection:
        for row in connection.execute(text(_UNTAKEN)):
            what = f"{row.rows} rows that are {row.state} were sent out, and no worker takes them"
            yield warning(what, "is a worker at every queue? `noria doctor` says so under `workers`")
        for row in connection.execute(text(_OVERDUE)):
            what = f"{row.rows} rows that are {row.state} have been due for {row.lasted} at the most"
            yield failure(what, "is the clock ticking, and is a worker at every queue?")
        for row in connection.execute(text(_CRASHING)):
            yield warning(f"{row.rows} jobs that are {row.state} killed a worker", "after three they are held")
        for row in connection.execute(text(_EXHAUSTED)):
            yield warning(f"{row.rows} deliveries to {row.host} were given up today", "is that receiver there?")
        yield well(f"{connection.execute(text(_UNFINISHED)).scalar_one()} jobs are unfinished")


def stuck(exam: Exam) -> Iterator[Found]:
    """Rows that nobody would ever pick, and those that wait for a person."""
    with exam.engine.begin() as connection:
        yield from _unpicked(connection, exam.fix)
        for row in connection.execute(text(_HELD)):
            yield warning(f"{row.rows} jobs are held for {row.held_for}", "`noria list --state held`; resolve each")
        settle = timedelta(seconds=exam.settings.settle_seconds) + timedelta(minutes=10)
        rows = connection.execute(text(_UNCERTAIN), {"settle": settle}).scalar_one()
        if rows:
            what = f"{rows} jobs are uncertain long after the settle time"
            yield warning(what, "does the provider's task list answer? Their slots stay taken until it does")


def money(exam: Exam) -> Iterator[Found]:
    """Accounts whose creates are stopped, and tasks that are paid for and no job's."""
    with exam.engine.connect() as connection:
        for row in connection.execute(text(_STOPPED)):
            advice = "set that right at the provider; one create is tried again by itself"
            yield failure(f"the account {row.name} creates nothing: {row.stopped_why}", advice)
        yield well(f"{connection.execute(text(_CREATING)).scalar_one()} accounts may create")
        if connection.execute(text("select to_regclass('unowned')")).scalar_one() is not None:
            yield from _unowned(connection)


def _writable(connection: Connection) -> Iterator[Found]:
    """The write is of no row: a standby, a read-only database and a role without rights refuse that too."""
    try:
        connection.execute(text(_WRITE_NOTHING))
    except DBAPIError as error:
        advice = "NORIA_DATABASE_URL must lead to the primary, with a role that may write"
        yield failure(f"nothing can be written: {str(error.orig).strip().splitlines()[0]}", advice)


def _unpicked(connection: Connection, fix: bool) -> Iterator[Found]:
    rows = len(connection.execute(text(_UNPICKED)).all())
    if not rows:
        yield well("every unfinished job has a reason to be picked")
    elif fix:
        connection.execute(text(_MAKE_DUE))
        yield Found(Verdict.FIXED, f"{rows} jobs that nobody would have picked are due now")
    else:
        yield failure(f"{rows} jobs are unfinished, and nobody will pick them", _FIX)


def _unowned(connection: Connection) -> Iterator[Found]:
    row = connection.execute(text("select count(*) as tasks, coalesce(sum(micros), 0) as cost from unowned")).one()
    if row.tasks:
        what = f"{row.tasks} tasks at the provider are no job's, and cost {accounts.shown(int(row.cost))} CNY"
        yield warning(what, "does something else create with this key? Else report it with `noria audit`")


_WRITE_NOTHING = "update jobs set run_at = run_at where false"
_LONG = """
    select pid, application_name, date_trunc('second', now() - xact_start)::text as lasted from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and xact_start < now() - interval '1 minute'
"""
_BLOATED = """
    select relname, n_live_tup, n_dead_tup from pg_stat_user_tables
    where n_dead_tup > :dead and n_dead_tup > n_live_tup order by n_dead_tup desc
"""
_DUTIES = """
    select min(due_at) as first_at,
           case when min(due_at) < now() - interval '1 minute' then extract(epoch from now() - min(due_at)) end as late
    from duties
"""
_UNTAKEN = """
    select state, count(*) as rows from jobs
    where claimed = 'sent' and run_at between now() and now() + interval '20 s' group by state
"""
_OVERDUE = """
    select state, count(*) as rows, date_trunc('second', now() - min(run_at))::text as lasted from jobs
    where state <> 'queued' and run_at < now() - interval '10 minutes' group by state
"""
_CRASHING = "select state, count(*) as rows from jobs where crashes > 0 and finished_at is null group by state"
_EXHAUSTED = """
    select split_part(split_part(url, '://', 2), '/', 1) as host, count(*) as rows from deliveries
    where state = 'exhausted' and finished_at > now() - interval '1 day' group by 1
"""
_UNFINISHED = "select count(*) from jobs where finished_at is null"
_HELD = "select held_for, count(*) as rows from jobs where state = 'held' group by held_for"
_UNCERTAIN = "select count(*) from jobs where state = 'uncertain' and state_at < now() - cast(:settle as interval)"
_CREATING = "select count(*) from owners where stopped_until is null or stopped_until <= now()"
_STOPPED = "select name, stopped_why from owners where stopped_until > now()"

# No wait and no lease is as long as a day.
# A parent with children at work rests: the last one's end makes it due.
_OVERLOOKED = """
    finished_at is null and state <> 'held' and (run_at is null or run_at > now() + interval '1 day')
    and not (state = 'gathering' and run_at is null
             and exists (select from jobs as child where child.parent_id = jobs.id and child.finished_at is null))
"""
_UNPICKED = f"select id from jobs where {_OVERLOOKED}"  # noqa: S608 - words of ours
# With a new claim number, so that whoever held such a row has lost it.
_MAKE_DUE = f"update jobs set run_at = now(), claim = claim + 1, claimed = null where {_OVERLOOKED}"  # noqa: S608

CHECKS = (
    Check("database", database, "is NORIA_DATABASE_URL right, and does Postgres run?"),
    Check("upkeep", upkeep, "alembic upgrade head", needs="database"),
    Check("clock", clock, "alembic upgrade head", needs="database"),
    Check("work", work, "alembic upgrade head", needs="database"),
    Check("stuck rows", stuck, "alembic upgrade head", needs="database"),
    Check("accounts", money, "alembic upgrade head", needs="database"),
)
