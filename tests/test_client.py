"""The client: what it asks again and what never, how it waits, and what it makes of a newer server's words."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serving import CLIP, Served, eventually, served

from api import description, openapi, transport
from api.client import ApiError, Client, Damaged, NotEnded
from api.documents import JobDocument
from worker import moves
from worker.moves import Move
from worker.states import State
from worker.storage import Bucket, Expected

ROOT = Path(__file__).resolve().parents[1]
DESCRIBED: dict[str, Any] = json.loads(openapi.DESCRIPTION.read_text())
JOB: dict[str, Any] = DESCRIBED["components"]["examples"]["JobDocument"]["value"]
CUT = (0, {})  # no answer
STREAM = (200, "heartbeats, and nothing else")
ID = "0198c0de-0000-7000-8000-000000000000"

Answer = tuple[int, Any]


class Cutting:
    """A server that carries every request out, and may cut the answer: it gives those that it is told, in order."""

    def __init__(self, *answers: Answer) -> None:
        self.seen: list[tuple[str, str]] = []
        self.keys: list[str | None] = []
        self.over = threading.Event()
        self._answers = list(answers)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers.get("content-length", 0)))
        self.seen.append((request.command, request.path))
        self.keys.append(request.headers.get("idempotency-key"))
        if self._answers[0] == STREAM and not request.path.endswith("/events"):
            self._answers.pop(0)  # it is given as often as it is asked for
        status, body = self._answers[0] if self._answers[0] == STREAM else self._answers.pop(0)
        request.close_connection = True
        if (status, body) == STREAM:
            request.send_response(status)
            request.end_headers()
            while not self.over.wait(0.05):
                request.wfile.write(b": \n\n")
        elif status:
            content = json.dumps(body).encode()
            request.send_response(status)
            request.send_header("content-length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)


@contextmanager
def cutting(*answers: Answer) -> Iterator[tuple[Cutting, Client]]:
    """Such a server, and a client of it."""
    found = Cutting(*answers)
    said = {f"do_{method}": found.answer for method in ("GET", "POST", "PATCH", "DELETE")}
    handler = type(
        "Handler",
        (BaseHTTPRequestHandler,),
        {name: lambda self, act=act: act(self) for name, act in said.items()} | {"log_message": lambda *_: None},
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_address[1]}", "noria_key") as client:
            yield found, client
    finally:
        found.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def api(environment: dict[str, str]) -> Iterator[Served]:
    with served(environment) as made:
        yield made


@pytest.fixture
def client(api: Served) -> Iterator[Client]:
    with Client(api.url, api.key("spring")) as made:
        yield made


def moved(api: Served, job_id: object, *states: State) -> None:
    """Moves a job along, as workers would."""
    for state in states:
        with api.engine.begin() as connection:
            now = connection.exec_driver_sql("select statement_timestamp()").scalar_one()
            moves.record(connection, api.row(str(job_id)), Move(state), now)


def made(api: Served, job_id: object, content: bytes = b"a clip") -> None:
    """Lets a job succeed with one output."""
    bucket = Bucket(api.app.state.context.settings)
    put = bucket.put_stream(f"p/{job_id}/0-video.mp4", [content], "video/mp4", Expected())
    api.sql(
        "insert into outputs (job_id, n, project_id, role, key, content_type, bytes, sha256, crc64)"
        " select id, 0, project_id, 'video', :key, 'video/mp4', :bytes, :sha256, :crc64 from jobs where id = :id",
        id=str(job_id), key=put.key, bytes=len(content), sha256=put.sha256, crc64=put.crc64,
    )  # fmt: skip
    api.sql("update jobs set state = 'copying' where id = :id", id=str(job_id))
    moved(api, job_id, State.SUCCEEDED)


class TestAskingAgain:
    def test_these_posts_may_come_twice_and_no_others(self) -> None:
        paths = {path for path, method, _ in description.operations(DESCRIBED) if method == "post"}

        may = {path for path in paths if transport.is_repeatable("POST", path, {}, {})}

        assert may == {
            "/v1/files", "/v1/schedules", "/v1/schedules/{schedule_id}/pause", "/v1/schedules/{schedule_id}/resume",
            "/v1/batches/{batch_id}/commit", "/v1/batches/{batch_id}/pause", "/v1/batches/{batch_id}/resume",
            "/v1/batches/{batch_id}/cancel", "/v1/jobs/{job_id}/cancel", "/v1/jobs/{job_id}/approve",
            "/v1/jobs/{job_id}/reject",
        }  # fmt: skip

    @pytest.mark.parametrize(
        "ask",
        [
            lambda client: client.retry(ID),
            lambda client: client.retry_failed(ID),
            lambda client: client.bulk({"action": "retry", "ids": [ID]}),
            lambda client: client.make_key({}),
            lambda client: client.rotate_key(ID),
            lambda client: client.make_endpoint({"url": "https://example.com"}),
            lambda client: client.rotate_endpoint(ID),
            lambda client: client.test_endpoint(ID),
            lambda client: client.redeliver(ID, {"status": "exhausted"}),
            lambda client: client.make_budget({"period": "day", "limit": "7.00"}),
            lambda client: client.resolve(ID, {"action": "requeue"}),
        ],
    )
    def test_what_may_do_something_twice_is_not_sent_again_after_a_lost_answer(
        self, ask: Callable[[Client], Any]
    ) -> None:
        with cutting(CUT, CUT) as (server, client):
            with pytest.raises(httpx.RemoteProtocolError):
                ask(client)

            assert len(server.seen) == 1

    def test_a_submission_is_sent_again_under_the_same_key(self) -> None:
        with cutting(CUT, (503, {}), (201, JOB | {"warnings": []})) as (server, client):
            assert str(client.submit(CLIP).id) == JOB["id"]

            assert server.seen == [("POST", "/v1/jobs")] * 3
            assert None not in server.keys
            assert len(set(server.keys)) == 1

    def test_a_look_and_a_cancel_are_asked_again(self) -> None:
        with cutting(CUT, (200, JOB), CUT, (200, {"object": "cancellation", "outcome": "canceled", "job": JOB})) as (
            server,
            client,
        ):
            assert client.job(ID).state == JOB["state"]
            assert client.cancel(ID).outcome == "canceled"

            assert len(server.seen) == 4

    @pytest.mark.parametrize("refusal", [(429, {"code": "too_many_waiting"}), (503, {"code": "too_many_requests"})])
    def test_what_the_server_did_not_begin_is_asked_again_always(self, refusal: Answer) -> None:
        with cutting(refusal, (200, JOB)) as (server, client):
            client.retry(ID)

            assert len(server.seen) == 2

    @pytest.mark.parametrize("refusal", [(503, {"code": "database_away"}), (502, {}), (503, {}), (500, {})])
    def test_a_failure_that_may_have_come_after_the_deed_is_not(self, refusal: Answer) -> None:
        with cutting(refusal, (200, JOB)) as (server, client):
            with pytest.raises(ApiError):
                client.retry(ID)

            assert len(server.seen) == 1

    def test_what_was_never_sent_is_sent_again(self) -> None:
        for error in (httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x")):
            assert transport._not_begun(error)
        for error in (httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x"), httpx.WriteError("x")):
            assert not transport._not_begun(error)

    def test_a_deletion_whose_answer_was_lost_is_done(self) -> None:
        with cutting(CUT, (404, {"code": "not_found"}), (404, {"code": "not_found"})) as (_, client):
            client.delete_budget(ID)

            with pytest.raises(ApiError, match="not_found"):
                client.delete_budget(ID)


class TestAnswers:
    def test_words_and_fields_of_a_newer_server_are_no_fault(self) -> None:
        said = JOB | {"state": "resting", "held_for": "the moon", "mood": "good"}
        said |= {"cost": JOB["cost"] | {"billed": "perhaps", "tax": "0.30"}}

        job = JobDocument.model_validate(said)

        assert (job.state, job.held_for, job.cost.billed) == ("resting", "the moon", "perhaps")
        assert not hasattr(job, "mood")
        assert job.as_json() == said
        assert job.cost.as_json()["tax"] == "0.30"

    def test_a_document_is_what_the_api_said(self, client: Client, api: Served) -> None:
        job = client.submit(CLIP | {"metadata": {"sku": "A17"}}, "k1")

        with api.http(api.key("spring")) as http:
            assert client.job(job.id).as_json() == http.get(job.urls["self"]).json()
        assert job.metadata == {"sku": "A17"}
        assert isinstance(job.id, uuid.UUID)
        assert job.created_at.tzinfo is not None

    def test_to_import_the_client_takes_neither_the_engine_nor_its_libraries(self) -> None:
        look = "import api.client, sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"

        said = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True, cwd=ROOT)

        found = set(ast.literal_eval(said.stdout))
        assert not found & {"worker", "sqlalchemy", "psycopg", "celery", "kombu", "fastapi", "boto3", "redis"}
        assert {"api", "httpx", "pydantic"} <= found


class TestWaiting:
    def test_a_job_is_there_once_it_has_ended(self, client: Client, api: Served) -> None:
        job = client.submit(CLIP)
        hand = threading.Thread(
            target=lambda: (eventually(lambda: len(api.app.state.context.watch)), made(api, job.id))
        )

        hand.start()
        ended = client.wait(job.id, timeout=45)
        hand.join()

        assert (ended.state, ended.is_terminal, len(ended.outputs)) == ("succeeded", True, 1)
        assert client.wait(job.id, timeout=45).state == "succeeded", "of one that has ended, at once"

    def test_the_time_is_over_with_the_job_as_it_is(self, client: Client) -> None:
        job = client.submit(CLIP)

        with pytest.raises(NotEnded, match="is queued") as over:
            client.wait(job.id, timeout=0.3)

        assert isinstance(over.value, TimeoutError)
        assert over.value.found.id == job.id

    def test_heartbeats_do_not_stretch_the_time(self) -> None:
        with cutting(STREAM, (200, JOB)) as (_, client), pytest.raises(NotEnded):
            client.wait(ID, timeout=1.5)

    def test_a_state_that_is_not_known_is_no_end_unless_it_is_said_to_be_one(self) -> None:
        for is_terminal in (True, False):
            with cutting((204, {}), (200, JOB | {"state": "resting", "is_terminal": is_terminal})) as (_, client):
                if is_terminal:
                    assert client.wait(ID, timeout=5).state == "resting"
                else:
                    with pytest.raises(NotEnded, match="is resting"):
                        client.wait(ID, timeout=5)

    def test_a_line_separator_in_an_event_is_no_end_of_a_line(self) -> None:
        said = 'id: 1\ndata: {"why": "a\u2028b"}\n\n: \n\nid: 2\r\ndata: {}\r\n\r\n'.encode()
        answer = httpx.Response(200, stream=httpx.ByteStream(said), headers={"content-type": "text/event-stream"})

        found = list(transport.events(answer))

        assert [event and (event.id, event.json()) for event in found] == [("1", {"why": "a\u2028b"}), None, ("2", {})]


class TestBatches:
    def test_jobs_are_submitted_waited_for_and_downloaded(self, client: Client, api: Served, tmp_path: Path) -> None:
        rows = (CLIP | {"custom_id": f"row-{n}"} for n in range(3))
        batch = client.submit_batch(rows, {"name": "spring"})
        with pytest.raises(NotEnded, match="is running"):
            client.wait_batch(batch.id, timeout=0)
        for n, job in enumerate(client.jobs(batch=str(batch.id))):
            made(api, job.id, f"clip {n}".encode())
        api.sql("update batches set state = 'completed', completed_at = now(), run_at = null")

        whole = client.wait_batch(batch.id, timeout=45)
        paths = list(client.download_batch(whole.id, tmp_path / "clips"))

        assert (batch.name, batch.rows.made, whole.state) == ("spring", 3, "completed")
        assert [path.name for path in paths] == ["row-0-0.mp4", "row-1-0.mp4", "row-2-0.mp4"]
        assert {path.read_bytes() for path in paths} == {b"clip 0", b"clip 1", b"clip 2"}

    def test_a_download_goes_on_where_it_broke_off(
        self, client: Client, api: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = client.submit(CLIP)
        made(api, job.id)
        job = client.job(job.id)
        [path] = client.download_job(job, tmp_path)
        written = path.stat().st_mtime_ns

        assert list(client.download_job(job, tmp_path)) == [path]
        assert path.stat().st_mtime_ns == written, "what is there is not fetched again"

        path.unlink()
        monkeypatch.setattr(Client, "download", lambda *said: said[-1].write(b"a cl") and "another digest")
        with pytest.raises(Damaged, match="another SHA-256"):
            list(client.download_job(job, tmp_path))
        assert not path.exists()

    def test_no_download_overwrites_another_jobs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def content(job_id: str) -> bytes:
            return f"{job_id} 0".encode()

        def download(_client: object, job_id: str, n: int, target: Any) -> str:
            target.write(content(job_id))
            return hashlib.sha256(content(job_id)).hexdigest()

        def put(job_id: str, custom_id: str) -> list[str]:
            output = SimpleNamespace(n=0, key="a/b.mp4", sha256=hashlib.sha256(content(job_id)).hexdigest())
            job: Any = SimpleNamespace(id=job_id, custom_id=custom_id, outputs=[output])
            return [path.name for path in client.download_job(job, tmp_path)]

        monkeypatch.setattr(Client, "download", download)
        with Client("http://127.0.0.1:9", "noria_key") as client:
            names = [put(job_id, "twin") for job_id in ("one", "two", "three", "two", "one")]
            put("long", "汉" * 128)
            put("path", "../../etc/x")

        assert names == [["twin-0.mp4"], ["twin-two-0.mp4"], ["twin-three-0.mp4"], ["twin-two-0.mp4"], ["twin-0.mp4"]]
        assert (tmp_path / "twin-0.mp4").read_bytes() == b"one 0"
        assert len(list(tmp_path.iterdir())) == 5
        assert not list(tmp_path.glob("*.part"))

    def test_rows_with_faults_make_nothing_unless_they_are_left_out(self, client: Client, tmp_path: Path) -> None:
        file = tmp_path / "rows.csv"
        file.write_text("kind,model,prompt\ntext-to-video,wan2.5-t2v-preview,a kitten\ntext-to-video,nobody,a dog\n")

        with pytest.raises(ApiError):
            client.submit_batch(file)
        assert list(client.jobs()) == []

        assert client.submit_batch(file, skip_bad=True).rows.made == 1


def test_the_lines_of_the_readme_do_what_it_says(
    api: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("### From Python")[2]
    lines = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert lines is not None
    monkeypatch.setenv("URL", api.url)
    monkeypatch.setenv("KEY", api.key("spring"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("kind,model,prompt\ntext-to-video,wan2.5-t2v-preview,a kitten\n")
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.05):
            for job in api.sql("select id from jobs where state = 'queued'"):
                made(api, job["id"])
            api.sql(
                "update batches set state = 'completed', completed_at = now(), run_at = null where state = 'running'"
                " and not exists (select from jobs where batch_id = batches.id and finished_at is null)"
            )

    hand = threading.Thread(target=work)
    hand.start()
    try:
        exec(lines[1], {})
    finally:
        over.set()
        hand.join()

    said = [line for line in capsys.readouterr().out.splitlines() if "[info" not in line]  # the server's own log
    assert said[0] == "succeeded"
    assert [Path(line).parent.name for line in said[1:]] == ["clips"]
    assert len(list((tmp_path / "clips").iterdir())) == 1
