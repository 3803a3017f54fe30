"""Provider batches: uploaded, created once, found by their name, paid by the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from stage import Stage
from test_edges import with_queries

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker.catalog import Catalog, Model, Usage
from worker.jobs import submission
from worker.kinds import KINDS, OFFERED, text_batch
from worker.kinds.kind import Child, Expansion, Parent, ParentKind, Piece, Store
from worker.steps.batch import Bill
from worker.tables import Job

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


def _check(_catalog: Catalog, _model: Model, raw: Any, _region: str | None) -> BaseModel:
    return Bulk.model_validate(raw)


BULK = ParentKind(
    name="bulk",
    input=Bulk,
    check=_check,
    estimate=lambda _model, _wanted: Usage(),
    words=lambda _: "bulk",
    expand=_expand,
    assemble=_assemble,
    usage=lambda parent: dict(parent.ended[0].usage or {}),
    all_or_none=True,
)


@pytest.fixture(autouse=True)
def _kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, BULK.name, BULK)
    monkeypatch.setitem(OFFERED, BULK.name, BULK)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(time_scale=0.0)) as made:
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


def _calls(play: Stage) -> dict[str, int]:
    """How often each interface of the provider's was called."""
    (calls,) = play.sandbox.ledger()["calls"].values()
    return dict(calls)


def _seen_as(play: Stage, **said: Any) -> Stage:
    """The stage, where the provider says of every batch what is given here."""
    counts = {"total": 2, "completed": 0, "failed": 0}
    shown = {"id": "batch_1", "object": "batch", "status": "completed", "request_counts": counts, **said}
    return with_queries(play, {"status_code": 200, "json": shown})


def _begun(play: Stage) -> Job:
    """A batch that runs for long."""
    play.sandbox.set(batch_run_seconds=600.0)
    job = _make(play, ["one.", "two."])
    play.drive(lambda: play.sql("select state from jobs where parent_id = :id", id=job.id), _is_running)
    return _child(play, job)


def _looked(play: Stage, batch: Job) -> Job:
    play.lapse(batch)
    play.play(play.tick())
    return play.job(batch)


@pytest.mark.parametrize(
    "said",
    [
        {"request_counts": {"total": 2, "completed": 2, "failed": 0}},
        {"status": "expired", "request_counts": {"total": 2, "completed": 1, "failed": 1}, "error_file_id": "file-1"},
        {},
    ],
)
def test_an_end_that_names_no_answers_is_waited_on_and_then_billed_as_unknown(play: Stage, said: Any) -> None:
    batch = _begun(play)
    play = _seen_as(play, **said)

    assert _looked(play, batch).state == "running"
    play.sql("update jobs set unknown_since = now() - interval '61 min' where id = :id", id=batch.id)
    ended = _looked(play, batch)

    assert (ended.state, ended.billed) == ("failed", "unknown")
    assert [attempt.billed for attempt in play.attempts(batch)] == ["unknown"]


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
def test_an_end_without_a_call_done_cost_nothing(play: Stage, status: str) -> None:
    batch = _begun(play)

    ended = _looked(_seen_as(play, status=status), batch)

    assert (ended.state, ended.billed) == ("failed", "no")


@pytest.mark.parametrize("status", ["in_progress", "resting"])
def test_a_batch_that_has_not_ended_a_day_after_its_window_is_given_up(play: Stage, status: str) -> None:
    batch = _begun(play)
    play.sql("update jobs set deadline_at = now() - interval '1 s' where id = :id", id=batch.id)

    ended = _looked(_seen_as(play, status=status), batch)

    assert (ended.state, ended.billed) == ("expired", "unknown")


def test_the_providers_file_is_deleted_when_its_batch_has_ended(play: Stage) -> None:
    play.until(_make(play, ["one.", "two."]))

    assert _calls(play)["file_delete"] == 1


def test_a_file_that_cannot_be_deleted_keeps_no_job(play: Stage) -> None:
    job = _make(play, ["one.", "two."])
    play.drive(lambda: play.sql("select state from jobs where parent_id = :id", id=job.id), _is_running)
    play.sandbox.fault(where="file", what="error", status=500)

    assert play.until(job).state == "succeeded"


