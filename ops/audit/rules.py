"""What the rows must never show: one statement for each way in which a promise about a job can be broken.

Rules of the engine (which jobs hold a slot) are stated again here on purpose: the audit checks the engine's own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A promise that did not hold: which, what was seen, of which job (None: of no single one), and what to do."""

    invariant: str
    what: str
    job: str | None
    advice: str


@dataclass(frozen=True)
class Rule:
    """What the rows must never show: `statement` selects `job` and `what` of each breach; `advice` says what to do."""

    invariant: str
    statement: str
    advice: str


RULES = (
    Rule(
        "I1",
        """select j.id as job, 'it has ' || count(e.id) || ' first events, not one' as what
           from jobs j left join events e on e.job_id = j.id and e."left" is null
           where j.created_at >= :since group by j.id having count(e.id) <> 1""",
        "its submission was not written in one transaction: report it",
    ),
    Rule(
        "I2",
        """select a.job_id as job, count(*) || ' of its tasks are billed, or may be' as what
           from attempts a join jobs j on j.id = a.job_id
           where j.created_at >= :since and a.billed <> 'no' and (a.task_id is not null or a.output is not null)
           group by a.job_id having count(*) > 1 + (
             select count(*) from events e where e.job_id = a.job_id and e.entered = 'queued'
               and e."left" in ('failed', 'canceled', 'expired'))""",  # made again, as a person asked
        "compare its attempts with the provider's bill: it was paid for more than once",
    ),
    Rule(
        "I3",
        """select j.id as job, 'it shows task ' || j.task_id || ', its attempt ' || coalesce(a.task_id, 'none') as what
           from jobs j left join attempts a on a.id = j.attempt_id
           where j.created_at >= :since and j.task_id is not null and j.task_id is distinct from a.task_id""",
        "look at its outputs before they are used: they may be another job's",
    ),
    Rule(
        "I3",
        """select min(id::text)::uuid as job, count(*) || ' jobs show task ' || task_id as what
           from jobs where created_at >= :since and task_id is not null
           group by account, task_id having count(*) > 1""",
        "look at their outputs before they are used: all but one are another job's",
    ),
    Rule(
        "I4",
        """select id as job, 'it is ' || state || ' and nothing will pick it: run_at is null' as what
           from jobs where finished_at is null and state <> 'held' and run_at is null
             and not (state = 'gathering' and exists (select from jobs c where c.parent_id = jobs.id))""",
        "`noria doctor --fix` makes it due",
    ),
    Rule(
        "I4",
        """select id as job, 'it is ' || state || ' and due only at ' || run_at as what
           from jobs where finished_at is null and run_at > :now + interval '1 day'""",
        "no wait is that long: `noria doctor --fix` makes it due",
    ),
    Rule(
        "I5",
        """select id as job, 'it succeeded without an output' as what from jobs j
           where created_at >= :since and state = 'succeeded'
             and not exists (select from outputs o where o.job_id = j.id)
             and not exists (select from attempts a where a.id = j.attempt_id and a.output is not null)""",
        "ask the provider for its task again while it keeps it",
    ),
    Rule(
        "I5",
        """select id as job, 'its links died at ' || links_expire_at || ' and nobody said so' as what
           from jobs where state = 'copying' and links_expire_at < :now - interval '1 hour'""",
        "is a worker at the queue `transfer`, and does the bucket take objects?",
    ),
    Rule(
        "I5",
        """select id as job, 'it expired, and does not say why' as what
           from jobs where created_at >= :since and state = 'expired'
             and coalesce(jsonb_typeof(error), 'null') = 'null'""",
        "its history says what it cost: `noria show`",
    ),
    Rule(
        "I7",
        """select j.id as job, e.type || ' was to be told to its receiver, and has no delivery' as what
           from events e join jobs j on j.id = e.job_id
           where j.created_at >= :since and j.webhook_url is not null
             and e.type = any(coalesce(j.webhook_events, :terminal_events))
             and not exists (select from deliveries d where d.event_id = e.id)""",
        "tell its receiver by hand: the event is in the job's history",
    ),
    Rule(
        "I8",
        """select null as job,
             owner || ' ' || region || ' ' || model || ': ' || used || ' slots in use of ' || concurrency as what
           from (select l.*, (select count(*) from jobs j where j.lane_id = l.id
                   and (j.state = any(:slotted) or j.state = 'held' and j.held_from = 'uncertain')) as used
                 from lanes l) l
           where used > concurrency""",
        "right after its limit was lowered this passes by itself; else report it",
    ),
    Rule(
        "I9",
        """select job_id as job,
             'event ' || sequence || ' came under claim ' || claim || ', after claim ' || before as what
           from (select e.job_id, e.sequence, e.claim, max(e.claim) over (partition by e.job_id order by e.sequence
                   rows between unbounded preceding and 1 preceding) as before
                 from events e join jobs j on j.id = e.job_id where j.created_at >= :since) told
           where claim < before""",
        "a worker wrote under a claim that it had lost: report it with the job's history",
    ),
    Rule(
        "I10",
        """select j.id as job, 'it is at event ' || j.sequence || ', and has ' || count(e.id) || ' up to ' ||
             coalesce(max(e.sequence), 0) as what
           from jobs j left join events e on e.job_id = j.id where j.created_at >= :since
           group by j.id having count(e.id) <> j.sequence or coalesce(max(e.sequence), 0) <> j.sequence""",
        "a move and its event were not written together: report it with the job's history",
    ),
    Rule(
        "I10",
        """select e.job_id as job,
             'event ' || e.sequence || ' moves it from ' || e."left" || ' to ' || e.entered as what
           from events e join jobs j on j.id = e.job_id
           where j.created_at >= :since and e."left" is not null and e."left" <> e.entered
             and not exists (select from unnest(cast(:lefts as text[]), cast(:entereds as text[])) as legal (l, r)
                             where l = e."left" and r = e.entered)""",
        "there is no such move: somebody wrote to the table by hand, or report it",
    ),
    Rule(
        "I10",
        """select job_id as job, 'event ' || sequence || ' leaves ' || coalesce("left", 'nothing') || ', but it was ' ||
             coalesce(before, 'nothing') as what
           from (select e.*, lag(e.entered) over (partition by e.job_id order by e.sequence) as before
                 from events e join jobs j on j.id = e.job_id where j.created_at >= :since) told
           where "left" is distinct from before""",
        "a move is missing from its history: report it",
    ),
    Rule(
        "I10",
        """select j.id as job, 'it is ' || j.state || ', and its last event says ' || e.entered as what
           from jobs j join events e on e.job_id = j.id and e.sequence = j.sequence
           where j.created_at >= :since and e.entered <> j.state""",
        "a move is missing from its history: report it",
    ),
    Rule(
        "I11",
        """select null as job, l.owner || ' ' || l.region || ' ' || l.model || ': ' || count(*) ||
             ' creates left sooner after another than its rate allows' as what
           from (select a.owner, a.region, j.model, a.sent_at - lag(a.sent_at) over
                   (partition by a.owner, a.region, j.model order by a.sent_at) as gap
                 from attempts a join jobs j on j.id = a.job_id where a.sent_at > :now - interval '1 hour') sent
             join lanes l using (owner, region, model)
           where gap < 0.99 * l.interval_us * interval '1 microsecond' group by l.id""",
        "within an hour after its rate was lowered this passes by itself; else report it",
    ),
    Rule(
        "I13",
        """select j.id as job, 'it was canceled before anything was sent, and has an attempt' as what
           from jobs j where j.created_at >= :since and j.state = 'canceled'
             and exists (select from attempts a where a.job_id = j.id)
             and not exists (select from events e where e.job_id = j.id and e.entered = 'submitting')""",
        "compare its attempt with the provider's bill",
    ),
    Rule(
        "I14",
        """select id as job, 'it is ' || state || ' and has been due since ' || run_at as what
           from jobs where (state <> 'queued' or mode = 'parent') and run_at < :now - interval '10 minutes'""",
        "is the clock ticking, and is a worker at every queue? `noria doctor` tells",
    ),
    Rule(
        "I14",
        """select job_id as job, 'a delivery to its receiver has been due since ' || run_at as what
           from deliveries d where run_at < :now - interval '10 minutes'
             and not exists (select from deliveries o where o.claimed is not null
                             and (o.receiver = d.receiver or o.project_id = d.project_id))
             and not exists (select from dead_receivers r
                             where r.project_id = d.project_id and r.receiver = d.receiver)""",
        "is a worker at the queue `webhook`? `noria doctor` tells",
    ),
    Rule(
        "I14",
        """select id as job, 'all should be at rest, and it is ' || state as what
           from jobs where :at_rest and finished_at is null and state <> 'held'""",
        "its history and `waiting_on` say what it waits for: `noria show`",
    ),
    Rule(
        "I14",
        """select job_id as job, 'all should be at rest, and a delivery of it still waits' as what
           from deliveries where :at_rest and state = 'waiting'""",
        "is its receiver there? `noria doctor` tells whether a worker is",
    ),
)
