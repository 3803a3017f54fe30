"""Whether every promise held, by the rows and by whoever else can tell: `noria audit`, and the end of a chaos run.

The promises are the invariants I1 to I15 below. What the database alone shows is one statement each in `RULES`, all
read in one snapshot, so that a job which moves meanwhile is no finding. What others show (the sandbox's own books,
the bucket, a receiver of webhooks, the logs) is in `ops.audit.witnesses`. How turns are kept is no matter of rows that
lie still, since nobody wrote down who was paused when: the tests of the turns show that.

    I1   each accepted submission is one job              I9   no move under an old claim
    I2   a job is paid once                               I10  only legal moves, each on record, in order
    I3   a task is one job's, and so are its bytes        I11  never over the provider's rates
    I4   each unfinished job has a reason to be picked    I13  canceled in time means nothing was sent
    I5   each output is in the bucket, whole              I14  what is due is done
    I6   nothing in the bucket that no row knows          I15  no secret, link or prompt in the logs
    I7   each wanted event has one delivery               M    the ledger's lines add up
    I8   never more slots than the lane has               C    a parent has its parts, all of them, and waits for none
    S    each fire time of a schedule has one run, and each run at most one job
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from ops.audit import money, parents, rules
from ops.audit import witnesses as audit_witnesses
from ops.audit.rules import Finding, Rule
from ops.audit.witnesses import Witnesses
from worker.states import MOVES, SLOTTED, State
from worker.webhooks import TERMINAL_EVENTS

__all__ = ["RULES", "Finding", "Rule", "Witnesses", "audit", "look"]

RULES = rules.RULES + parents.RULES + money.RULES


def audit(engine: Engine, witnesses: Witnesses | None = None, since: datetime | None = None) -> list[Finding]:
    """Every breach of a promise, in the order of the invariants; none is how it should be.

    `since`: of jobs made since then; None: of all. Unfinished jobs and the lanes are always looked at.
    """
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        return look(connection, witnesses or Witnesses(), since)


def look(connection: Connection, witnesses: Witnesses, since: datetime | None = None) -> list[Finding]:
    """The same, as a transaction that is open sees it."""
    now: datetime = connection.execute(text("select clock_timestamp()")).scalar_one()
    said = _parameters(now, since, witnesses.is_at_rest)
    found = [finding for rule in RULES for finding in _breaches(connection, rule, said)]
    found += audit_witnesses.heard(connection, witnesses, now)
    return sorted(found, key=lambda finding: (finding.invariant[0], int(finding.invariant[1:] or 0)))


def _breaches(connection: Connection, rule: Rule, said: dict[str, Any]) -> Iterator[Finding]:
    statement = text(rule.statement)
    for row in connection.execute(statement, said):
        yield Finding(rule.invariant, row.what, str(row.job) if row.job else None, rule.advice)


def _parameters(now: datetime, since: datetime | None, at_rest: bool) -> dict[str, Any]:
    legal = [(left, entered) for left in State for entered in MOVES[left]]
    return {
        "now": now,
        "since": since or datetime.min.replace(tzinfo=now.tzinfo),
        "at_rest": at_rest,
        "terminal_events": sorted(TERMINAL_EVENTS),
        "slotted": [str(state) for state in SLOTTED],
        "lefts": [str(left) for left, _ in legal],
        "entereds": [str(entered) for _, entered in legal],
    }
