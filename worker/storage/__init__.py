"""The copy of the provider's outputs into the user's bucket, before their links die.

A source is streamed: never with our key, never from an address that is not the provider's, and only if its first bytes
are those of a media file. Each way to fail says what to do next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any

from worker import egress, media
from worker.egress import Bounds, NotAllowed, Streamed, TooLarge, Transport
from worker.errors import CallFailed, NoriaError
from worker.settings import Settings
from worker.storage.bucket import Bucket, Expected, Head, Mismatch, StorageTrouble, Stored, Upload
from worker.tables import Job

__all__ = [
    "POSTER",
    "BadSource",
    "Bucket",
    "Expected",
    "Head",
    "LinkDead",
    "Mismatch",
    "SourceTrouble",
    "StorageTrouble",
    "Stored",
    "Upload",
    "copy",
    "poster",
    "row",
    "stem",
]

SOURCE_IDLE = 30.0  # seconds without a byte
POSTER = ".poster.jpg"  # what the key of an output's poster ends in, after the output's own

DEAD = frozenset({400, 401, 403, 404, 410})  # OSS says 403 for a link past its time, 404 for an object purged


class LinkDead(NoriaError):
    """The source's link has expired: ask the provider for it again, or give the output up."""

    code = "link_dead"


class BadSource(NoriaError):
    """The source is not what may be stored (its type, its size, where it leads), and will not be later."""

    code = "bad_source"


class SourceTrouble(NoriaError):
    """The bytes did not come, or differ from what the headers announced: try again while the link lives."""

    code = "source_trouble"


def stem(job: Job) -> str:
    """What the keys of a job's objects begin with: project, the day it was created, job."""
    return f"{job.project_id}/{job.created_at.astimezone(UTC):%Y/%m/%d}/{job.id}"


def poster(key: str) -> str:
    """The key of the poster of the output with that key."""
    return key + POSTER


def row(n: int, role: str, stored: Stored, seconds: float | None) -> dict[str, Any]:
    """The row of an output."""
    return {
        "n": n,
        "role": role,
        "key": stored.key,
        "content_type": stored.content_type,
        "bytes": stored.bytes,
        "sha256": stored.sha256,
        "crc64": stored.crc64,
        "duration": seconds,
    }


def copy(transport: Transport, bucket: Bucket, url: str, stem: str, settings: Settings, deadline: float) -> Stored:
    """Copy a source into the bucket, under the stem and the extension of the type that its bytes show.

    `deadline` in seconds; a request to the bucket that is under way when it passes is not cut short. Raises LinkDead,
    BadSource, SourceTrouble or StorageTrouble, and leaves nothing behind then.
    """
    bounds = Bounds(deadline, settings.max_output_bytes, idle=SOURCE_IDLE)
    try:
        with egress.source(transport, url, bounds, settings) as answer:
            return _store(answer, bucket, stem, settings)
    except (NotAllowed, TooLarge) as error:
        raise BadSource(str(error)) from error
    except (CallFailed, Mismatch) as error:
        raise SourceTrouble(str(error)) from error


def _store(answer: Streamed, bucket: Bucket, stem: str, settings: Settings) -> Stored:
    if answer.status in DEAD:
        raise LinkDead(f"the source answers HTTP {answer.status}")
    if answer.status != 200:
        raise SourceTrouble(f"the source answers HTTP {answer.status}")
    expected = _expected(answer.headers)
    if (expected.length or 0) > settings.max_output_bytes:
        raise BadSource(f"the source has {expected.length} bytes, more than MAX_OUTPUT_BYTES")
    head = _head(answer.chunks)
    kind = media.sniff(head)
    if kind is None:
        raise BadSource(f"the source is of no known media type (Content-Type: {answer.headers.get('content-type')})")
    chunks = itertools.chain((head,), answer.chunks)
    return bucket.put_stream(f"{stem}.{kind.extension}", chunks, kind.content_type, expected)


def _head(chunks: Iterator[bytes]) -> bytes:
    """Enough of the first bytes to tell their type."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= media.SNIFFED:
            break
    return head


def _expected(headers: Mapping[str, str]) -> Expected:
    """What an OSS answer announces; `Content-MD5` only for objects that were uploaded in one piece."""
    length = headers.get("content-length", "")
    return Expected(
        int(length) if length.isdecimal() else None,
        headers.get("x-oss-hash-crc64ecma"),
        headers.get("content-md5"),
    )
