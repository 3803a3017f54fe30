"""Stories that go wrong: parts paid twice, parents that stay, small files that stop a worker, links told to others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from stage import Stage, stage
from test_edges import with_creates, with_queries
from test_fanout import ENDED, Album, _album

from ops.audit import audit
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import storage, timeouts
from worker.jobs import submission
from worker.kinds import KINDS, OFFERED, answers
from worker.kinds.kind import Expansion, Parent, Store
from worker.kinds.summary import documents
from worker.moves import children
from worker.states import State
from worker.tables import Job

PICTURES, CLIPS, VOICE, WORDS = "wan2.2-t2i-flash", "wan2.5-t2v-preview", "qwen3-tts-flash", "qwen-flash"
FAST = {"call_seconds": 0, "batch_validating_seconds": 0, "batch_run_seconds": 0, "batch_finalizing_seconds": 0}
_NOT_JSON = "the answer is no JSON: Out of range float values are not JSON compliant"
SPEAKING = "Hello there, says the wheel. And it turns on."


def _dies(_parent: Parent, _store: Store) -> Expansion:
    raise RuntimeError("a mistake of the kind's")


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    album = _album(True)
    broken = replace(album, name="broken", expand=_dies)
    for kind in (album, _album(False), broken):
        monkeypatch.setitem(KINDS, kind.name, kind)
        monkeypatch.setitem(OFFERED, kind.name, kind)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.05, queue_seconds=0, **FAST)) as made:
        yield made


@pytest.fixture
def play(sandbox: Sandbox, environment: dict[str, str]) -> Iterator[Stage]:
    with stage(environment, sandbox, documents_allow="127.0.0.0/8") as made:
        yield made


def pictures(play: Stage, *prompts: str, kind: str = "album") -> Job:
    return play.submit(kind, PICTURES, input=Album(rounds=[list(prompts)]).model_dump())


def parts(play: Stage, job: Job) -> list[Job]:
    rows = play.sql("select * from jobs where parent_id = :id order by round, place", id=job.id)
    return [Job.of(row) for row in rows]


def divided(play: Stage, job: Job, count: int = 1) -> list[Job]:
    found: list[Job] = play.drive(lambda: parts(play, job), lambda made: len(made) >= count)
    return found


def bill(play: Stage) -> int:
    micros: int = play.sandbox.ledger()["totals"]["billed_micros"]
    return micros


def settled(play: Stage, job: Job) -> int:
    return sum(micros for entry, micros in play.ledger(job) if entry == "settle")


def kept(play: Stage, name: str, data: bytes) -> str:
    key = f"inbox/{play.project.name}/{name}"
    play.ctx.bucket.put_stream(key, [data], "application/octet-stream", storage.Expected())
    return key


def again(play: Stage, job: Job) -> Job:
    with play.ctx.engine.begin() as connection:
        return submission.retry(connection, play.project.id, job.id, play.now())


def lapsing(play: Stage, times: int) -> None:
    """Everything that is due, again and again, every lease and every wait between lapsed."""
    for _ in range(times):
        play.play(play.tick())
        play.sql("update jobs set run_at = now() - interval '1 s' where run_at is not null")


def said(content: str) -> dict[str, Any]:
    """A provider's answer in words, to a call."""
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    used = {"input_tokens": 10, "output_tokens": 10, "total_tokens": 20}
    return {"status_code": 200, "json": {"output": {"choices": [choice]}, "usage": used, "request_id": "r"}}


def in_time(program: str) -> None:
    """Runs a line of Python in a process of its own; a thread of ours could not be stopped."""
    subprocess.run([sys.executable, "-c", program], timeout=15, check=True)


# What stops a worker


def test_a_file_of_comments_stops_no_worker() -> None:
    read = "from worker.kinds.summary import documents; documents.text_of(b' <!--x-->' * 60 + b'x')"

    in_time(read)


def test_a_charset_whose_decoder_takes_the_square_of_the_time_stops_no_worker() -> None:
    data = "b'abc-' + b'b9a' * 600_000"
    read = f"from worker.kinds.summary import documents; documents.text_of({data}, 'text/plain; charset=punycode')"

    in_time(read)


def test_a_regular_expression_in_a_users_schema_is_not_run() -> None:
    schema = {"patternProperties": {"(a+)+$": {}}, "additionalProperties": False}

    answer = json.dumps({"a" * 32 + "!": 1})

    in_time(
        f"from worker.kinds import answers; answers.schema_fault({schema}) or answers.parsed_json({answer!r}, {schema})"
    )


