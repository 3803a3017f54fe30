"""The commands about files: `noria files` lists them, `files upload` and `files delete`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from ops.cli import show
from ops.cli.options import Home, Json, Key, Url
from ops.cli.uploads import Uploads
from ops.doctor import reach

app = typer.Typer(help="Photos, sound and documents that jobs use as inputs.", invoke_without_command=True)


def add_to(noria: typer.Typer) -> None:
    """Put the commands under `noria`."""
    noria.add_typer(app, name="files")


@app.callback()
def listed(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="So many at the most, the newest first.")] = 20,
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """List the files, the newest first; a job's input names one by its key."""
    if context.invoked_subcommand:
        return
    with reach.api(reach.door(home, url, key)) as client:
        found = list(islice(client.files(), limit))
    if as_json:
        show.document(found)
    elif found:
        show.OUT.print(show.files(found))
    else:
        show.ERR.print("No files.")


@app.command()
def upload(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)],
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
    as_json: Json = False,
) -> None:
    """Upload files and print their keys; one that is there already is not stored again."""
    with reach.api(reach.door(home, url, key)) as client:
        given = Uploads(client)
        found = [given.give(path) for path in paths]
    if as_json:
        show.document(found)
        return
    for file in found:
        show.OUT.print(file["key"], markup=False, soft_wrap=True)


@app.command()
def delete(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    url: Url = None,
    key: Key = None,
    home: Home = Path(".noria"),
) -> None:
    """Delete files; one that a job names which has not ended is refused."""
    with reach.api(reach.door(home, url, key)) as client:
        for file_id in ids:
            client.delete_file(file_id)
