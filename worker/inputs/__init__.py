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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    Row,
    Text,
    any_,
    bindparam,
    null,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from worker import catalog, media, timeouts
from worker.catalog import Model
from worker.dashscope.client import Client
from worker.errors import CallFailed, Fault, InvalidInput, NotFound
from worker.inputs import naming
from worker.kinds import Request
from worker.kinds.fields import Medium
from worker.media import Shape
from worker.settings import Settings, addresses
from worker.storage import Bucket, Head
from worker.tables import File, Job, Output

CLOCK_KEPT = timedelta(minutes=1)  # of the store; a link of another time is refused, and fails its job
LINK_LIFE = timedelta(hours=6)  # a task may wait for its turn at the provider, and it runs 3 h at the most
UPLOAD_KEPT = timedelta(hours=1)  # of the 48 h that the provider keeps it (Alibaba docs, 'Upload a file temporarily')
_RESOLVE = {"X-DashScope-OssResourceResolve": "enable"}

# Its key, type, bytes, and what is known of a picture's shape, or of how long it plays.
_Object = Row[str, str, int, int | None, int | None, bool | None, Decimal | None]
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


# Alibaba docs, 'Wan image-to-video API reference', 'Wan text-to-video API reference' and 'Wan reference-to-video API'
_OF = {
    Medium.PICTURE: Rule(media.PICTURES, 20 << 20, "a picture (JPEG, PNG, BMP, WEBP) of at most 20 MB"),
    Medium.SOUND: Rule(media.SOUNDS, 15 << 20, "sound (WAV, MP3) of at most 15 MB"),
    Medium.CLIP: Rule(media.CLIPS, 100 << 20, "a clip (MP4, MOV) of at most 100 MB"),
}


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
    named = [naming.named_by(project_id, wanted) for _, wanted in asked]
    there = _there(connection, project_id, sorted({key for keys in named for key in keys.values()}))
    return [_faults(model, wanted, keys, there) for (model, wanted), keys in zip(asked, named, strict=True)]


def user_of(connection: Connection, project_id: uuid.UUID, key: str) -> uuid.UUID | None:
    """A job of the project that has not ended and names the object; None where there is none."""
    named = {"project": project_id, "inputs": naming.examples(key)}
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
        keys = dict.fromkeys(naming.links(job.input).values())
        if _has_oss(request.body):  # a user's own
            request = replace(request, headers={**request.headers, **_RESOLVE})
        if not keys:
            return request
        if not why_uploaded(self.settings, client.url):
            self.bucket.learn_clock(CLOCK_KEPT)
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


def _there(connection: Connection, project_id: uuid.UUID, keys: Sequence[str]) -> dict[str, _Object]:
    if not keys:
        return {}
    found = {row.key: row for row in connection.execute(_FILES, {"project": project_id, "keys": keys})}
    if missing := [key for key in keys if key not in found]:
        found |= {row.key: row for row in connection.execute(_OUTPUTS, {"project": project_id, "keys": missing})}
    return found


def _faults(
    model: str, wanted: Mapping[str, Any], keys: Mapping[str, str], there: Mapping[str, _Object]
) -> list[Fault]:
    """The faults of an input's objects, one by one; and where there is none, of what they play together."""
    media_of = {pointer: medium for pointer, _, medium in naming.values(wanted)}
    longest = wanted.get("max_seconds")  # whichever kind has such a field
    each = [
        _fault(pointer, key, there.get(key), media_of.get(pointer), model, longest) for pointer, key in keys.items()
    ]
    if not keys or any(each):
        return [fault for fault in each if fault]
    limits = catalog.load().model(model).clips
    clips = [pointer for pointer in keys if media_of.get(pointer) is Medium.CLIP]
    playing = sum(float(there[keys[pointer]].seconds or 0) for pointer in clips)
    if limits is None or limits.seconds_together is None or playing <= limits.seconds_together:
        return []
    why = f"plays {playing:g} seconds with the others, and together {limits.seconds_together:g} are taken, for {model}"
    return [Fault(clips[0], "file_unfit", why)]


def _fault(
    pointer: str, key: str, found: _Object | None, medium: Medium | None, model: str, longest: int | None
) -> Fault | None:
    """What is wrong with the object of a key; `medium`: what it must be, None: any document will do."""
    if found is None:
        return Fault(pointer, "no_such_file", f"names {key}, which is neither a file nor an output of this project")
    if medium is None:
        return None
    rule = _OF[medium]
    if found.content_type not in rule.types or found.bytes > rule.bytes:
        message = f"names {found.content_type} of {found.bytes} bytes, and must be {rule.words}"
        return Fault(pointer, "file_unfit", message)
    if longest is not None and found.seconds is not None and found.seconds > longest:
        return Fault(pointer, "file_unfit", f"plays {found.seconds:g} seconds, and max_seconds says {longest}")
    why = _unfit(found, medium, catalog.load().model(model))
    return Fault(pointer, "file_unfit", f"names a {medium} that {why}, for {model}") if why else None


def _unfit(found: _Object, medium: Medium, model: Model) -> str:
    """Why the model does not take that picture, clip or sound; empty where it does, as far as is known."""
    _, _, size, width, height, has_alpha, seconds = found
    if medium is Medium.PICTURE:
        shape = Shape(width, height, bool(has_alpha)) if width and height else None
        return model.pictures.unfit(size, shape) if model.pictures else ""
    limits = model.clips if medium is Medium.CLIP else model.sounds
    return limits.unfit(size, None if seconds is None else float(seconds)) if limits else ""


def _lines(job: Job) -> _Place:
    return (job.account or "", str(job.id), job.input["key"])


def _with(value: Any, places: Mapping[str, str]) -> Any:
    """The value with each key in it replaced."""
    if isinstance(value, dict):
        return {name: _with(part, places) for name, part in value.items()}
    if isinstance(value, list):
        return [_with(part, places) for part in value]
    return places.get(value, value) if isinstance(value, str) else value


def _has_oss(value: Any) -> bool:
    """Whether any text in the value is an address in the provider's temporary store."""
    match value:
        case str():
            return value.startswith("oss://")
        case dict():
            return any(map(_has_oss, value.values()))
        case list():
            return any(map(_has_oss, value))
        case _:
            return False


_KEYS = any_(bindparam("keys", type_=ARRAY(Text)))
# The files of those keys; FOR KEY SHARE, so that none is removed before the job that names it is on record.
_FILES = (
    select(File.key, File.content_type, File.bytes, File.width, File.height, File.has_alpha, File.seconds)
    .where(File.project_id == bindparam("project"), File.key == _KEYS)
    .order_by(File.key)
    .with_for_update(read=True, key_share=True)
)
# The outputs of those keys.
_OUTPUTS = select(Output.key, Output.content_type, Output.bytes, null(), null(), null(), Output.duration).where(
    Output.project_id == bindparam("project"), Output.key == _KEYS, Output.pruned_at.is_(None)
)
# A job that names the key.
_USER = (
    select(Job.id)
    .where(Job.project_id == bindparam("project"), Job.finished_at.is_(None))
    .where(Job.input.op("@>")(any_(bindparam("inputs", type_=ARRAY(JSONB)))))
    .limit(1)
)
