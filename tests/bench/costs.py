"""(k) Usage: questions to the roll-up of a ledger of ten million lines, and what a booking pays for being rolled up."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import text

from tests.bench.asking import Door, ask
from tests.bench.figures import Figure, percentile
from tests.bench.rig import Rig

NAME = "costs"
_LINES, _PORTION, _JOBS = 10_000_000, 250_000, 20_000
_ASKED = 11  # times
_BOOKED = 200
_QUESTIONS = {
    "30 days, by day": "group_by=day",
    "a year, by month and model": "group_by=month,model&since=2025-11-27",
    "a year, by batch": "group_by=batch&since=2025-11-27",
    "a year, by week, of one model": "group_by=week&model=model-3&since=2025-11-27",
}


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """Seeds a project's ledger of a year, through its triggers; asks; and takes away what it made."""
    project = rig.sql("select id from projects where name = 'bench'")[0].id
    lines = _LINES // 40 if quick else _LINES
    began = time.monotonic()
    batches = rig.sql(_BATCHES, project=project)
    rig.sql(_MAKE_JOBS, project=project, jobs=_JOBS, batches=[row.id for row in batches])
    for start in range(0, lines, _PORTION):
        rig.sql(_BOOK, project=project, start=start, until=min(lines, start + _PORTION), jobs=_JOBS)
    seeded = time.monotonic() - began
    rig.sql("update duties set due_at = now() where name = 'budgets'")
    while rig.sql("select exists (select from usage_sums where not is_whole)")[0][0]:
        time.sleep(0.5)
    rig.sql("analyze usage_sums")
    (rows,) = rig.sql("select count(*) from usage_sums where project_id = :project", project=project)
    figures = [
        Figure(NAME, "lines of the ledger", "", lines),
        Figure(NAME, "rows of their roll-up", "", rows[0]),
        Figure(NAME, "a line booked in portions, the roll-up with it", "µs", seeded / lines * 1e6),
    ]
    figures += [_asked(rig.door, name, query) for name, query in _QUESTIONS.items()]
    figures += _booked(rig, project)
    rig.sql(_FORGET, project=project)
    return figures


def _asked(door: Door, name: str, query: str) -> Figure:
    took = [ask(door, ("GET", f"/v1/usage?{query}", None)).seconds * 1000 for _ in range(_ASKED)]
    return Figure(NAME, f"GET /v1/usage, {name}: p50", "ms", percentile(took, 0.5))


def _booked(rig: Rig, project: Any) -> list[Figure]:
    """What the triggers take of one booked line: both sums together."""
    took, explained = [], text(f"explain (analyze, format json) {_BOOK}")
    with rig.engine.connect() as connection:  # one, as a worker's: a new one plans the triggers' statements first
        for n in range(_BOOKED):
            said = {"project": project, "start": n, "until": n + 1, "jobs": _JOBS}
            (plan,) = connection.execute(explained, said).scalar_one()
            took.append(sum(it["Time"] for it in plan["Triggers"] if it["Trigger Name"].startswith("ledger_s")))
    return [Figure(NAME, "of one booking, the triggers of both sums: p50", "µs", percentile(took, 0.5) * 1000)]


_BATCHES = """
    insert into batches (project_id, name, digest, source, report, rows, state, committed_at, completed_at)
    select :project, 'costs ' || n, '', '{}', '{}', 0, 'completed', now(), now() from generate_series(1, 100) as n
    returning id
"""
_MAKE_JOBS = """
    insert into jobs (project_id, kind, model, input, state, run_at, finished_at, batch_id, labels)
    select :project, 'costs', 'model-' || n % 20, '{}', 'canceled', null, now(),
           (cast(:batches as uuid[]))[n % 100 + 1], '{"bench": "costs"}'
      from generate_series(1, :jobs) as n
"""
# lines of the whole year, of all these jobs in turn
_BOOK = """
    insert into ledger (project_id, job_id, entry, micros, usage, reserved_at)
    select :project, made.id, 'settle', 1000 + n, '{"input_tokens": 900, "output_tokens": 100}',
           now() - make_interval(days => (n % 365)::int)
      from generate_series(cast(:start as bigint), cast(:until as bigint) - 1) as n
      join (select id, row_number() over (order by id) - 1 as place from jobs
             where project_id = :project and kind = 'costs') as made on made.place = n % :jobs
"""
_FORGET = """
    with gone as (delete from ledger using jobs where jobs.id = ledger.job_id and jobs.kind = 'costs' returning 1)
    select count(*) from gone where :project is not null
"""
