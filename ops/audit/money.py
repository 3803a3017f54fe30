"""What the ledger must never show: of jobs of their own, and of children, whose lines stand on their parents."""

from __future__ import annotations

from ops.audit.rules import Rule

_BILL = "compare its ledger lines with its attempts"

RULES = (
    Rule(
        "M",
        """select j.id as job, 'it reserved ' || coalesce(string_agg(l.micros::text, ' and '), 'nothing') ||
             ' micro-CNY for an estimate of ' || j.estimate as what
           from jobs j left join ledger l on l.job_id = j.id and l.entry = 'reserve'
           where j.created_at >= :since and j.parent_id is null and j.estimate is not null group by j.id
           having count(l.id) = 0 or bool_or(l.micros <> j.estimate)""",  # twice for one that is made again
        "the project's budget counts it wrongly: report it",
    ),
    Rule(
        "M",
        """select j.id as job, sum(l.micros) || ' micro-CNY of what it reserved were not given back once' as what
           from jobs j join ledger l on l.job_id = j.id and l.entry in ('reserve', 'release')
           where j.created_at >= :since and j.parent_id is null and j.finished_at is not null and j.billed <> 'unknown'
           group by j.id having sum(l.micros) <> 0""",
        "the project's budget counts it wrongly: report it",
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
           where p.created_at >= :since and p.mode = 'parent' and p.finished_at is not null
             and p.cost is distinct from calls.cost""",
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
)
