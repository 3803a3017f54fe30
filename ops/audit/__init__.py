"""Whether every promise was kept, by the rows of the database: `noria audit`.

The promises are the invariants below. Each rule in `rules.RULES` is one statement, and all of them read one snapshot,
so a job that moves meanwhile is no finding. The chaos run and the tests also ask others than the database (I6, I15,
and more of I1 to I13): `tests.chaos.witnesses`. Rows cannot show the order of the fair queue; its own tests do.

    I1   each accepted submission is one job              I9   no move under an old claim
    I2   a job is paid once                               I10  only legal moves, each on record, in order
    I3   a task belongs to one job, and so do its files   I11  never over the provider's rates
    I4   each unfinished job is due at some time          I13  canceled in time means nothing was sent
    I5   each output is in the bucket, whole              I14  what is due is done
    I6   each object in the bucket has its row            I15  no secret, link or prompt in the logs
    I7   each wanted event has one delivery               M    the ledger's lines add up
    I8   never more slots than the lane has               C    a parent has all its parts, and waits for none that ended
    B    each row of a batch is made once, and its end is told
    R    a review is on record where one was asked for, and a take is made only of a rejected one
    S    each fire time of a schedule has one run, and each run at most one job
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from ops.audit.rules import RULES, Finding, Rule
from worker.states import MOVES, SLOTTED, State
from worker.webhooks import DEFAULT_EVENTS

__all__ = ["RULES", "Finding", "Rule", "audit", "breaches", "in_order", "look"]


def audit(engine: Engine, since: datetime | None = None) -> list[Finding]:
    """Every broken promise, in the order of the invariants; an empty list is what should be.

    `since`: only jobs made since then; None: all. Unfinished jobs and the lanes are always checked.
    """
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        return look(connection, since)


def look(connection: Connection, since: datetime | None = None) -> list[Finding]:
    """The same, inside the caller's transaction."""
    return in_order(breaches(connection, RULES, since))


def breaches(connection: Connection, rules: Iterable[Rule], since: datetime | None = None) -> list[Finding]:
    """What the statements of these rules select."""
    now: datetime = connection.execute(text("select clock_timestamp()")).scalar_one()
    legal = [(left, entered) for left in State for entered in MOVES[left]]
    values = {
        "now": now,
        "since": since or datetime.min.replace(tzinfo=now.tzinfo),
        "default_events": sorted(DEFAULT_EVENTS),
        "slotted": [str(state) for state in SLOTTED],
        "lefts": [str(left) for left, _ in legal],
        "entereds": [str(entered) for _, entered in legal],
    }
    return [
        Finding(rule.invariant, row.what, str(row.job) if row.job else None, rule.advice)
        for rule in rules
        for row in connection.execute(text(rule.statement), values)
    ]


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The findings in the order of the invariants: B, C, I1 to I15, M, R, S."""
    return sorted(findings, key=lambda finding: (finding.invariant[0], int(finding.invariant[1:] or 0)))
