"""The user's bucket.

Bytes pass through in pieces: a thread holds one part, PART bytes and an eighth more at the most, whatever the object's
length; 32 threads hold 0.6 GB if all their objects are larger than that. Nothing becomes visible under its key before
the last byte has come and the whole was compared with what the source announced.

What was stored is proved by the store's answer, where that has the store's own digest of it:

* The ETag of one PUT is the MD5 in hex: at AWS without SSE-KMS and SSE-C ("Amazon S3 API Reference, 'Object'"), at OSS
  ("OSS, 'Data consistency verification'"), Cloudflare R2, MinIO and SeaweedFS. MinIO writes a random one when it
  encrypts or runs with --no-compat (minio/minio#20520).
* OSS adds the CRC-64 of the whole object to every upload's answer, of parts too ("OSS, 'Data consistency
  verification'"): `x-oss-hash-crc64ecma`.

An answer with neither is followed by a HEAD, which tells the length. ETags of parts are not compared: the MD5 of 1.5 MB
takes as much CPU as a HEAD. No answer, and no HEAD, betrays a store that digests what it then loses, or that answers
with the digest it was sent; only reading the object would.

What is signed is signed by the store's clock, as its last answer told it: stores refuse a time that is a quarter of an
hour off ("Amazon S3 API Reference, 'Error responses'": RequestTimeTooSkewed), and so a host whose clock is.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property, lru_cache
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

import boto3
from botocore.auth import AUTH_TYPE_MAPS, SIGV4_TIMESTAMP, S3SigV4Auth, S3SigV4QueryAuth
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError
from fastcrc import crc64
from pydantic import SecretStr

from worker.egress import TooLarge, user_agent
from worker.errors import NoriaError, NotFound
from worker.settings import Settings

PART = 16 << 20  # bytes; up to here one PUT, a quarter of the requests. S3 takes 10,000 parts of an object, so 160 GB

_CHUNK = 1 << 20  # bytes, of an object that is read
_PIECE = 256 << 10  # bytes that are sent at once
_OSS = ".aliyuncs.com"
_SAME = timedelta(minutes=1)  # between two clocks that need no correction


class _Clock:
    """The store's, by how much it differs from this host's; differences of less than a minute are none."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)
        self.heard_at = -math.inf  # by the monotonic clock

    def hear(self, response_dict: dict[str, Any] | None = None, **_: Any) -> None:
        """Takes the time that an answer was sent at."""
        with suppress(KeyError, TypeError, ValueError):
            sent_at = parsedate_to_datetime((response_dict or {})["headers"]["date"])
            ahead = sent_at - datetime.now(UTC)
            self.ahead = ahead if abs(ahead) > _SAME else timedelta(0)
            self.heard_at = time.monotonic()

    def stamp(self) -> str:
        """The time there now, as it is signed."""
        return (datetime.now(UTC) + self.ahead).strftime(SIGV4_TIMESTAMP)


_clock = _Clock()  # a process has one store, and perhaps two addresses of it


class _Signed(S3SigV4Auth):  # type: ignore[misc]
    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = _clock.stamp()
        super()._modify_request_before_signing(request)


class _SignedLink(S3SigV4QueryAuth):  # type: ignore[misc]
    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = _clock.stamp()
        super()._modify_request_before_signing(request)


AUTH_TYPE_MAPS.update({"s3v4": _Signed, "s3v4-query": _SignedLink})  # botocore has no other way (ADR 61)


class StorageTrouble(NoriaError):
    """The bucket did not take or give what it should: try again."""

    code = "storage_trouble"


class Mismatch(NoriaError):
    """The chunks are not what was announced of them; nothing was stored."""

    code = "mismatch"


@dataclass(frozen=True)
class Expected:
    """What a source announced of its bytes; None: not announced. As OSS writes them: `crc64` decimal, `md5` base64."""

    length: int | None = None
    crc64: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Stored:
    """An object in the bucket: its length, SHA-256 in hex, and CRC-64/XZ in decimal, as OSS writes it."""

    key: str
    content_type: str
    bytes: int
    sha256: str
    crc64: str


