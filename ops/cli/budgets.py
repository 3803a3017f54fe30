"""`noria budgets`: what a project may spend. A budget is named by its period or its id."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from api.client import Client
from ops.cli import show, tables
from ops.cli.reach import Api, command
from ops.local.supervise import LocalError

budgets = typer.Typer(help="Cap what is spent.", no_args_is_help=True)


class NoSuchBudget(LocalError):
    """The project has no budget, or several, of that period or id."""

    exit_code = 5


@command(budgets, "list")
def list_budgets(*, api: Api) -> None:
    """List the budgets, with what is used of each in the period that it is in."""
    with api.client() as client:
        found = show.plain_all(client.budgets())
    api.answer(found, tables.budgets(found), "No budgets.")


@command(budgets, "set")
def set_budget(
    *,
    period: Annotated[str, typer.Argument(help="day, month or total.")],
    limit: Annotated[str, typer.Argument(help="CNY, like 7.00.")],
    over: Annotated[
        str | None, typer.Option(help="What has no room: refuse it (default), or hold it until there is.")
    ] = None,
    zone: Annotated[str | None, typer.Option(help="The zone in which its days begin. Default: the project's.")] = None,
    api: Api,
) -> None:
    """Cap what is spent in a day, in a month or in all; a budget of that period is changed."""
    said = {name: value for name, value in (("limit", limit), ("over", over), ("time_zone", zone)) if value}
    with api.client() as client:
        same = _named(client, period)
        if same:
            made = client.change_budget(_one(same, period)["id"], said).as_json()
        else:
            made = client.make_budget({"period": period, **said}).as_json()
    api.answer(made, tables.budgets([made]))


@command(budgets)
def delete(*, which: Annotated[str, typer.Argument(metavar="BUDGET", help="Its period or its id.")], api: Api) -> None:
    """Delete a budget; what was held for it alone goes on."""
    with api.client() as client:
        found = _one(_named(client, which), which)
        client.delete_budget(found["id"])
    api.answer({"deleted": found["id"]}, f"The budget {which} is deleted.")


def _named(client: Client, which: str) -> list[dict[str, Any]]:
    return [budget for budget in show.plain_all(client.budgets()) if which in (budget["period"], budget["id"])]


def _one(found: list[dict[str, Any]], which: str) -> dict[str, Any]:
    if len(found) != 1:
        what = f"There are several budgets {which}: name one by its id" if found else f"There is no budget {which}"
        raise NoSuchBudget(f"{what}; `noria budgets list` lists them.")
    return found[0]
