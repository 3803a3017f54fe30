"""Summaries on real servers: documents in the bucket, answers of a sandbox provider, results in the bucket."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from stage import Stage, stage
from test_documents import docx, pdf

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import storage
from worker.errors import InvalidInput
from worker.jobs import submission
from worker.moves.children import wake_all
from worker.tables import Job

MODEL, REDUCE = "qwen-flash", "qwen-plus"
SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
FAST = {"call_seconds": 0, "batch_validating_seconds": 0, "batch_run_seconds": 0, "batch_finalizing_seconds": 0}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(**FAST, limits={"*": Limits(rpm=1_000_000, tpm=100_000_000)})) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    sandbox.reset()
    limits = {name: {"rpm": 1_000_000, "tpm": 100_000_000} for name in (MODEL, REDUCE)}
    with stage(environment, sandbox, limits=limits) as made:
        yield made


def submit(play: Stage, **said: Any) -> Job:
    return play.submit("summary", MODEL, input={"mode": "calls", **said})


def texts(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"d{n}", "text": f"Document {n} tells of sales.\n\nThey went up by {n} per cent."} for n in range(count)
    ]


def store(play: Stage, **files: bytes) -> str:
    """Puts files, `a_txt` as a.txt, below a prefix of the project's, and gives the prefix."""
    prefix = f"inbox/{play.project.name}/"
    for name, data in files.items():
        key = f"{prefix}{name.replace('_', '.')}"
        play.ctx.bucket.put_stream(key, [data], "application/octet-stream", storage.Expected())
    return prefix


def outputs(play: Stage, job: Job) -> dict[str, bytes]:
    found = play.document(job)["outputs"]
    return {output["role"]: b"".join(play.ctx.bucket.chunks(output["key"])) for output in found}


def lines(play: Stage, job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outputs(play, job)["summaries"].splitlines()]


def children(play: Stage, job: Job) -> list[Any]:
    return list(play.sql("select * from jobs where parent_id = :id order by round, place", id=job.id))


def paid(play: Stage) -> list[dict[str, Any]]:
    """The provider's books: every call that it answered."""
    found: list[dict[str, Any]] = play.sandbox.ledger()["tasks"]
    return found


def test_forty_documents_are_forty_calls_and_cost_what_these_cost(play: Stage) -> None:
    job = play.until(submit(play, documents=texts(40)))

    made, calls = lines(play, job), paid(play)
    assert (job.state, len(calls)) == ("succeeded", 40)
    assert [line["id"] for line in made] == [f"d{n}" for n in range(40)]
    assert all(f"Document {n} " in line["summary"] for n, line in enumerate(made))
    assert job.cost == sum(call["billed_micros"] for call in calls) <= (job.estimate or 0)
    assert job.usage is not None
    assert job.usage["input_tokens"] == sum(call["usage"]["input_tokens"] for call in calls)
    assert (job.usage["documents"], job.usage["failed"], job.usage["calls"]) == (40, 0, 40)


def test_a_poisoned_pdf_is_one_line_of_the_results(play: Stage) -> None:
    page = b"<html><body><p>A page of news.</p></body></html>"
    prefix = store(
        play, a_pdf=pdf("The first report."), b_pdf=b"%PDF-1.7\n\x00\xff poison", c_html=page, d_md=b"# Notes"
    )

    job = play.until(submit(play, documents=[{"prefix": prefix}]))

    made = {line["id"].removeprefix(prefix): line for line in lines(play, job)}
    assert {name: line["error"] and line["error"]["code"] for name, line in made.items()} == {
        "a.pdf": None,
        "b.pdf": "unreadable",
        "c.html": None,
        "d.md": None,
    }
    assert "The first report." in made["a.pdf"]["summary"]
    assert "A page of news." in made["c.html"]["summary"]
    assert job.usage is not None
    assert job.usage["failed"] == 1


