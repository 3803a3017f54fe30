"""The operator's commands: keys, projects, lanes, `pause` and `resume`.

They talk to the database, since no key exists before the first is made, and so that they work while the API is down.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from sqlalchemy import Connection, select

from ops.cli import show, tables
from ops.cli.reach import Database, command, spread
from worker import claims
from worker import keys as api_keys
from worker.errors import NotFound
from worker.jobs import reading
from worker.keys import KeyDocument, ProjectDocument, Scope
from worker.lanes import account_stops, slots, throttle
from worker.schedules import clock
from worker.tables import ApiKey, Project

_SPAN = re.compile(r"([1-9]\d{0,3})([hd])")


def _span(text: str) -> timedelta:
    """`90d` or `12h`."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise typer.BadParameter("is written like 90d or 12h")
    number, unit = int(found[1]), found[2]
    return timedelta(days=number) if unit == "d" else timedelta(hours=number)


def _kept(written: str) -> tuple[str, int | None]:
    """`outputs=30`; `outputs=` is for ever."""
    what, equals, days = written.partition("=")
    if not equals or not (days == "" or days.isdecimal()):
        raise typer.BadParameter("is written like outputs=30, or outputs= for ever", param_hint="--retain")
    return what, int(days) if days else None


app = typer.Typer()
keys = typer.Typer(help="Make, list, rotate and revoke API keys.", no_args_is_help=True)
projects = typer.Typer(help="List and set up projects.", no_args_is_help=True)
lanes = typer.Typer(invoke_without_command=True)

ProjectName = Annotated[str, typer.Argument(metavar="PROJECT")]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Which project, model or account; none for `all`.")]


class Pausable(StrEnum):
    """What a person may pause."""

    PROJECT = "project"
    LANE = "lane"
    ALL = "all"


class Resumable(StrEnum):
    """What a person may resume."""

    PROJECT = "project"
    LANE = "lane"
    ALL = "all"
    ACCOUNT = "account"


@command(keys, "create")
def create_key(
    *,
    project: ProjectName,
    name: Annotated[str, typer.Option(help="What it is for, to tell it from others.")] = "",
    scope: Annotated[
        Scope,
        typer.Option(help="read looks; submit makes and changes too; admin sets up keys and budgets too."),
    ] = Scope.SUBMIT,
    expires: Annotated[
        timedelta | None,
        typer.Option(parser=_span, metavar="SPAN", help="How long it works, like 90d or 12h. Default: for ever."),
    ] = None,
    database: Database,
) -> None:
    """Make an API key of a project, and print it alone.

    The project is made if it does not exist. The key cannot be shown again.
    """
    with database.connection() as connection:
        until = connection.execute(select(claims.NOW)).scalar_one() + expires if expires else None
        owner = project_made(connection, project)
        made = _made(connection, *api_keys.new_key(connection, owner, name, scope, until))
    database.answer(made, made["key"])


@command(keys, "operator")
def create_operators_key(
    *,
    name: Annotated[str, typer.Option(help="Whose it is: its decisions are recorded under this name.")] = "",
    database: Database,
) -> None:
    """Make an operator's key, and print it alone.

    It acts for every project, and resolves uncertain jobs.
    """
    with database.connection() as connection:
        made = _made(connection, *api_keys.new_key(connection, None, name))
    database.answer(made, made["key"])


@command(keys, "list")
def list_keys(
    *, project: Annotated[str | None, typer.Argument(metavar="[PROJECT]")] = None, database: Database
) -> None:
    """List the keys, ended ones too."""
    with database.connection() as connection:
        owner = api_keys.project(connection, project) if project else None
        found = _keys(connection, *api_keys.keys(connection, owner))
    columns = {"key": "prefix", "project": "project", "name": "name", "scope": "scope", "created": "created_at"}
    columns |= {"last used": "last_used_at", "expires": "expires_at"}
    database.answer(found, _table([key | _days(key) for key in found], columns, wide=["project", "name"]))


