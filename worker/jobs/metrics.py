"""What an alarm is to watch, read from Postgres when somebody asks: the rows are the truth, so no process counts.

Every query goes by an index of what is unfinished, or of the last minutes, so that its time does not grow with what is
done. What cannot be read raises: a figure of nothing would be one that nobody wakes up for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import Connection, text

from worker import work
from worker.lanes import slots

RECENT = timedelta(minutes=5)  # what "in the last minutes" means
SOON = timedelta(hours=2)  # a link that dies within them is one to worry about


def written(connection: Connection, now: datetime) -> bytes:
    """Every figure as it is at that moment, in Prometheus's text format."""
    registry = CollectorRegistry()
    lanes = slots.listed(connection, now)
    for name, about, value in _LANES:
        gauge = Gauge(name, about, ("model", "region", "owner"), registry=registry)
        for lane in lanes:
            gauge.labels(lane.model, lane.region, lane.owner).set(value(lane))
    for name, labels, about, statement in _STATEMENTS:
        gauge = Gauge(name, about, labels, registry=registry)
        for *of, figure in connection.execute(statement, {"now": now, "recent": RECENT, "soon": SOON}):
            (gauge.labels(*("" if label is None else label for label in of)) if labels else gauge).set(figure or 0)
    return generate_latest(registry)


_LANES: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("noria_lane_used", "Slots of a lane in use.", lambda lane: lane.in_use),
    ("noria_lane_allowed", "Slots that a lane may use now.", lambda lane: lane.allowed),
    ("noria_lane_limit", "Slots of a lane as configured.", lambda lane: lane.concurrency),
    ("noria_lane_queued", "Jobs in line for a lane's model.", lambda lane: lane.queued),
    ("noria_lane_pace", "Share of its rate that a lane takes after throttling.", lambda lane: lane.pace_now),
    (
        "noria_lane_stopped",
        "1: no create may go, for an account, a person or a quota.",
        lambda lane: bool(lane.stopped_at or lane.all_paused or lane.paused_at or lane.is_parked),
    ),
)

# Whose messages go where: each mode and state that a worker waits for. Looks are left out: one listing answers for
# thousands, and the provider's limit of queries bounds them, so a further worker brings none of them sooner.
_QUEUES = ", ".join(
    f"('{mode}', '{state}', '{wants.group.queue}')"
    for (mode, state), wants in work.WORK.items()
    if wants.group is not work.LOOKS
)
# The signal to scale workers by is what was `sent` and not taken. A free thread takes a message within milliseconds, so
# rows that stay sent want a thread, and nothing else. Rows that are due without a message (`none`) may wait for much
# that no worker can give: a silent receiver's pause, a project's share, room among what is on its way.
_BACKLOG = f"""with queues (mode, state, queue) as (values {_QUEUES}), waiting (mode, state, message) as (
                select mode, state, 'sent' from jobs where claimed = 'sent'
                union all
                select mode, state, 'none' from jobs
                 where run_at <= :now and state <> 'queued' and claimed is distinct from 'sent'
                union all
                select mode, state, 'none' from jobs
                 where run_at <= :now and state = 'queued' and mode = 'parent' and claimed is distinct from 'sent'
            ), rows (queue, message, n) as (
                select queue, message, 1 from waiting join queues using (mode, state)
                union all
                select 'webhook', 'sent', 1 from deliveries where claimed = 'sent'
                union all
                select 'webhook', 'none', 1 from deliveries where run_at <= :now and claimed is distinct from 'sent'
                union all  -- a zero where there is none
                select queue, message, 0 from (select queue from queues union values ('webhook')) as each
                 cross join (values ('sent'), ('none')) as either (message)
            ) select queue, message, sum(n) from rows group by 1, 2"""  # noqa: S608 - of constants

# Of each its labels, what it is, and its statement, whose columns are the labels and then the figure.
_STATEMENTS = tuple(
    (name, labels, about, text(statement))
    for name, labels, about, statement in (
        (
            "noria_oldest_waiting_seconds",
            ("model", "project"),
            "How long the oldest job has been in line.",
            """select jobs.model, projects.name, extract(epoch from :now - min(jobs.created_at))
                 from jobs join projects on projects.id = jobs.project_id
                where jobs.state = 'queued' and jobs.mode <> 'parent' group by 1, 2""",
        ),
        (
            "noria_backlog",
            ("queue", "message"),
            "Rows that are due, without those that a worker has; message: sent, or none yet. Looks are not counted.",
            _BACKLOG,
        ),
        (
            "noria_held",
            ("reason",),
            "Jobs that are held, by what for.",
            "select held_for, count(*) from jobs where state = 'held' group by 1",
        ),
        (
            "noria_uncertain",
            (),
            "Jobs whose create call was lost, and is looked for.",
            "select count(*) from jobs where state = 'uncertain'",
        ),
        (
            "noria_links_dying",
            (),
            "Jobs whose outputs are not stored, and whose links end within two hours.",
            """select count(*) from jobs
                where state in ('running', 'copying') and run_at is not null and links_expire_at < :now + :soon""",
        ),
        (
            "noria_deliveries_waiting",
            (),
            "Webhooks that were not taken yet.",
            "select count(*) from deliveries where run_at is not null and finished_at is null",
        ),
        (
            "noria_deliveries_failing",
            (),
            "Webhooks that were tried and not taken, and wait for another try.",
            "select count(*) from deliveries where run_at is not null and tries > 0 and finished_at is null",
        ),
        (
            "noria_endpoints_disabled",
            (),
            "Webhook endpoints that took nothing for days, or said that they are gone.",
            "select count(*) from webhook_endpoints where disabled_at is not null",
        ),
        (
            "noria_spent_today_cny",
            ("project",),
            "What calls of today cost, by the project's day.",
            """select projects.name, coalesce(sum(settled + unknown), 0) / 1000000.0
                 from projects left join usage_sums on usage_sums.project_id = projects.id
                  and usage_sums.day = (:now at time zone projects.time_zone)::date
                group by 1""",
        ),
        (
            "noria_tick_age_seconds",
            (),
            "Since when no tick has done what is due.",
            """select case count(*) when 0 then 'infinity'
                    else extract(epoch from greatest(interval '0', :now - min(due_at))) end from duties""",
        ),
        (
            "noria_recent_calls",
            ("outcome", "status"),
            "Create calls of the last five minutes, by how they ended.",
            """select outcome, http_status, count(*) from attempts
                where id >= (select uuidv7(-:recent)) group by 1, 2""",  # once, so that the index is read from there,
        ),
        (
            "noria_recent_outputs",
            (),
            "Outputs stored in the last five minutes.",
            """select sum(found.outputs) from projects cross join lateral
               (select count(*) as outputs from outputs
                 where project_id = projects.id and pruned_at is null and created_at > :now - :recent) found""",
        ),
        (
            "noria_recent_output_bytes",
            (),
            "Bytes of the outputs that were stored in the last five minutes.",
            """select sum(found.bytes) from projects cross join lateral
               (select sum(bytes) as bytes from outputs
                 where project_id = projects.id and pruned_at is null and created_at > :now - :recent) found""",
        ),
        (
            "noria_recent_copy_seconds",
            (),
            "From a task's end until its output was stored, all outputs of the last five minutes together.",
            """select sum(extract(epoch from found.created_at - copying.since)) from projects cross join lateral
               (select job_id, created_at from outputs
                 where project_id = projects.id and pruned_at is null and created_at > :now - :recent) found
               cross join lateral
               (select max(at) as since from events
                 where job_id = found.job_id and entered = 'copying' and events.left <> 'copying') copying""",
        ),
    )
)
