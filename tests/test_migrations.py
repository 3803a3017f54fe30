"""The schema: migrations make what the models say, and the queries of each second find their rows by an index."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from api import limits
from ops.local import servers as embedded
from worker import catalog, claims, settings, tick
from worker.batches import completion
from worker.jobs import reading
from worker.lanes import query_budget
from worker.lanes.slots import sync
from worker.moves import bulk, fair_queue
from worker.tables import Base, Job

PROJECT = Path(__file__).resolve().parents[1]

OBJECTS = """
select concat_ws(' ', 'relation', relname, relkind, reloptions) from pg_class
  where relnamespace = 'public'::regnamespace and relkind in ('r', 'S', 'v', 'm')
union all
select concat_ws(' ', 'column', attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
                 pg_get_expr(adbin, adrelid))
  from pg_attribute join pg_class on pg_class.oid = attrelid
  left join pg_attrdef on adrelid = attrelid and adnum = attnum
  where relnamespace = 'public'::regnamespace and relkind = 'r' and attnum > 0 and not attisdropped
union all
select concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid))
  from pg_constraint where connamespace = 'public'::regnamespace
union all
select concat_ws(' ', 'index', pg_get_indexdef(indexrelid)) from pg_index join pg_class on pg_class.oid = indexrelid
  where relnamespace = 'public'::regnamespace
union all
select concat_ws(' ', 'routine', proname) from pg_proc where pronamespace = 'public'::regnamespace
union all
select concat_ws(' ', 'type', typname) from pg_type
  where typnamespace = 'public'::regnamespace and typtype in ('e', 'd')
"""  # all that a migration can make, with everything that is said of it

# Not in the models: functions, and what serves processes of the version before until the next migration drops it.
LEAVING = (
    *("relation alembic_version", "column alembic_version", "constraint alembic_version", "routine "),
    *("index CREATE UNIQUE INDEX alembic_version", "column jobs sync", "column jobs fans_out"),
    *("constraint jobs jobs_sync_not_null", "constraint jobs jobs_fans_out_not_null"),
)

SEED = """
insert into projects (name, webhook_secret) select 'project-' || n, 'whsec_' from generate_series(0, 49) as n;
insert into jobs (project_id, kind, model, input, state, run_at, claimed, lane_id, account, run_seconds,
                  links_expire_at, finished_at, created_at, custom_id, sequence)
select project.id, 'text-to-video', lane.model, '{"prompt": "a kitten runs in the moonlight"}', state,
       case when state = 'succeeded' then null when mod(made.n, 7) = 0 then now() - interval '1 s'
            else now() + interval '1 min' end,
       case when state = 'running' and mod(made.n, 11) = 0 then 'sent' end,
       case when state <> 'queued' then lane.id end, 'default',
       case when state = 'succeeded' then 60 end,
       case when state = 'copying' then now() + made.n * interval '1 s' end,
       case when state = 'succeeded' then now() end,
       now() - made.n * interval '1 s', 'row-' || made.n, 1
  from (select n, case when n <= 20000 then 'succeeded' when n <= 21200 then 'queued' when n <= 21300 then 'admitted'
                       when n <= 21320 then 'submitting' when n <= 21330 then 'uncertain' when n <= 21900 then 'running'
                       else 'copying' end as state
          from generate_series(1, 22000) as n) as made
  join (select id, row_number() over (order by id) - 1 as n from projects) as project on project.n = mod(made.n, 50)
  join (select id, model, row_number() over (order by id) - 1 as n, count(*) over () as all from lanes) as lane
    -- nothing but waiting jobs in the last lane
    on lane.n = mod(made.n, case made.state when 'queued' then lane.all else lane.all - 1 end);
insert into batches (project_id, name, digest, source, report, rows, state)
select id, '', '', '{}', '{}', 1, 'running' from projects;
update jobs set batch_id = batches.id, not_after = now() + mod(jobs.sequence, 60) * interval '1 min'
  from batches where batches.project_id = jobs.project_id and jobs.finished_at is null;
insert into events (job_id, project_id, sequence, type, entered)
select id, project_id, 1, 'job.queued', 'queued' from jobs;
insert into deliveries (project_id, job_id, event_id, url, body, state, run_at, claimed)
select project_id, job_id, id, 'https://receiver-' || mod(id, 20) || '.example/', '{}',
       case when mod(id, 50) = 0 then 'waiting' else 'delivered' end,
       case when mod(id, 50) = 0 then now() + (mod(id, 200) - 100) * interval '1 s' end,
       case when mod(id, 350) = 0 then 'taken' end
  from events;