@command(keys, "rotate")
def rotate_key(
    *,
    key: Annotated[str, typer.Argument(metavar="ID_OR_NAME", help="As `noria keys list` shows it; or its prefix.")],
    keep: Annotated[
        int, typer.Option(min=0, max=api_keys.MOST_KEPT, metavar="HOURS", help="How long the old one still works.")
    ] = 24,
    database: Database,
) -> None:
    """Replace a key by a new one of the same name and scope, and print it alone.

    The new one works for as long as the old one was made for; the old one for --keep hours longer.
    """
    with database.connection() as connection:
        old = api_keys.rotatable(connection, key)
        made = _made(connection, *api_keys.rotate(connection, old.id, timedelta(hours=keep)))
    database.answer(made, made["key"])


@command(keys, "revoke")
def revoke_key(
    *,
    key: Annotated[str, typer.Argument(metavar="ID_OR_PREFIX", help="As `noria keys list` shows it.")],
    database: Database,
) -> None:
    """Revoke a key, at once."""
    with database.connection() as connection:
        (revoked,) = _keys(connection, api_keys.revoke(connection, key))
    database.answer(revoked, f"The key {revoked['prefix']}… is revoked.")


@command(projects, "list")
def list_projects(*, database: Database) -> None:
    """List the projects."""
    with database.connection() as connection:
        found = [_project(project) for project in api_keys.projects(connection)]
    columns = {"project": "name", "weight": "weight", "time zone": "time_zone", "made": "created_at"}
    database.answer(found, _table(found, columns, right=["weight"], wide=["project"]))


@command(projects, "set")
def set_project(
    *,
    project: ProjectName,
    weight: Annotated[int | None, typer.Option(help="Its share beside other projects, 1 to 1000.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="The zone of its days, like Asia/Shanghai.")] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(min=0, max=100_000, help="How many tasks at once; 0: no limit.")
    ] = None,
    cache_days: Annotated[
        int | None, typer.Option(help="An equal text's answer of so many days will do, unless a job says; 0: none.")
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="The only account of NORIA_ACCOUNTS that its jobs go to; '': any.")
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=DAYS",
            help="Days to keep outputs, inputs, deliveries, events or rows; `outputs=` for ever. Repeatable.",
        ),
    ] = None,
    usage_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Of metadata: break usage down by it from now on; '': none. Repeatable."),
    ] = None,
    database: Database,
) -> None:
    """Change a project's settings.

    `noria keys create PROJECT` makes a project.
    """
    with database.connection() as connection:
        columns = {"weight": weight, "time_zone": time_zone, "max_in_flight": max_in_flight}
        columns |= {"cache_days": cache_days, "account": account}
        if retain:
            api_keys.set_retention(connection, project, dict(map(_kept, retain)))
        if usage_key:
            api_keys.set_usage_keys(connection, project, [key for key in usage_key if key])
        changed = _project(api_keys.set_project(connection, project, **columns))
    database.answer(changed, f"{changed['name']}: {', '.join(_set_up(changed))}.")
    if not database.as_json and (warning := clock.zone_warning(changed["time_zone"])):
        show.ERR.print(f"{warning}.", style="yellow", markup=False)


@command(projects, "secret")
def show_secret(
    *,
    project: ProjectName,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one; the old one is no longer used.")] = False,
    database: Database,
) -> None:
    """Print the secret that signs a project's webhooks, alone.

    It is a `whsec_…` of Standard Webhooks.
    """
    with database.connection() as connection:
        found = api_keys.rotate_secret(connection, project) if rotate else api_keys.project(connection, project)
    database.answer({"project": project, "webhook_secret": found.webhook_secret}, found.webhook_secret)


@spread
def list_lanes(
    *,
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Idle lanes too.")] = False,
    database: Database,
) -> None:
    """Show the limits of the models, and what is in use.

    A lane is one model, in one region, for one owner of accounts. Shown are its slots, its queue, its pace beside the
    configured rate, and what stops it.
    """
    if context.invoked_subcommand is not None:
        return
    with database.connection() as connection:
        now = connection.execute(select(claims.NOW)).scalar_one()
        found = [reading.LaneDocument.of(lane, is_operator=True).as_json() for lane in slots.listed(connection, now)]
    busy = [lane for lane in found if every or lane["in_use"] or lane["queued"] or lane["waiting_on"]]
    database.answer(found, tables.lanes(busy))
    if database.as_json:
        return
    for why in dict.fromkeys(lane["waiting_on"]["detail"] for lane in busy if lane["waiting_on"]):
        show.OUT.print(f"- {why}", markup=False)
    if len(busy) < len(found):
        show.ERR.print(f"{len(found) - len(busy)} idle lanes are not shown; --all shows them.", style="dim")


