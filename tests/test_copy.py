"""The copy of an output into the bucket: what is stored is what was made, or nothing is stored and it is said why."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import httpx
import peers
import pytest
import time_machine
from fastcrc import crc64
from hypothesis import given
from hypothesis import strategies as st
from peers import peer
from pydantic import SecretStr

from ops.local.servers import Servers
from ops.sandbox.options import Options
from ops.sandbox.testing import running
from worker import storage
from worker.dashscope.client import Client
from worker.dashscope.responses import Accepted, Page, TaskSeen
from worker.egress import transports
from worker.errors import NotFound
from worker.kinds import Request
from worker.settings import Account, Settings
from worker.storage import (
    BadSource,
    Bucket,
    Expected,
    LinkDead,
    Mismatch,
    SourceTrouble,
    StorageTrouble,
    Stored,
    media,
)

MP4 = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
CLIP = MP4 + bytes(range(256)) * 100
STEM = "p/2026/11/21/j/0-video"

EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Request has expired.</Message><EC>0002-00000069</EC></Error>"""


@pytest.fixture(scope="module")
def settings(store: Servers) -> Iterator[Settings]:
    name = f"copies-{uuid.uuid4().hex}"
    store.create_bucket(name)
    named = {k.removeprefix("NORIA_").lower(): v for k, v in store.environment(name).items()}
    yield Settings.model_validate({**named, "egress_allow": "127.0.0.1/32", "max_output_bytes": 32 << 20})
    store.delete_bucket(name)


@pytest.fixture(scope="module")
def module_target(settings: Settings) -> Bucket:
    return Bucket(settings)  # a tenth of a second each, so one for all


@pytest.fixture
def target(module_target: Bucket) -> Iterator[Bucket]:
    """The bucket, empty."""
    yield module_target
    for found in module_target._s3.list_objects_v2(Bucket=module_target._name).get("Contents", []):
        module_target.delete(found["Key"])


def copy(target: Bucket, url: str, settings: Settings, deadline: float = 20) -> Stored:
    return storage.copy(transports.sources(settings), target, url, STEM, settings, deadline)


def announced(body: bytes, **changed: str) -> dict[str, str]:
    """The headers that OSS sends with an object."""
    md5 = b64encode(hashlib.md5(body).digest()).decode()
    return {"x_oss_hash_crc64ecma": str(crc64.xz(body)), "content_md5": md5, **changed}


def leftovers(target: Bucket) -> list[str]:
    """Everything in the bucket, and every upload that was begun and not ended."""
    objects = target._s3.list_objects_v2(Bucket=target._name).get("Contents", [])
    uploads = target._s3.list_multipart_uploads(Bucket=target._name).get("Uploads", [])
    return [o["Key"] for o in objects] + [u["UploadId"] for u in uploads]


# What is stored


@pytest.mark.parametrize("size", [len(MP4), 200_000, storage.bucket.PART, storage.bucket.PART + 1, 26 << 20])
def test_a_copy_is_the_output_byte_for_byte(target: Bucket, settings: Settings, size: int) -> None:
    body = MP4 + os.urandom(size - len(MP4))

    with peer(peers.answers(200, body, **announced(body))) as oss:
        stored = copy(target, f"{oss.url}/1d/a.mp4?Signature=a%2Bb", settings)

    assert b"".join(target.chunks(stored.key)) == body
    assert (stored.key, stored.content_type, stored.bytes) == (f"{STEM}.mp4", "video/mp4", size)
    assert (stored.sha256, stored.crc64) == (hashlib.sha256(body).hexdigest(), str(crc64.xz(body)))
    assert target.head(stored.key) == storage.Head(size, "video/mp4")
    assert leftovers(target) == [stored.key]


def test_a_source_never_sees_a_key_of_ours(target: Bucket, settings: Settings) -> None:
    with peer(peers.answers(200, CLIP)) as oss:
        copy(target, oss.url, settings)

    assert b"authorization" not in oss.requests[0].lower()
    assert b"accept-encoding: identity" in oss.requests[0].lower()


def test_the_bytes_say_what_it_is_and_not_the_name_or_the_header(target: Bucket, settings: Settings) -> None:
    wav = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100)

    with peer(peers.answers(200, wav, content_type="text/html")) as oss:
        stored = copy(target, f"{oss.url}/a.mp4", settings)

    assert (stored.key, stored.content_type) == (f"{STEM}.wav", "audio/wav")


