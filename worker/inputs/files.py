"""Files that users upload as inputs: objects in the bucket, and a row for each.

A file's object is stored and verified before its row: a row proves its object, and an object without a row does no
harm. The same bytes under the same name are one file however often they come: an upload may be repeated, and a request
that names the file by its key stays the same.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from os import SEEK_END
from typing import BinaryIO

from sqlalchemy import Connection, Engine, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from worker import inputs, media
from worker.errors import Conflict, Fault, InvalidInput, NotFound
from worker.media import MediaType, Shape
from worker.storage import Bucket
from worker.tables import File

NAME_LIMIT = 255  # characters
# Controls, marks that change a text's direction, and halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Draft:
    """A file that was received and checked, and is not kept yet."""

    name: str
    type: MediaType
    bytes: int
    sha256: str
    body: BinaryIO
    shape: Shape | None = None  # of a picture
    seconds: float | None = None  # of a clip or sound


def draft(name: str, body: BinaryIO) -> Draft:
    """The file as it may be kept; raises InvalidInput where it is empty, or of a type that is not taken."""
    name = tidied(name)
    body.seek(0)
    head = body.read(media.HEADER)
    kind = media.sniff_input(head[: media.READ], name)
    size, digest = _measured(body)
    if not size:
        raise InvalidInput([Fault("/file", "empty", "must not be empty")])
    if kind is None:
        raise InvalidInput([Fault("/file", "type_not_taken", _TAKEN)])
    return Draft(name, kind, size, digest, body, media.shape(head), media.seconds(body, kind))


def keep(engine: Engine, bucket: Bucket, project_id: uuid.UUID, given: Draft, now: datetime) -> tuple[File, bool]:
    """Stores the file: its row, and whether it is new; no connection is held while the object is stored."""
    with engine.connect() as connection:
        known = _known(connection, project_id, given)
        key = known.key if known else _new_key(connection, project_id, given, now)
    if known and bucket.head(key) is not None:
        return known, False
    bucket.put_file(key, given.body, given.bytes, given.type.content_type)
    with engine.begin() as connection:
        kept = _record(connection, project_id, given, key)
    if kept.key != key:  # the same file came twice at once, and the other was first
        bucket.delete(key)
    return kept, kept.key == key and known is None


def one(connection: Connection, project_id: uuid.UUID, file_id: uuid.UUID) -> File:
    """The project's file; raises NotFound."""
    row = connection.execute(_ONE, {"project": project_id, "id": file_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no file {file_id}")
    return File.of(row)


def page(connection: Connection, project_id: uuid.UUID, before: uuid.UUID | None, limit: int) -> list[File]:
    """At most `limit` files, the newest first; `before` is the last id of the page before."""
    statement = select(*File.__table__.c).where(File.project_id == project_id).order_by(File.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(File.id < before)
    return [File.of(row) for row in connection.execute(statement).mappings()]


def remove(connection: Connection, bucket: Bucket, project_id: uuid.UUID, file_id: uuid.UUID) -> None:
    """Deletes the file, object and row; raises NotFound, and Conflict while a job that has not ended names it.

    The caller commits. If that fails the row is left without its object, and can be removed again.
    """
    # A submission that names the file ends before this, or waits for it.
    connection.execute(_LOCK, {"project": project_id, "id": file_id})
    found = one(connection, project_id, file_id)
    if user := inputs.user_of(connection, project_id, found.key):
        raise Conflict("file_in_use", f"job {user} names it and has not ended")
    connection.execute(_REMOVE, {"id": found.id})
    bucket.delete(found.key)


def tidied(name: str) -> str:
    """The last part of a path, without what cannot be stored or would move a cursor; "file" if nothing is left."""
    last = _UNPRINTABLE.sub("", name.replace("\\", "/").rpartition("/")[2]).strip()
    return last[:NAME_LIMIT] or "file"


_TAKEN = (
    "must be a picture (JPEG, PNG, BMP, WEBP), sound (WAV, MP3), a clip (MP4, MOV), a PDF, an Office document"
    " (docx, xlsx, pptx) or text"
)


def _measured(body: BinaryIO) -> tuple[int, str]:
    """The length in bytes, and the SHA-256 in hex."""
    size = body.seek(0, SEEK_END)
    body.seek(0)
    return size, hashlib.file_digest(body, "sha256").hexdigest()  # type: ignore[arg-type]


def _known(connection: Connection, project_id: uuid.UUID, given: Draft) -> File | None:
    same = {"project": project_id, "sha256": given.sha256, "name": given.name}
    row = connection.execute(_SAME, same).mappings().one_or_none()
    return File.of(row) if row else None


def _new_key(connection: Connection, project_id: uuid.UUID, given: Draft, now: datetime) -> str:
    name = connection.execute(select(func.uuidv7())).scalar_one()
    return f"{project_id}/files/{now.astimezone(UTC):%Y/%m/%d}/{name}.{given.type.extension}"


def _record(connection: Connection, project_id: uuid.UUID, given: Draft, key: str) -> File:
    """The file's row; the one of the upload that was first, where there were two."""
    row = {
        "id": uuid.UUID(key.rpartition("/")[2].partition(".")[0]),
        "project_id": project_id,
        "key": key,
        "name": given.name,
        "content_type": given.type.content_type,
        "bytes": given.bytes,
        "sha256": given.sha256,
        "seconds": given.seconds,
        **(asdict(given.shape) if given.shape else {}),
    }
    return File.of(connection.execute(_RECORD, row).mappings().one())


# A file of a project, and the same row locked.
_ONE = select(*File.__table__.c).where(File.project_id == bindparam("project"), File.id == bindparam("id"))
_LOCK = _ONE.with_for_update()
# The file of the same bytes and name.
_SAME = select(*File.__table__.c).where(
    File.project_id == bindparam("project"),
    File.sha256 == bindparam("sha256"),
    File.name == bindparam("name"),
)
_REMOVE = delete(File).where(File.id == bindparam("id"))
_NEW = upsert(File)
# A new file's row, or the row that is there: set to the name that it has, since DO NOTHING would return nothing.
_RECORD = _NEW.on_conflict_do_update(
    index_elements=["project_id", "sha256", "name"], set_={"name": _NEW.excluded.name}
).returning(*File.__table__.c)
