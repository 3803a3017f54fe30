"""Embeddings on real servers: texts of the job and of the bucket, a sandbox provider, vectors in the bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from stage import Stage, stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import storage
from worker.jobs import submission
from worker.kinds.embedding import rounds, texts
from worker.tables import Job

MODEL = "text-embedding-v4"
FAST = {"call_seconds": 0, "batch_validating_seconds": 0, "batch_run_seconds": 0, "batch_finalizing_seconds": 0}
SMALL = {"dimension": 64, "mode": "calls"}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(**FAST, limits={"*": Limits(rpm=1_000_000, tpm=100_000_000)})) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    sandbox.reset()
    with stage(environment, sandbox, limits={MODEL: {"rpm": 1_000_000, "rps": 10_000, "tpm": 100_000_000}}) as made:
        yield made


def submit(play: Stage, **said: Any) -> Job:
    return play.submit("embedding", MODEL, input=SMALL | said)


def words(count: int) -> list[str]:
    return [f"Text {n} is of wheels." for n in range(count)]


def store(play: Stage, name: str, content: str) -> str:
    key = f"inbox/{play.project.name}/{name}"
    play.ctx.bucket.put_stream(key, [content.encode()], "application/octet-stream", storage.Expected())
    return key


def content(play: Stage, job: Job) -> bytes:
    (output,) = play.document(job)["outputs"]
    return b"".join(play.ctx.bucket.chunks(output["key"]))


def lines(play: Stage, job: Job) -> list[dict[str, Any]]:
    assert job.state == "succeeded", job.error
    return [json.loads(line) for line in content(play, job).splitlines()]


def codes(made: list[dict[str, Any]]) -> list[str | None]:
    return [line["error"] and line["error"]["code"] for line in made]


def alone(play: Stage, sandbox: Sandbox, text: str) -> list[float]:
    """The vector of one text, as the provider gives it to anybody."""
    (line,) = lines(play, play.until(submit(play, texts=[text])))
    vector: list[float] = line["embedding"]
    return vector


def calls(play: Stage, job: Job) -> list[Any]:
    return list(play.sql("select * from jobs where parent_id = :id order by round, place", id=job.id))


def test_texts_are_embedded_ten_a_call_in_their_order_and_cost_what_the_calls_cost(
    play: Stage, sandbox: Sandbox
) -> None:
    job = play.until(submit(play, texts=[*words(24), {"id": "last", "text": "The river is fast."}]))

    made, paid = lines(play, job), sandbox.ledger()["paid"][MODEL]
    assert [line["id"] for line in made] == [*map(str, range(1, 25)), "last"]
    assert [line["index"] for line in made] == list(range(25))
    assert {len(line["embedding"]) for line in made} == {64}
    assert made[13]["embedding"] == alone(play, sandbox, "Text 13 is of wheels.")
    assert paid["tasks"] == 3
    assert job.cost == paid["billed_micros"] <= (job.estimate or 0)
    assert job.usage == {"texts": 25, "failed": 0, "calls": 3, "input_tokens": paid["input_tokens"]}


def test_vectors_are_kept_in_the_bucket_and_in_no_row(play: Stage) -> None:
    job = play.until(submit(play, texts=words(3)))

    (call,) = calls(play, job)
    assert (call["state"], call["result"]) == ("succeeded", None)
    attempts = play.sql("select output from attempts where job_id = :id", id=call["id"])
    assert [attempt["output"] for attempt in attempts] == [None]


def test_a_text_that_cannot_be_embedded_is_one_line_and_is_not_sent(play: Stage, sandbox: Sandbox) -> None:
    job = play.until(submit(play, texts=["A wheel.", " ", "水" * 17_000, "A sail."]))

    assert codes(lines(play, job)) == [None, "empty", "too_long", None]
    assert (job.usage or {})["failed"] == 2
    assert sandbox.ledger()["paid"][MODEL]["input_tokens"] < 10


def test_a_text_that_the_provider_refuses_costs_the_others_nothing(play: Stage, sandbox: Sandbox) -> None:
    sandbox.fault(where="create", what="error", code="DataInspectionFailed", prompt_contains="Text 7 ", times=2)

    job = play.until(submit(play, texts=words(12)))

    made = lines(play, job)
    assert [place for place, code in enumerate(codes(made)) if code] == [7]
    assert [len(line["embedding"] or ()) for line in made] == [64] * 7 + [0] + [64] * 4
    asked = [call["round"] for call in calls(play, job)]
    assert (asked.count(1), asked.count(2)) == (2, 10)


def test_a_text_that_only_the_provider_finds_too_long_is_found_alone(play: Stage) -> None:
    job = play.until(submit(play, texts=["A wheel.", "水" * 9_000, "A sail."]))

    assert codes(lines(play, job)) == [None, "invalid_parameter", None]


def test_jobs_read_texts_from_objects_in_the_bucket(play: Stage, sandbox: Sandbox) -> None:
    rows = [
        '{"id": "a", "text": "A wheel."}',
        '"A sail."',
        "{not json",
        '{"id": 7, "words": "none"}',
        "",
        '{"text": "x"}',
    ]
    keys = [store(play, "a.jsonl", "\n".join(rows)), store(play, "b.txt", "\ufeffOne line.\r\n\r\nAnother.\n")]

    job = play.until(submit(play, texts=["In the job.", *({"key": key} for key in keys)]))

    made = lines(play, job)
    assert codes(made) == [None, None, None, "bad_line", "bad_line", None, None, None]
    assert [line["id"] for line in made] == ["1", "a", "3", "4", "7", "6", "7", "8"]
    assert made[6]["embedding"] == alone(play, sandbox, "One line.")


def test_another_projects_object_does_not_exist(play: Stage, sandbox: Sandbox) -> None:
    theirs = f"inbox/{play.project.name}-2/a.txt"
    play.ctx.bucket.put_stream(theirs, [b"a secret"], "text/plain", storage.Expected())

    job = play.until(submit(play, texts=["A wheel.", {"key": theirs}]))

    assert (job.state, (job.error or {})["code"]) == ("failed", "no_such_file")
    assert sandbox.ledger()["totals"]["creates"] == 0


def test_what_is_read_of_objects_is_bounded_for_a_job_however_often_one_is_named(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BYTES_LIMIT", 1000)
    key = store(play, "lines.txt", "\n" * 600)

    once, twice = (play.until(submit(play, texts=[*many * [{"key": key}], "A heron."])) for many in (1, 2))

    assert (once.state, twice.state) == ("succeeded", "failed")
    assert "give less to a job" in twice.error["message"]


def test_a_job_without_any_text_to_embed_fails_unpaid(play: Stage, sandbox: Sandbox) -> None:
    job = play.until(submit(play, texts=[" ", ""]))

    assert (job.state, (job.error or {})["code"], (job.error or {})["class"]) == ("failed", "no_vectors", "validation")
    assert sandbox.ledger()["totals"]["creates"] == 0


def test_what_is_asked_of_vectors_is_told_to_the_provider(play: Stage, sandbox: Sandbox) -> None:
    asked = {"output_type": "dense&sparse", "text_type": "query", "instruct": "Find the device."}
    (line,) = lines(play, play.until(submit(play, texts=["A wheel."], **asked)))

    assert line["embedding"] != alone(play, sandbox, "A wheel.")
    assert {token["token"] for token in line["sparse_embedding"]} == {"A", "wheel."}


def test_pages_are_made_in_several_steps_and_come_out_in_order(
    play: Stage, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PAGE", 20)
    monkeypatch.setattr(rounds, "_MOST", 2)
    sandbox.fault(where="create", what="error", code="DataInspectionFailed", prompt_contains="Text 33 ", times=2)

    job = play.until(submit(play, texts=words(65)))

    made = lines(play, job)
    assert [line["index"] for line in made] == list(range(65))
    assert [place for place, code in enumerate(codes(made)) if code] == [33]
    assert len({tuple(line["embedding"] or ()) for line in made}) == 65
    assert sandbox.ledger()["paid"][MODEL]["tasks"] == 6 + 9


def test_a_retry_embeds_what_is_missing(play: Stage, sandbox: Sandbox) -> None:
    sandbox.fault(where="create", what="error", code="DataInspectionFailed", times=3)
    failed = play.until(submit(play, texts=words(2)))
    assert (failed.state, (failed.error or {})["code"]) == ("failed", "no_vectors")

    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, failed.id, play.now())
    job = play.until(failed)

    assert codes(lines(play, job)) == [None, None]
    assert job.cost == sandbox.ledger()["totals"]["billed_micros"]


def test_a_batch_costs_half_and_its_vectors_are_those_of_calls(
    play: Stage, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PAGE", 20)
    one_by_one = play.until(submit(play, texts=words(45)))

    job = play.until(submit(play, texts=words(45), mode="batch"))

    assert lines(play, job) == lines(play, one_by_one)
    assert [call["kind"] for call in calls(play, job)] == ["text-batch"] * 3
    assert (job.cost or 0) * 2 == pytest.approx(one_by_one.cost or 0, abs=6)
    assert sandbox.ledger()["totals"]["batches"] == 3


def test_what_a_batch_left_undone_goes_by_calls(play: Stage, sandbox: Sandbox) -> None:
    sandbox.fault(where="line", what="error", code="DataInspectionFailed", prompt_contains="Text 12 ", times=1)

    job = play.until(submit(play, texts=words(25), mode="batch"))

    assert codes(lines(play, job)) == [None] * 25
    assert [call["kind"] for call in calls(play, job)] == ["text-batch", "embedding-call"]


def test_vectors_may_be_written_as_parquet(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(texts, "PAGE", 20)
    given = [*words(30), " "]
    expected = lines(play, play.until(submit(play, texts=given)))

    job = play.until(submit(play, texts=given, format="parquet"))

    file = parquet.ParquetFile(pyarrow.BufferReader(content(play, job)))
    rows = file.read().to_pylist()
    assert file.num_row_groups == 2
    assert [row["index"] for row in rows] == list(range(31))
    assert rows[7]["embedding"] == expected[7]["embedding"]  # the sandbox's numbers are of 32 bits
    assert (rows[30]["embedding"], rows[30]["error_code"]) == (None, "empty")