def test_a_copy_made_twice_is_one_object(target: Bucket, settings: Settings) -> None:
    with peer(peers.answers(200, CLIP)) as oss:
        assert copy(target, oss.url, settings) == copy(target, oss.url, settings)

    assert leftovers(target) == [f"{STEM}.mp4"]


def test_a_source_without_a_length_is_copied_to_its_end(target: Bucket, settings: Settings) -> None:
    with peer(peers.ends(b"HTTP/1.1 200 OK\r\n\r\n" + CLIP)) as oss:
        assert copy(target, oss.url, settings).bytes == len(CLIP)


def test_a_clip_of_the_sandbox_is_created_seen_listed_and_copied(target: Bucket, settings: Settings) -> None:
    body = {"model": "wan2.5-t2v-preview", "input": {"prompt": "一只小猫"}, "parameters": {"size": "832*480"}}
    asked = Request("/services/aigc/video-generation/video-synthesis", {"X-DashScope-Async": "enable"}, body)
    now = datetime.now(UTC)
    with running(Options(run_seconds=0, queue_seconds=0)) as sandbox:
        account = Account(url=sandbox.url, key=SecretStr("sk-one"))
        dashscope = Client(account, transports.keeping(), transports.single())

        accepted = dashscope.create(asked, 20)
        assert isinstance(accepted, Accepted)
        seen = dashscope.task(accepted.task_id or "")
        assert isinstance(seen, TaskSeen)
        page = dashscope.tasks(now - timedelta(hours=1), now + timedelta(hours=1), 1, 10)
        assert isinstance(page, Page)
        stored = copy(target, seen.output["video_url"], settings)

    assert seen.status == "SUCCEEDED"
    assert [(row.task_id, row.request_id) for row in page.rows] == [(accepted.task_id, accepted.request_id)]
    assert (stored.key, stored.content_type) == (f"{STEM}.mp4", "video/mp4")


# What proves it


@pytest.mark.parametrize("announces", [True, False])
def test_a_copy_is_one_get_and_one_put(target: Bucket, settings: Settings, announces: bool) -> None:
    headers = announced(CLIP) if announces else {}

    with on_the_way(settings) as (watched, s3), peer(peers.answers(200, CLIP, **headers)) as oss:
        copy(Bucket(watched), oss.url, watched)

    assert [request.split(b" ")[0] for request in oss.requests + s3.requests] == [b"GET", b"PUT"]


def test_the_md5_of_a_put_is_signed_and_the_body_not_read_for_it(target: Bucket, settings: Settings) -> None:
    with on_the_way(settings) as (watched, s3):
        Bucket(watched).put_stream("k", iter([CLIP]), "video/mp4", Expected())

    head = s3.requests[0].partition(b"\r\n\r\n")[0]
    assert b"Content-MD5: " + b64encode(bytes.fromhex(MD5)) in head
    assert b"SignedHeaders=content-md5;" in head
    assert b"X-Amz-Content-SHA256: UNSIGNED-PAYLOAD" in head
    assert b"expect:" not in head.lower(), "no round trip before the body"


def test_copies_from_one_host_share_a_connection(target: Bucket, settings: Settings) -> None:
    wire = transports.sources(settings)

    with peer(peers.answers(200, CLIP)) as oss:
        for _ in range(3):
            storage.copy(wire, target, oss.url, STEM, settings, 20)

    assert (len(oss.requests), oss.connections) == (3, 1)


MD5, CRC64 = hashlib.md5(CLIP).hexdigest(), str(crc64.xz(CLIP))


@pytest.mark.parametrize(
    ("headers", "heads"),
    [
        ({"etag": f'"{MD5}"'}, 0),
        ({"etag": MD5}, 0),
        ({"etag": f'"{MD5.upper()}"'}, 0),
        ({"etag": '"0"', "x_oss_hash_crc64ecma": CRC64}, 0),
        ({}, 1),
        ({"etag": ""}, 1),
        ({"etag": f'"{hashlib.md5(CLIP[:-1]).hexdigest()}"'}, 1),
        ({"etag": f'"{uuid.uuid4().hex}"'}, 1),  # as with SSE-KMS
        ({"etag": f'"{MD5}-1"'}, 1),
        ({"etag": f'W/"{MD5}"'}, 1),
        ({"x_oss_hash_crc64ecma": "1"}, 1),
    ],
)
def test_an_answer_that_proves_nothing_is_followed_by_a_head(
    settings: Settings, headers: dict[str, str], heads: int
) -> None:
    def keeps(conn: socket.socket, request: bytes) -> None:
        found = {"content_length": str(len(CLIP))} if request.startswith(b"HEAD") else headers
        conn.sendall(peers.whole(200, b"", **found))

    with peer(keeps) as s3, peer(peers.answers(200, CLIP)) as oss:
        copy(Bucket(settings.model_copy(update={"s3_endpoint_url": s3.url})), oss.url, settings)

    assert [request.split(b" ")[0] for request in s3.requests] == [b"PUT"] + heads * [b"HEAD"]