def test_an_inbox_with_a_longer_name_is_another_projects(play: Stage) -> None:
    ours, theirs = f"inbox/{play.project.name}", f"inbox/{play.project.name}-2"
    play.ctx.bucket.put_stream(f"{theirs}/a.txt", [b"a secret"], "text/plain", storage.Expected())
    named = [
        {"key": f"{theirs}/a.txt"},
        {"key": f"{ours}/../{play.project.name}-2/a.txt"},
        {"prefix": f"{theirs}/"},
        {"prefix": ours},
    ]

    job = play.until(submit(play, documents=[*named, {"text": "Some words."}]))

    assert [(line["error"] or {}).get("code") for line in lines(play, job)] == ["not_found"] * 4 + [None]
    assert len(paid(play)) == 1


def test_what_cannot_be_read_is_named_and_not_paid_for(play: Stage) -> None:
    chinese = "水庫在夏天要放水，鎮上的人都知道這件事。管理員每天記錄水位。"
    prefix = store(
        play,
        REPORT=b"A report without an ending.",
        big5_txt=chinese.encode("big5"),
        half_txt=chinese.encode("big5") + bytes(200),
        notes_log=b"water level 12",
        mail_eml=b"From: a@example.com\nMIME-Version: 1.0\n\nThe water is off.",
        photo_png=b"\x89PNG\r\n\x1a\n" + bytes(24),
        report_docx=docx("<w:p><w:t>Quarterly.</w:t></w:p>"),
        zip_zip=docx("")[:40],
    )

    job = play.until(submit(play, documents=[{"prefix": prefix}]))

    made = {line["id"].removeprefix(prefix): (line["error"] or {}).get("code") for line in lines(play, job)}
    refused = {"half.txt": "unsupported", "photo.png": "unsupported", "zip.zip": "unreadable"}
    read = dict.fromkeys(["REPORT", "big5.txt", "mail.eml", "notes.log", "report.docx"])
    assert made == {**read, **refused}
    assert len(paid(play)) == 5


def test_objects_take_the_shape_that_was_asked_for_and_a_digest_is_over_all(play: Stage) -> None:
    job = play.until(submit(play, documents=texts(3), style={"schema": SCHEMA}, digest=True))

    assert [set(line["summary"]) for line in lines(play, job)] == [{"title"}] * 3
    assert outputs(play, job)["digest"].strip()
    assert [(child["round"], child["model"]) for child in children(play, job)] == [(1, MODEL)] * 3 + [(2, REDUCE)]