analyze
"""  # 20,000 finished jobs and 2,000 at work, one in seven of these due; as many deliveries, one in fifty waiting


SPENT = """
insert into projects (name, webhook_secret) values ('a', 'whsec_');
insert into jobs (project_id, kind, model, input) select id, 'summary', 'qwen', '{}' from projects;
insert into ledger (project_id, job_id, entry, micros, reserved_at)
select project_id, id, 'reserve', micros, now() from jobs, unnest(array[500, 300, 200]) as micros
"""


@pytest.fixture
def empty(servers: embedded.Servers, template: str) -> Iterator[Engine]:
    """An engine on a database with nothing in it."""
    with _database(servers) as engine:
        yield engine


@pytest.fixture(scope="module")
def seeded(servers: embedded.Servers, template: str) -> Iterator[Engine]:
    """An engine on a migrated database that has been at work for a while."""
    known = settings.Settings.model_validate({"database_url": "", "broker_url": ""})
    with _database(servers) as engine:
        with engine.connect() as connection:
            _upgrade(connection)
            sync(connection, catalog.load(), known)
            for statement in SEED.split(";\n"):
                connection.exec_driver_sql(statement)
            connection.commit()
        yield engine


def test_there_is_one_way_from_nothing_to_the_newest_schema() -> None:
    script = ScriptDirectory.from_config(_config())

    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1


def test_migrations_make_what_the_models_say(empty: Engine, servers: embedded.Servers) -> None:
    with empty.connect() as connection:
        _upgrade(connection)
        migrated = _objects(connection)
    with _database(servers) as by_models, by_models.begin() as connection:
        Base.metadata.create_all(connection)
        modelled = _objects(connection)

    # functions stand in migrations alone
    assert {line for line in migrated if not line.startswith(LEAVING)} == modelled


def test_alembic_finds_nothing_left_to_migrate(empty: Engine) -> None:
    with empty.connect() as connection:
        _upgrade(connection)

        command.check(_config(connection))  # raises what it finds


def test_the_way_back_leaves_nothing_and_can_be_gone_again(empty: Engine) -> None:
    with empty.connect() as connection:
        _upgrade(connection)
        there = _objects(connection)
        _downgrade(connection, "base")
        back = _objects(connection)
        _upgrade(connection)
        again = _objects(connection)

    assert {line for line in back if "alembic_version" not in line} == set()
    assert again == there


def test_each_migration_undoes_what_it_does(empty: Engine) -> None:
    with empty.connect() as connection:
        for script in reversed(list(ScriptDirectory.from_config(_config()).walk_revisions())):
            before = _objects(connection)
            _upgrade(connection, script.revision)
            _downgrade(connection, "-1")
            after = _objects(connection)
            _upgrade(connection, script.revision)

            assert {line for line in after - before if "alembic_version" not in line} == set()
            assert before - after == set()


def test_migrations_can_be_written_out_as_sql() -> None:
    config, written = _config(), io.StringIO()
    config.output_buffer = written

    command.upgrade(config, "head", sql=True)

    assert "CREATE TABLE jobs" in written.getvalue()
    assert "alembic_version" in written.getvalue()


BEFORE = "0006"  # the newest schema of the version before
OF_OLD = """
insert into projects (name, webhook_secret) values ('spring', 'whsec_');
insert into jobs (project_id, kind, model, input, state, sync, fans_out, finished_at, held_for, run_at)
select projects.id, way.kind, way.model, '{}', state.name, way.sync, way.fans_out,
       case when state.name in ('succeeded', 'failed', 'canceled', 'expired') then now() end,
       case when state.name = 'held' then 'uncertain' end,
       case when state.name not in ('succeeded', 'failed', 'canceled', 'expired') then now() end
  from projects,
       (values ('text-to-video', 'wan2.5-t2v-preview', false, false), ('text', 'qwen-plus', true, false),
               ('text-batch', 'qwen-plus@batch', false, false), ('speech', 'qwen3-tts-flash', false, true))
       as way (kind, model, sync, fans_out),
       unnest(array['queued', 'held', 'admitted', 'submitting', 'uncertain', 'running', 'gathering', 'copying',
                    'succeeded', 'failed', 'canceled', 'expired']) as state (name)
