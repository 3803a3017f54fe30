"""Files of this machine that become inputs: `noria files`, and the upload of what a job names.

Where a field of the input takes a link, it may name a local file. A file that several rows name is uploaded once; the
API knows a file again by its bytes and its name, so a second run gets the same keys, and makes no job twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import ApiError, Client
from ops.cli import show, tables
from ops.cli.reach import Api, command, spread
from ops.local.supervise import LocalError
from worker import media
from worker.inputs import naming
from worker.kinds.fields import is_key
from worker.kinds.reading.extract import READ

_LISTED = 20  # files that are left out, by name
_FAULTS = 100  # missing files that are named


class NoFile(LocalError):
    """A file cannot be read, or the API refuses it."""

    exit_code = 5


@dataclass
class Uploads:
    """The files that were uploaded in this run."""

    client: Client
    keys: dict[Path, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # files of folders, and why

    def key(self, path: Path) -> str:
        """The key of the file in the bucket; `NoFile` says why there is none."""
        whole = path.resolve()
        if whole not in self.keys:
            self.keys[whole] = str(self.give(path)["key"])
        return self.keys[whole]

    def give(self, path: Path) -> dict[str, Any]:
        """Upload the file: how the API describes it."""
        try:
            with path.open("rb") as content:
                return self.client.upload(path.name, content).as_json()
        except OSError as error:
            raise NoFile(f"{path} cannot be read: {error.strerror}.") from error
        except ApiError as error:
            if error.status not in (413, 422):
                raise
            raise NoFile(f"{path}: {'; '.join(error.faults)}.") from error


files = typer.Typer(invoke_without_command=True)


@spread
def list_files(
    *,
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest first.")] = 20,
    api: Api,
) -> None:
    """List, upload and delete files that jobs take as inputs.

    They are pictures, sound and documents. Without a command: list them, the newest first. A job's input names a file
    by its key.
    """
    if context.invoked_subcommand is None:
        with api.client() as client:
            found = show.plain_all(islice(client.files(), limit))
        api.answer(found, tables.files(found), "No files.")


files.callback()(list_files)


@command(files)
def upload(
    *, paths: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)], api: Api
) -> None:
    """Upload files and print their keys; a file that is there already is not stored again."""
    with api.client() as client:
        uploads = Uploads(client)
        found = [uploads.give(path) for path in paths]
    api.answer(found, "\n".join(file["key"] for file in found))


@command(files)
def delete(*, ids: Annotated[list[str], typer.Argument(metavar="ID...")], api: Api) -> None:
    """Delete files; one that an unfinished job uses is refused."""
    with api.client() as client:
        for file_id in ids:
            client.delete_file(file_id)
    if api.as_json:
        show.document({"deleted": ids})


def say_left_out(uploads: Uploads) -> None:
    """Say which files of a folder are no part of the job, and why."""
    rest = len(uploads.left_out) - _LISTED
    for each in [*uploads.left_out[:_LISTED], *([f"and {rest:,} more"] if rest > 0 else [])]:
        show.ERR.print(f"left out: {each}", markup=False, soft_wrap=True)


def placed(uploads: Uploads, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with keys in place of the files that its input names; `NoFile` where one is not there."""
    keys = keys_of(uploads, [(None, body)], Path())
    return {**body, "input": naming.with_keys(body["input"], keys)}


def keys_of(uploads: Uploads, bodies: Iterable[tuple[int | None, Mapping[str, Any]]], folder: Path) -> dict[str, str]:
    """The key of each file of this machine that a body's input names, relative to the folder, by that name.

    Each body comes with its line in a file, if it has one. `NoFile` names all that are missing; then nothing is
    uploaded.
    """
    named: dict[str, Path] = {}
    missing: list[str] = []
    for line, body in bodies:
        for name, value in _local(body):
            named[value] = folder / value
            if not named[value].is_file():
                missing.append(f"{f'line {line}: ' if line else ''}{name}: there is no file {value}")
    if missing:
        raise NoFile("\n".join(["Nothing was submitted. What is wrong:", *missing[:_FAULTS]]))
    return {value: uploads.key(path) for value, path in named.items()}


def documents(uploads: Uploads, paths: Sequence[Path]) -> list[dict[str, str]]:
    """The documents of a summary: the files that are named, and those below the folders that are.

    What of a folder is no document goes to `left_out`.
    """
    found = [pair for path in paths for pair in _documents(uploads, path)]
    if not found:
        raise NoFile(f"There is no document in {', '.join(map(str, paths))}: {READ} are read.")
    return [{"id": name, "key": uploads.key(path)} for name, path in found]


def _documents(uploads: Uploads, path: Path) -> Iterator[tuple[str, Path]]:
    """Name and place of each."""
    if not path.is_dir():
        yield path.name, path
        return
    for below in sorted(each for each in path.rglob("*") if not each.is_dir()):
        name = below.relative_to(path).as_posix()
        if why := _no_document(below, name):
            uploads.left_out.append(f"{name} {why}")
        else:
            yield name, below


def _no_document(path: Path, name: str) -> str | None:
    """Why a file of a folder is left out; None: it is a document, by its content."""
    if any(part.startswith(".") for part in name.split("/")):
        return "is hidden"
    if not path.is_file():
        return "is no file"
    with path.open("rb") as content:
        head = content.read(media.READ)
    if not head:
        return "is empty"
    return None if media.is_document(media.sniff_input(head, name)) else "is no document"


def _local(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pointer and value of what the input names that is a file of this machine."""
    for pointer, value, _ in naming.values(body.get("input", {})):
        if "://" not in value and not value.startswith("data:") and not is_key(value):
            yield pointer.removeprefix("/input/"), value
