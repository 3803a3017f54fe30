"""Objects of ours that a job's input names by their keys: whether they are there, and how the provider gets them.

A job's row and its request's hash hold keys, so equal requests are equal for ever. Only the call itself carries what
the provider can follow: a link into the bucket that lives for hours, or, where it cannot reach the bucket, an
`oss://` of its own temporary store, where the object was put just before.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Connection, Row, bindparam, or_, select
from sqlalchemy.dialects.postgresql import JSONB

from worker import media
from worker.dashscope.client import Client
from worker.errors import Fault, InvalidInput, NotFound
from worker.kinds import Request
from worker.kinds.fields import is_key
from worker.models import File, Job, Output
from worker.settings import Settings
from worker.storage import Bucket

LINK_LIFE = timedelta(hours=6)  # a task may wait for its turn at the provider, and it runs 3 h at the most
UPLOAD_KEPT = timedelta(hours=1)  # of the 48 h that the provider keeps it (Alibaba docs, 'Upload a file temporarily')
_RESOLVE = {"X-DashScope-OssResourceResolve": "enable"}

_Object = Row[str, str, int]  # its key, content type, and length in bytes


@dataclass(frozen=True)
class Rule:
    """What an object has to be, for a field."""

    types: frozenset[str]
    bytes: int
    words: str


# Alibaba docs, 'Wan image-to-video API reference' and 'Wan text-to-video API reference'
_PICTURE = Rule(media.PICTURES, 20 << 20, "a picture (JPEG, PNG, BMP, WEBP) of at most 20 MB")
_SOUND = Rule(media.SOUNDS, 15 << 20, "sound (WAV, MP3) of at most 15 MB")
_RULES = {"img_url": _PICTURE, "last_frame_url": _PICTURE, "audio_url": _SOUND}


def check(connection: Connection, project_id: uuid.UUID, wanted: Mapping[str, Any]) -> None:
    """Raises InvalidInput for each key in a complete input that names no object of the project's, or an unfit one.

    In the submission's transaction: a file that is named cannot be removed before that ends.
    """
    named = {**_links(wanted), **_documents(project_id, wanted)}
    if not named:
        return
    there = _there(connection, project_id, sorted(set(named.values())))
    faults = [_fault(pointer, key, there.get(key)) for pointer, key in named.items()]
    if found := [fault for fault in faults if fault is not None]:
        raise InvalidInput(found)


def user_of(connection: Connection, project_id: uuid.UUID, key: str) -> uuid.UUID | None:
    """A job of the project's that has not ended and names the object; None where there is none."""
    said = {"project": project_id, "key": key, "document": [{"key": key}]}
    user: uuid.UUID | None = connection.execute(_USER, said).scalar_one_or_none()
    return user


@dataclass(frozen=True)
class _Put:
    """Where the provider has an object, and since when, by this process's monotonic clock."""

    url: str
    at: float


@dataclass(frozen=True)
class Handover:
    """How the provider gets the objects that a request names; one for each process, for all its threads."""

    settings: Settings
    bucket: Bucket
    _puts: dict[tuple[str, str, str], _Put] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def request(self, client: Client, job: Job, request: Request) -> Request:
        """The request with each key in it made into something that the provider can follow.

        Nothing was sent for the job when it raises: CallFailed or StorageTrouble are worth waiting for, NotFound is
        not: the object is gone.
        """
        keys = dict.fromkeys(_links(job.input).values())
        if not keys:
            return request
        if self.settings.input_handover == "link":
            links = {key: self.bucket.presign(key, LINK_LIFE, None) for key in keys}
            return replace(request, body=_with(request.body, links))
        puts = {key: self._put(client, job.account or "", request.body["model"], key) for key in keys}
        return replace(request, headers={**request.headers, **_RESOLVE}, body=_with(request.body, puts))

    def _put(self, client: Client, account: str, model: str, key: str) -> str:
        """Where the provider has the object: for this model and account alone, by its rule."""
        now, place = time.monotonic(), (account, model, key)
        with self._lock:
            put = self._puts.get(place)
        if put is None or now - put.at > UPLOAD_KEPT.total_seconds():
            head = self.bucket.head(key)
            if head is None:
                raise NotFound(f"the input {key} is in the bucket no more")
            name, chunks = PurePosixPath(key).name, self.bucket.chunks(key)
            put = _Put(client.upload(model, name, chunks, head.content_type, head.bytes), now)
            self._keep(place, put)
        return put.url

    def _keep(self, place: tuple[str, str, str], put: _Put) -> None:
        with self._lock:
            for old in [old for old, kept in self._puts.items() if put.at - kept.at > UPLOAD_KEPT.total_seconds()]:
                del self._puts[old]
            self._puts[place] = put


def _links(wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of the fields that hold a link or a key."""
    said = ((name, wanted.get(name)) for name in _RULES)
    return {f"/input/{name}": value for name, value in said if isinstance(value, str) and is_key(value)}


def _documents(project_id: uuid.UUID, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of the documents that are said to be files of ours; of others the bucket alone knows."""
    return dict(_keys_of(wanted.get("documents"), f"{project_id}/files/"))


def _keys_of(documents: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for n, document in enumerate(documents if isinstance(documents, list) else ()):
        key = document.get("key") if isinstance(document, dict) else None
        if isinstance(key, str) and key.startswith(prefix):
            yield f"/input/documents/{n}/key", key


def _there(connection: Connection, project_id: uuid.UUID, keys: Sequence[str]) -> dict[str, _Object]:
    said = {"project": project_id, "keys": keys}
    found = {row.key: row for row in connection.execute(_FILES, said)}
    if missing := [key for key in keys if key not in found]:
        found |= {row.key: row for row in connection.execute(_OUTPUTS, said | {"keys": missing})}
    return found


def _fault(pointer: str, key: str, found: _Object | None) -> Fault | None:
    if found is None:
        return Fault(pointer, "no_such_file", f"names {key}, which is no file and no output of this project")
    rule = _RULES.get(pointer.removeprefix("/input/"))
    if rule is None or (found.content_type in rule.types and found.bytes <= rule.bytes):
        return None
    return Fault(pointer, "file_unfit", f"names {found.content_type} of {found.bytes} bytes, and must be {rule.words}")


def _with(value: Any, places: Mapping[str, str]) -> Any:
    """The value with each key in it replaced by its place."""
    if isinstance(value, dict):
        return {name: _with(part, places) for name, part in value.items()}
    if isinstance(value, list):
        return [_with(part, places) for part in value]
    return places.get(value, value) if isinstance(value, str) else value


# FOR KEY SHARE, so that a file cannot be removed between being found here and being named by a job on record.
_FILES = (
    select(File.key, File.content_type, File.bytes)
    .where(File.project_id == bindparam("project"), File.key.in_(bindparam("keys", expanding=True)))
    .order_by(File.key)
    .with_for_update(read=True, key_share=True)
)
_OUTPUTS = select(Output.key, Output.content_type, Output.bytes).where(
    Output.project_id == bindparam("project"), Output.key.in_(bindparam("keys", expanding=True))
)
_USER = (
    select(Job.id)
    .where(Job.project_id == bindparam("project"), Job.finished_at.is_(None))
    .where(
        or_(
            *(Job.input[name].astext == bindparam("key") for name in _RULES),
            Job.input["documents"].op("@>")(bindparam("document", type_=JSONB)),
        )
    )
    .limit(1)
)
