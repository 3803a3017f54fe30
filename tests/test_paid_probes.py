"""What the doctor settles by calls that are paid: with the switch alone, and by what the provider really does."""

from __future__ import annotations

import json

import pytest
from peers import answers, peer
from stage import Stage
from test_doctor import examined, settings_of

from ops import doctor
from ops.cli.doctor import CHECKS
from ops.doctor import Exam, Verdict
from worker import money
from worker.settings import Account


def about(said: dict[Verdict, list[str]], word: str) -> tuple[Verdict, str]:
    """The one finding that has the word, and its verdict."""
    ((verdict, what),) = [(verdict, what) for verdict, found in said.items() for what in found if word in what]
    return verdict, what


def test_nothing_is_sent_without_the_switch(play: Stage) -> None:
    assert examined(play, "paid probes") == {Verdict.SKIPPED: ["nothing was asked that costs money"]}
    assert play.sandbox.ledger()["creates"] == []


def test_both_names_of_the_longest_answer_are_tried(play: Stage) -> None:
    verdict, what = about(examined(play, "paid probes", paid=True), "max_tokens")

    assert verdict is Verdict.WELL
    assert what.endswith("max_tokens holds, max_completion_tokens holds")


@pytest.mark.parametrize(
    ("refused", "verdict"), [("max_tokens", Verdict.WARNING), ("max_completion_tokens", Verdict.WELL)]
)
def test_a_name_that_is_refused_is_told_and_is_a_warning_if_it_is_the_catalogs(
    play: Stage, refused: str, verdict: Verdict
) -> None:
    play.sandbox.set(unknown_parameter=refused)

    told, what = about(examined(play, "paid probes", paid=True), "max_tokens")

    assert told is verdict
    assert f"{refused} is refused (invalid_parameter_error)" in what


def test_a_limit_that_is_taken_and_not_kept_is_no_limit(play: Stage) -> None:
    long = {
        "id": "c-1",
        "choices": [{"message": {"role": "assistant", "content": "1 2 3"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 61},
    }
    with peer(answers(200, json.dumps(long).encode())) as other:
        settings = settings_of(play, accounts=(Account(url=other.url),))
        exam = Exam(settings, play.ctx.catalog, play.ctx.engine, play.ctx.bucket, paid=True)
        found = list(doctor.examine(exam, [check for check in CHECKS if check.name == "paid probes"]))

    assert any("max_tokens is taken and not kept" in each.found.what for each in found)


@pytest.mark.parametrize(
    ("unit", "counts"),
    [("bytes", "bytes"), ("billed", "characters as they are billed"), ("characters", "characters")],
)
def test_what_the_limit_of_a_spoken_text_counts_is_found_out(play: Stage, unit: str, counts: str) -> None:
    play.sandbox.set(speech_unit=unit)

    told, what = about(examined(play, "paid probes", paid=True), "its limit of 600")
    unsafe, _ = about(examined(play, "paid probes", paid=True, speech_limit_unit="characters"), "its limit of 600")

    hint = "; NORIA_SPEECH_LIMIT_UNIT=characters makes fewer calls" if unit == "characters" else ""
    assert (told, what.partition("counts ")[2]) == (Verdict.WELL, counts + hint)
    assert unsafe is (Verdict.WELL if unit == "characters" else Verdict.WARNING)


def test_models_in_doubt_are_looked_for_without_paying_for_one(play: Stage) -> None:
    play.sandbox.set(ends={"qwen-image-3.0": "2026-01-01 00:00:00"})

    said = examined(play, "paid probes", paid=True)

    assert "qwen-image-3.0-pro" in about(said, ": there:")[1]
    assert "qwen-image-3.0," in about(said, ": not there:")[1] + ","
    assert not [task for task in play.sandbox.ledger()["tasks"] if "image" in task["model"]]


def test_what_the_probes_cost_is_told_and_is_what_the_provider_bills(play: Stage) -> None:
    said = examined(play, "paid probes", paid=True)

    told = about(said, "by the catalog's prices this cost")[1].split()[-2]
    assert 0.05 < float(told) < 0.12
    assert told == money.shown(play.sandbox.ledger()["totals"]["billed_micros"])
