"""What the rows must never show of parents and their children, and of schedules and their runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime

from sqlalchemy import Connection, select, text

from ops.audit.rules import Finding, Rule
from worker.schedules import plan
from worker.tables import Schedule

_REPORT = "report it with its history and its parts' histories"

RULES = (
    Rule(
        "C",
        """select c.id as job, 'it is a part, and its parent is ' || p.state || ', which has no parts yet' as what
           from jobs c join jobs p on p.id = c.parent_id
           where p.finished_at is null and p.state not in ('gathering', 'copying')
             and not (p.state = 'held' and p.held_from in ('gathering', 'copying'))""",
        _REPORT,
    ),
    Rule(
        "C",
        """select p.id as job, 'it is ' || p.state || ', and ' || count(*) || ' of its parts have not ended' as what
           from jobs p join jobs c on c.parent_id = p.id and c.finished_at is null
           where p.state <> 'gathering' and p.held_from is distinct from 'gathering' group by p.id""",
        _REPORT,
    ),
    Rule(
        "C",
        """select p.id as job, 'it waits for its parts, which have all ended by ' || parts.at as what
           from jobs p, lateral (select coalesce(max(c.finished_at), p.state_at) as at, count(c.id) as made,
                                        count(c.finished_at) as ended
                                   from jobs c where c.parent_id = p.id) parts
           where p.state = 'gathering' and p.run_at is null and parts.made = parts.ended
             and parts.at < :now - interval '2 minutes'""",
        "is the clock ticking? It looks at such jobs each minute; `noria doctor` tells",
    ),
    Rule(
        "C",
        """select p.id as job, 'of round ' || c.round || ' it has the places ' || min(c.place) || ' to ' ||
             max(c.place) || ', ' || count(*) || ' of them, and is at round ' || p.round as what
           from jobs p join jobs c on c.parent_id = p.id where p.created_at >= :since
           group by p.id, c.round having min(c.place) <> 0 or max(c.place) <> count(*) - 1 or c.round > p.round""",
        "a part is missing: report it with the job's history",
    ),
    Rule(
        "S",
        """select job_id as job, count(*) || ' runs of schedules submitted it' as what
           from runs where at >= :since and job_id is not null group by job_id having count(*) > 1""",
        "report it with the schedules' histories",
    ),
    Rule(
        "S",
        """select job_id as job, 'a run of schedule ' || schedule_id || ' is called ' || outcome || ', and has ' ||
             case when job_id is null then 'no job' else 'a job' end as what
           from runs where at >= :since and (outcome = 'submitted') <> (job_id is not null)""",
        "report it with the schedule's history",
    ),
    Rule(
        "S",
        """select null as job, 'schedule ' || id || ' was to fire at ' || next_at || ', and did not' as what
           from schedules where next_at < :now - interval '10 minutes'""",
        "is the clock ticking, and is a worker at the queue `tick`? `noria doctor` tells",
    ),
)


def fired(connection: Connection, schedules: Collection[str]) -> Iterator[Finding]:
    """S: of schedules that nobody changed, each fire time from their making until they were paused has its run."""
    rows = connection.execute(select(*Schedule.__table__.c)).mappings().all()
    for schedule in (Schedule.of(row) for row in rows if str(row["id"]) in schedules):
        runs = text("select fire_at from runs where schedule_id = :id and trigger <> 'person'")
        had, wanted = set(connection.execute(runs, {"id": schedule.id}).scalars()), set(_fire_times(schedule))
        for what, times in (("has no run", wanted - had), ("has a run and is no fire time", had - wanted)):
            for moment in sorted(times):
                yield Finding("S", f"{moment} {what} of schedule {schedule.id}", None, "report it with its history")


def _fire_times(schedule: Schedule) -> Iterator[datetime]:
    """Those that have come."""
    fires = plan.following(schedule, schedule.created_at)
    end = schedule.next_at or schedule.paused_at
    while fires is not None and end is not None and fires < end:
        yield fires
        fires = plan.following(schedule, fires)
