"""What the database says of itself, and what the rows say of the clock, the workers and the work.

Most checks are one statement: each row that it selects is a finding, with its verdict and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

import migrations
from ops.cli.show import seconds
from ops.doctor import Check, Exam, Found, Look, Verdict, failure, warning, well
from worker.database import ahead, is_pooled
from worker.money import budgets

_SKEW = timedelta(seconds=2)
_UPGRADE = "alembic upgrade head"


def database(exam: Exam) -> Iterator[Found]:
    """It answers, has this version's schema and a clock like this machine's, and can be written to."""
    with exam.engine.connect() as connection:
        version = connection.execute(text("show server_version")).scalar_one()
        through = ", through a pooler: alembic wants PostgreSQL's own address" if is_pooled(connection) else ""
        yield well(f"PostgreSQL {version} answers{through}")
        found = migrations.standing(connection)
        what = f"its schema is at {found.at or 'nothing'}, this version's is {found.head}"
        if found.is_behind:
            yield failure(what, _UPGRADE)
        elif found.is_ahead:
            yield warning(what, "the schema of a later version serves this one too, until its next upgrade")
        skew = ahead(connection)
        if abs(skew) > _SKEW:
            what = f"its clock and this machine's differ by {seconds(abs(skew).total_seconds())}"
            yield warning(what, "run NTP on both; the database's clock is the one that counts")
    with exam.engine.begin() as connection:
        try:
            # The write is of no row: a standby, a read-only database and a role without rights refuse that too.
            connection.execute(text("update jobs set run_at = run_at where false"))
        except DBAPIError as error:
            advice = "NORIA_DATABASE_URL must lead to the primary, with a role that may write"
            yield failure(f"nothing can be written: {str(error.orig).strip().splitlines()[0]}", advice)


def stuck(exam: Exam) -> Iterator[Found]:
    """Rows that would never be due, and those that wait for a person."""
    with exam.engine.begin() as connection:
        rows = len(connection.execute(text(_UNPICKED)).all())
        if not rows:
            yield well("every unfinished job is due at some time")
        elif exam.fix:
            connection.execute(text(_MAKE_DUE))
            yield Found(Verdict.FIXED, f"{rows} jobs that nobody would have picked are due now")
        else:
            what = f"{rows} jobs are unfinished, and nobody will pick them"
            yield failure(what, "`noria doctor --fix` makes them due")
        yield from _answers(exam, connection, _WAITING)


def spending(exam: Exam) -> Iterator[Found]:
    """Budgets that are used up, and jobs that wait for room in one."""
    with exam.engine.connect() as connection:
        now = connection.execute(text("select now()")).scalar_one()
        held = {row.project_id: row.jobs for row in connection.execute(text(_HELD))}
        names = {row.id: row.name for row in connection.execute(text("select id, name from projects"))}
        standings = budgets.of_all(connection, now)
    spent = [it for it in standings if it.left <= 0 or it.budget.project_id in held]
    for standing in spent:
        jobs = held.get(standing.budget.project_id, 0)
        what = (
            f"project {names[standing.budget.project_id]}: {standing.says()}; {jobs} of its jobs are held for a budget"
        )
        yield warning(what, "raise it with `noria budgets set`, or wait until its period ends")
    if not spent:
        yield well("no budget is used up")


def _asking(statement: str) -> Look:
    """A check that is a statement alone."""

    def look(exam: Exam) -> Iterator[Found]:
        with exam.engine.connect() as connection:
            yield from _answers(exam, connection, statement)

    return look


def _answers(exam: Exam, connection: Connection, statement: str) -> Iterator[Found]:
    settle = timedelta(seconds=exam.settings.settle_seconds) + timedelta(minutes=10)
    for row in connection.execute(text(statement), {"settle": settle}):
        yield Found(Verdict(row.verdict), row.what, row.advice)


# Transactions that keep dead rows from being cleared, and whether they are cleared at all.
_UPKEEP = """
    select 'warning' as verdict,
           format('a transaction of %s (pid %s) is open for %s', coalesce(nullif(application_name, ''), 'somebody'),
                  pid, date_trunc('second', now() - xact_start)) as what,
           format('dead rows pile up behind it: end it, or select pg_terminate_backend(%s)', pid) as advice
    from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
      and xact_start < now() - interval '1 minute'
    union all
    select 'failure', 'autovacuum is off', 'switch it on: claims slow down within hours without it'
    where current_setting('autovacuum') <> 'on'
    union all
    select 'warning', format('%s has %s dead rows beside %s', relname, n_dead_tup, n_live_tup),
           format('vacuum analyze %s; and look for long transactions', relname)
    from pg_stat_user_tables where n_dead_tup > greatest(10000, n_live_tup)
    union all
    select 'well', 'dead rows are cleared away', ''
