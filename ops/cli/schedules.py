"""`noria schedules`: jobs that the clock submits. The commands talk to the API; a schedule is named by name or id."""

from __future__ import annotations

import uuid
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import Client
from ops.cli import show, tables
from ops.cli.reach import Api, command, read_object
from ops.cli.submit import Input, OneLabels
from ops.local.supervise import LocalError

_RUNS_SHOWN = 5

Schedule = dict[str, Any]
Which = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Its name or its id.")]

schedules = typer.Typer(help="Submit jobs by the clock.", no_args_is_help=True)


class NoSuchSchedule(LocalError):
    """The project has no schedule of that name or id."""

    exit_code = 5


@command(schedules, "list")
def list_schedules(*, api: Api) -> None:
    """List the schedules, with the next time of each, in its own zone."""
    with api.client() as client:
        found = show.plain_all(client.schedules())
    api.answer(found, tables.schedules(found), "No schedules.")


@command(schedules, "show")
def show_schedule(*, which: Which, api: Api) -> None:
    """Show a schedule: when it fires next, what it submits, and its last runs."""
    with api.client() as client:
        schedule = _found(client, which)
        runs = show.plain_all(islice(client.runs(schedule["id"]), _RUNS_SHOWN))
    api.answer({"schedule": schedule, "runs": runs}, tables.schedule(schedule, runs))


@command(schedules)
def create(
    *,
    name: Annotated[str | None, typer.Argument(help="Its name. Default: the file's.")] = None,
    cron: Annotated[str | None, typer.Option(help="Minute, hour, day, month, weekday, like '30 2 * * *'.")] = None,
    zone: Annotated[str | None, typer.Option(help="Its time zone, like Asia/Shanghai. Default: the project's.")] = None,
    overlap: Annotated[
        str | None, typer.Option(help="If the last run is still unfinished: skip, queue or cancel.")
    ] = None,
    missed: Annotated[str | None, typer.Option(help="For times when no clock ran: run_once or skip.")] = None,
    kind: Annotated[str | None, typer.Option(help="The kind of its jobs.")] = None,
    model: Annotated[str | None, typer.Option(help="The provider's model or an alias.")] = None,
    wanted: Input,
    labels: OneLabels,
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file with the schedule; options go first.")
    ] = None,
    api: Api,
) -> None:
    """Make a schedule from options, from a JSON file, or from both.

    Every text of the job may hold these words, which each run fills in from its fire time: {{date}}, {{yesterday}},
    {{time}}, {{week}}, {{month}}, {{fire_at}}, {{since}} and {{until}} (the time since the last run), {{run}}.
    """
    body = read_object(file, "--file") if file else {}
    template = dict(body.get("template") or {})
    if fields := {**(template.get("input") or {}), **wanted.fields()}:
        template["input"] = fields
    template |= _given(kind=kind, model=model) | labels.fields()
    body |= _given(name=name, cron=cron, time_zone=zone, overlap=overlap, missed=missed, template=template)
    with api.client() as client:
        made = client.make_schedule(body).as_json()
    api.answer(made, made["id"])
    if not api.as_json:
        show.ERR.print(f"{made['explained']}, {made['time_zone']}; next {tables.soonest(made)}.", markup=False)
        show.warnings(made["warnings"])


@command(schedules)
def pause(*, which: Which, api: Api) -> None:
    """Stop a schedule from firing. Runs that still wait are dropped; jobs go on."""
    with api.client() as client:
        paused = client.pause_schedule(_found(client, which)["id"]).as_json()
    api.answer(paused, f"{paused['name']} is paused.")


@command(schedules)
def resume(*, which: Which, api: Api) -> None:
    """Let a schedule fire again; times that passed during the pause are left out."""
    with api.client() as client:
        resumed = client.resume_schedule(_found(client, which)["id"]).as_json()
    api.answer(resumed, f"{resumed['name']} fires next {tables.soonest(resumed)}.")


@command(schedules)
def run(*, which: Which, api: Api) -> None:
    """Run a schedule now, and print its job's id; exit code 1 if it submitted none."""
    with api.client() as client:
        made = client.run_schedule(_found(client, which)["id"]).as_json()
    if made["job_id"] or api.as_json:
        api.answer(made, made["job_id"] or "")
    else:
        show.ERR.print(f"{made['outcome']}: {made['why']}", markup=False)
    raise typer.Exit(0 if made["job_id"] or made["outcome"] == "waiting" else 1)


@command(schedules)
def delete(*, which: Which, api: Api) -> None:
    """Delete a schedule with its history; its jobs stay."""
    with api.client() as client:
        schedule = _found(client, which)
        client.delete_schedule(schedule["id"])
    api.answer({"deleted": schedule["id"]}, f"{schedule['name']} is deleted.")


@command(schedules, "runs")
def list_runs(
    *,
    which: Which,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the latest first.")] = 20,
    api: Api,
) -> None:
    """List the runs, one for each fire time: its job, or why there is none."""
    with api.client() as client:
        schedule = _found(client, which)
        runs = show.plain_all(islice(client.runs(schedule["id"]), limit))
    api.answer(runs, tables.runs(schedule, runs), "It has not fired yet.")


def _found(client: Client, which: str) -> Schedule:
    with suppress(ValueError):
        return client.schedule(uuid.UUID(which)).as_json()
    found = next(client.schedules(which), None)
    if found is None:
        raise NoSuchSchedule(f"There is no schedule {which}; `noria schedules list` lists them.")
    return client.schedule(found.id).as_json()  # a list cuts what is long in a template


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
