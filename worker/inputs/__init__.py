"""Objects of ours that a job's input names by their keys: whether they are there, and what they have to be."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, null, or_, select
from sqlalchemy.dialects.postgresql import JSONB

from worker import catalog, media
from worker.errors import Fault, InvalidInput
from worker.kinds import OFFERED, fields
from worker.kinds.fields import Medium, is_key
from worker.media import Shape
from worker.tables import File, Job, Output

_Object = Row[str, str, int, int | None, int | None, bool | None]  # its key, type, bytes, and shape where it is known


@dataclass(frozen=True)
class Rule:
    """What an object has to be, for a field."""

    types: frozenset[str]
    bytes: int
    words: str


# Alibaba docs, 'Wan image-to-video API reference' and 'Wan text-to-video API reference'
_PICTURE = Rule(media.PICTURES, 20 << 20, "a picture (JPEG, PNG, BMP, WEBP) of at most 20 MB")
_SOUND = Rule(media.SOUNDS, 15 << 20, "sound (WAV, MP3) of at most 15 MB")
_OF = {Medium.PICTURE: _PICTURE, Medium.SOUND: _SOUND}
_RULES = {name: _OF[medium] for kind in OFFERED.values() for name, medium in fields.media(kind.input).items()}
_LISTS = [name for kind in OFFERED.values() for name in kind.keyed]


def check(connection: Connection, project_id: uuid.UUID, model: str, wanted: Mapping[str, Any]) -> None:
    """Raises InvalidInput for each key in a complete input that names no object of the project's, or an unfit one.

    Pictures are held against what the model takes.

    In the submission's transaction: a file that is named cannot be removed before that ends.
    """
    named = {**links(wanted), **_documents(project_id, wanted)}
    if not named:
        return
    there = _there(connection, project_id, sorted(set(named.values())))
    faults = [_fault(pointer, key, there.get(key), model) for pointer, key in named.items()]
    if found := [fault for fault in faults if fault is not None]:
        raise InvalidInput(found)


def links(wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of the fields that hold a key where a link may stand."""
    said = ((name, wanted.get(name)) for name in _RULES)
    return {f"/input/{name}": value for name, value in said if isinstance(value, str) and is_key(value)}


def user_of(connection: Connection, project_id: uuid.UUID, key: str) -> uuid.UUID | None:
    """A job of the project's that has not ended and names the object; None where there is none."""
    said = {"project": project_id, "key": key, "document": [{"key": key}]}
    user: uuid.UUID | None = connection.execute(_USER, said).scalar_one_or_none()
    return user


def _documents(project_id: uuid.UUID, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of the documents that are said to be files of ours; of others the bucket alone knows."""
    return dict(pair for name in _LISTS for pair in _keys_of(name, wanted.get(name), f"{project_id}/files/"))


def _keys_of(name: str, documents: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for n, document in enumerate(documents if isinstance(documents, list) else ()):
        key = document.get("key") if isinstance(document, dict) else None
        if isinstance(key, str) and key.startswith(prefix):
            yield f"/input/{name}/{n}/key", key


def _there(connection: Connection, project_id: uuid.UUID, keys: Sequence[str]) -> dict[str, _Object]:
    said = {"project": project_id, "keys": keys}
    found = {row.key: row for row in connection.execute(_FILES, said)}
    if missing := [key for key in keys if key not in found]:
        found |= {row.key: row for row in connection.execute(_OUTPUTS, said | {"keys": missing})}
    return found


def _fault(pointer: str, key: str, found: _Object | None, model: str) -> Fault | None:
    if found is None:
        return Fault(pointer, "no_such_file", f"names {key}, which is no file and no output of this project")
    rule = _RULES.get(pointer.removeprefix("/input/"))
    if rule is None:
        return None
    if found.content_type not in rule.types or found.bytes > rule.bytes:
        message = f"names {found.content_type} of {found.bytes} bytes, and must be {rule.words}"
        return Fault(pointer, "file_unfit", message)
    why = _unfit(found, model) if rule is _PICTURE else ""
    return Fault(pointer, "file_unfit", f"names a picture that {why}, for {model}") if why else None


def _unfit(found: _Object, model: str) -> str:
    """Why the model does not take that picture; empty where it does, as far as is known."""
    _, _, size, width, height, has_alpha = found
    shape = Shape(width, height, bool(has_alpha)) if width and height else None
    taken = catalog.load().model(model).pictures
    return taken.unfit(size, shape) if taken else ""


# FOR KEY SHARE, so that a file cannot be removed between being found here and being named by a job on record.
_FILES = (
    select(File.key, File.content_type, File.bytes, File.width, File.height, File.has_alpha)
    .where(File.project_id == bindparam("project"), File.key.in_(bindparam("keys", expanding=True)))
    .order_by(File.key)
    .with_for_update(read=True, key_share=True)
)
_OUTPUTS = select(Output.key, Output.content_type, Output.bytes, null(), null(), null()).where(
    Output.project_id == bindparam("project"), Output.key.in_(bindparam("keys", expanding=True))
)
_USER = (
    select(Job.id)
    .where(Job.project_id == bindparam("project"), Job.finished_at.is_(None))
    .where(
        or_(
            *(Job.input[name].astext == bindparam("key") for name in _RULES),
            *(Job.input[name].op("@>")(bindparam("document", type_=JSONB)) for name in _LISTS),
        )
    )
    .limit(1)
)