"""

# The tick does its duties in time only if a clock sends it and a worker takes it.
_CLOCK = """
    select 'well' as verdict, 'it ticks' as what, '' as advice
    from duties having min(due_at) >= now() - interval '1 minute'
    union all
    select 'failure', case when count(*) = 0 then 'it has never ticked: no worker has been started yet'
                           else 'it does not tick: a duty is late by ' || date_trunc('second', now() - min(due_at)) end,
           'run `celery -A worker.tasks beat`, and a worker at the queue `tick`'
    from duties having count(*) = 0 or min(due_at) < now() - interval '1 minute'
"""

# Messages are taken, and what is due is done.
_WORK = """
    select 'warning' as verdict,
           format('%s rows that are %s were sent out, and no worker takes them', count(*), state) as what,
           'is a worker at every queue? `noria doctor` says so under `workers`' as advice
    from jobs where claimed = 'sent' and run_at between now() and now() + interval '20 s' group by state
    union all
    select 'failure', format('%s rows that are %s have been due for up to %s', count(*), state,
                             date_trunc('second', now() - min(run_at))),
           'is the clock ticking, and is a worker at every queue?'
    from jobs where state <> 'queued' and run_at < now() - interval '10 minutes' group by state
    union all
    select 'warning', format('%s jobs that are %s killed a worker', count(*), state),
           'after three crashes a job is held'
    from jobs where crashes > 0 and finished_at is null group by state
    union all
    select 'warning', format('%s deliveries to %s were given up today', count(*), host), 'does that receiver answer?'
    from (select split_part(split_part(url, '://', 2), '/', 1) as host from deliveries
          where state = 'exhausted' and finished_at > now() - interval '1 day') as exhausted group by host
    union all
    select 'well', format('%s jobs are unfinished', count(*)), '' from jobs where finished_at is null
"""

_HELD = "select project_id, count(*) as jobs from jobs where held_for = 'budget' group by project_id"

# Jobs that wait for a person, or for an answer that is long overdue.
_WAITING = """
    select 'warning' as verdict, format('%s jobs are held for %s', count(*), held_for) as what,
           '`noria list --state held`; resolve each' as advice
    from jobs where state = 'held' and held_for <> 'budget' group by held_for
    union all
    select 'well', format('%s jobs wait for a review, one of them for %s', count(*),
                          date_trunc('second', now() - min(state_at))), ''
    from jobs where state = 'awaiting_review' having count(*) > 0
    union all
    select 'warning', format('%s jobs are uncertain long after the settle time', count(*)),
           'does the provider''s task list answer? Their slots stay taken until it does'
    from jobs where state = 'uncertain' and state_at < now() - cast(:settle as interval) having count(*) > 0
