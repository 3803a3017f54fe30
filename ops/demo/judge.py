"""What the demo judges by: nothing is taken on trust.

Every file is opened and held against what was asked for, the webhooks' signatures are checked, and the sandbox's own
bill is held against ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from api.client import Client
from ops.cli import following, show
from ops.cli.following import Job
from ops.demo import proofs
from ops.demo.receiver import Mail
from ops.demo.report import Findings, Kept, Made
from ops.sandbox.testing import Sandbox

_MAIL_SECONDS = 15.0
_MICROS = 1_000_000


def fetched(client: Client, job: Job, folder: Path, documents: frozenset[str]) -> Made:
    """The job's outputs on this disk, each opened; `documents` are the names of what a summary is to be of."""
    steps = following.seconds_by_step(list(client.events(job["id"])))
    said = (show.name(job), job["kind"], job["model"], steps, Decimal(job["cost"]["actual"] or 0))
    if job["state"] != "succeeded":
        return Made(*said, outputs=(), holds="", fault=show.waits_for(job) or job["state"])
    paths = list(following.fetch(client, job, folder))
    kept = [Kept(one["key"], path.name, one["bytes"]) for one, path in zip(job["outputs"], paths, strict=True)]
    holds, fault = proofs.prove(job, {path.suffix[1:]: path for path in paths}, documents)
    return Made(*said, kept, holds, fault)


def files(jobs: Sequence[Job], made: Sequence[Made], findings: Findings) -> None:
    """Whether every job succeeded, and every file is what was asked for."""
    done = sum(job["state"] == "succeeded" for job in jobs)
    findings.note(done == len(jobs), f"{done} of {len(jobs)} jobs succeeded")
    faults = [f"{one.name}: {one.fault}" for one in made if one.fault]
    for fault in faults:
        findings.note(False, fault)
    if faults:
        return
    findings.note(True, "every clip and picture plays: all frames decoded, and as long as was asked for")
    findings.note(True, "the narration holds its text once, in order, and its pauses to the sample")
    findings.note(True, "the summaries are one for each document, and a digest")


def webhooks(mail: Mail, count: int, findings: Findings) -> None:
    """Whether every job's end was told, signed as it should be; waits a while for the last."""
    complete = mail.wait_for(count, _MAIL_SECONDS)
    forged = f", {mail.forged} with a wrong signature" if mail.forged else ""
    findings.note(complete and not mail.forged, f"webhooks delivered: {len(mail.told)}, verified{forged}")


def bill(sandbox: Sandbox, jobs: Sequence[Job], findings: Findings) -> None:
    """Whether the sandbox was asked once for each job and part of a job, and billed what we think it did."""
    totals = sandbox.ledger()["totals"]
    billed = Decimal(totals["billed_micros"]) / _MICROS
    ours = sum((Decimal(job["cost"]["actual"] or 0) for job in jobs), Decimal(0))
    asked = sum(job["children"]["total"] if job["children"] else 1 for job in jobs)
    equal = totals["tasks"] == totals["creates"] == asked and billed == ours
    words = f"by the sandbox's own bill: {totals['tasks']} tasks and calls, {show.money(billed)}"
    findings.note(equal, f"{words} — {'equal' if equal else f'ours: {asked}, {show.money(ours)}'}")
