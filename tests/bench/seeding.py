"""Rows in numbers: copies of rows that Noria itself has written, so that a changed table changes nothing here."""

from __future__ import annotations

from tests.bench.asking import ask, ask_all, clips
from tests.bench.rig import CLOSED, SIZES, Rig


def finished(rig: Rig, count: int) -> None:
    """So many more jobs that have ended: copies of one that was canceled, a second apart."""
    (submitted,) = ask_all(rig.door, clips(1, CLOSED, SIZES[CLOSED]))
    ask(rig.door, ("POST", f"/v1/jobs/{submitted.body['id']}/cancel", None))
    rig.sql(_copies("jobs", _JOB), job=submitted.body["id"], count=count)
    rig.sql("analyze jobs")


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
    select jobs, jsonb_build_object('id', gen_random_uuid(), 'created_at', created_at - n * interval '1 s')
      from jobs, generate_series(1, :count) as n where id = :job
"""
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
