"""`noria lanes`, `noria pause` and `noria resume`: what holds creates back, and a person's say in it.

They talk to the database, so they work while the API is down; what they change holds from the next create on.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from sqlalchemy import Connection, select

from ops.cli import show
from ops.cli.options import DatabaseUrl, Home, Json
from ops.doctor import reach
from worker import claims
from worker.jobs import reading
from worker.lanes import account_stops, slots, throttle

_lanes = typer.Typer(help="Show the provider's limits, what is in use, and what stops the rest.")


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


Name = Annotated[str | None, typer.Argument(metavar="NAME", help="A project, a model, or an account; not for all.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands under `noria`."""
    app.add_typer(_lanes, name="lanes")
    app.command("pause")(pause)
    app.command("resume")(resume)


@_lanes.callback(invoke_without_command=True)
def list_lanes(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Idle lanes too.")] = False,
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """List the lanes that are at work, wait, or are stopped."""
    if context.invoked_subcommand is not None:
        return
    with reach.database(home, database_url) as connection:
        found = _listed(connection)
    if as_json:
        show.document(found)
        return
    busy = [lane for lane in found if every or lane["in_use"] or lane["queued"] or lane["waiting_on"]]
    show.OUT.print(_table(busy))
    for why in dict.fromkeys(lane["waiting_on"]["detail"] for lane in busy if lane["waiting_on"]):
        show.OUT.print(f"- {why}", markup=False)
    if len(busy) < len(found):
        show.ERR.print(f"{len(found) - len(busy)} idle lanes are not shown; --all shows them.", style="dim")


@_lanes.command("resume")
def resume_lanes(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only its lanes.")] = None,
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Forget what the provider's refusals did: parks, slower rates, fewer tasks at once, stopped accounts."""
    with reach.database(home, database_url) as connection:
        count = throttle.forget(connection, model)
        if model is None:
            account_stops.resume_accounts(connection, None)
    _told({"resumed": model or "all", "lanes": count}, f"{count} lanes create again, as configured.", as_json)


def pause(
    what: Pausable,
    name: Name = None,
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Stop creates of a project, a lane or all, within a second; looks and copies go on."""
    with reach.database(home, database_url) as connection:
        account_stops.pause(connection, what, _named(what, name), claims.NOW)
    said = {"paused": what, "name": name}
    _told(said, f"{_words(what, name)} paused. What is in flight goes on; nothing new is sent.", as_json)


def resume(
    what: Resumable,
    name: Name = None,
    home: Home = Path(".noria"),
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Let a project, a lane, all, or a stopped account create again."""
    with reach.database(home, database_url) as connection:
        if what is Resumable.ACCOUNT:
            account_stops.resume_accounts(connection, _named(what, name))
        else:
            account_stops.pause(connection, what, _named(what, name), None)
    _told({"resumed": what, "name": name}, f"{_words(what, name)} resumed.", as_json)


_NUMBERS = ["in use", "queued", "pace"]


def _listed(connection: Connection) -> list[dict[str, Any]]:
    now = connection.execute(select(claims.NOW)).scalar_one()
    return [reading.lane_shown(lane, is_operator=True) for lane in slots.listed(connection, now)]


def _table(lanes_shown: list[dict[str, Any]]) -> Any:
    """With a column of tokens where any are limited."""
    tokens = ["tokens"] if any(lane["tokens"] for lane in lanes_shown) else []
    names = ["model", "region", "in use", "queued", "pace", *tokens, "stopped"]
    rows = show.table(*names, right=[*_NUMBERS, *tokens], wide=["stopped"])
    for lane in lanes_shown:
        cells = _cells(lane) | {"tokens": _tokens(lane["tokens"])}
        show.row(rows, *(escape(cells[name]) for name in names))
    return rows


def _tokens(used: dict[str, Any] | None) -> str:
    """The day's tokens so far, or those that are booked ahead, as a share of the limit."""
    if used is None:
        return ""
    if used["per_day"] is not None:
        return f"{used['today'] / used['per_day']:.0%} a day"
    return f"{used['ahead'] / used['per_minute']:.0%} a min"


def _cells(lane: dict[str, Any]) -> dict[str, str]:
    fewer = f" of {lane['concurrency']}" if lane["allowed"] != lane["concurrency"] else ""
    why = lane["waiting_on"]
    until = f" until {show.plain(why['until'])}" if why and why["until"] else ""
    return {
        "model": lane["model"],
        "region": lane["region"],
        "in use": f"{lane['in_use']}/{lane['allowed']}{fewer}",
        "queued": str(lane["queued"]),
        "pace": f"{lane['pace']:.0%}",
        "stopped": f"{why['code']}{until}" if why else "",
    }


def _named(what: Pausable | Resumable, name: str | None) -> str:
    """The name, which all but `all` need; a usage error otherwise."""
    if (name is None) != (what == Pausable.ALL):
        wanted = "no name follows `all`" if what == Pausable.ALL else f"which {what}?"
        raise typer.BadParameter(wanted, param_hint="NAME")
    return name or ""


def _words(what: str, name: str | None) -> str:
    return f"The {what} {name} is" if name else "All creates are"


def _told(said: dict[str, Any], words: str, as_json: bool) -> None:
    if as_json:
        show.document(said)
    else:
        show.OUT.print(words, markup=False)
