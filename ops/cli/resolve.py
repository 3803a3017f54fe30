"""The command `resolve`: what an operator decides of a job of which nobody can prove what became."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ops.cli import show
from ops.cli.options import Home, Json, Key, Url
from ops.doctor import reach


def add_to(app: typer.Typer) -> None:
    """Put the command under `noria`."""
    app.command("resolve")(resolve)


def resolve(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    adopt: Annotated[str | None, typer.Option(metavar="TASK", help="This task of the provider's is the job's.")] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Its call made nothing: make it again. If it did, it is paid twice.")
    ] = False,
    give_up: Annotated[bool, typer.Option("--give-up", help="The job has failed.")] = False,
    billed: Annotated[str | None, typer.Option(help="With --give-up: whether the call cost money, yes or no.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; nothing is changed.")] = False,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Decide what became of a held or uncertain job; without a decision, show what there is to decide.

    It takes an operator's key: `noria keys operator` makes one.
    """
    actions = {"adopt": adopt is not None, "requeue": requeue, "give_up": give_up}
    chosen = [action for action, is_chosen in actions.items() if is_chosen]
    if len(chosen) > 1:
        raise typer.BadParameter("one decision at a time: --adopt, --requeue or --give-up")
    with reach.api(reach.door(home, url, key)) as client:
        if not chosen:
            found = client.candidates(job_id)
        else:
            said = {"action": chosen[0], "task_id": adopt, "billed": billed}
            found = client.resolve(job_id, {name: value for name, value in said.items() if value is not None}, dry_run)
    if as_json:
        show.document(found)
    elif chosen:
        show.OUT.print(_told(found), markup=False)
    else:
        show.OUT.print(_table(found))


def _told(found: dict[str, Any]) -> str:
    done = "" if found["done"] else "would be "
    return f"{found['job']['id']} {done}{found['to']}: {found['why']}"


def _table(found: dict[str, Any]) -> Table:
    stake = found["at_stake"]
    table = show.table("task", "status", "made at", "fits", wide=["made at", "fits"])
    table.title = f"at stake: CNY {stake['estimated'] or 'unknown'}, billed: {stake['billed']}"
    table.title_justify = "left"
    for task in found["data"]:
        cells = (task["task_id"], task["status"], show.plain(task["created_at"]), _fits(task["differs"]))
        show.row(table, *map(escape, cells))
    if not found["data"]:
        show.row(table, "no task that may be the job's is listed", "", "", "")
    return table


def _fits(differs: list[str] | None) -> str:
    if differs is None:
        return "not known"
    return f"no: {', '.join(differs)} differ" if differs else "yes"
