"""Files, batches and temporary uploads: what is sent, what comes back, and what a lost answer leaves to be found."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import peers
import pytest
from peers import peer
from pydantic import SecretStr

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker.dashscope.batches import Batch
from worker.dashscope.client import Client
from worker.dashscope.responses import Accepted, Refused, ServerTrouble
from worker.dashscope.uploads import File, FileRefused, form, safe
from worker.egress import transports
from worker.errors import Ambiguous, CallFailed, NotSent
from worker.kinds import Request
from worker.settings import Account

KEY = "sk-batch"
NOW = datetime(2026, 11, 21, 18, 0, tzinfo=UTC)
CLIP = "/services/aigc/video-generation/video-synthesis"
# As it was recorded; all times in seconds since 1970.
RECORDED = {
    "id": "batch_5b57e198", "object": "batch", "endpoint": "/v1/chat/completions", "errors": None,
    "input_file_id": "file-batch-c015", "completion_window": "24h", "status": "completed",
    "output_file_id": "file-batch_output-c5f5", "error_file_id": None, "created_at": 1776423924,
    "request_counts": {"total": 2, "completed": 2, "failed": 0}, "metadata": {"ds_name": "night"},
}  # fmt: skip


def client(url: str, key: str = KEY) -> Client:
    return Client(Account(url=url, key=SecretStr(key)), transports.keeping(), transports.single())


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    quick = {f"batch_{phase}_seconds": 0.0 for phase in ("validating", "run", "finalizing")}
    with running(Options(call_seconds=0, run_seconds=0.1, **quick)) as made:  # type: ignore[arg-type]
        yield made


def says(status: int, body: object) -> peers.Script:
    return peers.answers(status, json.dumps(body).encode(), x_request_id="r-head")


def line(custom_id: str, model: str = "qwen-plus") -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": f"Say {custom_id}."}], "enable_thinking": False}
    asked = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(asked).encode() + b"\n"


def until_done(get: Callable[[], Batch | Refused]) -> Batch:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        batch = get()
        assert isinstance(batch, Batch)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.05)
    raise AssertionError("the batch did not end")


# Batches, against the sandbox


def test_a_night_of_lines_goes_there_and_back(sandbox: Sandbox) -> None:
    batches, lines = client(sandbox.url).batches, [line("a"), line("b")]

    file_id = batches.upload(iter(lines), "night.jsonl", 10, sum(map(len, lines)))
    begun = batches.create(file_id, "24h", "night-1", "two lines")
    assert isinstance(begun, Batch)
    done = until_done(lambda: batches.get(begun.id))

    assert (done.status, done.total, done.completed, done.failed) == ("completed", 2, 2, 0)
    with batches.content(done.output_file_id or "", 10) as chunks:
        results = [json.loads(each) for each in b"".join(chunks).splitlines()]
    assert {each["custom_id"] for each in results} == {"a", "b"}
    assert all(each["response"]["body"]["choices"][0]["message"]["content"] for each in results)


def test_a_batch_whose_answer_was_lost_is_found_by_its_name(sandbox: Sandbox) -> None:
    batches = client(sandbox.url, "sk-lost").batches
    began = datetime.now(UTC)
    ids = {}
    for n in range(3):
        made = batches.create(batches.upload(line("a"), f"{n}.jsonl", 10), "24h", f"lost-{n}")
        assert isinstance(made, Batch)
        ids[n] = made.id

    found = batches.find("lost-1", began)

    assert isinstance(found, Batch)
    assert found.id == ids[1]
    assert batches.find("lost", began) is None
    assert client(sandbox.url, "sk-other").batches.find("lost-1", began) is None


def test_a_file_that_is_not_there_is_refused(sandbox: Sandbox) -> None:
    batches = client(sandbox.url).batches

    assert isinstance(batches.create("file-batch-none", "24h", "nothing"), Refused)
    assert isinstance(batches.get("batch_none"), Refused)
    assert isinstance(batches.cancel("batch_none"), Refused)
    with pytest.raises(FileRefused) as raised, batches.content("file-none", 5):
        pass
    assert raised.value.refused.http_status == 404


# Batches, byte by byte


def test_a_batch_is_read_as_it_was_recorded() -> None:
    with peer(says(200, RECORDED)) as made:
        assert client(made.url).batches.get("batch/5b") == Batch(
            id="batch_5b57e198",
            status="completed",
            input_file_id="file-batch-c015",
            output_file_id="file-batch_output-c5f5",
            error_file_id=None,
            total=2,
            completed=2,
            failed=0,
            errors=(),
            created_at=datetime(2026, 4, 17, 11, 5, 24, tzinfo=UTC),
            request_id="r-head",
            body=RECORDED,
        )

    assert made.requests[0].startswith(b"GET /compatible-mode/v1/batches/batch%2F5b HTTP")


def test_a_failed_batch_says_which_line_was_wrong() -> None:
    slip = {"code": "duplicate_custom_id", "message": "twice", "param": None, "line": 7}
    failed = {**RECORDED, "status": "failed", "errors": {"object": "list", "data": [slip]}}

    with peer(says(200, failed)) as made:
        batch = client(made.url).batches.get("b")

    assert isinstance(batch, Batch)
    assert batch.errors == (slip,)


@pytest.mark.parametrize(
    "script",
    [peers.breaks(), says(200, {"object": "batch"}), peers.answers(502, b"<html>"), peers.ends(b"")],
    ids=["reset", "no id", "HTML 502", "end"],
)
def test_a_batch_that_may_have_begun_is_ambiguous_and_sent_once(script: peers.Script) -> None:
    with peer(script) as made, pytest.raises(Ambiguous):
        client(made.url).batches.create("f", "24h", "n", deadline=1)

    assert len(made.requests) == 1


def test_a_batch_has_the_four_ends_of_a_create() -> None:
    no = {"error": {"code": "invalid_parameter_error", "message": "no"}, "request_id": "r"}

    with peer(says(400, no)) as made:
        assert client(made.url).batches.create("f", "24h", "n") == Refused(400, "invalid_parameter_error", "no", "r")
    with peer(says(500, no)) as made, pytest.raises(ServerTrouble):
        client(made.url).batches.create("f", "24h", "n")
    with pytest.raises(NotSent):
        client("http://127.0.0.1:1").batches.create("f", "24h", "n")


def test_a_name_is_looked_for_on_every_page() -> None:
    def page(conn: Any, request: bytes) -> None:
        asked = parse_qs(urlsplit(request.split(b" ")[1].decode()).query)
        rows = [{**RECORDED, "id": f"b{n}", "metadata": {"ds_name": f"night-{n}"}} for n in range(100)]
        first = {"data": rows, "has_more": True}
        last = {"data": [{**RECORDED, "metadata": {"ds_name": "day"}}], "has_more": False}
        conn.sendall(peers.whole(200, json.dumps(last if "after" in asked else first).encode()))

    with peer(page) as made:
        batches = client(made.url).batches
        found, missing = batches.find("day", NOW), batches.find("week", NOW)

    assert isinstance(found, Batch)
    assert missing is None
    asked = [parse_qs(urlsplit(each.split(b" ")[1].decode()).query) for each in made.requests]
    assert asked[0] == {"ds_name": ["day"], "create_after": ["20261121020000"], "limit": ["100"]}
    assert [each.get("after") for each in asked] == [None, ["b99"], None, ["b99"]]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"data": null, "object": "list"'])
def test_a_list_that_cannot_be_read_is_not_an_absence(body: bytes) -> None:
    with peer(peers.answers(200, body)) as made, pytest.raises(Ambiguous):
        client(made.url).batches.find("n", NOW)


def test_a_list_without_end_is_not_an_absence() -> None:
    count = iter(range(10_000))

    def page(conn: Any, _request: bytes) -> None:
        conn.sendall(peers.whole(200, json.dumps({"data": [{"id": f"b{next(count)}"}], "has_more": True}).encode()))

    with peer(page) as made, pytest.raises(Ambiguous, match="no end"):
        client(made.url).batches.find("n", NOW)


def test_a_file_that_breaks_off_on_its_way_back_is_no_file() -> None:
    cut = peers.whole(200, b"x" * 1000)[:-10]

    with (
        peer(peers.ends(cut)) as made,
        pytest.raises(CallFailed),
        client(made.url).batches.content("f", 2) as chunks,
    ):
        b"".join(chunks)


# Forms and temporary uploads


def test_a_form_says_its_length_and_ends_with_the_file() -> None:
    sent = form({"key": "a/b"}, "file", File('sk"y\r\n.png', "image/png", iter([b"12", b"3"]), 3))

    body = b"".join(sent.content)

    assert len(body) == int(sent.headers["Content-Length"])
    mark = sent.headers["Content-Type"].partition("boundary=")[2].encode()
    assert body.split(b"--" + mark)[1:] == [
        b'\r\nContent-Disposition: form-data; name="key"\r\n\r\na/b\r\n',
        b'\r\nContent-Disposition: form-data; name="file"; filename="sk_y.png"\r\n'
        b"Content-Type: image/png\r\n\r\n123\r\n",
        b"--\r\n",
    ]


@pytest.mark.parametrize(
    ("name", "kept"),
    [("cat.png", "cat.png"), ("../../etc/passwd", "passwd"), ("猫.png", "file.png"), ("", "file"), (".env", "env")],
)
def test_a_name_keeps_what_a_key_can_hold(name: str, kept: str) -> None:
    assert safe(name) == kept


def test_a_picture_is_put_where_the_model_can_read_it(sandbox: Sandbox) -> None:
    dashscope, pixels = client(sandbox.url), b"\x89PNG\r\n\x1a\n" + bytes(1000)

    address = dashscope.upload("wan2.5-i2v-preview", "cat.png", pixels, "image/png")
    pieces = dashscope.upload(
        "wan2.5-i2v-preview", "cat.png", iter([pixels[:500], pixels[500:]]), "image/png", len(pixels)
    )

    assert address.startswith("oss://")
    assert address.endswith("/cat.png")
    assert pieces != address
    headers = {"X-DashScope-Async": "enable", "X-DashScope-OssResourceResolve": "enable"}
    asked = {"prompt": "it yawns", "img_url": address}
    body = {"model": "wan2.5-i2v-preview", "input": asked, "parameters": {"resolution": "480P", "duration": 5}}
    assert isinstance(dashscope.create(Request(CLIP, headers, body), 10), Accepted)


def test_the_store_is_sent_no_key_of_ours() -> None:
    policy = {
        "policy": "p", "signature": "s", "upload_dir": "dir", "oss_access_key_id": "LTAI",
        "x_oss_object_acl": "private", "x_oss_forbid_overwrite": "true",
    }  # fmt: skip
    with contextlib.ExitStack() as peers_of:
        store = peers_of.enter_context(peer(peers.answers(200, b"")))
        policy["upload_host"] = f"{store.url}/put"
        made = peers_of.enter_context(peer(says(200, {"data": policy})))
        assert client(made.url).upload("m", "a.png", b"123", "image/png") == "oss://dir/a.png"

    assert made.requests[0].startswith(b"GET /api/v1/uploads?action=getPolicy&model=m HTTP")
    assert store.requests[0].startswith(b"POST /put HTTP")
    assert KEY.encode() not in store.requests[0]
    assert b"authorization" not in store.requests[0].lower()
    assert store.requests[0].rstrip().endswith(b"--")


@pytest.mark.parametrize(
    ("policy", "stored", "code"),
    [
        ((401, {"code": "InvalidApiKey", "message": "no"}), b"", "InvalidApiKey"),
        ((200, {"data": {}}), b"", ""),
        (None, b"<Error><Code>AccessDenied</Code><Message>Policy expired.</Message></Error>", "AccessDenied"),
    ],
)
def test_an_upload_that_is_refused_says_by_whom(policy: Any, stored: bytes, code: str) -> None:
    with peer(peers.answers(403, stored)) as store:
        good = 200, {"data": {"upload_host": store.url, "upload_dir": "dir"}}
        with peer(says(*(policy or good))) as made, pytest.raises(FileRefused) as raised:
            client(made.url).upload("m", "a.png", b"123", "image/png")

    assert raised.value.refused.code == code


def test_an_upload_keeps_its_deadline() -> None:
    with peer(peers.hangs) as store:
        good = {"data": {"upload_host": store.url, "upload_dir": "dir"}}
        began = time.monotonic()
        with peer(says(200, good)) as made, pytest.raises(CallFailed):
            client(made.url).upload("m", "a.png", b"123", "image/png", deadline=0.5)

    assert time.monotonic() - began < 2