@pytest.mark.parametrize(("found", "heads"), [("right", 0), ("wrong", 1), (None, 1)])
def test_parts_are_proved_by_the_crc_of_the_whole(settings: Settings, found: str | None, heads: int) -> None:
    body = bytes(storage.bucket.PART + 1)
    crc = {None: {}, "right": {"x_oss_hash_crc64ecma": str(crc64.xz(body))}, "wrong": {"x_oss_hash_crc64ecma": "1"}}
    begun = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
    answers = {
        b"POST uploads": peers.whole(200, begun),
        b"PUT part": peers.whole(200, b"", etag='"e"'),
        b"POST whole": peers.whole(200, b"<CompleteMultipartUploadResult/>", **crc[found]),
        b"HEAD": peers.whole(200, b"", content_length=str(len(body))),
    }
    asked = []

    def keeps(conn: socket.socket, request: bytes) -> None:
        method, query = request.split(b" ")[0], request.split(b" ")[1].partition(b"?")[2]
        what = {b"": b"", b"uploads": b" uploads"}.get(query, b" part" if method == b"PUT" else b" whole")
        asked.append(method + what)
        conn.sendall(answers[method + what])

    with peer(keeps) as s3:
        there = Bucket(settings.model_copy(update={"s3_endpoint_url": s3.url}))
        there.put_stream("k", iter([body]), "video/mp4", Expected())

    assert asked == [b"POST uploads", b"PUT part", b"PUT part", b"POST whole"] + heads * [b"HEAD"]


def test_all_parts_but_the_last_are_of_one_length(target: Bucket, settings: Settings) -> None:
    with on_the_way(settings) as (watched, s3):
        Bucket(watched).put_stream("k", iter([bytes(5 << 20)] * 7), "video/mp4", Expected())

    parts = [request.partition(b"\r\n\r\n")[2] for request in s3.requests if b"partNumber=" in request[:200]]
    assert [len(part) >> 20 for part in parts] == [16, 16, 3]


# What is not


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (peers.answers(403, EXPIRED, content_type="application/xml"), LinkDead),
        (peers.answers(404, b"<Error><Code>NoSuchKey</Code></Error>"), LinkDead),
        (peers.answers(200, b"<!doctype html><html>Welcome to our Wi-Fi"), BadSource),
        (peers.answers(200, b'<?xml version="1.0"?><svg onload="alert(1)"/>'), BadSource),
        (peers.answers(200, EXPIRED, content_type="video/mp4"), BadSource),
        (peers.answers(200, b'{"code": "InternalError"}'), BadSource),
        (peers.answers(200, b""), BadSource),
        (peers.sends(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n" + CLIP), BadSource),
        (peers.answers(302, b"", location="http://169.254.169.254/latest/meta-data/"), BadSource),
        (peers.answers(302, b"", location="http://10.0.0.1/a.mp4"), BadSource),
        (peers.answers(302, b"", location="/for-ever"), BadSource),
        (peers.answers(500, b"<html>"), SourceTrouble),
        (peers.answers(503, b"<Error><Code>SlowDown</Code></Error>"), SourceTrouble),
        (peers.answers(206, CLIP), SourceTrouble),
        (peers.breaks(), SourceTrouble),
        (peers.breaks(peers.whole(200, CLIP)[:-9]), SourceTrouble),
        (peers.ends(peers.whole(200, CLIP)[:-9]), SourceTrouble),
        (peers.ends(peers.whole(200, CLIP)[:60]), SourceTrouble),
        (peers.answers(200, CLIP, **announced(CLIP, x_oss_hash_crc64ecma="123")), SourceTrouble),
        (peers.answers(200, CLIP, **announced(CLIP, content_md5="1B2M2Y8AsgTpgAmY7PhCfg==")), SourceTrouble),
    ],
    ids=[
        "expired", "purged", "HTML", "SVG", "XML", "JSON", "empty", "announced too large", "to the metadata",
        "to a private address", "redirects for ever", "500", "503", "206", "reset", "reset midway", "truncated",
        "truncated at once", "other CRC-64", "other MD5",
    ],
)  # fmt: skip
def test_what_is_not_the_output_is_not_stored(
    target: Bucket, settings: Settings, script: peers.Script, error: type[Exception]
) -> None:
    with peer(script) as oss, pytest.raises(error) as raised:
        copy(target, f"{oss.url}/a.mp4?Signature=secret", settings)

    assert type(raised.value) is error
    assert "secret" not in str(raised.value)
    assert leftovers(target) == []


