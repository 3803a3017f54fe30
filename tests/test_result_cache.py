"""The result cache: an equal call of the project's own answers a job that allows it, and costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batching
import pytest
from stage import Stage, stage

from ops import audit
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import keys
from worker.batches import columns
from worker.errors import InvalidInput
from worker.jobs import review, submission
from worker.moves import fair_queue
from worker.states import State
from worker.tables import Job

MODEL = "qwen-plus"
ASKED = {"prompt": "Name three colours.", "max_tokens": 200}
DOCUMENTS = [{"id": f"d{n}", "text": f"Document {n} tells of sales."} for n in range(3)]
HOOK = "https://example.com/hooks"
KILLER = Path(__file__).parent / "killer.py"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(call_seconds=0)) as made:
        yield made


def ask(play: Stage, cache_days: int | None = 7, model: str = MODEL, **more: Any) -> Job:
    """A question, driven to its end."""
    return play.until(play.submit("text", model, cache_days=cache_days, **{"input": ASKED, **more}))


def calls(play: Stage) -> int:
    """How many the provider answered."""
    return len(play.sandbox.ledger()["tasks"])


def allow(play: Stage, days: int) -> None:
    with play.ctx.engine.begin() as connection:
        keys.set_project(connection, play.project.name, cache_days=days)


def test_an_equal_question_is_answered_without_a_call_and_costs_nothing(play: Stage) -> None:
    first = ask(play)

    again = ask(play, webhook_url=HOOK)

    assert calls(play) == 1
    assert again.result == first.result
    assert (again.cached_from, again.cost, again.billed, again.usage) == (first.id, 0, "no", {})
    assert play.attempts(again) == []
    assert play.states(again) == ["queued", "admitted", "copying", "succeeded"]
    assert [output["role"] for output in play.document(again)["outputs"]] == ["answer"]


def test_what_was_reserved_for_it_is_given_back(play: Stage) -> None:
    ask(play)

    again = ask(play)

    estimate = again.estimate
    assert estimate
    assert play.ledger(again) == [("reserve", estimate), ("release", -estimate)]
    assert audit.audit(play.ctx.engine) == []


def test_its_document_and_its_webhook_name_the_job_that_paid(play: Stage) -> None:
    first = ask(play)

    again = ask(play, webhook_url=HOOK)

    shown, told = play.document(again), json.loads(play.deliveries()[-1].body)["data"]
    assert shown["cached_from"] == told["cached_from"] == str(first.id)
    assert (shown["cost"]["actual"], shown["cost"]["billed"]) == ("0.00", "no")
    (event,) = play.sql("select why from events where job_id = :id and entered = 'copying'", id=again.id)
    assert str(first.id) in event["why"]


def test_nothing_of_its_lane_is_used_up(play: Stage) -> None:
    ask(play)
    before = play.sql("select next_at, passed, day_tokens, tokens_at from lanes where model = :m", m=MODEL)

    ask(play)

    assert play.sql("select next_at, passed, day_tokens, tokens_at from lanes where model = :m", m=MODEL) == before


@pytest.mark.parametrize(
    "other",
    [
        {"input": {**ASKED, "prompt": "Name four colours."}},
        {"input": {**ASKED, "max_tokens": 201}},
        {"input": {**ASKED, "temperature": 0.5}},
        {"input": {**ASKED, "seed": 3}},
        {"input": {**ASKED, "system": "Be brief."}},
        {"input": {**ASKED, "response_format": "json"}},
        {"input": {**ASKED, "enable_thinking": True}},
        {"model": "qwen-flash"},
    ],
    ids=str,
)
def test_another_question_is_asked(play: Stage, other: dict[str, Any]) -> None:
    ask(play)

    assert ask(play, **other).cached_from is None
    assert calls(play) == 2


def test_an_answer_without_its_reasoning_is_not_given_to_who_wants_that(play: Stage) -> None:
    thinks = {**ASKED, "enable_thinking": True}
    ask(play, input=thinks)

    aloud = ask(play, input={**thinks, "include_reasoning": True})

    assert aloud.cached_from is None
    assert "reasoning" in (aloud.result or {})
    assert ask(play, input={**thinks, "include_reasoning": True}).cached_from == aloud.id


def test_who_did_not_ask_for_it_pays(play: Stage) -> None:
    ask(play)

    assert ask(play, cache_days=None).cached_from is None
    assert ask(play, cache_days=0).cached_from is None


def test_a_project_says_it_for_the_jobs_that_do_not(play: Stage) -> None:
    first = ask(play, cache_days=None)
    allow(play, 7)

    assert ask(play, cache_days=None).cached_from == first.id
    assert ask(play, cache_days=0).cached_from is None


def test_an_answer_is_never_another_projects(play: Stage) -> None:
    ask(play)
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "autumn-campaign")

    assert ask(play, project=other).cached_from is None


def test_an_older_answer_than_the_job_allows_is_not_given(play: Stage) -> None:
    ask(play)
    play.sql("update attempts set answered_at = now() - interval '49 hours'")

    assert ask(play, cache_days=2).cached_from is None
    play.sql("update attempts set answered_at = now() - interval '47 hours'")
    assert ask(play, cache_days=2).cached_from is not None


def test_an_answer_from_the_cache_makes_nothing_younger(play: Stage) -> None:
    first = ask(play)
    assert ask(play).cached_from == first.id

    play.sql("update attempts set answered_at = now() - interval '8 days'")

    assert ask(play).cached_from is None


def test_what_was_deleted_is_not_found(play: Stage) -> None:
    ask(play)
    play.sql("update attempts set output = null")

    assert ask(play).cached_from is None


@pytest.mark.parametrize(
    "harm",
    [
        "update jobs set state = 'failed'",
        "update jobs set state = 'rejected', review = 'rejected'",
        "update jobs set state = 'awaiting_review', finished_at = null, review = 'required'",
        "update jobs set attempt_id = null",
    ],
)
def test_an_answer_that_did_not_stand_is_not_given(play: Stage, harm: str) -> None:
    ask(play)
    play.sql(harm)

    assert ask(play).cached_from is None


def test_an_answer_that_is_no_json_is_asked_for_again(play: Stage) -> None:
    wanted = {**ASKED, "response_format": "json"}
    first = ask(play, input=wanted)
    words = json.dumps({"output": {"choices": [{"message": {"content": "no"}}]}})
    play.sql("update attempts set output = cast(:o as jsonb)", o=words)

    again = ask(play, input=wanted)

    assert (again.cached_from, again.id != first.id) == (None, True)
    assert ask(play, input=wanted).cached_from == again.id


def test_an_answer_of_a_less_strict_account_is_not_given(environment: dict[str, str], sandbox: Sandbox) -> None:
    sandbox.reset()
    account = {"name": "default", "url": sandbox.url, "key": "sk-a"}
    with stage(environment, sandbox, accounts=[account]) as play:
        ask(play)
        play.sql("update attempts set account = 'before'")  # of whose strictness nothing is known any more

        assert ask(play).cached_from is None


def test_who_wants_it_once_more_gets_another_answer(play: Stage) -> None:
    ask(play)
    job = play.submit("text", MODEL, input=ASKED, cache_days=7)
    assert play.cancel(job) == "canceled"

    with play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, job.id, play.now())

    assert play.until(job).cached_from is None


def test_a_re_roll_is_another_answer(play: Stage) -> None:
    allow(play, 7)
    first = ask(play, input={**ASKED, "seed": 3})
    job = play.until(play.submit("text", MODEL, input=ASKED, review="required"), State.AWAITING_REVIEW)
    with play.ctx.engine.begin() as connection:
        rejected = review.reject(connection, play.project.id, job.id, "no", play.now())
        take = review.reroll(connection, play.ctx.catalog, play.ctx.settings, rejected, {"seed": 3}, play.now())

    assert play.until(take, State.AWAITING_REVIEW).cached_from is None
    assert ask(play, input={**ASKED, "seed": 3}).cached_from == first.id


def test_a_batchs_file_has_a_column_for_it() -> None:
    (column,) = columns.columns(["Cache days"])

    assert (column.pointer, column.meaning("7"), column.meaning("a week")) == ("/cache_days", 7, "a week")


def test_a_cached_answer_waits_for_its_review_too(play: Stage) -> None:
    first = ask(play)

    job = play.until(play.submit("text", MODEL, input=ASKED, cache_days=7, review="required"), State.AWAITING_REVIEW)

    assert (job.cached_from, job.sources) == (first.id, None)


def test_a_call_that_may_be_billed_is_not_hidden_behind_a_free_answer(play: Stage) -> None:
    ask(play)
    play.sandbox.fault(where="create", what="lost_answer", times=1)
    job = play.until(play.submit("text", MODEL, input=ASKED), State.UNCERTAIN, State.QUEUED)
    job = play.drive(lambda: play.job(job), lambda found: found.billed == "unknown")
    play.sql("update jobs set cache_days = 7, run_at = now() where id = :id", id=job.id)

    job = play.until(job)

    assert (job.cached_from, job.billed) == (None, "yes")


def test_equal_jobs_at_the_same_time_may_both_pay(play: Stage) -> None:
    both = [play.submit("text", MODEL, input=ASKED, cache_days=7) for _ in range(2)]

    ended = [play.until(job) for job in both]  # one message has both: the first has not ended when the second looks

    assert [job.cached_from for job in ended] == [None, None]
    assert calls(play) == 2


def test_only_answers_in_words_are_kept(play: Stage) -> None:
    with pytest.raises(InvalidInput) as refused:
        play.submit(cache_days=7)

    (fault,) = refused.value.faults
    assert (fault.pointer, fault.code) == ("/cache_days", "not_cached")
    allow(play, 7)
    assert play.submit().cache_days == 0


def test_a_nightly_summary_pays_for_new_documents_alone(play: Stage) -> None:
    said = {"mode": "calls", "documents": DOCUMENTS}
    first = play.until(play.submit("summary", "qwen-flash", input=said))
    paid = calls(play)
    more = [*DOCUMENTS, {"id": "new", "text": "A new document tells of costs."}]

    night = play.until(play.submit("summary", "qwen-flash", input={**said, "documents": more}, cache_days=7))

    assert (first.state, night.state) == (State.SUCCEEDED, State.SUCCEEDED)
    assert (paid, calls(play)) == (3, 4)
    assert night.usage is not None
    assert (night.usage["calls"], night.usage["cached"]) == (1, 3)
    assert night.cost == play.sandbox.ledger()["tasks"][-1]["billed_micros"]
    free = play.sql(
        "select cost, billed, state from jobs where parent_id = :id and cached_from is not null", id=night.id
    )
    assert [tuple(row.values()) for row in free] == [(0, "no", "succeeded")] * 3
    assert audit.audit(play.ctx.engine) == []


def test_a_summary_of_known_documents_alone_costs_nothing(play: Stage) -> None:
    said = {"mode": "calls", "documents": DOCUMENTS}
    play.until(play.submit("summary", "qwen-flash", input=said))

    again = play.until(play.submit("summary", "qwen-flash", input=said, cache_days=1))

    assert (again.billed, calls(play)) == ("no", 3)
    assert sum(micros for _, micros in play.ledger(again)) == 0
    assert audit.audit(play.ctx.engine) == []


def test_a_row_of_a_batch_may_allow_it(play: Stage) -> None:
    first = ask(play)
    rows = [{"kind": "text", "model": MODEL, "input": ASKED, "cache_days": days} for days in (7, 0)]

    batch = batching.committed(play, rows)

    batching.ended(play, batch)
    assert [job.cached_from for job in batching.jobs(play, batch)] == [first.id, None]


@pytest.mark.parametrize("point", ["taken", "made", "recorded", "ended"])
def test_a_worker_that_is_killed_pays_nothing_and_loses_nothing(
    play: Stage, environment: dict[str, str], sandbox: Sandbox, point: str
) -> None:
    first = ask(play)
    job = play.submit("text", MODEL, input=ASKED, cache_days=7)
    while play.job(job).state != State.ADMITTED:
        with play.ctx.engine.begin() as connection:
            fair_queue.admit(connection, play.now())

    killed = subprocess.run(
        [sys.executable, str(KILLER), str(job.id), point],
        env={**os.environ, **environment, "NORIA_DASHSCOPE_URL": sandbox.url},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9
    if play.job(job).claimed:
        play.lapse(job)
    job = play.until(job)

    assert (job.state, job.cached_from, calls(play)) == (State.SUCCEEDED, first.id, 1)
    assert sum(micros for _, micros in play.ledger(job)) == 0


def test_every_promise_about_cached_answers_that_the_rows_can_break_is_found_broken(play: Stage) -> None:
    ask(play)
    again = ask(play)
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "autumn-campaign")
    play.sql("update jobs set cost = 5 where id = :id", id=again.id)
    assert "M" in {finding.invariant for finding in audit.audit(play.ctx.engine)}
    play.sql("update jobs set cost = 0 where id = :id", id=again.id)

    play.sql("update jobs set project_id = :p where id = :id", p=other.id, id=again.cached_from)

    assert "I3" in {finding.invariant for finding in audit.audit(play.ctx.engine)}


def test_the_look_is_one_look_into_an_index(play: Stage) -> None:
    job = ask(play)
    play.sql(
        "insert into attempts (job_id, project_id, number, owner, account, region, model, request_hash, answered_at,"
        " output) select job_id, project_id, n, owner, account, region, model, request_hash, answered_at, output"
        " from attempts, generate_series(2, 3000) n"
    )
    play.sql("analyze attempts")
    plan = play.sql(
        "explain select output from attempts a join jobs j on j.id = a.job_id and j.attempt_id = a.id"
        " where a.project_id = :p and request_hash = '\\x00' and output is not null and answered_at > now()"
        " and a.account = any(array['default']) and j.state = 'succeeded' order by answered_at desc limit 1",
        p=job.project_id,
    )

    assert any("ix_attempts_answers" in row["QUERY PLAN"] for row in plan)
