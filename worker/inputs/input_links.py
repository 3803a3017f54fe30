"""How the provider gets the objects of ours that a job names.

A job's row and its request's hash hold keys, so equal requests are equal for ever. Only the call itself carries what
the provider can follow: a link into the bucket that lives for hours, or, where it cannot reach the bucket or is not
meant to (NORIA_INPUT_HANDOVER), an `oss://` of its own temporary store, where the object was put just before. A batch's
lines are always put there. What was put is kept in mind for an hour, so that a call that has to wait uploads nothing
twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

from worker import inputs, timeouts
from worker.dashscope.client import Client
from worker.errors import CallFailed, NotFound
from worker.kinds import Request
from worker.settings import Settings, endpoints
from worker.storage import Bucket, Head
from worker.tables import Job

LINK_LIFE = timedelta(hours=6)  # a task may wait for its turn at the provider, and it runs 3 h at the most
UPLOAD_KEPT = timedelta(hours=1)  # of the 48 h that the provider keeps it (Alibaba docs, 'Upload a file temporarily')
_RESOLVE = {"X-DashScope-OssResourceResolve": "enable"}

_Place = tuple[str, str, str]  # an account, whom the provider lets read it there, and our key


@dataclass(frozen=True)
class _Put:
    """What the provider calls an object of ours, and since when, by this process's monotonic clock."""

    name: str
    at: float


@dataclass(frozen=True)
class Handover:
    """What was handed over; one for each process, for all its threads."""

    settings: Settings
    bucket: Bucket
    _puts: dict[_Place, _Put] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def request(self, client: Client, job: Job, request: Request) -> Request:
        """The request with each key in it made into something that the provider can follow.

        Nothing was sent for the job when it raises: CallFailed (FileRefused among it) or StorageTrouble, or NotFound
        where the object is gone. It takes `timeouts.HANDOVER` at the most, or raises.
        """
        keys = dict.fromkeys(inputs.links(job.input).values())
        if not keys:
            return request
        if uploads(self.settings, client.url) is None:
            links = {key: self.bucket.presign(key, LINK_LIFE, None) for key in keys}
            return replace(request, body=_with(request.body, links))
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

    def spent(self, job: Job) -> None:
        """Forgets a batch's file: a batch may have it now, and it goes when that has ended."""
        with self._lock:
            self._puts.pop(_lines(job), None)

    def unspent(self, job: Job, file_id: str) -> None:
        """Keeps a batch's file in mind after all: no batch has it."""
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
            raise NotFound(f"the input {key} is in the bucket no more")
        name = put(key, head)
        self._keep(place, _Put(name, now))
        return name

    def _keep(self, place: _Place, put: _Put) -> None:
        with self._lock:
            for old in [old for old, kept in self._puts.items() if put.at - kept.at > UPLOAD_KEPT.total_seconds()]:
                del self._puts[old]
            self._puts[place] = put


def uploads(settings: Settings, provider: str) -> str | None:
    """Why the provider at that address gets files as uploads; None: it gets links into the bucket, which it can follow.

    Links that only neighbours can follow are for a provider that is one, like the sandbox.
    """
    endpoint = settings.s3_public_endpoint_url or settings.s3_endpoint_url
    if settings.input_handover == "upload":
        return "NORIA_INPUT_HANDOVER says so"
    if endpoint and endpoints.is_near(endpoint) and not endpoints.is_near(provider):
        return f"the provider cannot follow links to {endpoint}"
    return None


def _lines(job: Job) -> _Place:
    return (job.account or "", str(job.id), job.input["key"])


def _with(value: Any, places: Mapping[str, str]) -> Any:
    """The value with each key in it replaced by its place."""
    if isinstance(value, dict):
        return {name: _with(part, places) for name, part in value.items()}
    if isinstance(value, list):
        return [_with(part, places) for part in value]
    return places.get(value, value) if isinstance(value, str) else value