@dataclass(frozen=True)
class Head:
    """What the bucket says of an object."""

    bytes: int
    content_type: str


@dataclass(frozen=True)
class Upload:
    """A multipart upload that has not ended; its parts are paid for, and nobody sees them."""

    key: str
    id: str
    began_at: datetime


class Bucket:
    """One bucket. Safe for threads. Every method raises StorageTrouble when the store does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = settings.s3_bucket
        self._s3 = _client(settings, settings.s3_endpoint_url)

    def put_stream(self, key: str, chunks: Iterable[bytes], content_type: str, expected: Expected) -> Stored:
        """Store the chunks: compared with what was expected before they are visible, and proved or verified after.

        An error of the chunks passes to the caller; raises Mismatch when they are not what was expected. In both cases
        nothing is left behind.
        """
        seen = _Seen(chunks, expected)
        parts = _parts(seen)
        first = next(parts)
        if seen.ended:
            is_proved = self._put(key, first, content_type, seen)
        else:
            is_proved = self._put_parts(key, itertools.chain((first,), parts), content_type, seen)
        if not is_proved:
            self._verify(key, seen.bytes)
        return Stored(key, content_type, seen.bytes, seen.sha256.hexdigest(), str(seen.crc64))

    def put_file(self, key: str, body: BinaryIO, length: int, content_type: str) -> None:
        """Store a file from the disk: it is read as it is sent, and not held in memory."""
        body.seek(0)
        with _trouble("put"):
            self._s3.put_object(Bucket=self._name, Key=key, Body=body, ContentLength=length, ContentType=content_type)
        self._verify(key, length)

    def head(self, key: str) -> Head | None:
        """What the bucket has under the key; None: nothing."""
        with _trouble("head"):
            try:
                found = self._s3.head_object(Bucket=self._name, Key=key)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
            return Head(found["ContentLength"], found.get("ContentType", ""))

    def chunks(self, key: str) -> Iterator[bytes]:
        """An object's bytes, a megabyte at a time; raises NotFound where there is none."""
        with _trouble("get"):
            try:
                body = self._s3.get_object(Bucket=self._name, Key=key)["Body"]
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "NoSuchKey":  # a bucket that is gone is trouble
                    raise NotFound(f"no object {key}") from None
                raise
            with body:
                yield from body.iter_chunks(_CHUNK)

    def read(self, key: str, limit: int) -> bytes:
        """An object's bytes; raises NotFound where there is none, TooLarge where it has more than `limit` of them."""
        head = self.head(key)
        if head is None:
            raise NotFound(f"no object {key}")
        if head.bytes > limit:
            raise TooLarge(f"{key} has {head.bytes} bytes; at most {limit} are read")
        return b"".join(self.chunks(key))

    def learn_clock(self, within: timedelta) -> None:
        """Asks the store for its time, unless it answered anything within that span: for who does no more than sign."""
        if time.monotonic() - _clock.heard_at > within.total_seconds():
            with suppress(StorageTrouble):
                self.check()

    def presign(self, key: str, expires: timedelta, filename: str | None) -> str:
        """A public link, good for `expires` (a week at most); with a file name, one that downloads."""
        asked = {"Bucket": self._name, "Key": key}
        if filename is not None:
            asked["ResponseContentDisposition"] = _disposition(filename)
        seconds = int(expires.total_seconds())
        link: str = self._public.generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds)
        return link

    def delete(self, key: str) -> None:
        """Remove an object; it need not be there."""
        with _trouble("delete"):
            self._s3.delete_object(Bucket=self._name, Key=key)

    def objects(self) -> Iterator[tuple[str, int]]:
        """Every object: its key and its length in bytes."""
        yield from ((key, size) for key, size, _ in self.listing(""))

    def listing(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        """The objects under a prefix, by key: each one's key, its length in bytes, and when it was last written."""
        with _trouble("list"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=prefix)
            for page in pages:
                yield from ((found["Key"], found["Size"], found["LastModified"]) for found in page.get("Contents", []))

    def uploads(self) -> list[Upload]:
        """Every multipart upload that was begun and not ended."""
        with _trouble("list uploads"):
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self._name)
            found = [upload for page in pages for upload in page.get("Uploads", [])]
        return [Upload(upload["Key"], upload["UploadId"], upload["Initiated"]) for upload in found]

    def abort(self, upload: Upload) -> None:
        """End an upload, and drop the parts that it has."""
        with _trouble("abort"):
            self._s3.abort_multipart_upload(Bucket=self._name, Key=upload.key, UploadId=upload.id)

    def check(self) -> None:
        """Raises StorageTrouble unless the bucket exists and accepts our key."""
        with _trouble("check"):
            self._s3.head_bucket(Bucket=self._name)

    @cached_property
    def _public(self) -> Any:
        """Signs links for the host that users see: the signature covers the host."""
        return _client(self._settings, self._settings.s3_public_endpoint_url or self._settings.s3_endpoint_url)

    def _verify(self, key: str, length: int) -> None:
        head = self.head(key)
        if head is None or head.bytes != length:
            raise StorageTrouble(f"{key}: stored {length} bytes, found {head.bytes if head else 'nothing'}")

    def _put(self, key: str, body: bytearray, content_type: str, seen: _Seen) -> bool:
        """One PUT, which the store refuses if its MD5 is another; whether the answer proves it."""
        md5 = seen.md5 or hashlib.md5(body, usedforsecurity=False)
        about = {"ContentType": content_type, "ContentMD5": b64encode(md5.digest()).decode()}
        with _trouble("put"):
            answer = self._s3.put_object(Bucket=self._name, Key=key, Body=_Body(body), **about)
        etag: str = answer.get("ETag", "")
        return etag.strip('"').lower() == md5.hexdigest() or _has_crc64(answer, seen.crc64)

    def _put_parts(self, key: str, parts: Iterable[bytearray], content_type: str, seen: _Seen) -> bool:
        """A multipart upload; whether the answer proves it. boto3's own reads on after a part has failed."""
        one = {"Bucket": self._name, "Key": key}
        with _trouble("put"):
            one["UploadId"] = self._s3.create_multipart_upload(ContentType=content_type, **one)["UploadId"]
            try:
                done = [
                    {"PartNumber": n, "ETag": self._s3.upload_part(PartNumber=n, Body=_Body(part), **one)["ETag"]}
                    for n, part in enumerate(parts, start=1)
                ]
                answer = self._s3.complete_multipart_upload(MultipartUpload={"Parts": done}, **one)
            except BaseException:
                with suppress(BotoCoreError, ClientError):  # the cause is the first error, not this one
                    self._s3.abort_multipart_upload(**one)
                raise
        return _has_crc64(answer, seen.crc64)


