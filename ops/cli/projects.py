"""`noria keys` and `noria projects`: they talk to the database, since no key exists before the first is made."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from ops.cli import show
from ops.cli.options import DatabaseUrl, Home, Json
from ops.doctor import reach
from worker import keys
from worker.errors import NotFound
from worker.schedules import clock
from worker.tables import ApiKey, Project
from worker.text import moment

_keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
_projects = typer.Typer(help="List and set up projects.", no_args_is_help=True)

ProjectName = Annotated[str, typer.Argument(metavar="PROJECT")]


def add_to(app: typer.Typer) -> None:
    """Put the commands under `noria`."""
    app.add_typer(_keys, name="keys")
    app.add_typer(_projects, name="projects")


def project_made(connection: Connection, name: str) -> Project:
    """The project, made if there is none of that name."""
    with suppress(NotFound):
        return keys.project(connection, name)
    return keys.create_project(connection, name)


@_keys.command("create")
def create_key(
    project: ProjectName,
    name: Annotated[str, typer.Option(help="What it is for, to tell it from others.")] = "",
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make the project where needed, and print a new API key, alone: it cannot be shown again."""
    with reach.database(home, database_url) as connection:
        key, plain = keys.new_key(connection, project_made(connection, project), name)
    if as_json:
        show.document({"key": plain, "id": str(key.id), "prefix": key.prefix, "project": project, "name": name})
    else:
        print(plain)


@_keys.command("operator")
def create_operators_key(
    name: Annotated[str, typer.Option(help="Whose it is: what it decides is written under this name.")] = "",
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make an operator's key, which acts for any project and resolves uncertain jobs, and print it, alone."""
    with reach.database(home, database_url) as connection:
        key, plain = keys.new_key(connection, None, name)
    if as_json:
        show.document({"key": plain, "id": str(key.id), "prefix": key.prefix, "project": None, "name": name})
    else:
        print(plain)


@_keys.command("list")
def list_keys(
    project: Annotated[str | None, typer.Argument(metavar="[PROJECT]")] = None,
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """List the keys, revoked ones too; their text is not kept."""
    with reach.database(home, database_url) as connection:
        owner = keys.project(connection, project) if project else None
        names = {found.id: found.name for found in keys.projects(connection)}
        found = [_key_shown(key, names) for key in keys.keys(connection, owner)]
    if as_json:
        show.document(found)
        return
    rows = show.table("key", "project", "name", "last used", "revoked", wide=["project", "name"])
    for key in found:
        show.row(rows, *(show.plain(key[c]) for c in ("prefix", "project", "name", "last_used_at", "revoked_at")))
    show.OUT.print(rows)


@_keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="ID_OR_PREFIX", help="As `noria keys list` shows it.")],
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """End a key; it stops to work at once."""
    with reach.database(home, database_url) as connection:
        ended = keys.revoke(connection, key)
        names = {found.id: found.name for found in keys.projects(connection)}
    if as_json:
        show.document(_key_shown(ended, names))
    else:
        show.OUT.print(f"The key {ended.prefix}… works no longer.")


@_projects.command("list")
def list_projects(home: Home = Path(".noria"), database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """List the projects."""
    with reach.database(home, database_url) as connection:
        found = [_project_shown(project) for project in keys.projects(connection)]
    if as_json:
        show.document(found)
        return
    rows = show.table("project", "weight", "time zone", "made", right=["weight"], wide=["project"])
    for project in found:
        show.row(rows, *(show.plain(project[c]) for c in ("name", "weight", "time_zone", "created_at")))
    show.OUT.print(rows)


@_projects.command("set")
def set_project(
    project: ProjectName,
    weight: Annotated[int | None, typer.Option(help="Its share of turns beside other projects, 1 to 1000.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="Where its days begin, like Asia/Shanghai.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(min=0, help="Its tasks at once, in all; 0: no bound.")] = None,
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Change a project; it must exist (`noria keys create PROJECT` makes one)."""
    with reach.database(home, database_url) as connection:
        changed = _project_shown(keys.set_project(connection, project, weight, time_zone, max_in_flight))
    if as_json:
        show.document(changed)
    else:
        show.OUT.print(f"{changed['name']}: weight {changed['weight']}, time zone {changed['time_zone']}.")
        if warning := clock.zone_warning(changed["time_zone"]):
            show.ERR.print(f"{warning}.", style="yellow", markup=False)


@_projects.command("secret")
def show_secret(
    project: ProjectName,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one; the old one ends.")] = False,
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Print what signs the project's webhooks (Standard Webhooks, `whsec_…`), alone."""
    with reach.database(home, database_url) as connection:
        found = keys.rotate_secret(connection, project) if rotate else keys.project(connection, project)
    if as_json:
        show.document({"project": project, "webhook_secret": found.webhook_secret})
    else:
        print(found.webhook_secret)


def _key_shown(key: ApiKey, names: dict[uuid.UUID, str]) -> dict[str, Any]:
    times = {name: moment(getattr(key, name)) for name in ("created_at", "last_used_at", "revoked_at")}
    project = names[key.project_id] if key.project_id else None
    return {"id": str(key.id), "prefix": key.prefix, "project": project, "name": key.name, **times}


def _project_shown(project: Project) -> dict[str, Any]:
    return {
        "name": project.name,
        "weight": project.weight,
        "time_zone": project.time_zone,
        "max_in_flight": project.max_in_flight,
        "paused_at": moment(project.paused_at),
        "created_at": moment(project.created_at),
    }
