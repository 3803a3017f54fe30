"""What the demo judges by: nothing is taken on trust.

Every frame of every file is decoded, the webhooks' signatures are checked, and the sandbox's own bill is held
against ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from api.client import Client
from ops import following, show, verify
from ops.demo.receiver import Mail
from ops.demo.report import Findings, Made
from ops.following import Job
from ops.sandbox.testing import Sandbox

_MAIL_SECONDS = 15.0
_CLOSE_SECONDS = 0.5  # between the length of a clip and what was asked for
_MICROS = 1_000_000


def fetched(client: Client, job: Job, folder: Path) -> Made:
    """The job's output on this disk, played from beginning to end."""
    steps = following.seconds_by_step(list(client.events(job["id"])))
    said = (show.name(job), job["kind"], job["model"], steps, Decimal(job["cost"]["actual"] or 0))
    if job["state"] != "succeeded":
        return Made(*said, key="", file="", bytes=0, plays="", fault=show.waits_for(job) or job["state"])
    output = job["outputs"][0]
    path = next(following.fetch(client, job, folder))
    plays, fault = _played(path, output["content_type"], job["input"].get("duration"))
    return Made(*said, output["key"], path.name, output["bytes"], plays, fault)


def files(jobs: Sequence[Job], made: Sequence[Made], findings: Findings) -> None:
    """Whether every job succeeded and every file plays."""
    done = sum(job["state"] == "succeeded" for job in jobs)
    findings.note(done == len(jobs), f"{done} of {len(jobs)} jobs succeeded")
    faults = [f"{one.name}: {one.fault}" for one in made if one.fault]
    for fault in faults:
        findings.note(False, fault)
    if not faults:
        findings.note(True, "every file plays: all frames decoded, and the clips as long as was asked for")


def webhooks(mail: Mail, count: int, findings: Findings) -> None:
    """Whether every job's end was told, signed as it should be; waits a while for the last."""
    complete = mail.wait_for(count, _MAIL_SECONDS)
    forged = f", {mail.forged} with a wrong signature" if mail.forged else ""
    findings.note(complete and not mail.forged, f"webhooks delivered: {len(mail.told)}, verified{forged}")


def bill(sandbox: Sandbox, jobs: Sequence[Job], findings: Findings) -> None:
    """Whether the sandbox made as many tasks as there are jobs, and billed what we think it did."""
    totals = sandbox.ledger()["totals"]
    billed = Decimal(totals["billed_micros"]) / _MICROS
    ours = sum((Decimal(job["cost"]["actual"] or 0) for job in jobs), Decimal(0))
    equal = totals["tasks"] == totals["creates"] == len(jobs) and billed == ours
    words = f"by the sandbox's own bill: {totals['tasks']} tasks, {show.money(billed)}"
    findings.note(equal, f"{words} — {'equal' if equal else f'ours: {len(jobs)} jobs, {show.money(ours)}'}")


def _played(path: Path, content_type: str, asked: int | None) -> tuple[str, str | None]:
    """What was decoded in a few words, and what is wrong with it."""
    try:
        seen = verify.play(path, content_type)
    except verify.Unplayable as error:
        return "", str(error)
    if seen.seconds is None or asked is None:
        return f"{seen.width}×{seen.height}", None
    is_as_asked = abs(seen.seconds - asked) <= _CLOSE_SECONDS
    fault = None if is_as_asked else f"{path.name} lasts {seen.seconds:.1f} s, {asked} s were asked for"
    return f"{seen.seconds:.1f} s", fault
