"""The demo as it goes: bring everything up, submit the campaign, watch it, fetch and play every file, take it down.

Nothing is taken on trust: the sandbox's own bill is held against ours, the webhooks' signatures are checked, every
frame of every file is decoded, and at the end the processes are looked for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path

import psutil
import typer
from rich.live import Live

from api.client import Client
from ops import campaign, following, local, reach, servers, show, supervise, verify
from ops.campaign import Quote, Row
from ops.cli_projects import project_made
from ops.demo import receiver, tables
from ops.demo.receiver import Mail
from ops.demo.tables import Made
from ops.following import Job
from ops.reach import Door
from ops.sandbox.testing import Sandbox
from ops.supervise import LocalError
from worker import keys

CAMPAIGN = Path(__file__).with_name("campaign.csv")
PROJECT = "demo"
TIME_SCALE = 0.02  # clips take one to four seconds: short, and long enough to be seen running
REAL_ROWS = 2
_KEY, _SECRET = "NORIA_DEMO_KEY", "NORIA_DEMO_SECRET"
_PATIENCE_SECONDS = 120.0  # for a campaign of the sandbox
_MAIL_SECONDS = 15.0
_CLOSE_SECONDS = 0.5  # between the length of a clip and what was asked for
_GONE_SECONDS = 5.0
_FRAME_LINES = 4  # of the live table beside its rows
_MICROS = 1_000_000


@dataclass(frozen=True)
class Options:
    """What a person may choose."""

    home: Path
    keep: bool = False
    real: bool = False
    rows: int | None = None
    yes: bool = False
    as_json: bool = False


@dataclass
class Findings:
    """What was found: a line for each thing that holds, and one for each that does not."""

    good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def note(self, holds: bool, words: str) -> None:
        """Put a finding on the list that it belongs to."""
        (self.good if holds else self.bad).append(words)


class Refused(LocalError):
    """A person said no, or could not be asked."""

    exit_code = 2


def run(options: Options) -> int:
    """Run the demo; the exit code is 0 only if everything holds. `LocalError` where it cannot be run."""
    started, findings = time.monotonic(), Findings()
    say = show.ERR if options.as_json else show.OUT
    if options.real and not options.yes and not sys.stdin.isatty():
        raise Refused("--real spends money and asks first; there is nobody to ask here: give --yes.")
    try:
        with local.interruptible(), _home(options) as home, _leaving_nothing(findings) as watched:
            made = _everything_up(options, home, findings, watched)
    except KeyboardInterrupt:
        say.print("Interrupted; nothing is left running.")
        return 130
    findings.note(True, f"all of it took {show.seconds(time.monotonic() - started)}")
    if options.as_json:
        show.document({"ok": not findings.bad, "good": findings.good, "bad": findings.bad, "made": [asdict(one) for one in made]})
    else:
        show.OUT.print(tables.findings(findings.good[-2:], findings.bad))
    return 1 if findings.bad else 0