def test_a_documents_link_reads_nothing_where_webhooks_and_sources_may_go(
    environment: dict[str, str], sandbox: Sandbox, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/secret").respond_with_data("the metrics of another service")
    with stage(environment, sandbox, documents_allow="10.0.0.0/8") as play:  # all here is in EGRESS_ALLOW
        key = "another-project/files/a.txt"
        play.ctx.bucket.put_stream(key, [b"another's file"], "text/plain", storage.Expected())
        links = [httpserver.url_for("/secret"), play.ctx.bucket.presign(key, timedelta(hours=1), None)]

        job = play.until(submit(play, documents=[*texts(1), *({"url": url} for url in links)]))

        codes = [line["error"] and line["error"]["code"] for line in lines(play, job)]
    assert codes == [None, "not_allowed", "not_allowed"]
    assert httpserver.log == []


def test_documents_behind_links_are_fetched_and_a_dead_link_is_one_line(
    environment: dict[str, str], sandbox: Sandbox, httpserver: HTTPServer
) -> None:
    page = "<html><body><p>News from behind a link.</p></body></html>"
    httpserver.expect_request("/news").respond_with_data(page, content_type="text/html; charset=utf-8")
    links = [httpserver.url_for("/news"), "http://127.0.0.1:9/closed", "http://10.1.2.3/private"]

    with stage(environment, sandbox, documents_allow="127.0.0.0/8") as play:
        made = lines(play, play.until(submit(play, documents=[{"url": url} for url in links])))

    assert made[0]["summary"] == "News from behind a link."
    assert [line["error"] and line["error"]["code"] for line in made] == [None, "not_fetched", "not_allowed"]


def test_a_long_document_is_read_in_parts_and_joined(play: Stage) -> None:
    long = "\n\n".join(f"Paragraph {n} says that the sales of week {n} went up." for n in range(2_400))

    job = play.until(submit(play, documents=[{"text": long}]))

    assert [(child["round"], child["note"]["level"]) for child in children(play, job)] == [(1, 0)] * 4 + [(2, 1)]
    assert lines(play, job)[0]["usage"]["calls"] == 5


def test_two_hundred_documents_are_one_upload_one_batch_and_one_fetch(play: Stage) -> None:
    job = play.until(submit(play, documents=texts(200), mode="batch"))

    assert job.state == "succeeded"
    assert [line["error"] for line in lines(play, job)] == [None] * 200
    assert [child["kind"] for child in children(play, job)] == ["text-batch"]
    [calls] = play.sandbox.ledger()["calls"].values()
    done = ("file_upload", "batch_create", "content", "file_delete")
    assert {name: calls[name] for name in calls if name != "batch_get"} == dict.fromkeys(done, 1)
    [batch] = play.sandbox.ledger()["batches"]
    assert job.cost == pytest.approx(batch["billed_micros"], abs=200)  # the provider's books round each line
    assert job.usage is not None
    assert (job.usage["calls"], job.usage["input_tokens"]) == (200, batch["input_tokens"])


def test_a_step_killed_between_portions_makes_nothing_twice(play: Stage) -> None:
    play.sql("update lanes set concurrency = 0 where model = :model", model=MODEL)
    job = submit(play, documents=texts(450))
    play.drive(lambda: play.job(job), lambda found: found.state == "gathering")
    for is_recorded in (False, True):
        taken, step, clock = play.begin(job)
        move = next(step)
        if is_recorded:
            play.ctx.record(taken, move, clock)
        step.close()  # type: ignore[attr-defined]
        play.lapse(job)

    found = play.drive(lambda: children(play, job), lambda made: len(made) >= 450)

    assert [child["note"]["document"] for child in found] == list(range(450))
    assert [child["round"] for child in found] == [1] * 450


def test_a_job_killed_while_its_results_are_written_writes_them_again(play: Stage) -> None:
    job = submit(play, documents=texts(2), digest=True)
    play.until(job, "copying")
    _, step, _ = play.begin(job)
    next(step)  # everything is in the bucket, and nothing on record
    step.close()  # type: ignore[attr-defined]
    play.lapse(job)

    done = play.until(job)

    assert (done.state, list(outputs(play, done))) == ("succeeded", ["summaries", "digest"])
    assert len(paid(play)) == 3


def test_a_job_that_failed_whole_is_made_again_from_what_is_there_now(play: Stage) -> None:
    job = submit(play, documents=[{"key": f"inbox/{play.project.name}/late.txt"}])
    failed = play.until(job)
    assert (failed.state, (failed.error or {})["code"]) == ("failed", "no_summaries")

    store(play, late_txt=b"Now it is there.")
    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, job.id, play.now())

    assert "Now it is there." in lines(play, play.until(job))[0]["summary"]


def test_tasks_that_are_refused_are_made_by_calls_and_that_is_remembered(play: Stage) -> None:
    job = play.until(submit(play, documents=texts(4), mode="tasks"))

    assert job.state == "succeeded"
    assert [line["error"] for line in lines(play, job)] == [None] * 4
    models = Counter(child["model"] for child in children(play, job))
    assert models == {f"{MODEL}@tasks": 1, MODEL: 4}

    again = play.until(submit(play, documents=texts(2), mode="tasks"))

    assert {child["model"] for child in children(play, again)} == {MODEL}


