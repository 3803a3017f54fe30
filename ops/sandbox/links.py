"""Links as Alibaba's object store signs them, and the bytes behind them.

A link is signed for one verb (OSS V1 query signature), so a HEAD on it fails as it does on the real store.
Nothing is stored: a link's path follows from its task, and the bytes are drawn when they are asked for.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from fastcrc import crc64

from ops.sandbox import clock, media, sound
from ops.sandbox.orders import Order
from ops.sandbox.tasks import Task

ACCESS_KEY_ID = "LTAIsandbox0000000000000"
ACCESS_KEY = b"noria-sandbox"
BUCKET = "dashscope-result-sandbox"
UPLOAD_SECONDS = 2.0  # a link's life is counted from the upload, just before the task's end
CHUNK = 262_144
MULTIPART_BYTES = 16_777_216  # larger objects have no MD5, as those uploaded in parts
KEY = re.compile(r"\d+d/[0-9a-f]{2}/\d{8}/[0-9a-f]{8}/(?P<number>\d+)-(?P<task>[0-9a-f-]{36})\.(mp4|png|wav)")


class Denial(Exception):
    """The object store's refusal: an HTTP status, a code and what else its XML says."""

    def __init__(self, status: int, code: str, message: str, ec: str, details: str = "") -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.ec = ec
        self.details = details


@dataclass(frozen=True)
class Body:
    """An object's bytes: a head, and as many zeros after it as padding wants. A gigabyte costs no memory."""

    head: bytes
    zeros: int
    crc64: int
    md5: bytes | None  # None for an object uploaded in parts

    @property
    def size(self) -> int:
        """The object's length in bytes."""
        return len(self.head) + self.zeros

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `stop`."""
        while start < stop:
            end = min(stop, start + CHUNK)
            piece = self.head[start:end]
            yield piece + bytes(end - start - len(piece))
            start = end


def url(base: str, task: Task, number: int, link_seconds: float, keeps_days: int) -> str:
    """Return the signed link of output `number` of an ended task, on the host that the client spoke to."""
    key = _key(task, number, keeps_days)
    expires = expires_at(task, link_seconds * keeps_days)
    signature = quote(_sign("GET", key, expires), safe="")
    return f"{base}/oss/{key}?Expires={expires}&OSSAccessKeyId={ACCESS_KEY_ID}&Signature={signature}"


def expires_at(task: Task, link_seconds: float) -> int:
    """Return the epoch second until which an ended task's link is good."""
    return int(task.ended_at - UPLOAD_SECONDS + link_seconds)


def verify(verb: str, key: str, query: Mapping[str, str], now: float) -> None:
    """Raise the Denial that a link earns which is not signed, or for another verb, or has expired."""
    expires = query.get("Expires", "")
    if query.get("OSSAccessKeyId") != ACCESS_KEY_ID or not expires.isdigit():
        raise Denial(403, "AccessDenied", "You have no right to access this object.", "0003-00000001")
    if now > int(expires):
        raise expired(int(expires), now)
    if not hmac.compare_digest(_sign(verb, key, int(expires)), query.get("Signature", "")):
        message = "The request signature we calculated does not match the signature you provided."
        raise Denial(403, "SignatureDoesNotMatch", message, "0002-00000040")


def expired(expires: int, now: float) -> Denial:
    """Return the Denial of a link that has expired."""
    times = f"<Expires>{clock.iso(expires)}</Expires><ServerTime>{clock.iso(now)}</ServerTime>"
    return Denial(403, "AccessDenied", "Request has expired.", "0002-00000069", times)


def purged() -> Denial:
    """Return the Denial of an object that is not there, or no more."""
    return Denial(404, "NoSuchKey", "The specified key does not exist.", "0026-00000001")


def locate(key: str) -> tuple[str, int]:
    """Return the task's id and the number of the output that a key names, or raise a Denial."""
    match = KEY.fullmatch(key)
    if match is None:
        raise purged()
    return match["task"], int(match["number"])


def body(task: Task, number: int, size: int, true_size: bool) -> Body:
    """Return the bytes of one output, padded to at least `size`."""
    order = task.order
    made = sound.wav(order.prompt, order.voice) if order.voice else media.render(order, task.id, number, true_size)
    head, zeros = media.pad(made, size)
    checksum = crc64.xz(head)
    for start in range(0, zeros, CHUNK):
        checksum = crc64.xz(bytes(min(CHUNK, zeros - start)), checksum)
    is_simple = zeros < MULTIPART_BYTES
    return Body(head, zeros, checksum, _md5(head + bytes(zeros)) if is_simple else None)


def headers(whole: Body, order: Order, modified_at: float) -> dict[str, str]:
    """Return the store's headers for an object, its length apart."""
    common = {
        "Content-Type": media.CONTENT_TYPES[media.ending(order)],
        "Accept-Ranges": "bytes",
        "Last-Modified": clock.http_date(modified_at),
        "x-oss-hash-crc64ecma": str(whole.crc64),
        "x-oss-storage-class": "Standard",
        "x-oss-server-time": "3",
    }
    if whole.md5 is None:
        parts = -(-whole.size // MULTIPART_BYTES)
        return common | {"ETag": f'"{whole.crc64:032X}-{parts}"', "x-oss-object-type": "Multipart"}
    content_md5 = base64.b64encode(whole.md5).decode()
    simple = {
        "ETag": f'"{whole.md5.hex().upper()}"',
        "Content-MD5": content_md5,
        "x-oss-object-type": "Normal",
    }
    return common | simple


def span(range_header: str | None, size: int) -> tuple[int, int] | None:
    """Return start and stop of the bytes a Range header asks for; None: all of them, also for an unusable one."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", range_header or "")
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    return (start, stop) if start < stop else None


def _key(task: Task, number: int, keeps_days: int) -> str:
    digest = hashlib.sha256(task.id.encode()).hexdigest()
    folder = f"{keeps_days}d/{digest[:2]}/{clock.day(task.ended_at)}/{digest[2:10]}"
    return f"{folder}/{number}-{task.id}.{media.ending(task.order)}"


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _sign(verb: str, key: str, expires: int) -> str:
    text = f"{verb}\n\n\n{expires}\n/{BUCKET}/{key}"
    return base64.b64encode(hmac.digest(ACCESS_KEY, text.encode(), "sha1")).decode()
