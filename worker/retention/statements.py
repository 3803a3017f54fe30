"""What may go, as SQL. Each statement names the project; all that keeps a row is in one of the conditions."""

from __future__ import annotations

from sqlalchemy import text

from worker.storage import POSTER

# a legal hold on the project, or on the job, its parent or its batch
HELD = """
    exists (select from holds h where h.project_id = :project and h.released_at is null
            and ((h.job_id is null and h.batch_id is null) or h.job_id in ({jobs}) or h.batch_id in ({batches})))
"""

# The objects of an output: its own, and its poster's where there may be one, since a worker may die before it says so.
OBJECTS = f"unnest(array[key] || case when poster is not null then array[key || '{POSTER}'] else '{{}}' end)"

# The keys that unfinished work of the project names in its input, which lie in the project's own prefix; and the
# prefixes below which it reads. Not those of schedules, which would keep all that ever lies there.
NAMED = """
    named as materialized (
        select distinct found[1] as key
          from (select input::text as words from jobs where project_id = :project and finished_at is null
                union all
                select r.input::text from batch_rows r join batches b on b.id = r.batch_id
                 where b.project_id = :project and b.state <> 'completed' and r.input is not null
                union all
                select template::text from schedules where project_id = :project) as inputs,
               regexp_matches(words, cast(:project as text) || '/[^"\\\\\\s]+', 'g') as found
    ), below as materialized (
        select distinct found #>> '{}' as prefix
          from (select input from jobs where project_id = :project and finished_at is null
                union all
                select r.input from batch_rows r join batches b on b.id = r.batch_id
                 where b.project_id = :project and b.state <> 'completed') as inputs,
               jsonb_path_query(input, '$.documents[*].prefix') as found
    )
"""

# Whether the object of that key is among them.
IS_NAMED = """
    (exists (select from named where named.key = {key}) or exists (select from below where starts_with({key}, prefix)))
"""

_OUTPUTS = f"""
      from outputs o
      join jobs j on j.id = o.job_id
      left join jobs p on p.id = j.parent_id
     where o.project_id = :project and o.pruned_at is null and o.created_at < :before
       and j.state in ('succeeded', 'rejected') and j.finished_at < :before and j.billed <> 'unknown'
       and (p.id is null or (p.state = 'succeeded' and p.finished_at < :before and p.billed <> 'unknown'))
       and not exists (select from attempts a where a.job_id in (j.id, p.id) and a.closed_at is null)
       and not exists (select from batches b where b.id in (j.batch_id, p.batch_id) and b.state <> 'completed')
       and not {IS_NAMED.format(key="o.key")}
       and not {HELD.format(jobs="j.id, p.id", batches="j.batch_id, p.batch_id")}
"""  # noqa: S608 - of constants

_INPUTS = f"""
      from files f
     where f.project_id = :project and f.created_at < :before
       and not {IS_NAMED.format(key="f.key")}
       and not {HELD.format(jobs="null", batches="null")}
"""

_DELIVERIES = f"""
      from deliveries d
      left join jobs j on j.id = d.job_id
      left join jobs p on p.id = j.parent_id
      left join events e on e.id = d.event_id
     where d.project_id = :project and d.state <> 'waiting' and d.finished_at < :before
       and not {HELD.format(jobs="j.id, p.id", batches="j.batch_id, p.batch_id, e.batch_id")}
"""

# the duty where it was not done since that night, and whether any project has days, or an object is left over
STANDING = text(
    "select exists (select from projects where retention <> '{}') or exists (select from deletions) as is_wanted"
    " from duties where name = :duty and done_at < :night"
)
DONE = text("update duties set done_at = :now where name = :duty and done_at < :now")
PROJECTS = text(
    "select id, name, retention from projects"
    " where retention <> '{}' and name = coalesce(cast(:name as text), name) order by id"
)
COUNT = {
    "outputs": text(f"with {NAMED} select count(*) as rows, coalesce(sum(o.bytes), 0) as bytes {_OUTPUTS}"),
    "inputs": text(f"with {NAMED} select count(*) as rows, coalesce(sum(f.bytes), 0) as bytes {_INPUTS}"),
    "deliveries": text(f"select count(*) as rows, 0 as bytes {_DELIVERIES}"),
}
# Marks them, and writes down their objects.
PRUNE_OUTPUTS = text(
    f"""
    with {NAMED}, taken as (
        select o.key {_OUTPUTS} order by o.created_at limit :rows for update of o skip locked
    ), marked as (
        update outputs set pruned_at = now() where key in (select key from taken) returning key, bytes, job_id, poster
    ), objects as (
        insert into deletions (key) select {OBJECTS} from marked on conflict do nothing
    )
    select bytes, job_id from marked
    """  # noqa: S608 - of constants
)
PARENTS = text("select id, project_id, created_at from jobs where id = any(:jobs) and mode = 'parent'")
DELETE_LATER = text(
    "insert into deletions (key, is_prefix) select unnest(cast(:keys as text[])), :is_prefix on conflict do nothing"
)
# First locked, so that a submission that names one of them comes before the look at what is named, or is refused.
LOCK_INPUTS = text(f"with {NAMED} select f.id {_INPUTS} order by f.id limit :rows for update of f skip locked")
PRUNE_INPUTS = text(
    f"""
    with {NAMED}, gone as (
        delete from files f where f.id = any(:files) and not {IS_NAMED.format(key="f.key")}
        returning key, bytes
    ), objects as (
        insert into deletions (key) select key from gone on conflict do nothing
    )
    select bytes from gone
    """  # noqa: S608 - of constants
)
DELETE_DELIVERIES = text(
    "delete from deliveries where id = any(array("  # noqa: S608 - of constants
    f"select d.id {_DELIVERIES} order by d.finished_at limit :rows for update of d skip locked)) returning id"
)
