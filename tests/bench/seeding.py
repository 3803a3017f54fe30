"""Rows in numbers: copies of rows that Noria itself has written, or, where that takes too long, rows like them."""

from __future__ import annotations

import uuid

from sqlalchemy import Engine, text

from tests.bench.asking import ask, ask_all, clips
from tests.bench.rig import CLOSED, SIZES, Rig


def finished(rig: Rig, count: int) -> None:
    """So many more jobs that have ended: copies of one that was canceled, a second apart."""
    (submitted,) = ask_all(rig.door, clips(1, CLOSED, SIZES[CLOSED]))
    ask(rig.door, ("POST", f"/v1/jobs/{submitted.body['id']}/cancel", None))
    rig.sql(_copies("jobs", _JOB), job=submitted.body["id"], count=count)
    rig.sql("analyze jobs")


def ended(engine: Engine, project: uuid.UUID, there: int, count: int) -> None:
    """So many jobs of a project that have ended, each with an attempt and an event, and an output if it has one.

    `there` of them are there. Written out and not copied, since a copy takes ten times as long. The new ones are older
    than those that are there, five a second. One in a hundred failed, none of the newest third; the oldest fifty are
    narrations that expired.
    """
    with engine.begin() as connection:
        connection.exec_driver_sql("set local session_replication_role = replica")  # no look for what they refer to
        for start in range(there, count, _AT_ONCE):
            said = {"project": project, "start": start, "end": min(count, start + _AT_ONCE), "count": count}
            connection.execute(_ENDED, said)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("vacuum analyze jobs, attempts, events, outputs")


def deliveries(rig: Rig, urls: list[str], each: int) -> None:
    """So many deliveries to each address, due now: copies of the one that a canceled job wrote.

    Must be called while no worker runs, or the first would be gone before it is copied.
    """
    requests = [request for url in urls for request in clips(1, CLOSED, SIZES[CLOSED], webhook_url=url)]
    for answer in ask_all(rig.door, requests):
        job = answer.body["id"]
        ask(rig.door, ("POST", f"/v1/jobs/{job}/cancel", None))
        rig.sql(_copies("events", _EVENT), job=job, count=each - 1)
        rig.sql(_copies("deliveries", _DELIVERY), job=job, count=each - 1)
    rig.sql("update deliveries set run_at = now() where state = 'waiting'")


def _copies(table: str, source: str) -> str:
    """A statement that copies a row `count` times with some columns set anew; the numbered id is the table's own."""
    return f"""
        insert into {table} overriding user value
        select copy.* from ({source}) as copies (original, changed)
         cross join lateral jsonb_populate_record(null::{table}, to_jsonb(original) || changed) as copy
    """


_JOB = """
    select jobs, jsonb_build_object('id', uuidv7(-n * interval '1 s'), 'created_at', created_at - n * interval '1 s')
      from jobs, generate_series(1, :count) as n where id = :job
"""
_AT_ONCE = 500_000  # rows in one statement
_ENDED = text(
    """
    with made as (
        insert into jobs (id, project_id, kind, model, input, labels, state, state_at, run_at, claim, lane_id, account,
                          region, attempts, attempt_id, task_id, task_status, run_seconds, finished_at, created_at,
                          submitted_at, started_at, custom_id, sequence, estimate, rank_at)
        select uuidv7(at - now()), :project,
               case when is_old then 'speech' when n % 10 < 7 then 'text-to-video' else 'text' end,
               case when is_old then 'qwen3-tts-flash' when n % 10 < 5 then 'wan2.5-t2v-preview'
                    when n % 10 < 7 then 'wanx2.1-t2v-turbo' else 'qwen-plus' end,
               jsonb_build_object('prompt', 'a heron stands in the reeds, mist over the water, slow pan, number ' || n,
                                  'size', '832*480', 'duration', 5, 'seed', n, 'watermark', false),
               case when n % 5 = 0 then jsonb_build_object('sku', 'A' || n % 100000) else '{}' end,
               case when is_old then 'expired' when n % 100 = 33 and n > cast(:count as int) / 3 then 'failed'
                    else 'succeeded' end,
               at, null, 7, lane.id, 'default', lane.region, 1, uuidv7(at - now()), gen_random_uuid()::text,
               'SUCCEEDED', 60, at + interval '90 s', at, at, at, case when n % 3 = 0 then 'row-' || n end, 6,
               1200000, at
          from (select n, now() - n * interval '0.2 s' as at, n > cast(:count as int) - 50 as is_old
                  from generate_series(cast(:start as int) + 1, :end) as n) as made,
               (select id, region from lanes order by id limit 1) as lane
        returning id, project_id, region, model, attempt_id, task_id, state, created_at, finished_at
    ), called as (
        insert into attempts (id, job_id, project_id, number, owner, account, region, model, request_hash, sent_at,
                              answered_at, outcome, http_status, request_id, task_id, billed, closed_at)
        select attempt_id, id, project_id, 1, 'default', 'default', region, model, '', created_at, created_at,
               'accepted', 200, task_id, task_id, 'yes', finished_at
          from made
    ), stored as (
        insert into outputs (job_id, n, project_id, role, key, content_type, bytes, sha256, crc64, created_at)
        select id, 0, project_id, 'video', id::text, 'video/mp4', 200000, '', '0', finished_at
          from made where state = 'succeeded'
    )
    insert into events (job_id, project_id, sequence, type, entered, at)
    select id, project_id, 6, 'job.' || state, state, finished_at from made
    """
)
_EVENT = """
    select first, jsonb_build_object('sequence', sequence + n)
      from (select * from events where job_id = :job order by id desc limit 1) as first,
           generate_series(1, :count) as n
"""
_DELIVERY = """
    select first, jsonb_build_object('id', gen_random_uuid(), 'event_id', events.id)
      from (select * from deliveries where job_id = :job limit 1) as first
      join events on events.job_id = :job and events.id > first.event_id
     limit :count
"""