"""
MODES = {"text-to-video": "task", "text": "call", "text-batch": "batch", "speech": "parent"}


def test_jobs_of_the_version_before_have_their_mode_in_every_state(empty: Engine) -> None:
    with empty.connect() as connection:
        _upgrade(connection, BEFORE)
        for statement in OF_OLD.split(";\n"):
            connection.exec_driver_sql(statement)
        _upgrade(connection)
        rows = connection.exec_driver_sql("select kind, mode, count(*) from jobs group by kind, mode").all()

    assert {(kind, mode, count) for kind, mode, count in rows} == {(kind, mode, 12) for kind, mode in MODES.items()}


def test_what_the_version_before_inserts_meanwhile_has_its_mode_and_what_is_new_can_be_read_by_it(
    empty: Engine,
) -> None:
    with empty.connect() as connection:
        _upgrade(connection)
        for statement in OF_OLD.split(";\n"):
            connection.exec_driver_sql(statement)
        insert = "insert into jobs (project_id, kind, mode, model, input) select id, 'new', %s, '', '{}' from projects"
        for mode in ("task", "call", "batch", "parent"):
            connection.exec_driver_sql(insert, (mode,))
        old = connection.exec_driver_sql("select kind, mode from jobs where kind <> 'new' group by kind, mode").all()
        new = connection.exec_driver_sql("select mode, sync, fans_out from jobs where kind = 'new'").all()

    assert dict(map(tuple, old)) == MODES
    assert set(map(tuple, new)) == {
        ("task", False, False), ("call", True, False), ("batch", False, False), ("parent", False, True)
    }  # fmt: skip


OLD_KEY = "insert into api_keys (prefix, hash) values ('', %s)"


def test_keys_of_the_version_before_may_do_all_and_never_expire(empty: Engine) -> None:
    with empty.connect() as connection:
        _upgrade(connection, "0009")
        connection.exec_driver_sql(OLD_KEY, (b"before",))
        _upgrade(connection)
        connection.exec_driver_sql(OLD_KEY, (b"meanwhile",))
        rows = connection.exec_driver_sql("select scope, expires_at, replaced_by from api_keys").all()

    assert set(map(tuple, rows)) == {("admin", None, None)}


def test_the_way_back_leaves_no_key_that_may_do_more_or_works_for_longer(empty: Engine) -> None:
    with empty.connect() as connection:
        _upgrade(connection)
        for scope, ends in (("read", None), ("submit", None), ("submit", "2030-01-01T00:00:00Z"), ("admin", None)):
            made = "insert into api_keys (prefix, hash, scope, expires_at) values ('', %s, %s, %s)"
            connection.exec_driver_sql(made, (f"{scope} {ends}".encode(), scope, ends))
        _downgrade(connection, "0009")
        rows = connection.exec_driver_sql("select revoked_at <= now() from api_keys order by id").scalars().all()

    assert rows == [True, None, False, None]


# What keeps others from a large table for as long as it takes to read it, or to write it anew.
SLOW = re.compile(
    r"(?i)create (?:unique )?index (?!concurrently)|drop index (?!concurrently)|add constraint (?!.*not valid)"
    r"|alter column \w+ (?:type|set not null)|add column .* (?:generated|default (?!.*(?:'[^']*'|true|false|null|\d)))"
)
LARGE = re.compile(r"(?i)\b(?:jobs|attempts|events|deliveries|outputs|ledger)\b")
OLDER = {"0001", "0002"}  # from before the rule


def test_no_migration_locks_a_large_table_for_longer_than_a_moment() -> None:
    for script in ScriptDirectory.from_config(_config()).walk_revisions():
        if script.revision in OLDER:
            continue
        config, written = _config(), io.StringIO()
        config.output_buffer = written
        command.upgrade(config, f"{script.down_revision}:{script.revision}", sql=True)
        statements = [" ".join(statement.split()) for statement in written.getvalue().split(";\n")]

        assert [each for each in statements if LARGE.search(each) and SLOW.search(each)] == [], script.revision


def test_indexes_whose_making_was_broken_off_are_made_when_it_is_tried_again(empty: Engine) -> None:
    with empty.connect() as connection, empty.connect() as reads:
        _upgrade(connection, "0007")
        for _ in range(2):  # a backup, say, outlasts the wait for it
            reads.exec_driver_sql("select from jobs")
            connection.exec_driver_sql("set lock_timeout = '50ms'")
            with pytest.raises(OperationalError, match="lock timeout"):
                _upgrade(connection, "0008")
            connection.rollback()
            reads.rollback()

        _upgrade(connection, "0008")

        assert connection.exec_driver_sql("select indexrelid::regclass from pg_index where not indisvalid").all() == []


@pytest.mark.parametrize("revision", ["0013", "0014", "0015", "0016", "0018", "0022"])
def test_a_migration_that_was_broken_off_before_its_end_can_be_gone_again(empty: Engine, revision: str) -> None:
    """Those that commit in between: their last statement may fail when all others are done."""
    with empty.connect() as connection:
        _upgrade(connection, f"{int(revision) - 1:04}")
        connection.exec_driver_sql(SPENT)
        connection.commit()
        _upgrade(connection, revision)
        connection.commit()
        there, sums = sorted(_objects(connection)), _rolled_up(connection, revision)
        connection.exec_driver_sql(f"update alembic_version set version_num = '{int(revision) - 1:04}'")
        connection.commit()

        _upgrade(connection, revision)

        assert sorted(_objects(connection)) == there
        assert _rolled_up(connection, revision) == sums == ((1000, 3) if revision == "0016" else (0, 0))


def test_a_look_at_whether_anything_is_due_reads_no_table(seeded: Engine) -> None:
    with _plans(seeded) as (connection, plans):
        tick.run(connection, datetime(2020, 1, 1, tzinfo=UTC))

    assert plans[0].indexes >= {"ix_jobs_due", "ix_deliveries_due", "ix_jobs_not_after"}
    assert plans[0].indexes >= {"ix_jobs_batch_unfinished"}
    assert plans[0].scanned == set()
    assert len(plans) == 1


@pytest.mark.parametrize("mode", ["task", "parent"])
def test_a_look_reads_no_table_where_many_waited_when_the_statistics_were_made(seeded: Engine, mode: str) -> None:
    all_wait = f"update jobs set state = 'queued', mode = '{mode}', finished_at = null, run_at = now(), claimed = null"
    with _plans(seeded) as (connection, plans):
        with connection.connection.cursor() as unexplained:
            unexplained.execute(f"{all_wait}, error = null, parent_id = null, place = null; analyze jobs")
        connection.execute(tick._look(claims.NOW)).one()

    assert plans[0].scanned == set()


def test_admission_finds_queues_and_slots_by_their_indexes(seeded: Engine) -> None:
    admitted = text("select count(*) from jobs where state = 'admitted'")

    with _plans(seeded) as (connection, plans):
        before = connection.execute(admitted).scalar_one()
        fair_queue.admit(connection, _now(connection))
        gained = connection.execute(admitted).scalar_one() - before

    assert gained > 0
    assert {index for plan in plans for index in plan.indexes} >= {"ix_jobs_queued", "ix_jobs_slots"}
    assert _scanned(plans) == set()


@pytest.mark.parametrize("due", tick._WORK, ids=lambda due: f"{due.group.queue} {due.due}"[:70])
def test_a_claim_finds_what_is_due_by_its_index(seeded: Engine, due: tick._Due) -> None:
    with _plans(seeded) as (connection, plans):
        claims.claim_due(connection, Job, due.due, due.order, due.limit, _now(connection))

    used = {index for plan in plans for index in plan.indexes}
    assert _scanned(plans) == set()
    assert used >= {"ix_jobs_due", "ix_jobs_sent"} or used & {"ix_jobs_parents", "ix_jobs_gathering"}


def test_batches_that_are_done_and_jobs_that_are_overdue_are_found_by_their_indexes(seeded: Engine) -> None:
    with _plans(seeded) as (connection, plans):
        completion.claim_due(connection, _now(connection))
        bulk.end_overdue(connection, datetime(2020, 1, 1, tzinfo=UTC))

    used = {index for plan in plans for index in plan.indexes}
    assert used >= {"ix_jobs_batch_unfinished", "ix_jobs_not_after"}
    assert _scanned(plans) == set()


def test_a_page_of_a_projects_jobs_reads_no_more_than_the_page(seeded: Engine) -> None:
    with _plans(seeded) as (connection, plans):
        found = reading.page(connection, _project(connection), reading.Filter(), limit=20)

    assert len(found) == 20
    assert plans[-1].indexes == {"ix_jobs_listing"}
    assert "Sort" not in plans[-1].nodes


OF_A_BATCH = """
insert into batches (project_id, name, digest, source, report, rows, state)
select id, 'spring', '', '{}', '{}', 1, 'running' from projects where name = 'project-10';
update jobs set batch_id = batches.id from batches where jobs.project_id = batches.project_id;
analyze jobs
"""


@pytest.mark.parametrize("narrow", [{}, {"states": ("succeeded",)}, {"states": ("failed",)}, {"model": "qwen-plus"}])
def test_a_page_of_a_batch_is_found_by_its_index(seeded: Engine, narrow: dict[str, Any]) -> None:
    with _plans(seeded) as (connection, plans):
        with connection.connection.cursor() as unexplained:
            unexplained.execute(OF_A_BATCH)
            (batch,) = unexplained.execute("select id from batches").fetchone()
        wanted = reading.Filter(batch=batch, **narrow)
        found = reading.page(connection, _project(connection), wanted, limit=20)
        ids = reading.ids(connection, _project(connection), wanted, limit=20)

    assert [job.id for job in found] == ids
    assert "ix_jobs_batch" in plans[-1].indexes
    assert _scanned(plans) == set()


def test_a_job_is_found_by_the_users_own_id(seeded: Engine) -> None:
    with _plans(seeded) as (connection, plans):
        found = reading.page(connection, _project(connection), reading.Filter(custom_id="row-20010"), limit=20)

    assert [job.custom_id for job in found] == ["row-20010"]
    assert plans[-1].indexes == {"ix_jobs_custom_id"}


def test_a_projects_unfinished_jobs_are_counted_by_their_index(seeded: Engine) -> None:
    with _plans(seeded) as (connection, plans):
        count = limits._unfinished(connection, _project(connection))

    assert count == 40
    assert plans[-1].indexes == {"ix_jobs_unfinished"}


def test_run_times_are_learned_from_the_last_jobs_alone(seeded: Engine) -> None:
    with _plans(seeded) as (connection, plans):
        query_budget.learn(connection, _now(connection))

    assert "ix_jobs_learned" in plans[-1].indexes
    assert _scanned(plans) == set()


@dataclass(frozen=True)
class Plan:
    """How PostgreSQL carries out a statement."""

    statement: str
    nodes: frozenset[str]
    indexes: frozenset[str]
    scanned: frozenset[str]  # the large tables that it reads from end to end


@contextmanager
def _plans(engine: Engine) -> Iterator[tuple[Connection, list[Plan]]]:
    """A connection, and how each statement on it is carried out; what it writes is undone."""
    plans: list[Plan] = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        # With the statement's own values, as in the plan that is made for them.
        with cursor.connection.cursor() as beside:
            beside.execute("EXPLAIN (FORMAT JSON) " + statement, parameters)
            ((found,),) = beside.fetchall()
        plans.append(_plan(statement, found[0]["Plan"]))

    with engine.connect() as connection, connection.begin() as transaction:
        event.listen(connection, "before_cursor_execute", explain)
        yield connection, plans
        transaction.rollback()


def _plan(statement: str, root: dict[str, Any]) -> Plan:
    nodes = list(_nodes(root))
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    return Plan(
        statement,
        frozenset(node["Node Type"] for node in nodes),
        frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
        frozenset(scanned & {"jobs", "deliveries", "events", "attempts"}),
    )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def _scanned(plans: list[Plan]) -> set[tuple[str, str]]:
    """The tables that were read from end to end, each with the statement that did it."""
    return {(table, plan.statement) for plan in plans for table in plan.scanned}


@contextmanager
def _database(servers: embedded.Servers) -> Iterator[Engine]:
    name = f"test_{uuid.uuid4().hex}"
    servers.create_database(name)
    engine = create_engine(servers.url_of(name))
    yield engine
    engine.dispose()
    with servers.connect() as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _upgrade(connection: Connection, revision: str = "head") -> None:
    connection.commit()  # a migration commits by itself, so that it holds no lock for long
    command.upgrade(_config(connection), revision)
    connection.commit()


def _downgrade(connection: Connection, revision: str) -> None:
    connection.commit()
    command.downgrade(_config(connection), revision)
    connection.commit()


def _config(connection: Connection | None = None) -> Config:
    config = Config(toml_file=PROJECT / "pyproject.toml")
    config.attributes["connection"] = connection
    return config


def _objects(connection: Connection) -> set[str]:
    return set(connection.exec_driver_sql(OBJECTS).scalars())


def _now(connection: Connection) -> datetime:
    moment: datetime = connection.execute(text("select now()")).scalar_one()
    return moment


def _project(connection: Connection) -> uuid.UUID:
    project: uuid.UUID = connection.execute(text("select id from projects where name = 'project-10'")).scalar_one()
    return project


def _rolled_up(connection: Connection, revision: str) -> tuple[int, int]:
    """The micro-CNY and the jobs that the roll-up has, where there is one."""
    if revision != "0016":
        return 0, 0
    row = connection.exec_driver_sql("select sum(reserved), sum(jobs) from usage_sums").one()
    return int(row[0]), int(row[1])
