"""How a call to DashScope ends, as its client tells it: every row of what can come back on the wire."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import peers
import pytest
from peers import Peer, peer
from pydantic import SecretStr

from worker.dashscope import errors
from worker.dashscope.client import Client
from worker.dashscope.responses import Accepted, Page, Refused, ServerTrouble, TaskSeen
from worker.egress import transports
from worker.errors import Ambiguous, NotSent
from worker.kinds import Request
from worker.settings import Account

KEY = "sk-ws.very-secret"
PATH = "/services/aigc/video-generation/video-synthesis"
ASKED = Request(PATH, {"X-DashScope-Async": "enable"}, {"model": "wan2.5-t2v-preview", "input": {"prompt": "一只小猫"}})
TASK = {"output": {"task_status": "PENDING", "task_id": "9e2b"}, "request_id": "r-body"}
THROTTLED = {"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded", "request_id": "r-body"}


def client(url: str, **account: Any) -> Client:
    known = Account(url=url, **{"key": SecretStr(KEY), **account})
    return Client(known, transports.keeping(), transports.single())


@contextmanager
def provider(script: peers.Script) -> Iterator[tuple[Peer, Client]]:
    with peer(script) as made:
        yield made, client(made.url)


def says(status: int, body: object, **headers: str) -> peers.Script:
    return peers.answers(status, json.dumps(body).encode(), **headers)


def header(request: bytes, name: str) -> str | None:
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {n.lower(): v for n, v in (line.split(": ", 1) for line in lines)}.get(name.lower())


# Creates: accepted


def test_a_create_that_made_a_task_is_accepted() -> None:
    with provider(says(200, TASK, x_request_id="r-head")) as (_, dashscope):
        accepted = dashscope.create(ASKED, 5)

    assert accepted == Accepted("9e2b", "PENDING", "r-body", TASK["output"], {}, TASK)  # type: ignore[arg-type]


def test_a_create_that_is_done_at_once_is_accepted_with_its_output() -> None:
    done = {"output": {"audio": {"url": "http://x/a.wav"}}, "usage": {"characters": 9}, "request_id": "r"}

    with provider(says(200, done)) as (_, dashscope):
        accepted = dashscope.create(ASKED, 5)

    assert isinstance(accepted, Accepted)
    assert (accepted.task_id, accepted.output, accepted.usage) == (None, done["output"], done["usage"])


def test_a_create_is_sent_as_the_provider_documents_it() -> None:
    with peer(says(200, TASK)) as made:
        client(made.url + "/", workspace="ws-1").create(ASKED, 5)

    sent = made.requests[0]
    assert sent.startswith(f"POST /api/v1{PATH} HTTP/1.1\r\n".encode())
    assert header(sent, "authorization") == f"Bearer {KEY}"
    assert header(sent, "x-dashscope-workspace") == "ws-1"
    assert header(sent, "x-dashscope-async") == "enable"
    assert header(sent, "content-type") == "application/json"
    assert header(sent, "accept") == "application/json"
    assert (header(sent, "user-agent") or "").startswith("noria/")
    assert json.loads(sent.partition(b"\r\n\r\n")[2]) == ASKED.body
    assert "一只小猫".encode() in sent


def test_a_task_id_counts_even_beside_a_code() -> None:
    with provider(says(200, {**TASK, "code": "Strange"})) as (_, dashscope):
        assert isinstance(dashscope.create(ASKED, 5), Accepted)


# Creates: refused


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, {"code": "InvalidParameter", "message": "no", "request_id": "r"}, "InvalidParameter"),
        (400, {"code": "Arrearage", "message": "no", "request_id": "r"}, "Arrearage"),
        (401, {"code": "InvalidApiKey", "message": "no", "request_id": "r"}, "InvalidApiKey"),
        (403, {"code": "AccessDenied", "message": "no", "request_id": "r"}, "AccessDenied"),
        (404, {"code": "ModelNotFound", "message": "no", "request_id": "r"}, "ModelNotFound"),
        (413, {"code": "BadRequest.TooLarge", "message": "no", "request_id": "r"}, "BadRequest.TooLarge"),
        (429, {**THROTTLED, "message": "no", "request_id": "r"}, "Throttling.RateQuota"),
        (200, {"code": "DataInspectionFailed", "message": "no", "request_id": "r"}, "DataInspectionFailed"),
        (
            200,
            {"code": "DataInspectionFailed", "message": "no", "request_id": "r", "output": {}},
            "DataInspectionFailed",
        ),
        (401, {"error": {"code": "invalid_api_key", "message": "no"}, "request_id": "r"}, "invalid_api_key"),
        (429, {"message": "no", "request_id": "r"}, ""),  # a spent budget, of which no code is documented
        (429, {"code": None, "message": "no", "request_id": "r"}, ""),
        (429, {"error": {"message": "no", "type": None, "code": None}, "request_id": "r"}, ""),
        (
            500,
            {"code": "InternalError.Algo.DataInspectionFailed", "message": "no", "request_id": "r"},
            "InternalError.Algo.DataInspectionFailed",
        ),
        (
            500,
            {"error": {"code": "data_inspection_failed", "message": "no"}, "request_id": "r"},
            "data_inspection_failed",
        ),
        (
            400,
            {"error": {"code": None, "type": "invalid_request", "message": "no"}, "request_id": "r"},
            "invalid_request",
        ),
    ],
)
def test_a_no_in_the_providers_envelope_is_a_refusal(status: int, body: dict[str, Any], code: str) -> None:
    with provider(says(status, body)) as (made, dashscope):
        refused = dashscope.create(ASKED, 5)

    assert refused == Refused(status, code, "no", "r")
    assert len(made.requests) == 1


def test_a_refusal_tells_when_to_come_back() -> None:
    with provider(says(429, THROTTLED, retry_after="7")) as (_, dashscope):
        refused = dashscope.create(ASKED, 5)

    assert isinstance(refused, Refused)
    assert refused.retry_after == 7.0


@pytest.mark.parametrize(
    "script",
    [
        peers.answers(404, b"not found"),
        says(404, {"detail": "Not Found"}),
        peers.answers(405, b""),
        peers.answers(301, b"", location="https://elsewhere.example/"),
        peers.answers(308, b"", location="https://elsewhere.example/"),
    ],
    ids=["text 404", "JSON 404", "405", "301", "308"],
)
def test_an_address_where_dashscope_is_not_makes_nothing_and_stops_the_account(script: peers.Script) -> None:
    with provider(script) as (_, dashscope):
        refused = dashscope.create(ASKED, 5)

    assert isinstance(refused, Refused)
    row = errors.classify(refused.http_status, refused.code, refused.message)
    assert (row.code, row.verdict) == ("wrong_address", errors.Verdict.STOP_ACCOUNT)
    assert "NORIA_DASHSCOPE_URL" in (row.hint or "")


# Creates: nobody knows

HTML = b"<html><body>502 Bad Gateway</body></html>"
CUT = peers.whole(200, json.dumps(TASK).encode(), x_request_id="r-head")


@pytest.mark.parametrize(
    ("script", "request_id"),
    [
        (peers.breaks(), None),
        (peers.ends(b""), None),
        (peers.hangs, None),
        (peers.breaks(b"HTTP/1.1 200 OK\r\n"), None),
        (peers.breaks(CUT[:-10]), "r-head"),
        (peers.ends(CUT[:-10]), "r-head"),
        (peers.drips(CUT[:-30], CUT[-30:]), "r-head"),
        (peers.answers(200, b'{"output": {"task_id": "9e', x_request_id="r-head"), "r-head"),
        (peers.answers(200, b"", x_request_id="r-head"), "r-head"),
        (peers.answers(200, b"null"), None),
        (peers.answers(200, b"[" * 100_000), None),
        (peers.answers(200, b"\xff\xfe\x00"), None),
        (peers.answers(200, HTML), None),
        (says(200, {"request_id": "r-body"}), "r-body"),
        (says(200, {"output": "soon", "request_id": "r-body"}), "r-body"),
        (peers.answers(204, b""), None),
        (peers.answers(302, b"", location="/login", x_request_id="r-head"), "r-head"),
        (peers.answers(403, HTML, x_request_id="r-head"), "r-head"),
        (peers.answers(307, b"", location="/elsewhere"), None),
        (says(429, {"message": "slow down"}), None),
        (says(408, {"code": "RequestTimeOut", "message": "", "request_id": "r-body"}), "r-body"),
        (says(499, {"code": "ClientDisconnect", "message": "", "request_id": "r-body"}), "r-body"),
        (says(500, {"code": "InternalError", "message": "", "request_id": "r-body"}), "r-body"),
        (says(503, {"code": "ModelUnavailable", "message": ""}, x_request_id="r-head"), "r-head"),
        (peers.answers(502, HTML, x_request_id="r-head"), "r-head"),
        (peers.answers(504, HTML), None),
        (peers.answers(200, b"a" * (9 << 20), x_request_id="r-head"), "r-head"),
        (peers.sends(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), None),
    ],
    ids=[
        "reset before an answer", "end before an answer", "no answer", "reset in the headers", "reset in the body",
        "end in the body", "dripping body", "cut JSON", "empty 200", "null", "deep JSON", "no text", "HTML 200",
        "no output", "output is no object", "204", "redirect", "HTML 403", "temporary redirect", "JSON without a code",
        "408", "499", "500", "503", "HTML 502", "HTML 504", "9 MB", "not HTTP",
    ],
)  # fmt: skip
def test_a_create_that_proves_nothing_is_ambiguous_and_sent_once(script: peers.Script, request_id: str | None) -> None:
    with provider(script) as (made, dashscope), pytest.raises(Ambiguous) as raised:
        dashscope.create(ASKED, 1.0)

    assert raised.value.request_id == request_id
    assert len(made.requests) == 1
    assert KEY not in str(raised.value)
    assert "小猫" not in str(raised.value)


@pytest.mark.parametrize("status", [408, 499, 500, 503])
def test_a_failure_in_the_providers_envelope_keeps_its_code(status: int) -> None:
    body = {"code": "InternalError.Algo", "message": "sorry", "request_id": "r"}

    with provider(says(status, body)) as (_, dashscope), pytest.raises(ServerTrouble) as raised:
        dashscope.create(ASKED, 5)

    assert raised.value.refused == Refused(status, "InternalError.Algo", "sorry", "r")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1", "http://no-such-name.invalid"])
def test_a_create_that_found_nobody_was_not_sent(url: str) -> None:
    with pytest.raises(NotSent):
        client(url).create(ASKED, 5)


def test_a_create_over_tls_to_a_peer_that_speaks_none_was_not_sent() -> None:
    with peer(says(200, TASK)) as plain, pytest.raises(NotSent):
        client(f"https://127.0.0.1:{plain.port}").create(ASKED, 1)

    assert plain.requests == []


def test_two_creates_never_share_a_connection() -> None:
    with provider(says(200, TASK)) as (made, dashscope):
        dashscope.create(ASKED, 5)
        dashscope.create(ASKED, 5)

    assert made.connections == 2


# The key


def by_key(good: str, body: object) -> peers.Script:
    """A provider that knows one key."""

    def script(conn: socket.socket, request: bytes) -> None:
        no = {"code": "InvalidApiKey", "message": "Invalid API-key provided.", "request_id": "r"}
        known = header(request, "authorization") == f"Bearer {good}"
        conn.sendall(peers.whole(200 if known else 401, json.dumps(body if known else no).encode()))

    return script


def test_a_query_takes_up_a_key_that_was_changed_in_its_file(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-old\n")
    with peer(by_key("sk-new", TASK)) as made:
        dashscope = client(made.url, key=None, key_file=str(key_file))
        key_file.write_text("sk-new\n")

        assert isinstance(dashscope.task("9e2b"), TaskSeen)

    assert len(made.requests) == 2


def test_a_create_takes_up_a_changed_key_at_once(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-old")
    with peer(by_key("sk-new", TASK)) as made:
        dashscope = client(made.url, key=None, key_file=str(key_file))
        key_file.write_text("sk-new")

        assert isinstance(dashscope.create(ASKED, 5), Accepted)

    assert [header(request, "authorization") for request in made.requests] == ["Bearer sk-old", "Bearer sk-new"]


def test_a_create_with_a_bad_key_is_sent_once(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-old")
    with peer(by_key("sk-new", TASK)) as made:
        assert isinstance(client(made.url, key=None, key_file=str(key_file)).create(ASKED, 5), Refused)

    assert len(made.requests) == 1


def test_stricter_inspection_is_asked_for_where_the_account_wants_it() -> None:
    with peer(by_key(KEY, TASK)) as made:
        client(made.url, data_inspection=True).create(ASKED, 5)
        client(made.url).create(ASKED, 5)

    asked = [header(request, "x-dashscope-datainspection") for request in made.requests]
    assert asked == ['{"input":"cip","output":"cip"}', None]


def test_a_query_with_a_bad_key_is_not_repeated(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-old")
    with peer(by_key("sk-new", TASK)) as made:
        dashscope = client(made.url, key=None, key_file=str(key_file))
        for _ in range(2):
            assert isinstance(dashscope.task("9e2b"), Refused)
            key_file.unlink(missing_ok=True)

    assert len(made.requests) == 2
    assert header(made.requests[1], "authorization") == "Bearer sk-old"


def test_without_a_key_the_provider_says_so_itself() -> None:
    with peer(by_key("sk-new", TASK)) as made:
        refused = client(made.url, key=None).create(ASKED, 5)

    assert isinstance(refused, Refused)
    assert refused.code == "InvalidApiKey"
    assert header(made.requests[0], "authorization") is None


# Queries


@pytest.mark.parametrize(
    "status", ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN", "SUSPENDED", "新"]
)
def test_a_tasks_status_is_passed_on_whatever_it_is(status: str) -> None:
    body = {"output": {"task_id": "a/b", "task_status": status, "code": "X"}, "usage": {"video_count": 1}}

    with provider(says(200, body, x_request_id="r-head")) as (made, dashscope):
        seen = dashscope.task("a/b")

    assert seen == TaskSeen(status, body["output"], body["usage"], "r-head", body)  # type: ignore[arg-type]
    assert made.requests[0].startswith(b"GET /api/v1/tasks/a%2Fb HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        (says(429, THROTTLED), Refused(429, "Throttling.RateQuota", "Requests rate limit exceeded", "r-body")),
        (says(200, THROTTLED), Refused(200, "Throttling.RateQuota", "Requests rate limit exceeded", "r-body")),
        (peers.answers(502, HTML, x_request_id="r-head"), Refused(502, "", "", "r-head")),
        (peers.answers(401, b""), Refused(401, "", "", None)),
    ],
)
def test_a_query_that_fails_over_http_is_told_as_a_value(script: peers.Script, refused: Refused) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)

    with provider(script) as (_, dashscope):
        assert dashscope.task("9e2b") == refused
        assert dashscope.tasks(now, now, 1, 10) == refused
        assert dashscope.cancel("9e2b") == refused


@pytest.mark.parametrize("script", [peers.breaks(), peers.answers(200, HTML), says(200, {"output": []})])
def test_a_query_without_a_readable_answer_raises(script: peers.Script) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)

    with provider(script) as (_, dashscope):
        with pytest.raises(Ambiguous):
            dashscope.task("9e2b")
        with pytest.raises(Ambiguous):
            dashscope.tasks(now, now, 1, 10)


def test_queries_share_a_connection() -> None:
    with provider(says(200, TASK)) as (made, dashscope):
        for _ in range(3):
            dashscope.task("9e2b")

    assert made.connections == 1


# A recorded row of the list; `request_id` is that of the create call.
ROW = {
    "api_key_id": "42677", "caller_uid": "1493", "gmt_create": 1709260684485, "start_time": 1709260684527,
    "end_time": 1709260685184, "model_name": "text-embedding-async-v2", "region": "cn-beijing",
    "request_id": "db5ce040", "status": "SUCCEEDED", "task_id": "6075262c",
}  # fmt: skip


def test_the_list_is_asked_for_in_the_providers_time_and_read_in_ours() -> None:
    bare = {"task_id": "b", "status": "PENDING", "gmt_create": "1709260684485"}
    body = {"total": 12, "data": [ROW, bare, {}, None], "total_page": "2", "page_no": 1, "request_id": "r"}
    start = datetime(2026, 11, 20, 18, 0, 1, tzinfo=UTC)

    with provider(says(200, body)) as (made, dashscope):
        page = dashscope.tasks(
            start, start.astimezone(timezone(timedelta(hours=-5))) + timedelta(hours=24), 1, 50, "m", "RUNNING"
        )

    assert parse_qs(urlsplit(made.requests[0].split(b" ")[1].decode()).query) == {
        "start_time": ["20261121020001"],
        "end_time": ["20261122020001"],
        "page_no": ["1"],
        "page_size": ["50"],
        "model_name": ["m"],
        "status": ["RUNNING"],
    }
    assert isinstance(page, Page)
    assert (page.total, page.pages, len(page.rows)) == (12, 2, 2)
    row = page.rows[0]
    assert (row.task_id, row.request_id, row.model, row.status) == (
        "6075262c", "db5ce040", "text-embedding-async-v2", "SUCCEEDED",
    )  # fmt: skip
    assert row.created_at == datetime(2024, 3, 1, 2, 38, 4, 485000, tzinfo=UTC)
    assert page.rows[1].created_at == row.created_at
    assert page.rows[1].request_id is None


def test_an_empty_list_is_a_page_and_no_trouble() -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)

    with provider(says(200, {"total": 0, "data": [], "request_id": "r"})) as (_, dashscope):
        assert dashscope.tasks(now, now, 1, 10) == Page((), 0, 0)


def test_a_cancel_is_done_or_refused() -> None:
    no = {"code": "UnsupportedOperation", "message": "Failed to cancel the task", "request_id": "r"}

    with provider(says(200, {"request_id": "r"})) as (made, dashscope):
        assert dashscope.cancel("9e2b") is None
    with provider(says(400, no)) as (_, dashscope):
        assert dashscope.cancel("9e2b") == Refused(400, "UnsupportedOperation", "Failed to cancel the task", "r")

    assert made.requests[0].startswith(b"POST /api/v1/tasks/9e2b/cancel HTTP/1.1\r\n")
    assert header(made.requests[0], "content-length") == "0"