def test_an_output_that_grows_over_the_cap_is_not_stored(target: Bucket, settings: Settings) -> None:
    body = MP4 + bytes(33 << 20)

    with peer(peers.ends(b"HTTP/1.1 200 OK\r\n\r\n" + body)) as oss, pytest.raises(BadSource):
        copy(target, oss.url, settings)

    assert leftovers(target) == []


def test_a_large_output_with_another_checksum_is_not_stored(target: Bucket, settings: Settings) -> None:
    body = MP4 + bytes(20 << 20)

    with peer(peers.answers(200, body, x_oss_hash_crc64ecma="1")) as oss, pytest.raises(SourceTrouble):
        copy(target, oss.url, settings)

    assert leftovers(target) == []


def test_a_slow_source_is_left_at_the_deadline(target: Bucket, settings: Settings) -> None:
    started = time.monotonic()

    with peer(peers.drips(peers.whole(200, CLIP)[:-99], CLIP[-99:])) as oss, pytest.raises(SourceTrouble):
        copy(target, oss.url, settings, deadline=0.5)

    assert time.monotonic() - started < 1.5
    assert leftovers(target) == []


def test_a_source_that_is_nobodys_is_not_fetched(target: Bucket) -> None:
    closed = Settings.model_validate({"database_url": "", "broker_url": ""})

    with peer(peers.answers(200, CLIP)) as oss, pytest.raises(BadSource):
        copy(target, oss.url, closed)

    assert oss.requests == []


def test_a_source_that_is_down_is_tried_again(target: Bucket, settings: Settings) -> None:
    with peer(peers.hangs) as gone:
        url = gone.url

    with pytest.raises(SourceTrouble):
        copy(target, url, settings)


# The store's own trouble


