"""Objects in the bucket that a job's input names by their keys: checked at submission, handed over with the call.

A job's row and its request's hash hold keys, so equal requests stay equal. Only the call itself carries what the
provider can follow: a link into the bucket that lives for hours, or, where it cannot reach the bucket or is not meant
to (NORIA_INPUT_HANDOVER), an `oss://` address in the provider's temporary store, where the object was uploaded just
before. A batch's lines are always uploaded. An upload is remembered for an hour, so that a call that has to wait
uploads nothing twice.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Row,
    SQLColumnExpression,
    Text,
    any_,
    bindparam,
    literal_column,
    null,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from worker import catalog, media, timeouts
from worker.dashscope.client import Client
from worker.errors import CallFailed, Fault, InvalidInput, NotFound
from worker.kinds import OFFERED, Request, fields
from worker.kinds.fields import Medium, is_key
from worker.media import Shape
from worker.settings import Settings, addresses
from worker.storage import Bucket, Head
from worker.tables import File, Job, Output

LINK_LIFE = timedelta(hours=6)  # a task may wait for its turn at the provider, and it runs 3 h at the most
UPLOAD_KEPT = timedelta(hours=1)  # of the 48 h that the provider keeps it (Alibaba docs, 'Upload a file temporarily')
_RESOLVE = {"X-DashScope-OssResourceResolve": "enable"}

_Object = Row[str, str, int, int | None, int | None, bool | None]  # its key, type, bytes, and shape where it is known
_Place = tuple[str, str, str]  # an account, the model or job that may read the upload, and our key


@dataclass(frozen=True)
class Rule:
    """What a field's object must be."""

    types: frozenset[str]
    bytes: int
    words: str


@dataclass(frozen=True)
class _Put:
    """The provider's name for an uploaded object, and when it was uploaded, by this process's monotonic clock."""

    name: str
    at: float


# Alibaba docs, 'Wan image-to-video API reference' and 'Wan text-to-video API reference'
_PICTURE = Rule(media.PICTURES, 20 << 20, "a picture (JPEG, PNG, BMP, WEBP) of at most 20 MB")
_SOUND = Rule(media.SOUNDS, 15 << 20, "sound (WAV, MP3) of at most 15 MB")
_OF = {Medium.PICTURE: _PICTURE, Medium.SOUND: _SOUND}
_RULES = {name: _OF[medium] for kind in OFFERED.values() for name, medium in fields.media(kind.input).items()}
_LISTS = [name for kind in OFFERED.values() for name in kind.keyed]
NAMING = [*_RULES, *_LISTS]  # the fields that may name a file


def check(connection: Connection, project_id: uuid.UUID, model: str, wanted: Mapping[str, Any]) -> None:
    """Raises InvalidInput for each key in a complete input that names no object of the project, or an unfit one.

    A picture must be one that the model takes. To be called in the submission's transaction: a file that is named
    cannot be removed before it ends.
    """
    if found := check_all(connection, project_id, [(model, wanted)])[0]:
        raise InvalidInput(found)


