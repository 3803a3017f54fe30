"""Provider batches: uploaded, created once, found by their name, paid by the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from stage import Stage, stage

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker.catalog import Model, Usage
from worker.kinds import KINDS, OFFERED, text_batch
from worker.kinds.kind import Child, Expansion, FanOut, Kind, Parent, Piece, Request, Store
from worker.models import Job

MODEL = "qwen-flash"


class Bulk(BaseModel):
    """A test's own kind: one provider batch."""

    model_config = ConfigDict(extra="forbid")

    texts: list[str]
    is_broken: bool = False


def _line(n: int, text: str, model: str) -> bytes:
    messages = [{"role": "user", "content": f"Summarise: {text}"}]
    body = {"model": model, "messages": messages, "max_tokens": 100, "enable_thinking": False}
    said = {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(said, ensure_ascii=False).encode() + b"\n"


def _expand(parent: Parent, store: Store) -> Expansion:
    if parent.round:
        return Expansion()
    bulk = parent.input
    assert isinstance(bulk, Bulk)
    model = "no-such-model" if bulk.is_broken else MODEL
    kept = store.put("lines.jsonl", [_line(n, text, model) for n, text in enumerate(bulk.texts)], "application/jsonl")
    return Expansion((Child(text_batch.NAME, f"{MODEL}@batch", {"key": kept.key, "lines": len(bulk.texts)}),))


def _assemble(parent: Parent, store: Store) -> Iterator[Piece]:
    for output in parent.ended[0].outputs:
        yield Piece(output.role, "jsonl", "application/jsonl", store.chunks(output.key))


def _check(_model: Model, raw: Any, _region: str | None) -> BaseModel:
    return Bulk.model_validate(raw)


def _request(_model: Model, _region: str, _wanted: BaseModel) -> Request:
    raise AssertionError("a parent calls nobody")


BULK = Kind(
    name="bulk",
    input=Bulk,
    check=_check,
    request=_request,
    outputs=lambda _: (),
    failures=lambda _: (),
    usage=lambda _wanted, _answer: Usage(),
    estimate=lambda _model, _wanted: Usage(),
    words=lambda _: "bulk",
    echoes=lambda _: {},
    echoed=lambda _: {},
    fan_out=FanOut(_expand, _assemble, lambda parent: dict(parent.ended[0].usage or {}), all_or_none=True),
)


@pytest.fixture(autouse=True)
def _kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, BULK.name, BULK)
    monkeypatch.setitem(OFFERED, BULK.name, BULK)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(time_scale=0.0)) as made:
        yield made


@pytest.fixture
def play(sandbox: Sandbox, environment: dict[str, str]) -> Iterator[Stage]:
    with stage(environment, sandbox) as made:
        yield made


def _make(play: Stage, texts: list[str], is_broken: bool = False) -> Job:
    return play.submit("bulk", MODEL, input={"texts": texts, "is_broken": is_broken})


def _child(play: Stage, job: Job) -> Job:
    return Job.of(play.sql("select * from jobs where parent_id = :id", id=job.id)[0])


def _results(play: Stage, job: Job) -> list[dict[str, Any]]:
    key = next(it["key"] for it in play.document(job)["outputs"] if it["role"] == "results")
    return [json.loads(line) for line in b"".join(play.ctx.bucket.chunks(key)).splitlines()]


def test_a_batch_is_one_upload_one_create_and_one_fetch(play: Stage) -> None:
    job = _make(play, [f"document {n}. It says little." for n in range(20)])

    done = play.until(job)

    assert done.state == "succeeded"
    assert {line["custom_id"] for line in _results(play, done)} == {str(n) for n in range(20)}
    (calls,) = play.sandbox.ledger()["calls"].values()
    assert {name: calls[name] for name in ("file_upload", "batch_create", "content")} == {
        "file_upload": 1,
        "batch_create": 1,
        "content": 1,
    }


def test_a_batch_costs_what_its_lines_used_at_half_the_price(play: Stage) -> None:
    job = _make(play, [f"document {n}. It says little." for n in range(20)])

    done = play.until(job)

    assert done.cost == play.sandbox.ledger()["totals"]["billed_micros"]
    assert done.usage is not None
    assert done.usage["input_tokens"] > 100
    assert [entry for entry, _ in play.ledger(done)] == ["settle"]


def test_a_batch_whose_answer_was_lost_is_found_by_its_name(play: Stage) -> None:
    play.sandbox.fault(where="batch_create", what="lost_answer", times=1)
    job = _make(play, ["one.", "two."])

    done = play.until(job)

    assert done.state == "succeeded"
    assert play.states(_child(play, done)).count("uncertain") == 1
    assert _child(play, done).attempts == 1
    assert len(play.sandbox.ledger()["batches"]) == 1


def test_a_batch_that_was_never_made_is_made_again_once_that_is_proved(play: Stage) -> None:
    play.sandbox.fault(where="batch_create", what="reset", times=1)
    job = _make(play, ["one.", "two."])

    done = play.until(job)

    assert done.state == "succeeded"
    assert [attempt.outcome for attempt in play.attempts(_child(play, done))] == ["absent", "accepted"]


def test_a_file_that_the_provider_refuses_fails_the_batch_with_its_reason(play: Stage) -> None:
    job = _make(play, ["one."], is_broken=True)

    done = play.until(job)

    assert done.state == "failed"
    assert done.error is not None
    assert "batch is failed" in done.error["message"]
    assert play.sandbox.ledger()["totals"]["billed_micros"] == 0


def test_a_batch_that_nobody_wants_any_more_is_stopped_and_paid_for_what_is_done(play: Stage) -> None:
    play.sandbox.set(batch_run_seconds=60.0)
    job = _make(play, ["one.", "two."])
    play.drive(lambda: play.sql("select state from jobs where parent_id = :id", id=job.id), _is_running)

    play.cancel(job)
    done = play.until(job)

    assert done.state == "canceled"
    assert (done.cost or 0) == play.sandbox.ledger()["totals"]["billed_micros"]


def test_a_look_that_fails_changes_nothing(play: Stage) -> None:
    play.sandbox.fault(where="batch_get", what="error", status=500, times=3)
    job = _make(play, ["one.", "two."])

    assert play.until(job).state == "succeeded"


def test_the_window_and_a_day_bound_a_batch(play: Stage) -> None:
    play.sandbox.set(batch_run_seconds=60.0)
    job = _make(play, ["one.", "two."])
    play.drive(lambda: play.sql("select state from jobs where parent_id = :id", id=job.id), _is_running)

    child = _child(play, job)

    assert child.deadline_at is not None
    assert child.started_at is not None
    assert child.deadline_at - child.started_at > timedelta(hours=47)


def _is_running(rows: Any) -> bool:
    return bool(rows) and rows[0]["state"] == "running"
