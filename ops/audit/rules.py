"""What the rows must never show: one statement for each way in which a promise can be broken.

A child's cost stands in its parent's ledger; a job that was made again has reserved, and may have paid, twice.
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


# Of what succeeded, or was rejected, the whole history may have been pruned.
_HAS_HISTORY = """(coalesce((select p.state from jobs p where p.id = j.parent_id), j.state)
                not in ('succeeded', 'rejected') or exists (select from events h where h.job_id = j.id))"""

# Deliveries that are older may have been pruned.
_KEEPS_DELIVERIES = """not exists (select from projects p where p.id = e.project_id
                and e.at < :now - cast(p.retention->>'deliveries' as int) * interval '1 day')"""
_REPORT = "report it with its history and its parts' histories"
_BILL = "compare its ledger lines with its attempts"
_MISCOUNTED = "the project's budget counts it wrongly: report it"

RULES = (
    Rule(
        "I1",
        f"""select j.id as job, 'it has ' || count(e.id) || ' first events, not one' as what
           from jobs j left join events e on e.job_id = j.id and e."left" is null
           where j.created_at >= :since and {_HAS_HISTORY} group by j.id having count(e.id) <> 1""",  # noqa: S608 - of constants
        "its submission was not written in one transaction: report it",
    ),
    Rule(
        "I2",
        f"""select a.job_id as job, count(*) || ' of its tasks are billed, or may be' as what
           from attempts a join jobs j on j.id = a.job_id
           where j.created_at >= :since and a.billed <> 'no' and (a.task_id is not null or a.output is not null)
             and {_HAS_HISTORY}
           group by a.job_id, j.mode having count(*) > 1 + (
             select count(*) from events e where e.job_id = a.job_id and e.entered in ('queued', 'held')
               and (e."left" in ('failed', 'canceled', 'expired')
                    or j.mode = 'call' and e."left" in ('submitting', 'uncertain')))""",  # noqa: S608 - made again
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
           from jobs where finished_at is null and state not in ('held', 'awaiting_review') and run_at is null
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
        """select id as job, 'it is ' || state || ' without an output' as what from jobs j
           where created_at >= :since and state in ('awaiting_review', 'succeeded', 'rejected')
             and not exists (select from outputs o where o.job_id = j.id)
             and not exists (select from attempts a where a.id = j.attempt_id and a.output is not null)
             and not (parent_id is not null and cached_from is not null and result is not null)""",
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
        f"""select j.id as job, e.type || ' was to be told to its receiver, and has no delivery' as what
           from events e join jobs j on j.id = e.job_id
           where j.created_at >= :since and j.webhook_url is not null
             and e.type = any(coalesce(j.webhook_events, :default_events)) and {_KEEPS_DELIVERIES}
             and not exists (select from deliveries d where d.event_id = e.id and d.endpoint_id is null)""",  # noqa: S608
        "tell its receiver by hand: the event is in the job's history",
    ),
    Rule(
        "I7",
        f"""select null as job, 'batch ' || b.id || ' was to be told to its receiver, and has no delivery' as what
           from events e join batches b on b.id = e.batch_id
           where b.created_at >= :since and b.webhook_url is not null and {_KEEPS_DELIVERIES}
             and not exists (select from deliveries d where d.event_id = e.id and d.endpoint_id is null)""",  # noqa: S608
        "tell its receiver by hand: its manifest is in the bucket",
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
        f"""select j.id as job, 'it is at event ' || j.sequence || ', and has ' || count(e.id) || ' up to ' ||
             coalesce(max(e.sequence), 0) as what
           from jobs j left join events e on e.job_id = j.id where j.created_at >= :since and {_HAS_HISTORY}
           group by j.id having count(e.id) <> j.sequence or coalesce(max(e.sequence), 0) <> j.sequence""",  # noqa: S608
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
        "I10",
        """select null as job, 'batch ' || b.id || ' is at event ' || b.sequence || ', and has ' || count(e.id) as what
           from batches b left join events e on e.batch_id = b.id where b.created_at >= :since
           group by b.id having count(e.id) <> b.sequence or coalesce(max(e.sequence), 0) <> b.sequence""",
        "its end and its event were not written together: report it",
    ),
    Rule(
        "I10",
        """select null as job, 'batch ' || b.id || ' is complete, and has unfinished jobs' as what
           from batches b where b.state = 'completed'
             and exists (select from jobs j where j.batch_id = b.id and j.finished_at is null)""",
        "a job was made again and its batch was not opened: report it",
    ),
    Rule(
        "I11",
        """select null as job, l.owner || ' ' || l.region || ' ' || l.model || ': ' || count(*) ||
             ' creates left sooner after another than its rate allows' as what
           from (select a.owner, a.region, j.model, a.sent_at - lag(a.sent_at) over
                   (partition by a.owner, a.region, j.model order by a.sent_at) as gap
                 from attempts a join jobs j on j.id = a.job_id where a.sent_at > :now - interval '1 hour'
                   -- what is only found after a restore, these rows did not send
                   and exists (select from events e where e.job_id = j.id and e.entered = 'submitting')) sent
             join lanes l using (owner, region, model)
           where gap < 0.99 * l.interval_us * interval '1 microsecond' group by l.id""",
        "within an hour after its rate was lowered this passes by itself; else report it",
    ),
    Rule(
        "I13",
        """select j.id as job, 'it was canceled before anything was sent, and has an attempt' as what
           from jobs j where j.created_at >= :since and j.state = 'canceled'
             and exists (select from attempts a where a.job_id = j.id)
             and not exists (select from events e
                             where e.job_id = j.id and e.entered in ('submitting', 'uncertain'))""",
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
        """select null as job, 'batch ' || id || ' is ' || state || ', and its jobs ended at ' || ended as what
           from (select b.id, b.state, max(j.finished_at) as ended from batches b join jobs j on j.batch_id = b.id
                 where b.state in ('running', 'paused') and b.claimed is distinct from 'taken'
                 group by b.id having count(*) = count(j.finished_at)) done
           where ended < :now - interval '10 minutes'""",
        "does the bucket take objects, and is a worker at the queue `transfer`?",
    ),
    Rule(
        "C",
        """select c.id as job, 'it is a part, and its parent is ' || p.state || ', which has no parts yet' as what
           from jobs c join jobs p on p.id = c.parent_id
           where p.finished_at is null and p.state not in ('gathering', 'copying', 'awaiting_review')
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
        "R",
        """select id as job, 'it is ' || state || ', and its review is ' || coalesce(review, 'not asked for') as what
           from jobs where created_at >= :since and parent_id is null
             and (state in ('awaiting_review', 'rejected') or review is not null)
             and review is distinct from case state when 'succeeded' then 'approved' when 'rejected' then 'rejected'
                                                    else 'required' end""",
        _REPORT,
    ),
    Rule(
        "R",
        """select j.id as job, 'it is take ' || j.take || ', and the one before is ' || coalesce(b.state, 'not there')
             as what
           from jobs j left join jobs b on b.take = j.take - 1 and (b.id = j.first_take or b.first_take = j.first_take)
           where j.created_at >= :since and j.first_take is not null and b.state is distinct from 'rejected'""",
        _REPORT,
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
    Rule(
        "B",
        """select r.job_id as job, 'row ' || r.n || ' of batch ' || r.batch_id || ' is ' || r.outcome || ' and ' ||
             case when j.id is null then 'has no job' else 'its job is of another row' end as what
           from batch_rows r join batches b on b.id = r.batch_id left join jobs j on j.id = r.job_id
           where b.created_at >= :since and (r.outcome in ('made', 'existing') and j.id is null
             or r.outcome = 'made' and (j.batch_id, j.batch_row) is distinct from (r.batch_id, r.n))""",
        "a commit was not written in one transaction: report it with the batch",
    ),
    Rule(
        "B",
        """select null as job, 'batch ' || b.id || ' made ' || b.made || ' jobs, and has ' ||
             count(j.id) || ' of ' || count(distinct j.batch_row) || ' rows' as what
           from batches b left join jobs j on j.batch_id = b.id and j.take = 1
           -- a row that has gone was pruned with its job
           where b.created_at >= :since and b.rows = (select count(*) from batch_rows w where w.batch_id = b.id)
           group by b.id
           having count(j.id) <> b.made or count(distinct j.batch_row) <> b.made""",
        "a row was made twice or lost: compare its jobs with its report",
    ),
    Rule(
        "B",
        f"""select null as job, 'batch ' || b.id || ' has ' || case when b.state = 'completed'
             then 'ended, and nobody was told' else 'nothing left to do, and has not ended' end as what
           from batches b where b.created_at >= :since
             and case when b.state = 'completed'
                 then not exists (select from events e left join deliveries d on d.event_id = e.id
                                   where e.batch_id = b.id and e.type = 'batch.completed'
                                     and (b.webhook_url is null or d.id is not null or not {_KEEPS_DELIVERIES}))
                 when b.committed_at < :now - interval '5 minutes'
                 then b.run_at is null
                      and not exists (select from jobs j where j.batch_id = b.id and j.finished_at is null)
                 else false end""",  # noqa: S608 - of constants
        "is the clock ticking, and is a worker at the queue `transfer`? `noria doctor` tells",
    ),
    Rule(
        "M",
        """select j.id as job, 'it reserved ' || coalesce(string_agg(l.micros::text, ' and '), 'nothing') ||
             ' micro-CNY for an estimate of ' || j.estimate as what
           from jobs j left join ledger l on l.job_id = j.id and l.entry = 'reserve'
           where j.created_at >= :since and j.parent_id is null and j.estimate is not null
             -- one that was only held for its budget has reserved nothing
             and exists (select from events e where e.job_id = j.id and e.entered = 'queued')
           group by j.id
           having count(l.id) = 0 or bool_or(l.micros <> j.estimate)""",  # twice for one that is made again
        _MISCOUNTED,
    ),
    Rule(
        "M",
        """select j.id as job, sum(l.micros) || ' micro-CNY of what it reserved were not given back once' as what
           from jobs j join ledger l on l.job_id = j.id and l.entry in ('reserve', 'release')
           where j.created_at >= :since and j.parent_id is null and j.billed <> 'unknown'
             and (j.finished_at is not null or j.state = 'awaiting_review')
           group by j.id having sum(l.micros) <> 0""",
        _MISCOUNTED,
    ),
    Rule(
        "M",
        """select j.id as job, 'it settled ' || coalesce(sum(l.micros), 0) || ' micro-CNY, and cost ' ||
             coalesce(j.cost, j.estimate) as what
           from jobs j join attempts a on a.id = j.attempt_id and a.billed = j.billed
             left join ledger l on l.job_id = j.id and l.entry = 'settle' and l.attempt_id = j.attempt_id
           where j.created_at >= :since and j.parent_id is null and j.mode <> 'parent' and j.finished_at is not null
             and j.billed <> 'unknown'
           group by j.id having coalesce(sum(l.micros), 0)
             <> case j.billed when 'yes' then coalesce(j.cost, j.estimate, 0) else 0 end""",
        _BILL,
    ),
    Rule(
        "M",
        """select id as job, 'the result cache answered it, and it is billed ' || billed || ' and cost ' || cost as what
           from jobs where created_at >= :since and cached_from is not null and (billed <> 'no' or cost <> 0)""",
        _BILL,
    ),
    Rule(
        "I3",
        """select j.id as job, 'its answer is of job ' || s.id || ', which is another project''s' as what
           from jobs j join jobs s on s.id = j.cached_from and s.project_id <> j.project_id
           where j.created_at >= :since""",
        "withdraw its result: it is another project's",
    ),
    Rule(
        "M",
        """select j.id as job, 'it has ended, and the verdict on an attempt is open' as what
           from jobs j join attempts a on a.job_id = j.id and a.closed_at is null
           where j.created_at >= :since and j.finished_at is not null and j.billed <> 'unknown'""",
        "compare the attempt with the provider's bill",
    ),
    Rule(
        "M",
        """select p.id as job, 'it cost ' || coalesce(p.cost, 0) || ' micro-CNY, and the calls of its parts ' ||
             coalesce(calls.cost, 0) as what
           from jobs p, lateral (select sum(l.micros) as cost from ledger l join attempts a on a.id = l.attempt_id
                                   join jobs c on c.id = a.job_id and c.parent_id = p.id
                                   where l.job_id = p.id and l.entry = 'settle') calls
           where p.created_at >= :since and p.mode = 'parent'
             and (p.finished_at is not null or p.state = 'awaiting_review') and p.cost is distinct from calls.cost""",
        "compare what its parts cost with the provider's bill",
    ),
    Rule(
        "M",
        """select j.id as job, 'a ' || l.entry || ' of ' || l.micros || ' micro-CNY stands on it, a part' as what
           from ledger l join jobs j on j.id = l.job_id and j.parent_id is not null where j.created_at >= :since""",
        "what parts cost belongs to their parent's ledger: report it",
    ),
    Rule(
        "M",
        """select c.parent_id as job, 'its ledger has ' || coalesce(l.micros::text, 'nothing') || ' for call ' ||
             a.number || ' of part ' || c.place || ' of round ' || c.round || ', which is billed ' || a.billed ||
             ' and cost ' || coalesce(c.cost, c.estimate, 0) as what
           from attempts a join jobs c on c.id = a.job_id and c.parent_id is not null
             left join ledger l on l.attempt_id = a.id and l.entry = 'settle' and l.job_id = c.parent_id
           where c.created_at >= :since and a.closed_at is not null
             and case when a.billed = 'no' then coalesce(l.micros, 0) <> 0
                      when a.billed = 'unknown' then l.id is null and c.estimate is not null
                      when a.id = c.attempt_id then coalesce(l.micros, 0) <> coalesce(c.cost, c.estimate, 0)
                      else l.id is null and c.estimate is not null end""",
        _BILL,
    ),
    Rule(
        "M",
        # whether or not lines from before :since are looked at: the roll-up does not part them
        """select null as job, 'usage of the project ' || p.name || ' has ' ||
             concat_ws(', ', coalesce(u.settled, 0), coalesce(u.unknown, 0), coalesce(u.reserved, 0)) ||
             ' micro-CNY settled, unknown and reserved, and its ledger ' ||
             concat_ws(', ', coalesce(l.settled, 0), coalesce(l.unknown, 0), coalesce(l.reserved, 0)) as what
           from projects p
             left join (select project_id, sum(settled) as settled, sum(unknown) as unknown, sum(reserved) as reserved
                          from usage_sums group by 1) u on u.project_id = p.id
             left join (select project_id, sum(micros) filter (where entry = 'settle' and known) as settled,
                               sum(micros) filter (where entry = 'settle' and not known) as unknown,
                               sum(micros) filter (where entry <> 'settle') as reserved
                          from ledger group by 1) l on l.project_id = p.id
           where (coalesce(u.settled, 0), coalesce(u.unknown, 0), coalesce(u.reserved, 0))
             <> (coalesce(l.settled, 0), coalesce(l.unknown, 0), coalesce(l.reserved, 0))""",
        _MISCOUNTED,
    ),
)
