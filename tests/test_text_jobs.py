"""Conversations as jobs: asked, answered into the row and the bucket, and paid for by what was used."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from stage import Stage, stage

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker.states import State

ASKED = {"prompt": "Name three colours.\n\nThey should be warm.", "max_tokens": 200}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(call_seconds=0)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    sandbox.reset()
    sandbox.set(call_seconds=0)
    with stage(environment, sandbox) as made:
        yield made


@pytest.mark.parametrize("model", ["qwen-plus", "qwen3.5-plus", "qwen3-32b"])
def test_a_question_is_answered_and_paid_for_by_its_tokens(play: Stage, sandbox: Sandbox, model: str) -> None:
    job = play.until(play.submit("text", model, input=ASKED))

    assert job.state == State.SUCCEEDED
    assert job.result is not None
    assert job.result["content"]
    assert job.result["finish_reason"] == "stop"
    paid = sandbox.ledger()["paid"][model]
    assert job.usage is not None
    assert (job.usage["input_tokens"], job.usage["output_tokens"]) == (paid["input_tokens"], paid["output_tokens"])
    assert job.cost == paid["billed_micros"]
    assert job.cost <= (job.estimate or 0)


def test_what_a_model_thought_is_kept_nowhere_unless_it_was_asked_for(play: Stage) -> None:
    silent = play.until(play.submit("text", "qwen-plus", input={**ASKED, "enable_thinking": True}))
    aloud = play.until(
        play.submit("text", "qwen-plus", input={**ASKED, "enable_thinking": True, "include_reasoning": True})
    )

    assert (silent.state, aloud.state) == (State.SUCCEEDED, State.SUCCEEDED)
    assert "reasoning" in (aloud.result or {})
    assert "reasoning" not in (silent.result or {})
    kept = [attempt.output for job in (silent, aloud) for attempt in play.attempts(job)]
    assert "reasoning_content" not in json.dumps(kept[0])


def test_an_answer_that_was_lost_is_asked_for_again(play: Stage, sandbox: Sandbox) -> None:
    sandbox.fault(where="create", what="lost_answer", times=1)

    job = play.until(play.submit("text", "qwen-plus", input=ASKED))

    assert job.state == State.SUCCEEDED
    assert [attempt.billed for attempt in play.attempts(job)] == ["unknown", "yes"]
    assert sandbox.ledger()["totals"]["creates"] == 2


def test_json_that_was_asked_for_is_read_and_held_against_its_schema(play: Stage) -> None:
    schema = {"type": "object", "properties": {"summary": {"type": "string"}}, "required": ["summary"]}
    fit = play.until(play.submit("text", "qwen-plus", input={**ASKED, "response_format": schema}))
    never = {"type": "object", "required": ["colour"], "properties": {"colour": {"not": {}}}}
    unfit = play.until(play.submit("text", "qwen-plus", input={**ASKED, "response_format": never}))

    assert isinstance((fit.result or {})["json"]["summary"], str)
    assert "json" not in (unfit.result or {})
    assert "colour" in (unfit.result or {})["json_error"]


def test_searches_are_paid_for_and_counted(play: Stage, sandbox: Sandbox) -> None:
    job = play.until(play.submit("text", "qwen3.6-plus", input={**ASKED, "enable_search": True}))

    assert (job.usage or {})["searches"] == 1
    assert job.cost == sandbox.ledger()["paid"]["qwen3.6-plus"]["billed_micros"] <= (job.estimate or 0)
    assert (job.cost or 0) >= 4_000


@pytest.mark.parametrize(("refused", "paid"), [("max_tokens", 1), ("temperature", 0)])
def test_a_limit_that_is_refused_by_name_goes_once_by_its_other_name(
    play: Stage, sandbox: Sandbox, refused: str, paid: int
) -> None:
    sandbox.set(unknown_parameter=refused)

    job = play.until(play.submit("text", "qwen3.6-plus", input={**ASKED, "temperature": 1.0}))

    assert (job.state == State.SUCCEEDED, sandbox.ledger()["totals"]["tasks"]) == (bool(paid), paid)
    assert len(play.attempts(job)) == 1


def test_how_likely_the_words_were_is_kept_where_it_was_asked_for(play: Stage) -> None:
    job = play.until(play.submit("text", "qwen-plus", input={**ASKED, "logprobs": True, "top_logprobs": 1}))

    likely = (job.result or {})["logprobs"]["content"]
    assert "".join(word["token"] for word in likely) == (job.result or {})["content"].replace(" ", "").replace("\n", "")


def test_a_question_may_be_asked_as_a_task_where_the_account_may(play: Stage, sandbox: Sandbox) -> None:
    sandbox.set(async_text=True, run_seconds=0, queue_seconds=0)

    job = play.until(play.submit("text", "qwen-plus", input={**ASKED, "asynchronous": True}))

    assert (job.state, job.mode, job.model) == (State.SUCCEEDED, "task", "qwen-plus@tasks")
    assert (job.result or {})["content"]
    (paid,) = sandbox.ledger()["tasks"]
    assert (paid["is_async"], job.cost) == (True, paid["billed_micros"])


def test_an_account_that_may_make_no_tasks_of_text_is_told_so_unpaid(play: Stage, sandbox: Sandbox) -> None:
    job = play.until(play.submit("text", "qwen-plus", input={**ASKED, "asynchronous": True}))

    assert (job.state, (job.error or {})["code"], job.billed) == (State.FAILED, "wrong_mode", "no")
    assert "asynchronous" in (job.error or {})["message"]
    assert sandbox.ledger()["totals"]["billed_micros"] == 0