@pytest.mark.parametrize("parts_that_pass", [0, 1])
def test_a_store_that_fails_midway_leaves_nothing_and_stops_the_download(
    target: Bucket, settings: Settings, parts_that_pass: int
) -> None:
    body = MP4 + bytes(55 << 20)
    larger = settings.model_copy(update={"max_output_bytes": 64 << 20})
    sent, passed = [], []

    def flows(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        for start in range(0, len(body), 1 << 20):
            conn.sendall(body[start : start + (1 << 20)])
            sent.append(1)

    def fails(request: bytes) -> bytes | None:
        if b"partNumber=" in request.partition(b"\r\n")[0]:
            passed.append(1)
        return request if len(passed) <= parts_that_pass or request.startswith(b"DELETE") else None

    with on_the_way(larger, fails) as (broken, _), peer(flows) as oss, pytest.raises(StorageTrouble):
        copy(Bucket(broken), oss.url, broken)

    assert leftovers(target) == []
    assert len(sent) < 50, "the rest of the source is not read for nothing"


@pytest.mark.parametrize("mark", [b"PUT /", b"PUT /%s/k?partNumber=2"])
def test_what_the_store_did_not_take_is_sent_again_whole(target: Bucket, settings: Settings, mark: bytes) -> None:
    body = os.urandom(storage.bucket.PART + (5 << 20 if b"part" in mark else 0))
    line = mark.replace(b"%s", settings.s3_bucket.encode())
    failed: list[bytes] = []

    def fails_once(request: bytes) -> bytes | None:
        if request.startswith(line) and not failed:
            failed.append(request)
            return None
        return request

    with on_the_way(settings, fails_once) as (broken, _):
        Bucket(broken).put_stream("k", iter([body]), "video/mp4", Expected())

    assert failed
    assert b"".join(target.chunks("k")) == body


def test_a_part_is_sent_in_pieces_so_that_none_waits_long_for_a_slow_line() -> None:
    part = bytearray(os.urandom(700_000))
    body = storage.bucket._Body(part)

    pieces = list(iter(body.read, b""))

    assert b"".join(pieces) == part
    assert max(len(piece) for piece in pieces) < len(body) / 2


def test_bytes_that_change_on_the_way_are_refused_by_the_store(target: Bucket, settings: Settings) -> None:
    def alters(request: bytes) -> bytes:
        return request[:-1] + b"?" if request.startswith(b"PUT") else request

    with on_the_way(settings, alters) as (altered, _), peer(peers.answers(200, CLIP)) as oss:
        with pytest.raises(StorageTrouble):
            copy(Bucket(altered), oss.url, altered)

        assert leftovers(target) == []


def test_a_store_that_is_down_is_trouble(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    down = settings.model_copy(update={"s3_endpoint_url": url})

    with peer(peers.answers(200, CLIP)) as oss, pytest.raises(StorageTrouble) as raised:
        copy(Bucket(down), oss.url, down)

    assert url not in str(raised.value)


def test_a_store_that_keeps_less_than_it_was_given_is_trouble(settings: Settings) -> None:
    def forgets(conn: socket.socket, request: bytes) -> None:
        length = "12" if request.startswith(b"HEAD") else "0"
        conn.sendall(f'HTTP/1.1 200 OK\r\ncontent-length: {length}\r\netag: "e"\r\n\r\n'.encode())

    with peer(forgets) as s3, peer(peers.answers(200, CLIP)) as oss, pytest.raises(StorageTrouble):
        copy(Bucket(settings.model_copy(update={"s3_endpoint_url": s3.url})), oss.url, settings)


def test_a_bucket_that_is_not_there_is_told(settings: Settings, target: Bucket) -> None:
    target.check()

    with pytest.raises(StorageTrouble):
        Bucket(settings.model_copy(update={"s3_bucket": "no-such-bucket"})).check()
    with pytest.raises(StorageTrouble):
        list(Bucket(settings.model_copy(update={"s3_bucket": "no-such-bucket"})).chunks("no-such-key"))
    with pytest.raises(NotFound):
        list(target.chunks("no-such-key"))

    assert target.head("no-such-key") is None
    target.delete("no-such-key")


SAID = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>m</Message></Error>"


@pytest.mark.parametrize("megabytes", [1, 20])  # in one piece, and in parts
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, SAID % b"SlowDown"),
        (403, SAID % b"AccessDenied"),  # a bucket that is read-only
        (507, SAID % b"XMinioStorageFull"),
        (500, b"no XML at all"),
        (200, SAID % b"InternalError"),
        (200, b"<html>a proxy's own page"),
        (200, b""),
    ],
)
def test_a_bucket_that_takes_nothing_is_trouble_whatever_it_answers(
    settings: Settings, status: int, body: bytes, megabytes: int
) -> None:
    with peer(peers.answers(status, body)) as s3:
        away = Bucket(settings.model_copy(update={"s3_endpoint_url": s3.url}))

        with pytest.raises(StorageTrouble) as told:
            away.put_stream("k.mp4", iter([bytes(megabytes << 20)]), "video/mp4", Expected())

    assert "k.mp4?" not in str(told.value)


@contextmanager
def on_the_way(
    settings: Settings, alter: Callable[[bytes], bytes | None] = lambda request: request
) -> Iterator[tuple[Settings, peers.Peer]]:
    """The target behind a proxy that alters requests, and answers for the store where there is nothing left of one."""
    upstream = (str(httpx.URL(settings.s3_endpoint_url or "").host), httpx.URL(settings.s3_endpoint_url or "").port)

    def relay(conn: socket.socket, request: bytes) -> None:
        altered = alter(request)
        if altered is None:
            conn.sendall(peers.whole(500, b"<Error><Code>InternalError</Code></Error>"))
            return
        with socket.create_connection(upstream) as s3:
            s3.sendall(altered.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            while piece := s3.recv(65536):
                conn.sendall(piece)
        conn.close()

    with peer(relay) as proxy:
        # Requests are signed for the host that they are sent to, so the proxy must be the host for the store too.
        yield settings.model_copy(update={"s3_endpoint_url": proxy.url}), proxy


# Other objects


def test_chunks_that_are_not_what_was_announced_are_not_stored(target: Bucket) -> None:
    for expected in (Expected(length=4), Expected(crc64="1"), Expected(md5="x")):
        with pytest.raises(Mismatch):
            target.put_stream("k", iter([b"abc"]), "text/plain", expected)

    assert leftovers(target) == []


def test_an_error_of_the_chunks_own_reaches_the_caller(target: Bucket) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(20 << 20)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        target.put_stream("k", chunks(), "text/plain", Expected())

    assert leftovers(target) == []


@pytest.mark.parametrize("filename", [None, "clip.mp4", '猫 "a"\r\nx: y/..\\z?.mp4'])
def test_a_link_opens_for_a_while_under_the_name_that_was_chosen(target: Bucket, filename: str | None) -> None:
    target.put_stream("k.mp4", iter([CLIP]), "video/mp4", Expected())
    link = target.presign("k.mp4", timedelta(minutes=5), filename)

    with httpx.Client(trust_env=False) as browser:
        answer = browser.get(link)
        forbidden = browser.get(link.partition("?")[0])

    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, CLIP, "video/mp4")
    assert forbidden.status_code == 403
    disposition = answer.headers.get("content-disposition")
    assert (disposition is None) == (filename is None)
    assert disposition is None or disposition.startswith("attachment; filename=")


