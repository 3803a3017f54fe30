"""`noria schedules`: jobs that the clock submits. The commands talk to the API; a schedule is named by name or id."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group

from api.client import Client
from ops.cli import show, show_schedules
from ops.cli.options import Home, Json, Key, Url, pairs
from ops.doctor import reach
from ops.local.supervise import LocalError

_RUNS_SHOWN = 5

Schedule = dict[str, Any]
Which = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Its name or its id.")]
JsonFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file with all of it.")]
InputFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file with the job's input.")]

_schedules = typer.Typer(help="Jobs that the clock submits.", no_args_is_help=True)


class NoSuchSchedule(LocalError):
    """The project has no schedule of that name or id."""

    exit_code = 5


def add_to(app: typer.Typer) -> None:
    """Put the commands under `noria`."""
    app.add_typer(_schedules, name="schedules")


@_schedules.command("list")
def list_schedules(url: Url = None, key: Key = None, home: Home = Path(".noria"), as_json: Json = False) -> None:
    """List the schedules, with the next time of each, in its own zone."""
    with reach.api(reach.door(home, url, key)) as client:
        found = list(client.schedules())
    if as_json:
        show.document(found)
    elif found:
        show.OUT.print(show_schedules.listed(found))
    else:
        show.ERR.print("No schedules.")


@_schedules.command("show")
def show_schedule(
    which: Which, url: Url = None, key: Key = None, home: Home = Path(".noria"), as_json: Json = False
) -> None:
    """Show a schedule: when it fires next, what it submits, and its last runs."""
    with reach.api(reach.door(home, url, key)) as client:
        schedule = _found(client, which)
        runs = list(islice(client.runs(schedule["id"]), _RUNS_SHOWN))
    if as_json:
        show.document({"schedule": schedule, "runs": runs})
    else:
        show.OUT.print(Group(show_schedules.facts(schedule), *([show_schedules.runs(schedule, runs)] if runs else [])))


@_schedules.command("create")
def create(
    name: Annotated[str | None, typer.Argument(help="Its name, unless the file says it.")] = None,
    cron: Annotated[str | None, typer.Option(help="Minute, hour, day, month, weekday: '30 2 * * *'.")] = None,
    zone: Annotated[str | None, typer.Option(help="Asia/Shanghai; otherwise the project's.")] = None,
    overlap: Annotated[str | None, typer.Option(help="While the run before is at work: skip, queue, cancel.")] = None,
    missed: Annotated[str | None, typer.Option(help="Times at which no clock ran: run_once or skip.")] = None,
    kind: Annotated[str | None, typer.Option(help="What its jobs make.")] = None,
    model: Annotated[str | None, typer.Option(help="The provider's model or an alias.")] = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="A field of the job's input.")
    ] = None,
    input_file: InputFile = None,
    custom_id: Annotated[str | None, typer.Option(help="Your own id for each job, as 'daily-{{date}}'.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="To find the jobs by.")] = None,
    priority: Annotated[str | None, typer.Option(help="high, normal or low.")] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Is told how each job ends.")] = None,
    file: JsonFile = None,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Make a schedule from a JSON file, from options, or from a file with options that say otherwise.

    In every text of the job stand, told from the fire time: {{date}}, {{yesterday}}, {{time}}, {{week}}, {{month}},
    {{fire_at}}, {{since}} and {{until}} (the window since the last run), {{run}}.
    """
    body = _read(file) if file else {}
    template = dict(body.get("template") or {})
    wanted = {**(template.get("input") or {}), **(_read(input_file) if input_file else {}), **pairs(given, "--input")}
    template |= _said(
        kind=kind,
        model=model,
        input=wanted or None,
        custom_id=custom_id,
        metadata=pairs(metadata, "--metadata") or None,
        priority=priority,
        webhook_url=webhook_url,
    )
    body |= _said(name=name, cron=cron, time_zone=zone, overlap=overlap, missed=missed, template=template)
    with reach.api(reach.door(home, url, key)) as client:
        made = client.make_schedule(body)
    if as_json:
        show.document(made)
        return
    show.OUT.print(made["id"])
    show.ERR.print(f"{made['explained']}, {made['time_zone']}; next {_fires(made)}.", markup=False)
    show.warnings(made["warnings"])


@_schedules.command("pause")
def pause(which: Which, url: Url = None, key: Key = None, home: Home = Path(".noria"), as_json: Json = False) -> None:
    """Let a schedule fire no more; runs that wait are dropped, jobs go on."""
    with reach.api(reach.door(home, url, key)) as client:
        paused = client.pause_schedule(_found(client, which)["id"])
    _told(paused, f"{paused['name']} is paused.", as_json)


@_schedules.command("resume")
def resume(which: Which, url: Url = None, key: Key = None, home: Home = Path(".noria"), as_json: Json = False) -> None:
    """Let a schedule fire again; what a pause left out is not made up for."""
    with reach.api(reach.door(home, url, key)) as client:
        resumed = client.resume_schedule(_found(client, which)["id"])
    _told(resumed, f"{resumed['name']} fires next {_fires(resumed)}.", as_json)


@_schedules.command("run")
def run(which: Which, url: Url = None, key: Key = None, home: Home = Path(".noria"), as_json: Json = False) -> None:
    """Run a schedule now, and print its job's id; exit code 1 when it submitted none."""
    with reach.api(reach.door(home, url, key)) as client:
        made = client.run_schedule(_found(client, which)["id"])
    if made["job_id"]:
        _told(made, made["job_id"], as_json)
        return
    if as_json:
        show.document(made)
    else:
        show.ERR.print(f"{made['outcome']}: {made['why']}", markup=False)
    raise typer.Exit(0 if made["outcome"] == "waiting" else 1)


@_schedules.command("delete")
def delete(which: Which, url: Url = None, key: Key = None, home: Home = Path(".noria"), as_json: Json = False) -> None:
    """Delete a schedule with its history; its jobs stay."""
    with reach.api(reach.door(home, url, key)) as client:
        schedule = _found(client, which)
        client.delete_schedule(schedule["id"])
    _told({"deleted": schedule["id"]}, f"{schedule['name']} is deleted.", as_json)


@_schedules.command("runs")
def list_runs(
    which: Which,
    limit: Annotated[int, typer.Option(min=1, help="So many at the most, the latest first.")] = 20,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """List what became of each fire time: its job, or why there is none."""
    with reach.api(reach.door(home, url, key)) as client:
        schedule = _found(client, which)
        runs = list(islice(client.runs(schedule["id"]), limit))
    if as_json:
        show.document(runs)
    elif runs:
        show.OUT.print(show_schedules.runs(schedule, runs))
    else:
        show.ERR.print("It has not fired yet.")


def _found(client: Client, which: str) -> Schedule:
    with suppress(ValueError):
        return client.schedule(str(uuid.UUID(which)))
    found = next(client.schedules(which), None)
    if found is None:
        raise NoSuchSchedule(f"There is no schedule {which}: `noria schedules list` shows those that there are.")
    return client.schedule(found["id"])  # a list cuts what is long in a template


def _fires(schedule: Schedule) -> str:
    return show_schedules.local(schedule, show_schedules.soonest(schedule))


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise typer.BadParameter(f"{path} is to hold an object")
    return read


def _said(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _told(document: dict[str, Any], words: str, as_json: bool) -> None:
    if as_json:
        show.document(document)
    else:
        show.OUT.print(words, markup=False, soft_wrap=True)
