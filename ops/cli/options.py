"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.settings import addresses

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
Home = Annotated[Path, typer.Option(help="The folder of the `noria up` that is meant.")]
Url = Annotated[str | None, typer.Option(envvar="NORIA_URL", help="The API; otherwise the `noria up` here.")]
Key = Annotated[str | None, typer.Option(envvar="NORIA_KEY", show_envvar=True, help="A project's API key.")]


def _database_url(text: str | None) -> str | None:
    try:
        return text and addresses.database_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="NORIA_DATABASE_URL",
        callback=_database_url,
        help="The database; otherwise that of the `noria up` here.",
    ),
]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """`["a=1"]` as a mapping; a usage error where there is no `=`."""
    said = [item.partition("=") for item in given or []]
    for name, separator, _ in said:
        if not separator or not name:
            raise typer.BadParameter("is written NAME=VALUE", param_hint=option)
    return {name: value for name, _, value in said}