# What crashes a step for ever


def test_a_page_that_the_parser_rejects_is_unreadable() -> None:
    with pytest.raises(documents.Unreadable):
        documents.text_of(b"<html><![ab[")


def test_a_page_that_the_parser_rejects_ends_its_job(play: Stage) -> None:
    job = play.submit("summary", WORDS, input={"documents": [{"key": kept(play, "a.html", b"<html><![ab[")}]})

    lapsing(play, 8)

    assert play.job(job).state == State.FAILED


def test_a_parent_that_three_workers_died_on_waits_for_a_person(play: Stage) -> None:
    job = play.submit("broken", PICTURES, input={"rounds": [["one"]]})

    lapsing(play, 8)

    assert play.job(job).state == State.HELD


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/title", "title": "foo"},
        {"$ref": "#/enum/0", "enum": [5]},
        {"$ref": "#/allOf/x", "allOf": [{}]},
    ],
)
def test_a_reference_that_leads_to_no_schema_is_a_misfit_and_no_crash(schema: dict[str, Any]) -> None:
    assert answers.schema_fault(schema) is None, (
        "a schema by its form: it is seen only when an answer is held against it"
    )

    with pytest.raises(answers.Unfitting, match="the schema cannot be followed"):
        answers.parsed_json('{"a": 1}', schema)


@pytest.mark.parametrize(
    ("content", "wanted", "kept"),
    [
        # the answer cannot be held against it
        (
            '{"a": 1}',
            {"$ref": "#/title", "title": "foo"},
            {"json_error": "the schema cannot be followed: AttributeError"},
        ),
        ('{"a": "\\u0000"}', "json", {"json": {"a": "\ufffd"}}),  # Postgres takes no NUL
        ('{"a": "\\ud83d"}', "json", {"json": {"a": "\ufffd"}}),  # nor half of a character
        ('{"a": NaN}', "json", {"json_error": _NOT_JSON}),  # nor what is no JSON
    ],
)
def test_an_answer_that_cannot_be_kept_is_paid_for_once(
    play: Stage, content: str, wanted: Any, kept: dict[str, Any]
) -> None:
    play = with_creates(play, *[said(content)] * 20)
    job = play.submit("text", WORDS, input={"prompt": "Say it in JSON.", "response_format": wanted})

    lapsing(play, 14)

    ended = play.job(job)
    assert (ended.state, len(play.attempts(job))) == (State.SUCCEEDED, 1)
    assert {name: told for name, told in (ended.result or {}).items() if name.startswith("json")} == kept
    assert settled(play, job) == ended.cost


def test_half_a_character_in_a_summary_does_not_lose_all_of_them(play: Stage) -> None:
    play = with_creates(play, *[said('{"title": "cut \\ud83d"}')] * 4)
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    job = play.submit(
        "summary", WORDS, input={"mode": "calls", "documents": [{"text": "A."}], "style": {"schema": schema}}
    )

    lapsing(play, 14)

    assert play.job(job).state == State.SUCCEEDED


# Parents that stay


def test_a_cancel_that_comes_while_the_last_parts_are_made_reaches_them(play: Stage) -> None:
    play.sql("update lanes set concurrency = 0 where model = :model", model=PICTURES)
    job = play.until(pictures(play, "one", "two"), State.GATHERING)
    taken, step, clock = play.begin(job)
    move = next(step)
    assert play.cancel(job) == "requested"
    play.ctx.record(taken, move, clock)
    for _ in step:
        pass

    for _ in range(3):
        play.sql("update duties set due_at = now() where name = 'gather'")
        play.play(play.tick())

    assert [part.state for part in parts(play, job)] == ["canceled", "canceled"]


def test_a_part_that_is_refused_after_the_cancel_does_not_wait_for_its_lane(play: Stage) -> None:
    job = pictures(play, "one")
    (part,) = divided(play, job)
    taken, step, clock = play.begin(part)
    begun = play.ctx.record(taken, next(step), clock)
    play.cancel(job)
    play.play(play.tick())
    play.sandbox.fault(
        where="create", what="error", status=429, code="Throttling.AllocationQuota", message="daily quota exceeded"
    )
    play.ctx.record(begun, step.send(begun), clock)  # type: ignore[attr-defined]
    play.sandbox.clear_faults()

    for _ in range(3):
        play.sql("update duties set due_at = now() where name = 'gather'")
        play.play(play.tick())

    assert play.job(job).state == State.CANCELED


