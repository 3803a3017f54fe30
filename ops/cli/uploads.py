"""Local files in what is to be submitted: uploaded first, and named by their keys.

Where a field of the input takes a link, it may name a file of this machine. A file that several rows name is uploaded
once; the API knows a file that it has by its bytes and name, so a second run names the same keys, and with them makes
the same Idempotency-Keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.client import ApiError, Client
from ops.cli.campaign import BadCampaign, Row, faults_of
from ops.local.supervise import LocalError
from worker import media
from worker.kinds.fields import is_key
from worker.kinds.reading.extract import READ

_LINKS = ("img_url", "image_url", "first_frame_url", "last_frame_url", "audio_url")


class NoFile(LocalError):
    """There is no such file here, or it is not taken."""

    exit_code = 5


@dataclass
class Uploads:
    """The files that were uploaded in this run."""

    client: Client
    keys: dict[Path, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # files of folders, and why

    def key(self, path: Path) -> str:
        """The key of the file in the bucket; NoFile says why there is none."""
        whole = path.resolve()
        if whole not in self.keys:
            self.keys[whole] = str(self.give(path)["key"])
        return self.keys[whole]

    def give(self, path: Path) -> dict[str, Any]:
        """The file as the API keeps it."""
        try:
            with path.open("rb") as content:
                return self.client.upload(path.name, content)
        except OSError as error:
            raise NoFile(f"{path} cannot be read: {error.strerror}.") from error
        except ApiError as error:
            if error.status not in (413, 422):
                raise
            raise NoFile(f"{path}: {'; '.join(faults_of(error))}.") from error


def placed(uploads: Uploads, rows: Sequence[Row], folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line and body of each row, with keys for the files that it names, relative to the folder.

    `BadCampaign` with every line that names a file which is not there; nothing is uploaded then.
    """
    missing = [
        f"line {row.line}: {name}: there is no file {value}"
        for row in rows
        for name, value in _local(row.body)
        if not (folder / value).is_file()
    ]
    if missing:
        raise BadCampaign("\n".join(["Nothing was submitted. What is wrong:", *missing]))
    return [(row.line, _placed(row.body, lambda value: uploads.key(folder / value))) for row in rows]


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
    """Name and value of the input's fields that name a file of this machine."""
    for name in _LINKS:
        value = body.get("input", {}).get(name)
        if isinstance(value, str) and "://" not in value and not value.startswith("data:") and not is_key(value):
            yield name, value


def _placed(body: Mapping[str, Any], key: Callable[[str], str]) -> dict[str, Any]:
    found = {name: key(value) for name, value in _local(body)}
    return {**body, "input": {**body["input"], **found}} if found else {**body}
