"""`noria doctor` and `noria audit`: does every part work, and was every promise kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from sqlalchemy import create_engine

from ops import audit as auditing
from ops.audit import Finding
from ops.cli import show
from ops.cli.reach import HOME, Database, Home, Json, NotReachable, command
from ops.doctor import Diagnosis, Exam, Verdict, examine, is_well, offers, paid_probes, rows, services
from ops.local import servers, up
from worker import catalog, context, database
from worker.jobs import restored
from worker.settings import Settings
from worker.settings import load as load_settings
from worker.storage import Bucket

_SIGNS = {
    Verdict.WELL: ("green", "✓"),
    Verdict.FIXED: ("green", "+"),
    Verdict.WARNING: ("yellow", "!"),
    Verdict.FAILURE: ("red", "✗"),
    Verdict.SKIPPED: ("dim", "-"),
}

CHECKS = rows.CHECKS + services.CHECKS + offers.CHECKS + paid_probes.CHECKS  # in the order in which they are made

app = typer.Typer()


@command(app)
def doctor(
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what can be repaired without harm.")] = False,
    paid: Annotated[
        bool,
        typer.Option("--paid-probes", help="Settle by calls that cost some 0.10 CNY an account what no document says."),
    ] = False,
    flower: Annotated[str | None, typer.Option(envvar="NORIA_FLOWER_URL", help="Flower's address.")] = None,
    as_json: Json = False,
    home: Home = HOME,
) -> None:
    """Test every part of Noria, and say what to do.

    The exit code is 1 if something does not work.
    """
    found = []
    settings, here = settings_of(home)
    engine = database.engine(settings, threads=1)  # as the workers do, so that what fails them fails here
    exam = Exam(settings, catalog.load(), engine, Bucket(settings), flower or here, fix, paid)
    for diagnosis in examine(exam, CHECKS):
        found.append(diagnosis)
        if not as_json:
            _tell_found(diagnosis)
    if as_json:
        documents = [{"check": each.check, **asdict(each.found)} for each in found]
        show.document({"well": is_well(found), "found": documents})
    raise typer.Exit(0 if is_well(found) else 1)


@command(app)
def audit(
    *,
    days: Annotated[int, typer.Option(min=1, help="How old the checked jobs may be.")] = 7,
    database: Database,
) -> None:
    """Check that jobs were paid once and none was lost.

    It reads the database and changes nothing. The exit code is 1 if a promise was broken.
    """
    with database.connection() as connection:
        engine = create_engine(connection.engine.url, hide_parameters=True)
    findings = auditing.audit(engine, since=datetime.now(UTC) - timedelta(days=days))
    tell(findings, database.as_json)
    raise typer.Exit(1 if findings else 0)


@command(app, "restored")
def look_after_restore(
    *,
    since: Annotated[
        datetime,
        typer.Argument(
            formats=["%Y-%m-%dT%H:%M:%S%z"],
            metavar="SINCE",
            help="When the backup was made, as in 2026-11-28T03:00:00+08:00.",
        ),
    ],
    as_json: Json = False,
    home: Home = HOME,
) -> None:
    """Look for what was paid for since a backup that was restored.

    To be run while no worker runs, before anything is sent. It pauses all creates. A job that waits, as the backup
    says, and whose task the provider may have, is looked for before it is sent. The exit code is 1 while there may be
    more.
    """
    ctx = context.make(settings_of(home)[0])
    found = restored.look(ctx, since)
    told = [
        f"{len(found.suspected)} jobs that wait may have been sent since: each is looked for before it is sent.",
        *_counted(found.held, "held jobs may have been sent since; look at each before you release it"),
        *_counted(found.running, "tasks still run, and what they were asked is not known yet: repeat this later"),
        *_counted(found.unowned, "tasks are of no job that waits: paid for, and lost with the rows"),
        f"{found.calls} jobs wait for calls that are in no list, or have parts: what was made of them is made again.",
        *_counted(found.schedules, "schedules run once more for what is past: pause those that ran since the backup"),
        *([] if found.is_all else ["The provider lists a day: what was sent before that is not known."]),
        "All creates are paused. Start the workers; `noria resume all` once this says no more.",
    ]
    show.answer(as_json, asdict(found), "\n".join(told))
    raise typer.Exit(0 if found.is_all and not found.running else 1)


def settings_of(home: Path) -> tuple[Settings, str | None]:
    """The settings in the environment, or those of the `noria up` here, and where its Flower is."""
    if "NORIA_DATABASE_URL" in os.environ:
        return load_settings(), None
    if not (home / "ports.json").exists():
        raise NotReachable("No Noria is known here: set its settings (NORIA_…), or start one with `noria up`.")
    home = home.resolve()
    ports, addresses = servers.kept_ports(home), servers.announced(home)
    # What is really asked stands in the environment that `up --real` was given, and is to stand in this one too.
    real = bool(addresses) and "sandbox" not in addresses
    environment = up.settings(servers.described(home), ports, os.environ if real else {}, real)
    values = {name.removeprefix("NORIA_").lower(): value for name, value in environment.items()}
    sandboxed = {} if real else {"accounts": ()}
    return Settings.model_validate({**values, **sandboxed}), f"http://{servers.HOST}:{ports['flower']}"


def tell(findings: Sequence[Finding], as_json: bool) -> None:
    """Print what an audit found."""
    if as_json:
        show.document([asdict(finding) for finding in findings])
        return
    for finding in findings:
        job = f"job {finding.job}: " if finding.job else ""
        show.OUT.print(f"[red]{finding.invariant}[/] {escape(job + finding.what)}", soft_wrap=True)
        show.OUT.print(f"    {escape(finding.advice)}", soft_wrap=True)
    if not findings:
        show.OUT.print("[green]Every promise was kept.[/]")


def _counted(ids: Sequence[object], what: str) -> list[str]:
    return [f"{len(ids)} {what}: {', '.join(map(str, ids))}."] if ids else []


def _tell_found(diagnosis: Diagnosis) -> None:
    found = diagnosis.found
    colour, sign = _SIGNS[found.verdict]
    show.OUT.print(f"[{colour}]{sign}[/] [bold]{diagnosis.check:10}[/] {escape(found.what)}", soft_wrap=True)
    if found.advice:
        show.OUT.print(f"             [dim]{escape(found.advice)}[/]", soft_wrap=True)
