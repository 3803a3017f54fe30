"""Files that users give us: what is taken, how it is kept, and when it may go."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from serving import PATIENCE, Served, eventually, served

from ops.sandbox import media as drawn
from ops.sandbox import sound
from ops.sandbox.orders import Order
from worker import inputs
from worker.errors import InvalidInput
from worker.inputs import files
from worker.jobs import submission
from worker.jobs.submission import Submission
from worker.storage import Bucket
from worker.tables import Project

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 24
WAV = b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 28
CLIP = drawn.render(Order("", "", "a cat", size="64*64", tier="480P", seconds=2), "t", 0, true_size=False)
ENDLESS = b"RIFF\xff\xff\xff\x7fWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 1, 1, 1, 8) + b"data\xd7\xff\xff\x7f\0"
VERSE = "一二三"
LIMIT = 200_000  # bytes, of these tests' API


class Counting(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.fixture
def api(environment: dict[str, str]) -> Iterator[Served]:
    with served(environment, max_input_bytes=LIMIT) as made:
        yield made


def give(http: httpx.Client, name: str = "cat.png", content: Any = PNG) -> httpx.Response:
    return http.post("/v1/files", files={"file": (name, content)})


def given(http: httpx.Client, name: str = "cat.png", content: Any = PNG) -> dict[str, Any]:
    answer = give(http, name, content)
    assert answer.is_success, answer.text
    file: dict[str, Any] = answer.json()
    return file


def clip(key: str) -> dict[str, Any]:
    return {"kind": "image-to-video", "model": "wan2.5-i2v-preview", "input": {"img_url": key, "prompt": "it purrs"}}


def keys_in(api: Served) -> list[str]:
    return [key for key, _ in Bucket(api.app.state.context.settings).objects()]


def test_a_file_lies_in_the_bucket_under_its_projects_key(http: httpx.Client, api: Served) -> None:
    answer = give(http, "my cat.png")

    file = answer.json()
    project = api.sql("select id from projects")[0]["id"]
    assert answer.status_code == 201
    assert re.fullmatch(rf"{project}/files/\d{{4}}/\d\d/\d\d/{file['id']}\.png", file["key"])
    assert (file["name"], file["content_type"], file["bytes"]) == ("my cat.png", "image/png", len(PNG))
    assert b"".join(Bucket(api.app.state.context.settings).chunks(file["key"])) == PNG
    assert http.get(answer.headers["location"]).json() == file


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jpg", PNG, "image/png"),
        ("a.exe", b"\xff\xd8\xff\xe0 a photo", "image/jpeg"),
        ("a.bmp", b"BM\x00\x01\x00\x00\x00\x00\x00\x00\x36", "image/bmp"),
        ("a.webp", b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
        ("a.wav", WAV, "audio/wav"),
        ("a.mp3", b"ID3\x04\0\0\0\0\0\0", "audio/mpeg"),
        ("a.txt", b"\0\0\0\x18ftypmp42", "video/mp4"),
        ("a.mp4", b"\0\0\0\x14ftypqt  ", "video/quicktime"),
        ("a.txt", b"%PDF-1.7\n\x80", "application/pdf"),
        ("BMW.txt", b"BMW builds cars", "text/plain"),
        ("README", "一只猫".encode(), "text/plain"),
        ("a.txt", "一只猫".encode("gb18030"), "text/plain"),
        ("a.txt", "a cat".encode("utf-16"), "text/plain"),
        ("a.MD", b"# A cat", "text/markdown"),
        ("a.csv", b"a,b\n1,2\n", "text/csv"),
        ("a.jsonl", b'{"a": 1}\n', "application/jsonl"),
        ("a.eml", b"From: a@example.com\n", "message/rfc822"),
        ("a.log", b"level 12\n", "text/plain"),
        ("REPORT", b"level 12\n", "text/plain"),
        ("a.DOCX", b"PK\3\4", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("a.xlsx", b"PK\3\4", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("a.pptx", b"PK\3\4", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        ("a.htm", b"<p>a cat", "text/html"),
        ("a.txt", b"\xef\xbb\xbf \n<!DOCTYPE HTML><title>", "text/html"),
    ],
)
def test_the_bytes_say_what_a_file_is_and_the_name_which_kind_of_text(name: str, content: bytes, found: str) -> None:
    assert files.draft(name, io.BytesIO(content)).type.content_type == found


@pytest.mark.parametrize(
    "content", [b"GIF89a\1\0\1\0", b"PK\3\4\x14\0", b"\x7fELF\2\1\1\0", b"a\0b", b"\0\0\0\x18ftypheic"]
)
def test_what_no_model_takes_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput) as refused:
        files.draft("a.txt", io.BytesIO(content))

    assert [(fault.pointer, fault.code) for fault in refused.value.faults] == [("/file", "type_not_taken")]


@pytest.mark.parametrize(
    ("name", "content", "seconds"),
    [
        ("a.mp4", CLIP, 2),
        ("a.wav", sound.wav(VERSE, "Cherry"), sound.length(VERSE) / sound.RATE),
        ("a.mp4", CLIP[:200], None),
        ("a.wav", WAV, None),
        ("a.wav", ENDLESS, None),  # one sample a second, for 68 years: no header is believed that much
        ("a.png", PNG, None),
    ],
)
def test_a_clip_and_sound_say_how_long_they_play(name: str, content: bytes, seconds: float | None) -> None:
    assert files.draft(name, io.BytesIO(content)).seconds == (seconds and pytest.approx(seconds, abs=0.05))


@pytest.mark.parametrize("name", ["a.mp3", "a.mp4", "a.wav"])
def test_a_file_that_was_made_to_keep_its_reader_busy_says_nothing(name: str) -> None:
    begins = {"a.mp3": b"ID3\x04\0\0\0\0\0\0", "a.mp4": b"\0\0\0\x18ftypmp42" + bytes(12), "a.wav": b"RIFF....WAVE"}
    goes_on = {"a.mp3": b"\xff\xfb\xff\xff", "a.mp4": b"\0\0\0\x08free", "a.wav": b"abcd\0\0\0\0"}
    body = Counting(begins[name] + goes_on[name] * 100_000)

    assert files.draft(name, body).seconds is None
    assert body.reads < 25_000


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat.png", "cat.png"),
        ("a\0b\n\x1b[2J\u202egnp.exe", "ab[2Jgnp.exe"),
        ("half\ud800", "half"),
        ("猫 (1).png", "猫 (1).png"),
        ("  /  ", "file"),
        ("", "file"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_name_is_kept_without_what_could_do_harm(said: str, kept: str) -> None:
    assert files.tidied(said) == kept


def test_the_same_bytes_under_the_same_name_are_one_file(http: httpx.Client, api: Served) -> None:
    first, again = give(http), give(http)
    renamed = given(http, "dog.png")

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert renamed["id"] != first.json()["id"]
    assert sorted(keys_in(api)) == sorted([first.json()["key"], renamed["key"]])


def test_uploads_of_one_file_that_race_leave_one_file_and_one_object(http: httpx.Client, api: Served) -> None:
    content = WAV + b"\1" * 100_000

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: give(http, "a.wav", content), range(6)))

    assert {answer.status_code for answer in answers} <= {200, 201}
    assert [answer.status_code for answer in answers].count(201) == 1
    assert {answer.json()["key"] for answer in answers} == set(keys_in(api))
    assert len(keys_in(api)) == len(api.sql("select id from files")) == 1


def test_an_object_that_the_bucket_lost_is_put_back_by_the_next_upload(http: httpx.Client, api: Served) -> None:
    file = given(http)
    Bucket(api.app.state.context.settings).delete(file["key"])

    again = give(http)

    assert (again.status_code, again.json()) == (200, file)
    assert keys_in(api) == [file["key"]]


def test_a_file_over_the_limit_is_refused_as_it_comes(http: httpx.Client, api: Served) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'

    def endless() -> Iterator[bytes]:  # sent chunked, so no Content-Length says how much it is
        yield head
        yield from (b"a" * 65536 for _ in range(10))

    exact, over = give(http, "a.txt", b"a" * LIMIT), give(http, "b.txt", b"b" * (LIMIT + 1))
    chunked = http.post("/v1/files", content=endless(), headers=boundary)

    assert exact.status_code == 201
    assert [(answer.status_code, answer.json()["code"]) for answer in (over, chunked)] == [(413, "body_too_large")] * 2
    assert keys_in(api) == [exact.json()["key"]]


def test_what_is_no_file_is_a_problem_that_says_so(http: httpx.Client, api: Served) -> None:
    form = {"content-type": "multipart/form-data; boundary=b"}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"json": {}}, 415, "not_multipart"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_form"),
        ({"content": b"nonsense", "headers": form}, 400, "invalid_form"),
        ({"content": b"--b--\r\n", "headers": form}, 422, "invalid_input"),
        ({"files": {"photo": ("cat.png", PNG)}}, 422, "invalid_input"),
        ({"files": [("file", ("a.png", PNG)), ("file", ("b.png", PNG))]}, 400, "invalid_form"),
        ({"files": {"file": ("cat.png", PNG)}, "data": {"purpose": "vision"}}, 400, "invalid_form"),
        ({"files": {"file": ("empty.txt", b"")}}, 422, "invalid_input"),
        ({"files": {"file": ("cat.gif", b"GIF89a\1\0")}}, 422, "invalid_input"),
    ]
    for said, status, code in cases:
        answer = http.post("/v1/files", **said)

        assert (answer.status_code, answer.json()["code"]) == (status, code), said
    assert keys_in(api) == []
    assert api.sql("select id from files") == []


def test_without_the_bucket_an_upload_is_to_be_tried_again_and_leaves_no_row(environment: dict[str, str]) -> None:
    with (
        served(environment | {"NORIA_S3_ENDPOINT_URL": "http://127.0.0.1:9"}) as api,
        api.http(api.key("spring")) as http,
    ):
        answer = give(http)

        assert (answer.status_code, answer.json()["code"]) == (503, "storage_trouble")
        assert "retry-after" in answer.headers
        assert api.sql("select id from files") == []


def test_files_are_listed_the_newest_first_page_by_page(http: httpx.Client) -> None:
    made = [given(http, f"{n}.txt", b"some words")["id"] for n in range(5)]

    first = http.get("/v1/files?limit=3").json()
    rest = http.get("/v1/files", params={"limit": 3, "cursor": first["next_cursor"]}).json()

    assert [file["id"] for page in (first, rest) for file in page["data"]] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_a_file_may_go_once_no_job_that_names_it_is_on_its_way(http: httpx.Client, api: Served) -> None:
    file = given(http)
    job = http.post("/v1/jobs", json=clip(file["key"])).json()

    refused = http.delete(f"/v1/files/{file['id']}")
    http.post(job["urls"]["cancel"])
    removed, again = (http.delete(f"/v1/files/{file['id']}") for _ in range(2))

    assert (refused.status_code, refused.json()["code"]) == (409, "file_in_use")
    assert job["id"] in refused.json()["detail"]
    assert (removed.status_code, again.status_code) == (204, 404)
    assert keys_in(api) == []
    assert http.post(job["urls"]["retry"]).json()["errors"][0]["code"] == "no_such_file"


def test_a_document_of_a_job_on_its_way_may_not_go(http: httpx.Client, api: Served) -> None:
    file, job = (
        given(http, "a.txt", b"some words"),
        http.post("/v1/jobs", json=clip("https://example.com/a.png")).json(),
    )
    api.sql(
        "update jobs set input = jsonb_build_object('documents', jsonb_build_array("
        " jsonb_build_object('id', 'a', 'key', cast(:key as text)))) where id = :id",
        key=file["key"],
        id=job["id"],
    )

    assert http.delete(f"/v1/files/{file['id']}").json()["code"] == "file_in_use"


def test_a_file_cannot_go_between_being_checked_and_being_named(http: httpx.Client, api: Served) -> None:
    """The submission has checked the file and is not committed: the deletion waits for it, and is refused."""
    file, context = given(http), api.app.state.context
    project = Project.of(api.sql("select * from projects")[0])
    with ThreadPoolExecutor(1) as pool:
        with api.engine.begin() as connection:
            now = connection.exec_driver_sql("select statement_timestamp()").scalar_one()
            prepared = submission.prepare(context.catalog, context.settings, Submission(**clip(file["key"])), now)
            submission.submit(connection, project, prepared, None, now)
            answer = pool.submit(http.delete, f"/v1/files/{file['id']}")
            eventually(lambda: api.sql("select 1 from pg_locks where not granted"))
        assert answer.result(PATIENCE).json()["code"] == "file_in_use"
    with api.engine.connect() as connection:
        inputs.check(connection, project.id, prepared.model, prepared.input)