class _Body:
    """A part as a file, for boto3, which sends bytes by one `sendall` that may take no longer than connecting may.

    Of a file each piece may take as long, so that a large part goes over a slow line too.
    """

    def __init__(self, part: bytearray) -> None:
        self._part = part
        self._at = 0

    def __len__(self) -> int:
        return len(self._part)

    def read(self, _size: int = -1) -> bytearray:
        """The next piece, whatever is asked for: urllib3 asks for 16 kB; empty at the end."""
        piece = self._part[self._at : self._at + _PIECE]
        self._at += len(piece)
        return piece

    def seek(self, at: int) -> None:
        """Has the part read again, for the signature and when it is sent again."""
        self._at = at

    def tell(self) -> int:
        """How many bytes were read."""
        return self._at


class _Seen:
    """Chunks on their way through: counted, digested, and after the last compared with what was expected."""

    def __init__(self, chunks: Iterable[bytes], expected: Expected) -> None:
        self._chunks = chunks
        self._expected = expected
        self.md5 = hashlib.md5(usedforsecurity=False) if expected.md5 else None
        self.bytes = 0
        self.sha256 = hashlib.sha256()
        self.crc64 = 0
        self.ended = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.bytes += len(chunk)
            self.sha256.update(chunk)
            self.crc64 = crc64.xz(chunk, self.crc64)
            if self.md5:
                self.md5.update(chunk)
            yield chunk
        if self._found() != self._expected:
            raise Mismatch(f"expected {self._expected}, found {self._found()}")
        self.ended = True

    def _found(self) -> Expected:
        """The same facts of the chunks as were expected."""
        return Expected(
            length=None if self._expected.length is None else self.bytes,
            crc64=None if self._expected.crc64 is None else str(self.crc64),
            md5=b64encode(self.md5.digest()).decode() if self.md5 else None,
        )