def test_tasks_are_made_where_the_account_is_served(play: Stage, sandbox: Sandbox) -> None:
    sandbox.set(async_text=True, run_seconds=0, queue_seconds=0)

    job = play.until(submit(play, documents=texts(3), mode="tasks"))

    assert [line["error"] for line in lines(play, job)] == [None] * 3
    assert {child["model"] for child in children(play, job)} == {f"{MODEL}@tasks"}


def test_batch_chat_costs_half_and_a_call_without_an_answer_is_made_as_a_plain_one(
    play: Stage, sandbox: Sandbox
) -> None:
    whole = play.until(submit(play, documents=texts(5)))
    job = submit(play, documents=texts(5), mode="chat")
    play.drive(lambda: children(play, job), lambda made: len(made) > 1)  # the first was answered
    sandbox.fault(where="create", what="lost_answer", times=1)

    done = play.until(job)

    assert [line["error"] for line in lines(play, done)] == [None] * 5
    made = Counter((child["model"], child["state"]) for child in children(play, job))
    assert made == {(f"{MODEL}@chat", "succeeded"): 4, (f"{MODEL}@chat", "failed"): 1, (MODEL, "succeeded"): 1}
    (lost,) = (child for child in children(play, job) if child["state"] == "failed")
    assert (lost["error"]["code"], lost["billed"]) == ("unanswered", "unknown")
    full = {child["note"]["document"]: child["cost"] for child in children(play, whole)}
    half = {child["note"]["document"]: child["cost"] for child in children(play, job) if "@" in child["model"]}
    assert len(half) == 5
    assert all(2 * cost == pytest.approx(full[document], abs=2) for document, cost in half.items() if cost)
    billed = Counter(call["billed_micros"] for call in paid(play)[5:])
    billed.subtract(child["cost"] for child in children(play, job) if child["cost"])
    assert sum(billed.values()) == 1  # that of the call which nobody heard of
    assert min(billed.values()) == 0


def test_batch_chat_is_refused_where_no_account_has_it(environment: dict[str, str], sandbox: Sandbox) -> None:
    with (
        stage(environment, sandbox, dashscope_batch_chat_url=None) as play,
        pytest.raises(InvalidInput) as refused,
    ):
        submit(play, documents=texts(1), mode="chat")

    assert [fault.code for fault in refused.value.faults] == ["model_not_in_region"]


@pytest.mark.parametrize(("seen", "asked"), [("PENDING", 1), ("RUNNING", 0)])  # at the last look
def test_a_part_that_is_too_late_to_cancel_is_not_asked_again(
    seen: str, asked: int, environment: dict[str, str]
) -> None:
    options = Options(run_seconds=900, queue_seconds=0, call_seconds=900, async_text=True)
    with running(options) as sandbox, stage(environment, sandbox) as play:
        documents = [{"text": "What is said, at some length."}]
        job = play.submit("summary", None, input={"documents": documents, "mode": "tasks"})
        part = "select task_status, cancel_requested from jobs where parent_id = :id"
        play.drive(lambda: play.sql(part, id=job.id), lambda rows: [row["task_status"] for row in rows] == ["RUNNING"])
        play.sql("update jobs set task_status = :seen where parent_id = :id", id=job.id, seen=seen)

        play.cancel(job)
        told = "select count(*) as n from events where why like 'too late to cancel%'"
        play.drive(
            lambda: (play.sql(told)[0]["n"], play.sql(part, id=job.id)[0]["task_status"]),
            lambda found: found == (asked, "RUNNING"),
        )
        play.play(play.tick())
        before = play.sql("select count(*) as n from events")
        for _ in range(3):
            with play.ctx.engine.begin() as connection:
                wake_all(connection, play.now())
            play.play(play.tick())

        assert play.sql("select count(*) as n from events") == before
        assert play.sql(told)[0]["n"] == asked
        assert play.job(job).state == "gathering"