lanes.callback()(list_lanes)


@command(lanes, "resume")
def resume_lanes(
    *,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model's lanes.")] = None,
    database: Database,
) -> None:
    """Return lanes to their configured limits, and resume stopped accounts."""
    with database.connection() as connection:
        count = throttle.forget(connection, model)
        if model is None:
            account_stops.resume_accounts(connection, None)
    database.answer({"resumed": model or "all", "lanes": count}, f"{count} lanes create again, as configured.")


@command(app)
def pause(*, what: Pausable, name: Name = None, database: Database) -> None:
    """Pause a project, a lane or everything.

    Nothing new is sent to the provider; what runs goes on.
    """
    with database.connection() as connection:
        account_stops.pause(connection, what, _name(what, name), claims.NOW)
    words = f"{_subject(what, name)} paused. What is in flight goes on; nothing new is sent."
    database.answer({"paused": what, "name": name}, words)


@command(app)
def resume(*, what: Resumable, name: Name = None, database: Database) -> None:
    """Resume a project, a lane, everything, or a stopped account."""
    with database.connection() as connection:
        if what is Resumable.ACCOUNT:
            account_stops.resume_accounts(connection, _name(what, name))
        else:
            account_stops.pause(connection, what, _name(what, name), None)
    database.answer({"resumed": what, "name": name}, f"{_subject(what, name)} resumed.")


def project_made(connection: Connection, name: str) -> Project:
    """The project, made if there is none of that name."""
    with suppress(NotFound):
        return api_keys.project(connection, name)
    return api_keys.create_project(connection, name)


def _made(connection: Connection, key: ApiKey, plain: str) -> dict[str, Any]:
    return {"key": plain, **_keys(connection, key)[0]}


def _table(found: list[dict[str, Any]], columns: dict[str, str], **how: list[str]) -> RenderableType:
    """A table of the fields, by column."""
    rows = ([show.plain(record[field]) for field in columns.values()] for record in found)
    return show.filled(rows, *columns, **how)


def _keys(connection: Connection, *keys: ApiKey) -> list[dict[str, Any]]:
    """The keys as the API lists them, each with its project's name."""
    names = {found.id: found.name for found in api_keys.projects(connection)}
    projects = (names[key.project_id] if key.project_id else None for key in keys)
    return [
        {**KeyDocument.model_validate(key).as_json(), "project": project}
        for key, project in zip(keys, projects, strict=True)
    ]


def _days(key: dict[str, Any]) -> dict[str, str | None]:
    """A key's times as they fit a table: days, or that it is revoked."""
    days = {name: key[name] and key[name][:10] for name in ("created_at", "last_used_at", "expires_at")}
    return days | ({"expires_at": "revoked"} if key["revoked_at"] else {})


def _project(project: Project) -> dict[str, Any]:
    return ProjectDocument.model_validate(project).as_json()


def _set_up(project: dict[str, Any]) -> list[str]:
    """What is set up for a project, in words."""
    said = [f"weight {project['weight']}", f"time zone {project['time_zone']}"]
    said += [f"answers of {project['cache_days']} days will do"] if project["cache_days"] else []
    said += [f"usage by {' and '.join(project['usage_keys'])}"] if project["usage_keys"] else []
    return said + ([f"bound to the account {project['account']}"] if project["account"] else [])


def _name(what: Pausable | Resumable, name: str | None) -> str:
    """The name, which all but `all` need; a usage error otherwise."""
    if (name is None) != (what == Pausable.ALL):
        wanted = "`all` takes no name" if what == Pausable.ALL else f"which {what}?"
        raise typer.BadParameter(wanted, param_hint="NAME")
    return name or ""


def _subject(what: str, name: str | None) -> str:
    return f"The {what} {name} is" if name else "All creates are"
