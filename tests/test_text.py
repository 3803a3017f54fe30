"""The text kind: conversations checked, spelled for both surfaces, answers read, and JSON mended."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.sandbox import asking, models
from worker import catalog
from worker.catalog import Surface, Variant
from worker.errors import Fault, InvalidInput
from worker.kinds import Request, answers, text, text_batch
from worker.kinds.answers import Unfitting
from worker.kinds.text import Conversation

TODAY = date(2026, 11, 21)
QWEN = catalog.load().model("qwen-plus")
BEIJING, SINGAPORE = "cn-beijing", "ap-southeast-1"
ASKED = {"prompt": "Name three colours."}
THINKS = {**ASKED, "enable_thinking": True}
THOUGHT = {"enable_thinking": True}
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
COLOURS = {
    "type": "object",
    "properties": {"colours": {"type": "array", "items": {"type": "string"}}},
    "required": ["colours"],
}
CALLED = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
CALLING = {"role": "assistant", "tool_calls": CALLED}
ORPHAN = {"role": "tool", "content": "7", "tool_call_id": "call_1"}


def checked(name: str, **raw: Any) -> Conversation:
    wanted = text.KIND.check(catalog.load(), catalog.load().model(name), raw, BEIJING)
    assert isinstance(wanted, Conversation)
    return wanted


def request(name: str, **raw: Any) -> Request:
    return text.KIND.request(catalog.load().model(name), BEIJING, checked(name, **raw))


def faults(name: str, **raw: Any) -> dict[str, Fault]:
    with pytest.raises(InvalidInput) as raised:
        checked(name, **raw)
    return {fault.pointer: fault for fault in raised.value.faults}


# The input


def test_a_prompt_is_all_that_is_needed() -> None:
    assert checked("qwen-plus", **ASKED).model_dump(exclude_none=True) == {
        **ASKED,
        "max_tokens": 4096,
        "enable_thinking": False,
    }


@pytest.mark.parametrize(
    ("name", "raw", "pointer", "code"),
    [
        ("qwen-plus", {}, "/input/messages", "required"),
        ("qwen-plus", {"prompt": "  "}, "/input/prompt", "blank"),
        ("qwen-plus", {"prompt": "a", "messages": TURNS}, "/input/messages", "contradiction"),
        ("qwen-plus", {"system": "a", "messages": TURNS}, "/input/messages", "contradiction"),
        ("qwen-plus", {"messages": []}, "/input/messages", "no_question"),
        ("qwen-plus", {"messages": [*TURNS, TURNS[0]]}, "/input/messages", "misplaced"),
        ("qwen-plus", {"messages": [{"role": "user", "content": " "}]}, "/input/messages", "blank"),
        ("qwen-plus", {"messages": [*TURNS, {"role": "tool", "content": "7"}]}, "/input/messages", "required"),
        ("qwen-plus", {"messages": [{"role": "king", "content": "a"}]}, "/input/messages/0/role", "literal_error"),
        ("qwen-plus", {"messages": [{"role": "user", "content": "\0"}]}, "/input/messages/0/content", "bad_text"),
        ("qwen-plus", {"messages": [{"role": "user", "text": "a"}]}, "/input/messages/0/text", "unknown_field"),
        ("qwen-plus", {**ASKED, "temprature": 1}, "/input/temprature", "unknown_field"),
        ("qwen-plus", {**ASKED, "max_tokens": 0}, "/input/max_tokens", "greater_than_equal"),
        ("qwen-plus", {**ASKED, "max_tokens": 32_769}, "/input/max_tokens", "too_many"),
        ("qwen-max", {"prompt": "a b " * 60_000}, "/input/max_tokens", "too_long"),
        ("qwen-max", {**ASKED, "enable_thinking": True}, "/input/enable_thinking", "not_taken"),
        ("qwen-plus", {**ASKED, "thinking_budget": 100}, "/input/thinking_budget", "needs_thinking"),
        ("qwen-plus", {**THINKS, "thinking_budget": 50_000_000_000}, "/input/thinking_budget", "too_many"),
        ("qwen-plus", {**THINKS, "thinking_budget": 81_921}, "/input/thinking_budget", "too_many"),
        ("qwen-plus", {**ASKED, "include_reasoning": True}, "/input/include_reasoning", "needs_thinking"),
        ("qwen-plus", {**ASKED, **THOUGHT, "response_format": "json"}, "/input/response_format", "contradiction"),
        ("qwen-plus", {**ASKED, "response_format": {"type": "obect"}}, "/input/response_format", "bad_schema"),
        ("qwen-plus", {**ASKED, "response_format": {"const": "x" * 20_000}}, "/input/response_format", "bad_schema"),
        ("qwen-plus", {**ASKED, "tool_choice": "auto"}, "/input/tool_choice", "needs_tools"),
        ("qwen-plus", {**ASKED, "temperature": 2}, "/input/temperature", "less_than"),
        ("qwen-plus", {"messages": [*TURNS, ORPHAN]}, "/input/messages", "orphan"),
        ("qwen-plus", {"messages": [*TURNS, ORPHAN, CALLING]}, "/input/messages", "orphan"),
        ("qwen-plus", {**ASKED, "parallel_tool_calls": True}, "/input/parallel_tool_calls", "needs_tools"),
        ("qwen-plus", {**ASKED, "top_k": -1}, "/input/top_k", "greater_than_equal"),
        ("qwen-plus", {**ASKED, "repetition_penalty": 0}, "/input/repetition_penalty", "greater_than"),
        ("qwen-plus", {**ASKED, "presence_penalty": -2.1}, "/input/presence_penalty", "greater_than_equal"),
        ("qwen-plus", {**ASKED, "presence_penalty": 2.1}, "/input/presence_penalty", "less_than_equal"),
        ("qwen-plus", {**ASKED, "top_p": 0}, "/input/top_p", "greater_than"),
        ("qwen-plus", {**ASKED, "top_p": 1.1}, "/input/top_p", "less_than_equal"),
        ("qwen-plus", {**ASKED, "temperature": -0.1}, "/input/temperature", "greater_than_equal"),
        ("qwen3.7-max", {**ASKED, "presence_penalty": 1}, "/input/presence_penalty", "not_taken"),
        ("qwen-plus", {**ASKED, "top_logprobs": 1}, "/input/top_logprobs", "needs_logprobs"),
        ("qwen-plus", {**THINKS, "logprobs": True}, "/input/logprobs", "contradiction"),
        ("qwen-plus", {**ASKED, "enable_search": True}, "/input/enable_search", "not_taken"),
        ("qwen-plus", {**THINKS, "asynchronous": True}, "/input/asynchronous", "contradiction"),
        ("qwen3.6-plus", {**ASKED, "asynchronous": True}, "/input/asynchronous", "not_offered"),
        ("qwen3.6-plus", {**ASKED, "search_options": {}}, "/input/search_options", "needs_search"),
        ("qwen3.6-plus", {**ASKED, "enable_search": True, "search_options": {"search_strategy": "turbo"}},
         "/input/search_options/search_strategy", "literal_error"),
        ("wan2.6-t2v", ASKED, "/model", "wrong_kind"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_field(name: str, raw: dict[str, Any], pointer: str, code: str) -> None:
    found = faults(name, **raw)

    assert found[pointer].code == code
    assert len(found) == 1


@pytest.mark.parametrize("model", ["qwen-plus", "qwen3.6-plus", "qwen-plus@chat"])
@pytest.mark.parametrize(
    # the ends of the ranges that the provider tells ('Error messages', May 2026)
    "ends",
    [
        {"temperature": 0, "top_p": 1, "top_k": 0, "presence_penalty": -2, "repetition_penalty": 0.01},
        {"temperature": 1.99, "top_p": 0.01, "top_k": 101, "presence_penalty": 2, "repetition_penalty": 2},
    ],
)
def test_the_ends_of_each_range_are_taken_sent_in_calls_and_in_lines_and_not_refused(
    model: str, ends: dict[str, float]
) -> None:
    named = catalog.load().model(model)
    wanted = checked(model, **ASKED, **ends)

    call = text.KIND.request(named, "cn-beijing", wanted).body
    line = json.loads(text_batch.line(named, ["cn-beijing"], "0.0.1", wanted))["body"]

    parameters = call.get("parameters", call)
    assert {name: parameters[name] for name in ends} == {name: line[name] for name in ends} == ends
    asking.check(models.read("cn-beijing")[line["model"]], line["messages"], parameters)


def test_every_wrong_field_is_named_at_once() -> None:
    assert faults("qwen-plus", prompt="", tool_choice="auto", thinking_budget=1, colour=1).keys() == {
        "/input/prompt",
        "/input/tool_choice",
        "/input/thinking_budget",
        "/input/colour",
    }


def test_an_input_that_is_too_long_is_told_the_window() -> None:
    assert "32,768" in faults("qwen-max", prompt="a b " * 60_000)["/input/max_tokens"].message


def test_a_format_may_be_written_as_openai_has_it() -> None:
    as_openai = {"type": "json_schema", "json_schema": {"name": "colours", "schema": COLOURS}}

    assert checked("qwen-plus", **ASKED, response_format={"type": "json_object"}).response_format == "json"
    assert checked("qwen-plus", **ASKED, response_format={"type": "text"}).response_format == "text"
    assert checked("qwen-plus", **ASKED, response_format=as_openai).response_format == COLOURS


def test_a_stored_input_is_read_back_as_it_was() -> None:
    wanted = checked("qwen-plus", messages=[*TURNS], tools=[TOOL], stop=["a", "b"], response_format=COLOURS)

    assert Conversation.model_validate(json.loads(json.dumps(wanted.model_dump(exclude_none=True)))) == wanted


# The request; tests/test_official_samples.py has every model's plainest


def test_a_native_call_is_spelled_as_documented() -> None:
    assert request("qwen-plus", **ASKED, system="Be brief.", max_tokens=800, temperature=0.7, seed=1) == Request(
        "/services/aigc/text-generation/generation",
        {},
        {
            "model": "qwen-plus",
            "input": {
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED["prompt"]}]
            },
            "parameters": {
                "max_tokens": 800,
                "enable_thinking": False,
                "temperature": 0.7,
                "seed": 1,
                "result_format": "message",
            },
        },
    )


def test_a_model_that_sees_is_called_on_the_compatible_surface() -> None:
    assert request("qwen3.6-plus", messages=TURNS, tools=[TOOL], tool_choice="auto") == Request(
        "/chat/completions",
        {},
        {
            "model": "qwen3.6-plus",
            "messages": TURNS,
            "max_tokens": 4096,
            "enable_thinking": False,
            "tools": (TOOL,),
            "tool_choice": "auto",
        },
        surface=Surface.COMPATIBLE,
        instead={"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"},
    )


def test_the_longest_answer_is_called_what_the_catalog_says() -> None:
    model = catalog.load().model("qwen3.6-plus")
    renamed = model.model_copy(update={"answer_limit": "max_completion_tokens"})

    sent = text.KIND.request(renamed, BEIJING, checked("qwen3.6-plus", **ASKED)).body

    assert (sent["max_completion_tokens"], "max_tokens" in sent) == (4096, False)


def test_a_search_says_how_it_searches_since_that_is_its_price() -> None:
    plain = request("qwen3.6-plus", **ASKED, enable_search=True).body
    asked = {"search_strategy": "agent_max", "forced_search": True}
    other = request("qwen3.6-plus", **ASKED, enable_search=True, search_options=asked).body

    assert (plain["enable_search"], plain["search_options"]) == (True, {"search_strategy": "agent"})
    assert other["search_options"] == asked


def test_what_a_call_may_choose_from_is_sent_as_it_was_asked() -> None:
    asked = {"top_k": 20, "repetition_penalty": 1.05, "logprobs": True, "top_logprobs": 2}

    sent = request("qwen-plus", **ASKED, **asked, tools=[TOOL], parallel_tool_calls=True).body["parameters"]

    assert sent.items() >= {**asked, "parallel_tool_calls": True}.items()


def test_a_tools_answer_to_a_call_that_was_made_is_taken() -> None:
    assert checked("qwen-plus", messages=[*TURNS, CALLING, ORPHAN], tools=[TOOL]).messages is not None


@pytest.mark.parametrize("name", ["qwen-flash", "qwen3-32b", "qwen3-max"])
def test_a_model_that_could_think_is_told_not_to(name: str) -> None:
    assert request(name, **ASKED).body["parameters"]["enable_thinking"] is False


@pytest.mark.parametrize("name", ["qwen-plus-2025-09-11", "qwen-plus-latest", "qwen3.6-plus-2026-04-02"])
def test_a_call_is_for_the_version_that_was_asked_for(name: str) -> None:
    assert request(name, **ASKED).body["model"] == name


def test_a_model_that_cannot_think_is_told_nothing_of_it() -> None:
    assert "enable_thinking" not in request("qwen-max", **ASKED).body["parameters"]


def test_thinking_is_streamed() -> None:
    native = request("qwen-plus", **ASKED, enable_thinking=True, thinking_budget=500)
    compatible = request("qwen3.5-plus", **ASKED, enable_thinking=True, include_reasoning=True)

    assert (native.streams, native.reasoning) == (True, False)
    assert native.body["parameters"].items() >= {
        "enable_thinking": True, "thinking_budget": 500, "incremental_output": True, "result_format": "message",
    }.items()  # fmt: skip
    assert (compatible.streams, compatible.reasoning) == (True, True)
    assert compatible.body.items() >= {
        "enable_thinking": True, "stream": True, "stream_options": {"include_usage": True},
    }.items()  # fmt: skip
    assert "include_reasoning" not in compatible.body


def test_a_task_is_a_native_call_with_the_header_that_makes_it_one() -> None:
    variant = catalog.load().variant("qwen-plus", Variant.TASKS)
    assert variant is not None

    sent = text.KIND.request(variant, BEIJING, checked("qwen-plus", **ASKED))

    assert sent.headers == {"X-DashScope-Async": "enable"}
    assert sent.body["model"] == "qwen-plus"
    assert sent.body["parameters"]["enable_thinking"] is False


def test_a_line_of_a_batch_is_a_compatible_body_whatever_the_models_surface() -> None:
    model = catalog.load().model("qwen-plus")

    line = text.body(model, BEIJING, checked("qwen-plus", **ASKED), Surface.COMPATIBLE, streams=False)

    assert line == {
        "model": "qwen-plus",
        "messages": [{"role": "user", "content": ASKED["prompt"]}],
        "max_tokens": 4096,
        "enable_thinking": False,
    }


@pytest.mark.parametrize(
    ("wanted", "prompt", "told"),
    [
        ("json", "Name three colours.", "JSON"),
        ("json", "Name three colours as JSON.", None),
        (COLOURS, "Name three colours as JSON.", '"required": ["colours"]'),
    ],
)
def test_json_mode_says_the_word_that_the_provider_wants(wanted: Any, prompt: str, told: str | None) -> None:
    body = request("qwen-plus", prompt=prompt, system="Be brief.", response_format=wanted).body
    system = body["input"]["messages"][0]["content"]

    assert body["parameters"]["response_format"] == {"type": "json_object"}
    assert "json" in json.dumps(body["input"]).lower()
    assert system.startswith("Be brief.")
    assert (told in system) if told else (system == "Be brief.")


# The answer

ANSWER = {
    "output": {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Red."}}]},
    "usage": {
        "input_tokens": 12,
        "output_tokens": 21,
        "total_tokens": 33,
        "output_tokens_details": {"reasoning_tokens": 20},
        "prompt_tokens_details": {"cached_tokens": 8},
    },
}


@pytest.mark.parametrize(
    ("output", "result"),
    [
        (ANSWER["output"], {"content": "Red.", "finish_reason": "stop"}),
        ({"text": "Red.", "finish_reason": "length"}, {"content": "Red.", "finish_reason": "length"}),
        (
            {"choices": [{"finish_reason": "tool_calls", "message": {"content": "", "tool_calls": CALLED}}]},
            {"content": "", "finish_reason": "tool_calls", "tool_calls": CALLED},
        ),
        (
            {"choices": [{"finish_reason": "stop", "message": {"content": "Red.", "reasoning_content": "Hm."}}]},
            {"content": "Red.", "finish_reason": "stop", "reasoning": "Hm."},
        ),
        ({}, {"content": "", "finish_reason": None}),
        ({"choices": [None]}, {"content": "", "finish_reason": None}),
    ],
)
def test_an_answer_is_its_words_its_calls_and_why_it_ended(output: dict[str, Any], result: dict[str, Any]) -> None:
    assert text.result(output) == result
    assert (text.KIND.outputs(output), text.KIND.failures(output)) == ((), ())


@pytest.mark.parametrize(
    ("usage", "units"),
    [
        (
            ANSWER["usage"],
            {"input_tokens": 12, "output_tokens": 21, "cached_tokens": 8, "reasoning_tokens": 20},
        ),
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 21,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": None,
            },
            {"input_tokens": 12, "output_tokens": 21},
        ),
        (None, {"input_tokens": 18, "output_tokens": 2}),
    ],
)
def test_what_is_billed_is_read_in_either_surfaces_words(usage: Any, units: dict[str, Any]) -> None:
    wanted = checked("qwen-plus", **ASKED)

    assert text.KIND.usage(QWEN, wanted, {**ANSWER, "usage": usage}).units == {**units, "thinking": False}


def test_a_completion_as_a_batch_has_it_is_read_alike() -> None:
    completion = {"choices": ANSWER["output"]["choices"], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}  # type: ignore[index]

    assert text.result(completion)["content"] == "Red."  # type: ignore[index]
    assert text.KIND.usage(QWEN, Conversation.model_construct(), completion).units["input_tokens"] == 3


def test_the_estimate_is_never_below_what_the_longest_answer_costs() -> None:
    model = catalog.load().model("qwen-plus")
    plain = checked("qwen-plus", **ASKED, max_tokens=1000)
    thinking = checked("qwen-plus", **ASKED, max_tokens=1000, enable_thinking=True, thinking_budget=500)

    assert text.KIND.estimate(model, plain).units["output_tokens"] == 1000
    assert text.KIND.estimate(model, thinking).units["output_tokens"] == 1500
    assert model.price(text.KIND.estimate(model, thinking), BEIJING, TODAY) == 12_000 + 14  # 1,500 at 8, 18 at 0.8


def test_searches_are_priced_before_and_after() -> None:
    wanted = checked("qwen3.6-plus", **ASKED, enable_search=True, max_tokens=100)
    model = catalog.load().model("qwen3.6-plus")
    used = {"prompt_tokens": 3000, "completion_tokens": 10, "plugins": {"search": {"count": 2, "strategy": "agent"}}}

    before, after = text.KIND.estimate(model, wanted), text.KIND.usage(model, wanted, {**ANSWER, "usage": used})

    assert (before.units["searches"], after.units["searches"]) == (3, 2)
    assert model.price(after, BEIJING, TODAY) == 3000 * 2 + 10 * 12 + 2 * 4000
    assert (model.price(before, BEIJING, TODAY) or 0) > (model.price(after, BEIJING, TODAY) or 0)
    assert model.price(text.KIND.usage(model, checked("qwen3.6-plus", **ASKED), ANSWER), BEIJING, TODAY) is not None


def test_an_answer_gives_how_likely_its_words_were() -> None:
    likely = {"content": [{"token": "Red", "logprob": -0.1, "bytes": [82], "top_logprobs": []}]}
    output = {"choices": [{"finish_reason": "stop", "message": {"content": "Red."}, "logprobs": likely}]}

    assert text.result(output) == {"content": "Red.", "finish_reason": "stop", "logprobs": likely}


@pytest.mark.parametrize(
    ("written", "count"),
    [("", 0), ("a", 1), ("abc", 1), ("abcd", 2), ("一只小猫", 4), ("ねこ", 2), ("고양이", 3), ("猫cat", 2), ("😀", 2)],
)
def test_tokens_are_counted_rather_high(written: str, count: int) -> None:
    assert text.tokens(written) == count


def test_the_words_of_a_job_hold_nothing_of_the_conversation() -> None:
    assert text.KIND.words(checked("qwen-plus", messages=[*TURNS, TURNS[1]])).startswith("3 messages, ")
    assert text.KIND.words(checked("qwen-plus", prompt="a" * 3000)) == "1 message, 1,011 tokens"


# JSON


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('{"colours": ["red"]}', {"colours": ["red"]}),
        ('Sure!\n```json\n{"colours": ["red"]}\n```', {"colours": ["red"]}),
        ("{'colours': ['red',]}", {"colours": ["red"]}),
        ('{"colours": ["red"', {"colours": ["red"]}),
    ],
)
def test_json_is_mended_where_it_can_be(content: str, value: Any) -> None:
    assert answers.parsed_json(content, None) == value
    assert answers.parsed_json(content, COLOURS) == value


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("Red, green and blue.", "no JSON"),
        ("", "no JSON"),
        ('{"colors": []}', "'colours' is a required property"),
        ('{"colours": ["red", 7]}', "colours/1: 7 is not of type 'string'"),
    ],
)
def test_an_answer_that_does_not_fit_says_why(content: str, told: str) -> None:
    with pytest.raises(Unfitting, match=told):
        answers.parsed_json(content, COLOURS)


DEEP = functools.reduce(
    lambda part, _: {"allOf": [part], "unevaluatedProperties": False}, range(60), {"properties": {"a": {}}}
)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "https://127.0.0.1:1/schema.json"},
        {"$ref": "#/$defs/nothing"},
        {
            "$ref": "#/$defs/d0",
            "$defs": {
                f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(60)
            }
            | {"d60": {}},
        },
        DEEP,
        {"$ref": "#/title", "title": "a word"},
    ],
    ids=["itself", "elsewhere", "nowhere", "two to the sixtieth", "asked again at each depth", "no schema"],
)
def test_a_schema_without_end_ends(schema: dict[str, Any]) -> None:
    began = time.monotonic()

    with pytest.raises(Unfitting, match="cannot be followed"):
        answers.parsed_json('{"a": 1}', schema)

    assert time.monotonic() - began < 30  # the parser has 2 s of its own time: more on a busy machine


def test_a_schemas_pattern_is_told_and_not_run() -> None:
    slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}

    assert answers.parsed_json(json.dumps({"a": "a" * 40 + "!"}), slow) == {"a": "a" * 40 + "!"}
    assert "(a+)+" in (answers.instruction(slow, "") or "")


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {"(a+)+$": {}}, "additionalProperties": False},
        {"allOf": [{"patternProperties": {"(a+)+$": {}}}], "unevaluatedProperties": False},
        {"propertyNames": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "(a+)+$"}},
        {
            "$dynamicAnchor": "meta",
            "$ref": "https://json-schema.org/draft/2020-12/schema",
            "propertyNames": {"pattern": "(a+)+$"},
        },
    ],
    ids=["additional", "unevaluated", "of another draft", "by way of the draft itself"],
)
def test_no_way_leads_to_a_schemas_pattern(schema: dict[str, Any]) -> None:
    answer = {"a" * 40 + "!": 1}

    assert answers.parsed_json(json.dumps(answer), schema) == answer


def test_a_schema_that_python_takes_and_no_parser_else_is_refused() -> None:
    assert "too large" in (answers.schema_fault({"pattern": "a{99999999999999}"}) or "")
    assert "JSON" in (answers.schema_fault({"const": float("nan")}) or "")


def test_what_additional_properties_are_is_held_against_the_answer_where_no_pattern_says_otherwise() -> None:
    with pytest.raises(Unfitting, match="'b' was unexpected"):
        answers.parsed_json('{"a": 1, "b": 2}', {"properties": {"a": {}}, "additionalProperties": False})


@pytest.mark.parametrize("broken", ['["a" ', "{", '{"a": "b" '])
def test_mending_a_long_answer_takes_no_time_of_this_process_and_ends(broken: str) -> None:
    began, busy = time.monotonic(), time.process_time()

    with contextlib.suppress(Unfitting):
        answers.parsed_json(broken * (40_000 // len(broken)), None)

    assert time.process_time() - busy < 1
    assert time.monotonic() - began < 15


def test_a_long_answer_is_mended_too() -> None:
    items = [{"n": n, "words": "half of a pair: \ud83d"} for n in range(1000)]
    content = "```json\n" + json.dumps(items, ensure_ascii=False)[:-1] + ",]\n```"

    assert [item["n"] for item in answers.parsed_json(content, None)] == list(range(1000))


def test_items_that_should_be_unique_are_compared_by_their_text() -> None:
    items = [{"n": n} for n in range(20_000)]

    assert answers.parsed_json(json.dumps(items), {"uniqueItems": True}) == items
    with pytest.raises(Unfitting, match="twice"):
        answers.parsed_json(json.dumps([*items, {"n": 7}]), {"uniqueItems": True})


def test_an_answer_is_kept_with_marks_for_what_cannot_be_stored() -> None:
    wanted = checked("qwen-plus", **ASKED, response_format="json")
    output = {"choices": [{"message": {"content": '{"a\\u0000": ["\\ud83d"]}\0'}}]}

    kept = text.answered(wanted, output)

    assert kept["json"] == {"a\ufffd": ["\ufffd"]}
    assert "\0" not in kept["content"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*Conversation.model_fields, "x"])


@settings(max_examples=150, deadline=None)
@given(raw=st.dictionaries(FIELDS, JSON | st.just(TURNS) | st.just(COLOURS) | st.text(), max_size=6))
def test_a_check_gives_a_sendable_conversation_or_faults(raw: dict[str, Any]) -> None:
    for name in ("qwen-plus", "qwen3.5-plus", "qwen-max"):
        try:
            sent = request(name, **raw).body
        except InvalidInput as invalid:
            told = [fault.pointer for fault in invalid.faults]
        else:
            told = [json.dumps(sent, allow_nan=False)]
        assert all(word.startswith(("/input", "{")) for word in told)
        assert "".join(told).encode()


@settings(max_examples=100, deadline=None)
@given(output=JSON, usage=JSON)
def test_no_answer_is_too_odd_to_be_read(output: Any, usage: Any) -> None:
    answer = {"output": output, "usage": usage}

    assert isinstance(text.KIND.usage(QWEN, checked("qwen-plus", **ASKED), answer).units["input_tokens"], int | float)
