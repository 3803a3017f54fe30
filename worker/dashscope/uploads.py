"""Uploads to the provider: multipart forms, and its store of temporary files.

A temporary file takes two calls: one gets a signed policy, which names a folder, and one sends a form with that policy
to the store. Models read the file by its `oss://` address when a header asks for that. (Alibaba docs, "Get a temporary
file URL".)
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlencode

from worker.catalog import Surface
from worker.dashscope import BODY_CAP, Session, responses
from worker.dashscope.responses import Refused, field, read, word
from worker.egress import Answer, Bounds
from worker.errors import CallFailed

_FIELDS = {  # the form's names of what the policy holds, and the policy's names
    "OSSAccessKeyId": "oss_access_key_id",
    "Signature": "signature",
    "policy": "policy",
    "x-oss-object-acl": "x_oss_object_acl",
    "x-oss-forbid-overwrite": "x_oss_forbid_overwrite",
}
_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)


class FileRefused(CallFailed):
    """The provider did not take a file, or did not give it; `refused` says why."""

    code = "file_refused"

    def __init__(self, what: str, refused: Refused) -> None:
        super().__init__(f"{what}: HTTP {refused.http_status} {refused.code}".strip())
        self.refused = refused


@dataclass(frozen=True)
class File:
    """A file's name, type and bytes; `length` where they come in chunks."""

    name: str
    content_type: str
    data: bytes | Iterable[bytes]
    length: int | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        if isinstance(self.data, bytes):
            return len(self.data)
        assert self.length is not None, "a file that comes in chunks needs its length"
        return self.length


@dataclass(frozen=True)
class Form:
    """A multipart form: its headers, and its bytes as they come."""

    headers: dict[str, str]
    content: Iterable[bytes]


def form(fields: Mapping[str, str], part: str, file: File) -> Form:
    """A form of the fields and the file, as the part of that name: last, since the store reads no field after it."""
    mark = secrets.token_hex(16)
    head = "".join(f"--{mark}\r\n{_disposition(name)}\r\n\r\n{value}\r\n" for name, value in fields.items())
    named = f'{_disposition(part)}; filename="{safe(file.name)}"\r\nContent-Type: {file.content_type}'
    before, after = f"{head}--{mark}\r\n{named}\r\n\r\n".encode(), f"\r\n--{mark}--\r\n".encode()

    def chunks() -> Iterator[bytes]:
        yield before
        yield from [file.data] if isinstance(file.data, bytes) else file.data
        yield after

    length = len(before) + file.size + len(after)
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}", "Content-Length": str(length)}
    return Form(headers, chunks())


def put(session: Session, model: str, file: File, deadline: float) -> str:
    """Store a file: its `oss://` address; raises CallFailed, FileRefused among it."""
    ends = time.monotonic() + deadline
    query = urlencode({"action": "getPolicy", "model": model})
    answer = session.query("GET", Surface.NATIVE, f"/uploads?{query}", Bounds(deadline, BODY_CAP))
    policy = field(read(answer.body), "data")
    host, folder = word(policy, "upload_host"), word(policy, "upload_dir")
    if answer.status != 200 or not host or not folder:
        raise FileRefused("no policy for an upload", responses.refused(answer, read(answer.body)))
    key = f"{folder}/{safe(file.name)}"
    fields = {name: word(policy, known) for name, known in _FIELDS.items()}
    sent = form({**fields, "key": key, "success_action_status": "200"}, "file", file)
    left = Bounds(max(0.0, ends - time.monotonic()), BODY_CAP)
    stored = session.elsewhere(host, left, sent.headers, sent.content)
    if not 200 <= stored.status < 300:
        raise FileRefused("the upload was refused", _from_store(stored))
    return f"oss://{key}"


def safe(name: str) -> str:
    """A file's name without what a header or a key cannot hold; its ending is kept."""
    path = PurePosixPath(name)
    stem = _UNSAFE.sub("_", path.stem).strip("._")[:100]
    return (stem or "file") + _UNSAFE.sub("", path.suffix)[:20]


def _disposition(name: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"'


def _from_store(answer: Answer) -> Refused:
    """The refusal in the object store's XML."""
    text = answer.body.decode("utf-8", "replace")
    code, message = (re.search(rf"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    request_id = answer.headers.get("x-oss-request-id")
    return Refused(answer.status, code[1] if code else "", message[1] if message else "", request_id)