@pytest.mark.parametrize("state", [State.GATHERING, State.COPYING])
def test_what_is_gone_from_the_bucket_is_not_waited_for_for_ever(play: Stage, state: State) -> None:
    job = play.submit("speech", VOICE, input={"text": SPEAKING})
    play.until(job, State.GATHERING)
    play.drive(lambda: parts(play, job), lambda made: bool(made) and all(part.finished_at for part in made))
    play.until(job, state)
    for part in parts(play, job):
        for output in play.document(part)["outputs"]:
            play.ctx.bucket.delete(output["key"])
    play.sql("update jobs set state_at = now() - interval '3 days' where id = :id", id=job.id)

    lapsing(play, 6)

    assert play.job(job).state in (State.FAILED, State.EXPIRED, State.HELD)


def test_a_recording_that_cannot_be_joined_is_spoken_again_by_a_retry(play: Stage) -> None:
    job = play.submit("speech", VOICE, input={"text": SPEAKING})
    play.drive(lambda: parts(play, job), lambda made: bool(made) and all(part.finished_at for part in made))
    for part in parts(play, job):
        (output,) = play.document(part)["outputs"]
        play.ctx.bucket.put_stream(output["key"], [b"not a sound"], "audio/wav", storage.Expected())
    assert play.until(job).state == State.FAILED

    again(play, job)

    assert play.until(job).state == State.SUCCEEDED


def test_a_file_that_the_provider_will_not_take_ends_its_batch(play: Stage) -> None:
    play.sandbox.fault(where="file", what="error", status=400, code="InvalidParameter", message="too many files")
    documents = [{"id": f"d{n}", "text": f"Document {n} tells of sales."} for n in range(3)]
    job = play.submit("summary", WORDS, input={"mode": "batch", "documents": documents})
    (batch,) = divided(play, job)

    lapsing(play, 8)

    assert play.job(batch).state == State.FAILED


def test_a_batch_in_a_state_that_nobody_knows_is_waited_on(play: Stage) -> None:
    play.sandbox.set(batch_run_seconds=60.0)
    documents = [{"id": f"d{n}", "text": f"Document {n} tells of sales."} for n in range(3)]
    job = play.submit("summary", WORDS, input={"mode": "batch", "documents": documents})
    (batch,) = divided(play, job)
    play.until(batch, State.RUNNING)
    queued = {"id": play.job(batch).task_id, "status": "queued", "object": "batch"}
    play = with_queries(play, {"status_code": 200, "json": queued})

    lapsing(play, 3)

    assert play.job(batch).state == State.RUNNING


# Money