"""

# Accounts that create nothing, and tasks that were paid for without a job.
_ACCOUNTS = """
    select 'failure' as verdict, format('the account %s creates nothing: %s', name, stopped_why) as what,
           'set that right at the provider; one create is tried again by itself' as advice
    from owners where stopped_until > now()
    union all
    select 'well', format('accounts that may create: %s', count(*)), ''
    from owners where stopped_until is null or stopped_until <= now()
    union all
    select 'failure', format('nothing goes to the account %s: %s', account, stopped_why),
           'set its key or workspace right; it is tried again by itself'
    from stopped_accounts where stopped_until > now()
    union all
    select 'failure', format('project %s is bound to the account %s, which is not set up: its jobs wait',
                             projects.name, projects.account),
           format('add it to NORIA_ACCOUNTS, or `noria projects set %s --account NAME`', projects.name)
    from projects where account is not null
      and not exists (select from lanes where projects.account = any(coalesce(accounts, array[lanes.account])))
    union all
    select 'warning', format('%s tasks at the provider belong to no job, and cost %s CNY', count(*),
                             trim_scale(coalesce(sum(micros), 0) / 1e6)),
           'does something else create with this key? Else report it with `noria audit`'
    from unowned having count(*) > 0
"""

# Keys that are about to expire: those that nothing replaces yet, and rotated ones that somebody still uses.
_KEYS = """
    select 'warning' as verdict,
           format('the key %s… (%s) of %s expires in %s', key.prefix, coalesce(nullif(key.name, ''), 'without a name'),
                  coalesce(projects.name, 'an operator'), date_trunc('minute', key.expires_at - now())) as what,
           case when key.replaced_by is null then format('noria keys rotate %s', key.id)
                else 'it is rotated, and somebody still uses it: give them the new key' end as advice
    from api_keys as key
    left join projects on projects.id = key.project_id
    left join api_keys as successor on successor.id = key.replaced_by
    where key.revoked_at is null and key.expires_at between now() and now() + interval '14 days'
      and (successor.id is null or key.last_used_at > successor.created_at)
    union all
    select 'well', format('keys that work: %s', count(*)), '' from api_keys
    where (revoked_at is null or revoked_at > now()) and (expires_at is null or expires_at > now())
"""

# Whether what projects no longer keep goes each night.
_RETENTION = """
    select 'warning' as verdict,
           format('what is no longer kept has not gone for %s', date_trunc('hour', now() - done_at)) as what,
           'is a worker at the queue `transfer`? Its log says what failed; `noria prune` does it now' as advice
    from duties where name = 'prune' and done_at < now() - interval '2 days'
      and exists (select from projects where retention <> '{}')
    union all
    select 'well', format('projects that keep some things for days only: %s', count(*)), '' from projects
    where retention <> '{}'
"""

# No wait and no lease is as long as a day.
# A parent with children at work rests: the last one's end makes it due.
_OVERLOOKED = """
    finished_at is null and state not in ('held', 'awaiting_review')
    and (run_at is null or run_at > now() + interval '1 day')
    and not (state = 'gathering' and run_at is null
             and exists (select from jobs as child where child.parent_id = jobs.id and child.finished_at is null))
"""
_UNPICKED = f"select id from jobs where {_OVERLOOKED}"  # noqa: S608 - words of ours
# With a new claim number, so that whoever held such a row has lost it.
_MAKE_DUE = f"update jobs set run_at = now(), claim = claim + 1, claimed = null where {_OVERLOOKED}"  # noqa: S608

CHECKS = (
    Check("database", database, "is NORIA_DATABASE_URL right, and does Postgres run?"),
    Check("upkeep", _asking(_UPKEEP), _UPGRADE, needs="database"),
    Check("clock", _asking(_CLOCK), _UPGRADE, needs="database"),
    Check("work", _asking(_WORK), _UPGRADE, needs="database"),
    Check("stuck rows", stuck, _UPGRADE, needs="database"),
    Check("budgets", spending, _UPGRADE, needs="database"),
    Check("accounts", _asking(_ACCOUNTS), _UPGRADE, needs="database"),
    Check("keys", _asking(_KEYS), _UPGRADE, needs="database"),
    Check("retention", _asking(_RETENTION), _UPGRADE, needs="database"),
)
