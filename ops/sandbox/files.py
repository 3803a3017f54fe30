"""Files of the compatible interface: what batches read and write.

Source: Alibaba docs, "OpenAI-compatible File"; recorded answers where these differ.
"""

import base64
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Self

from ops.sandbox import clock
from ops.sandbox.refusals import Refusal, invalid

PREFIXES = {"batch": "file-batch", "batch_output": "file-batch_output", "file-extract": "file-fe"}  # by purpose
UPLOADED = ("batch", "file-extract")  # purposes that a client may give
MOST_FILES = 10_000  # of an account
MOST_BYTES_KEPT = 100_000_000_000


@dataclass(frozen=True, slots=True)
class File:
    """One file of an account."""

    id: str
    owner: str
    purpose: str
    filename: str
    content: bytes
    created_at: int  # epoch seconds

    def document(self) -> dict[str, Any]:
        """Return what a client is told about the file."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "created_at": self.created_at,
        }

    def row(self) -> dict[str, Any]:
        """Return the file as JSON can carry it."""
        return asdict(self) | {"content": base64.b64encode(self.content).decode()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """Return the file that a row was made of."""
        return cls(**(row | {"content": base64.b64decode(row["content"])}))


class Files:
    """All files of all accounts."""

    def __init__(self) -> None:
        self.by_id: dict[str, File] = {}

    def upload(self, owner: str, purpose: str, filename: str, content: bytes, longest: int, now: float) -> File:
        """Keep a client's file, or raise the Refusal of a wrong purpose, an empty, or too large a one."""
        if purpose not in UPLOADED:
            raise invalid(f"'purpose' must be one of {list(UPLOADED)}")
        if not content:
            raise invalid("The file is empty.")
        if len(content) > longest:
            raise invalid(f"The file is larger than {longest // 1_000_000} MB.")
        kept = [file for file in self.by_id.values() if file.owner == owner]
        if len(kept) >= MOST_FILES or sum(len(file.content) for file in kept) + len(content) > MOST_BYTES_KEPT:
            raise invalid("The number or the size of the account's files is over its limit.")
        file = File(file_id(purpose), owner, purpose, filename, content, int(now))
        self.by_id[file.id] = file
        return file

    def add(self, file: File) -> None:
        """Keep a file as it is."""
        self.by_id[file.id] = file

    def find(self, owner: str, wanted: str) -> File:
        """Return an owner's file, or raise the Refusal of an id that is none of theirs."""
        file = self.by_id.get(wanted)
        if file is None or file.owner != owner:
            raise Refusal(404, "NotFound", f"No such File object: {wanted}")
        return file

    def bury(self, wanted: str) -> None:
        """Drop a file for good: its id stays taken, and is nobody's."""
        self.by_id[wanted] = File(wanted, "", "", "", b"", 0)

    def listed(self, owner: str, query: dict[str, str]) -> list[File]:
        """Return an owner's files that a query asks for, newest first."""
        start, end = instant(query, "create_after", 0.0), instant(query, "create_before", float("inf"))
        purpose = query.get("purpose")
        return [
            file
            for file in reversed(self.by_id.values())
            if file.owner == owner and start <= file.created_at <= end and purpose in (None, "", file.purpose)
        ]


def file_id(purpose: str) -> str:
    """Return a new id, as files of that purpose have it."""
    return f"{PREFIXES[purpose]}-{uuid.uuid4().hex[:24]}"


def instant(query: dict[str, str], name: str, default: float) -> float:
    """Return the instant of a list parameter, a date or a date and time of UTC+8, or raise its Refusal."""
    text = query.get(name)
    if not text:
        return default
    try:
        return clock.from_compact(text if len(text) > 8 else text + "000000")
    except ValueError:
        raise invalid(f"{name} must be yyyyMMdd or yyyyMMddHHmmss.") from None


def page(found: list[Any], query: dict[str, str], longest: int) -> tuple[list[Any], bool]:
    """Return the part of a list that `after` and `limit` ask for, and whether there is more behind it."""
    limit = query.get("limit") or "20"
    if not limit.isdecimal() or not 1 <= int(limit) <= longest:
        raise invalid(f"limit must be in [1, {longest}].")
    after = query.get("after")
    ids = [each.id for each in found]
    if after and after not in ids:
        raise invalid(f"'after' names nothing that this list holds: {after}")
    start = ids.index(after) + 1 if after else 0
    stop = start + int(limit)
    return found[start:stop], stop < len(found)