@pytest.mark.parametrize("off", [timedelta(hours=-1), timedelta(hours=1)])
def test_a_host_whose_clock_is_off_signs_by_the_stores(target: Bucket, off: timedelta) -> None:
    try:
        with time_machine.travel(datetime.now(UTC) + off, tick=True):
            with suppress(StorageTrouble):
                target.check()  # it is refused, and told the time
            target.put_stream("k.mp4", iter([CLIP]), "video/mp4", Expected())
            link = target.presign("k.mp4", timedelta(minutes=5), None)

        assert httpx.get(link, trust_env=False).content == CLIP
    finally:
        with suppress(StorageTrouble):
            target.check()  # the clock is right again


def test_links_are_signed_for_the_host_that_users_see(settings: Settings) -> None:
    shown = settings.model_copy(update={"s3_public_endpoint_url": "https://media.example.com"})

    link = Bucket(shown).presign("a b.mp4", timedelta(seconds=90), None)

    assert link.startswith(f"https://media.example.com/{settings.s3_bucket}/a%20b.mp4?")
    assert "X-Amz-Expires=90" in link


# Memory

MEASURE = """
import json, pathlib, re, sys
from worker import settings, storage
from worker.egress import transports
known = settings.load()
bucket = storage.Bucket(known)
bucket.check()
wire = transports.sources(known)
# not ru_maxrss, which begins with the peak of the process that started this one
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
stored = storage.copy(wire, bucket, sys.argv[1], "large", known, 100)
print(json.dumps({"bytes": stored.bytes, "grown": peak() - before}))
"""


def test_an_output_of_200_mb_costs_the_memory_of_a_part(servers: Servers, bucket: str) -> None:
    size = 200 << 20
    environment = {**os.environ, **servers.environment(bucket), "NORIA_EGRESS_ALLOW": "127.0.0.1/32"}

    def flows(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n".encode() + MP4)
        block = bytes(1 << 20)
        for _ in range(199):
            conn.sendall(block)
        conn.sendall(bytes((1 << 20) - len(MP4)))

    with peer(flows) as oss:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, oss.url], env=environment, capture_output=True, text=True, check=False
        )

    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["bytes"] == size
    assert measured["grown"] < 30


# What bytes are


@pytest.mark.parametrize(
    ("head", "extension"),
    [
        (MP4, "mp4"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "mov"),
        (b"\0\0\0\x14ftypM4A \0\0\0\0", "m4a"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webm", "webm"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "jpg"),
        (b"GIF89a", "gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "webp"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "wav"),
        (b"ID3\x04\0\0\0\0\0\0", "mp3"),
        (b"\xff\xfb\x90\x64\0\0", "mp3"),
        (b"\xff\xf3\x84\xc4\0\0", "mp3"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", None),
        (b"\x1aE\xdf\xa3\x93B\x82\x88matroska", None),
        (b"RIFF\x24\0\0\0AVI LIST", None),
        (b"\xff\xf1\x50\x80", None),
        (b"\xff\xfe<\0h\0t\0m\0l\0", None),
        (b"%PDF-1.7", None),
        (b"PK\x03\x04", None),
        (b"MZ\x90\0", None),
        (b"\x1f\x8b\x08", None),
        (b"  <html>", None),
        (b"\xef\xbb\xbf<svg/>", None),
        (b"[1, 2]", None),
        (b"", None),
    ],
)
def test_bytes_tell_what_they_are(head: bytes, extension: str | None) -> None:
    kind = media.sniff(head)

    assert (kind.extension if kind else None) == extension


@given(st.text(min_size=1))
def test_no_text_is_taken_for_a_picture_or_a_film(text: str) -> None:
    kind = media.sniff(text.encode("utf-8", "replace"))

    assert kind is None or text.startswith(("ID3", "GIF8", "RIFF")) or "ftyp" in text[:8]