def check_all(
    connection: Connection, project_id: uuid.UUID, asked: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[list[Fault]]:
    """The same faults of many models' complete inputs, each input's own, looked up together."""
    named = [named_by(project_id, wanted) for _, wanted in asked]
    there = _there(connection, project_id, sorted({key for keys in named for key in keys.values()}))
    return [
        [fault for pointer, key in keys.items() if (fault := _fault(pointer, key, there.get(key), model))]
        for (model, _), keys in zip(asked, named, strict=True)
    ]


def named_by(project_id: uuid.UUID, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of all objects that a complete input names and that must be there."""
    return {**links(wanted), **_documents(project_id, wanted)}


def with_keys(wanted: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """A raw input with the keys of files in the place of what its user calls them."""
    named = {name: keys[value] for name in _RULES if isinstance(value := wanted.get(name), str) and value in keys}
    listed = {name: _keyed(wanted[name], keys) for name in _LISTS if isinstance(wanted.get(name), list)}
    return {**wanted, **named, **listed}


def names_files(wanted: SQLColumnExpression[Any]) -> ColumnElement[bool]:
    """Whether a complete input has any field that may name a file."""
    has_any = wanted.bool_op("?|")
    return has_any(literal_column("array[" + ", ".join(f"'{name}'" for name in (*_RULES, *_LISTS)) + "]"))


def links(wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of the fields that hold a key where a link may stand."""
    given = ((name, wanted.get(name)) for name in _RULES)
    return {f"/input/{name}": value for name, value in given if isinstance(value, str) and is_key(value)}


def user_of(connection: Connection, project_id: uuid.UUID, key: str) -> uuid.UUID | None:
    """A job of the project that has not ended and names the object; None where there is none."""
    named = {"project": project_id, "key": key, "document": [{"key": key}]}
    user: uuid.UUID | None = connection.execute(_USER, named).scalar_one_or_none()
    return user


@dataclass(frozen=True)
class Handover:
    """The objects' links and uploads; one for each process, for all its threads."""

    settings: Settings
    bucket: Bucket
    _puts: dict[_Place, _Put] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def request(self, client: Client, job: Job, request: Request) -> Request:
        """The request with a link or an `oss://` address in the place of each key, within `timeouts.HANDOVER`.

        Nothing was sent for the job when it raises: CallFailed (FileRefused among it) or StorageTrouble, or NotFound
        where the object is gone.
        """
        keys = dict.fromkeys(links(job.input).values())
        if not keys:
            return request
        if not why_uploaded(self.settings, client.url):
            signed = {key: self.bucket.presign(key, LINK_LIFE, None) for key in keys}
            return replace(request, body=_with(request.body, signed))
        ends = time.monotonic() + timeouts.HANDOVER.total_seconds()
        puts = {key: self._file(client, (job.account or "", request.body["model"], key), ends) for key in keys}
        if time.monotonic() > ends:  # the bucket was slow: what is left of the lease is too short for the call
            raise CallFailed(f"the inputs were not handed over within {timeouts.HANDOVER}")
        return replace(request, headers={**request.headers, **_RESOLVE}, body=_with(request.body, puts))

    def lines(self, client: Client, job: Job) -> str:
        """The provider's id of a batch's file of lines; raises as `request` does."""
        name, deadline = f"{job.id}.jsonl", timeouts.UPLOAD.total_seconds()

        def put(key: str, head: Head) -> str:
            return client.batches.upload(self.bucket.chunks(key), name, deadline, head.bytes)

        return self._put(_lines(job), put)

    def forget(self, job: Job) -> None:
        """Forgets a batch's file: a batch may have it now, and it is deleted when that has ended."""
        with self._lock:
            self._puts.pop(_lines(job), None)

    def remember(self, job: Job, file_id: str) -> None:
        """Remembers a batch's file again: no batch has it."""
        self._keep(_lines(job), _Put(file_id, time.monotonic()))

    def _file(self, client: Client, place: _Place, ends: float) -> str:
        """Where the provider has the object: for this account and model alone, by its rule."""

        def put(key: str, head: Head) -> str:
            name, left = PurePosixPath(key).name, max(0.0, ends - time.monotonic())
            return client.upload(place[1], name, self.bucket.chunks(key), head.content_type, head.bytes, left)

        return self._put(place, put)

    def _put(self, place: _Place, put: Callable[[str, Head], str]) -> str:
        now, key = time.monotonic(), place[2]
        with self._lock:
            kept = self._puts.get(place)
        if kept is not None and now - kept.at <= UPLOAD_KEPT.total_seconds():
            return kept.name
        head = self.bucket.head(key)
        if head is None:
            raise NotFound(f"the input {key} is no longer in the bucket")
        name = put(key, head)
        self._keep(place, _Put(name, now))
        return name

    def _keep(self, place: _Place, put: _Put) -> None:
        with self._lock:
            for old in [old for old, kept in self._puts.items() if put.at - kept.at > UPLOAD_KEPT.total_seconds()]:
                del self._puts[old]
            self._puts[place] = put


def why_uploaded(settings: Settings, provider: str) -> str | None:
    """Why files are uploaded to the provider at that address; None: it gets links into the bucket.

    Links that only this network can follow are for a provider inside it, like the sandbox.
    """
    endpoint = settings.s3_public_endpoint_url or settings.s3_endpoint_url
    if settings.input_handover == "upload":
        return "NORIA_INPUT_HANDOVER says so"
    if endpoint and addresses.is_near(endpoint) and not addresses.is_near(provider):
        return f"the provider cannot follow links to {endpoint}"
    return None


def _documents(project_id: uuid.UUID, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Pointer → key, of the documents that are said to be files of ours; of others the bucket alone knows."""
    return dict(pair for name in _LISTS for pair in _keys_of(name, wanted.get(name), f"{project_id}/files/"))


def _keyed(documents: Sequence[Any], keys: Mapping[str, str]) -> list[Any]:
    """A list of objects, with the keys of files in the place of what their user calls them."""
    return [
        {**document, "key": keys.get(document["key"], document["key"])}
        if isinstance(document, dict) and isinstance(document.get("key"), str)
        else document
        for document in documents
    ]


def _keys_of(name: str, documents: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for n, document in enumerate(documents if isinstance(documents, list) else ()):
        key = document.get("key") if isinstance(document, dict) else None
        if isinstance(key, str) and key.startswith(prefix):
            yield f"/input/{name}/{n}/key", key


def _there(connection: Connection, project_id: uuid.UUID, keys: Sequence[str]) -> dict[str, _Object]:
    if not keys:
        return {}
    found = {row.key: row for row in connection.execute(_FILES, {"project": project_id, "keys": keys})}
    if missing := [key for key in keys if key not in found]:
        found |= {row.key: row for row in connection.execute(_OUTPUTS, {"project": project_id, "keys": missing})}
    return found


def _fault(pointer: str, key: str, found: _Object | None, model: str) -> Fault | None:
    if found is None:
        return Fault(pointer, "no_such_file", f"names {key}, which is neither a file nor an output of this project")
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


def _lines(job: Job) -> _Place:
    return (job.account or "", str(job.id), job.input["key"])


def _with(value: Any, places: Mapping[str, str]) -> Any:
    """The value with each key in it replaced."""
    if isinstance(value, dict):
        return {name: _with(part, places) for name, part in value.items()}
    if isinstance(value, list):
        return [_with(part, places) for part in value]
    return places.get(value, value) if isinstance(value, str) else value


_KEYS = any_(bindparam("keys", type_=ARRAY(Text)))
# The files of those keys; FOR KEY SHARE, so that none is removed before the job that names it is on record.
_FILES = (
    select(File.key, File.content_type, File.bytes, File.width, File.height, File.has_alpha)
    .where(File.project_id == bindparam("project"), File.key == _KEYS)
    .order_by(File.key)
    .with_for_update(read=True, key_share=True)
)
# The outputs of those keys.
_OUTPUTS = select(Output.key, Output.content_type, Output.bytes, null(), null(), null()).where(
    Output.project_id == bindparam("project"), Output.key == _KEYS
)
# A job that names the key.
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