def _parts(chunks: Iterable[bytes]) -> Iterator[bytearray]:
    """PART after PART, then the rest; each is good until the next is asked for. R2 wants all but the last alike."""
    held = bytearray()
    for chunk in chunks:
        rest = memoryview(chunk)
        while len(held) + len(rest) > PART:
            room = PART - len(held)
            held += rest[:room]
            rest = rest[room:]
            yield held
            held.clear()
        held += rest
    yield held


def _has_crc64(answer: dict[str, Any], expected: int) -> bool:
    """Whether the answer has that CRC-64, as OSS's do."""
    found: str | None = answer["ResponseMetadata"]["HTTPHeaders"].get("x-oss-hash-crc64ecma")
    return found == str(expected)


def _disposition(filename: str) -> str:
    """The header that makes a browser save under that name (RFC 6266), whatever the name holds."""
    name = "".join("_" if unicodedata.category(c).startswith("C") or c in '\\/"' else c for c in filename)
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _client(settings: Settings, endpoint: str | None) -> Any:
    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    # OSS takes this style alone, and boto3 would choose another.
    style = "virtual" if (urlsplit(endpoint or "").hostname or "").endswith(_OSS) else settings.s3_addressing_style
    return _made(endpoint, key, secret, settings.s3_region, style)


@lru_cache(maxsize=8)  # making one takes a tenth of a second, and threads may share it
def _made(endpoint: str | None, key: SecretStr | None, secret: SecretStr | None, region: str, style: str) -> Any:
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=key.get_secret_value() if key else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            signature_version="s3v4",
            user_agent=user_agent(),  # else boto3 puts one together anew, twice a request
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 2},  # a PUT may be repeated
            max_pool_connections=64,
            s3={"addressing_style": style},
            # Else bodies are sent aws-chunked, which OSS refuses and some stores write into the object.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    # Else the body of a file waits, for a second at the most, until the store has said "100 Continue".
    client.meta.events.unregister("before-call.s3", add_expect_header)
    _sign_md5(client)
    client.meta.events.register("response-received.s3", _clock.hear)
    return client


def _sign_md5(client: Any) -> None:
    """Has a PUT's MD5 signed in place of its SHA-256, as boto3 does over https alone; else it reads the body again."""
    config = client.meta.config
    unread = config.merge(Config(s3={**config.s3, "payload_signing_enabled": False}))

    def choose(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        if "Content-MD5" in params["headers"]:
            context["client_config"] = unread

    client.meta.events.register("before-call.s3.PutObject", choose)


@contextmanager
def _trouble(doing: str) -> Iterator[None]:
    """The store's errors as ours, with their code alone: their text can hold keys."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "?")
        raise StorageTrouble(f"{doing}: {code} (HTTP {_status(error)})") from error
    except (BotoCoreError, ResponseParserError) as error:
        raise StorageTrouble(f"{doing}: {type(error).__name__}") from error
    except KeyError as error:  # a proxy's own page, or an error that came as HTTP 200
        raise StorageTrouble(f"{doing}: the answer has no {error}") from error


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status