def test_what_a_job_reserved_again_is_given_back_when_it_is_canceled(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", status=400, code="InvalidParameter", times=1)
    job = play.until(play.submit())
    assert job.state == State.FAILED
    again(play, job)

    assert play.cancel(job) == "canceled"

    assert sum(micros for _, micros in play.ledger(job)) == 0


def test_a_part_whose_first_call_made_nothing_is_charged_once(play: Stage) -> None:
    play.sandbox.fault(where="create", what="reset", times=1)
    job = play.until(pictures(play, "one"))

    assert [attempt.outcome for attempt in play.attempts(parts(play, job)[0])] == ["absent", "accepted"]
    assert settled(play, job) == job.cost == bill(play)


def test_a_batch_whose_answer_was_lost_is_charged_what_its_lines_used(play: Stage) -> None:
    play.sandbox.fault(where="batch_create", what="lost_answer", times=1)
    documents = [{"id": f"d{n}", "text": f"Document {n} tells of sales."} for n in range(3)]
    job = play.until(play.submit("summary", WORDS, input={"mode": "batch", "documents": documents}))

    assert job.state == State.SUCCEEDED
    assert settled(play, job) == job.cost == bill(play)


def test_a_call_whose_answer_was_lost_stays_on_the_ledger(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    job = play.submit("text", WORDS, input={"prompt": "Name three colours.", "max_tokens": 50})
    lapsing(play, 10)

    assert play.job(job).state == State.SUCCEEDED
    assert settled(play, job) >= bill(play)


def test_a_parent_says_what_its_lost_calls_may_have_cost(play: Stage) -> None:
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    job = play.submit("speech", VOICE, input={"text": SPEAKING})
    lapsing(play, 14)

    assert play.job(job).state == State.SUCCEEDED
    assert play.job(job).cost == settled(play, job) == bill(play)


def test_a_part_that_expired_and_was_made_again_cost_both(play: Stage) -> None:
    play.sandbox.fault(where="link", what="purged")
    job = play.until(pictures(play, "one"))
    assert job.state == State.FAILED
    play.sandbox.clear_faults()
    again(play, job)

    done = play.until(job)

    assert done.state == State.SUCCEEDED
    assert done.cost == settled(play, job) == bill(play)


def test_a_held_parent_that_is_given_up_says_what_its_parts_cost(play: Stage) -> None:
    job = play.until(pictures(play, "one"), State.COPYING)
    for _ in range(3):
        play.take(job)
        play.lapse(job)
    play.tick()
    assert play.job(job).state == State.HELD

    play.cancel(job)

    assert (play.job(job).cost, play.job(job).billed) == (bill(play), "yes")


@pytest.mark.parametrize("ends", ["canceled", "made again"])
def test_the_audit_finds_no_fault_with_what_a_person_did(play: Stage, ends: str) -> None:
    if ends == "canceled":
        play.sql("update lanes set concurrency = 0 where model = :model", model=PICTURES)
        job = pictures(play, "one", "two")
        divided(play, job, 2)
        play.cancel(job)
    else:
        play.sandbox.fault(where="create", what="task_fails", code="DataInspectionFailed", times=1)
        job = play.until(pictures(play, "one"))
        again(play, job)
    play.until(job)

    assert audit(play.ctx.engine) == []


# Limits and time


def test_the_end_of_a_part_costs_no_look_at_all_of_its_siblings(play: Stage) -> None:
    play.sql("update lanes set concurrency = 0 where model = :model", model=PICTURES)
    job = play.submit("album", PICTURES, input={"rounds": [[f"picture {n}" for n in range(3000)]], "portion": 1000})
    divided(play, job, 3000)
    play.sql(ENDED + " where parent_id = :id and place > 0", id=job.id)
    play.sql("analyze jobs")

    with play.ctx.engine.begin() as connection:
        asked = text("explain (analyze, buffers, format json) " + children._WAKE.text)
        plan = connection.execute(asked, {"parent": job.id, "all_or_none": ["album"]}).scalar_one()

    assert plan[0]["Plan"]["Shared Hit Blocks"] < 60


def test_one_call_that_takes_too_many_tokens_does_not_close_the_day_for_others(
    environment: dict[str, str], sandbox: Sandbox
) -> None:
    with stage(environment, sandbox, limits={WORDS: {"tpd": 3000, "rpm": 6000}}) as play:
        play.until(play.submit("text", WORDS, input={"prompt": "Name a colour.", "max_tokens": 100}))
        large = play.submit("text", WORDS, input={"prompt": "Name colours.", "max_tokens": 2990})
        lapsing(play, 3)
        assert play.job(large).finished_at is None

        small = play.submit("text", WORDS, input={"prompt": "Name a colour.", "max_tokens": 100})
        lapsing(play, 6)

        assert play.job(small).state == State.SUCCEEDED


def test_a_lease_outlasts_the_uploads_and_the_call_under_it() -> None:
    frames = 2  # a first picture and a last one, or a picture and sound; each is given as long as a create

    assert timeouts.LEASES["submit"] > (frames + 1) * timeouts.CREATE


def test_a_link_that_does_not_answer_is_not_asked_three_times_at_once(play: Stage) -> None:
    job = play.submit("summary", WORDS, input={"documents": [{"url": "http://127.0.0.1:9/a.txt"}], "mode": "calls"})
    play.until(job, State.GATHERING)

    play.play(play.tick())

    looked = play.job(job)
    assert looked.note is not None
    assert looked.run_at is not None
    assert looked.note["tries"] == {"0": 1}
    assert looked.run_at > play.now() + timedelta(seconds=1)


# What is told


def test_a_users_signed_link_is_told_to_nobody(play: Stage) -> None:
    link = "http://127.0.0.1:9/a.txt?Expires=1&Signature=c2VjcmV0"
    job = play.until(play.submit("summary", WORDS, input={"documents": [{"url": link}], "mode": "calls"}))

    told = json.dumps([job.error, play.told], default=str)

    assert "c2VjcmV0" not in told


def test_a_job_whose_account_was_renamed_is_still_sent(play: Stage) -> None:
    job = play.submit()
    play.tick()
    play.sql("update jobs set account = 'its-old-name', run_at = now(), claimed = null where id = :id", id=job.id)

    assert play.until(job).state == State.SUCCEEDED