def test_a_batch_that_waits_for_its_lane_uploads_its_file_once(play: Stage) -> None:
    job = _make(play, ["one.", "two."])
    play.drive(lambda: play.sql("select id from jobs where parent_id = :id", id=job.id), bool)
    play.sql("update lanes set next_at = now() + interval '50 s'")
    for _ in range(4):
        _looked(play, _child(play, job))
    assert _child(play, job).state == "admitted"
    play.sql("update lanes set next_at = now()")
    _looked(play, _child(play, job))

    assert play.until(job).state == "succeeded"
    assert _calls(play)["file_upload"] == 1


def test_a_batch_that_is_throttled_uploads_its_file_once(play: Stage) -> None:
    play.sandbox.fault(where="batch_create", what="error", status=429, code="Throttling.RateQuota", times=1)
    job = _make(play, ["one.", "two."])
    play.drive(lambda: play.sql("select id from jobs where parent_id = :id", id=job.id), bool)
    while _child(play, job).state in ("queued", "admitted"):
        play.sql("update lanes set parked_until = null, next_at = now()")
        _looked(play, _child(play, job))

    assert _child(play, job).state == "running"
    assert _calls(play)["file_upload"] == 1


def test_a_batch_that_is_made_again_uploads_its_file_again_since_the_first_is_deleted(play: Stage) -> None:
    job = play.until(_make(play, ["one.", "two."], is_broken=True))
    assert _calls(play)["file_delete"] == 1
    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, job.id, play.now())

    play.until(job)

    assert (_calls(play)["file_upload"], _calls(play)["batch_create"]) == (2, 2)


def test_a_canceled_batch_that_was_never_made_is_held_for_nobody(play: Stage) -> None:
    play.sandbox.fault(where="batch_create", what="reset")
    job = _make(play, ["one.", "two."])
    states = play.drive(lambda: play.sql("select state from jobs where parent_id = :id", id=job.id), _is_uncertain)
    assert states
    play.sql("update jobs set attempts = 3, cancel_requested = true where id = :id", id=_child(play, job).id)

    assert play.until(_child(play, job)).state == "canceled"


def test_a_line_without_an_end_takes_no_memory_and_counts_as_nothing(play: Stage) -> None:
    counted = Bill(play.ctx.catalog.model(f"{MODEL}@batch"))
    used = {"response": {"body": {"usage": {"prompt_tokens": 10, "completion_tokens": 5}}}}
    good = json.dumps(used).encode()
    chunks = [good + b"\n", *[b"x" * (64 << 10)] * 1000, b"\n" + good[:20], good[20:]]

    passed = sum(len(chunk) for chunk in counted.read(chunks))

    assert passed == sum(map(len, chunks))
    assert counted.units == {"input_tokens": 20, "output_tokens": 10}


def _is_uncertain(rows: Any) -> bool:
    return bool(rows) and rows[0]["state"] == "uncertain"


def test_a_batch_that_was_proved_absent_three_times_waits_for_a_person(play: Stage) -> None:
    """What was refused, or never sent, is not among the three: it cost nothing, and left no doubt."""
    play.sandbox.fault(where="batch_create", what="error", code="Throttling", times=2)
    job = play.submit("summary", "qwen-flash", input={"mode": "batch", "documents": [{"text": "It tells of sales."}]})

    def outcomes() -> list[str]:
        play.sql("update jobs set run_at = now() where state in ('queued', 'admitted') and parent_id is not null")
        play.sql("update lanes set parked_until = null, next_at = now()")
        found = [attempt.outcome for child in _children(play, job) for attempt in play.attempts(child)]
        if found == ["refused", "refused"]:
            play.sandbox.fault(where="batch_create", what="reset")
        return found

    play.drive(outcomes, lambda _: any(child.state == "held" for child in _children(play, job)))

    assert outcomes() == ["refused", "refused", "absent", "absent", "unknown"]


def _children(play: Stage, job: Job) -> list[Job]:
    return [Job.of(row) for row in play.sql("select * from jobs where parent_id = :id", id=job.id)]
