"""The sandbox writes as the qwen models do: for the official SDK, and byte for byte where we lean on it."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from itertools import pairwise
from typing import Any

import dashscope
import httpx
import pytest
from dashscope import Generation

from ops.sandbox import models, text
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running

KEY = "sk-one"
PATH = "/services/aigc/text-generation/generation"
SSE = {"X-DashScope-SSE": "enable"}
ASYNC = {"X-DashScope-Async": "enable"}
AT_ONCE = Options(run_seconds=0, queue_seconds=0)
STORY = "A wheel lifts water. It is old.\n\nThe river is fast. Nobody swims.\n\n水车很高。它慢慢转。"
SUMMARY = "A wheel lifts water. The river is fast. 水车很高。"
PLUS = models.read("cn-beijing")["qwen-plus"]


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with running(AT_ONCE) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(served: Sandbox) -> Sandbox:
    served.reset()
    return served


@pytest.fixture
def wire(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=sandbox.api, headers={"Authorization": f"Bearer {KEY}"}, timeout=10, verify=False
    ) as opened:
        yield opened


def says(*contents: str) -> list[dict[str, Any]]:
    roles = ("user",) if len(contents) == 1 else ("system", "user")
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def body(*contents: str, model: str = "qwen-plus", **parameters: Any) -> dict[str, Any]:
    given = {"result_format": "message"} | parameters
    return {"model": model, "input": {"messages": says(*(contents or (STORY,)))}, "parameters": given}


def said(wire: httpx.Client, *contents: str, **parameters: Any) -> str:
    answer = wire.post(PATH, json=body(*contents, **parameters))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["output"]["choices"][0]["message"]["content"])


def events(content: bytes) -> list[list[str]]:
    return [event.split("\n") for event in content.decode().split("\n\n")[:-1]]


def documents(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(event[-1].removeprefix("data:")) for event in events(content)]


def choices(content: bytes) -> list[dict[str, Any]]:
    return [document["output"]["choices"][0] for document in documents(content)]


class TestOfficialSdk:
    @pytest.fixture(autouse=True)
    def pointed_here(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dashscope, "base_http_api_url", sandbox.api)

    def test_a_call_returns_a_message_and_its_usage(self) -> None:
        answer = Generation.call("qwen-plus", messages=says(STORY), result_format="message", api_key=KEY)

        assert answer.output.choices[0].message.content == SUMMARY
        assert answer.usage.input_tokens > answer.usage.output_tokens > 0

    def test_a_prompt_alone_is_answered_with_a_text(self) -> None:
        answer = Generation.call("qwen-plus", prompt=STORY, api_key=KEY)

        assert answer.output.text == SUMMARY

    def test_a_stream_adds_up(self) -> None:
        answers = Generation.call(
            "qwen-plus",
            messages=says(STORY),
            result_format="message",
            stream=True,
            incremental_output=True,
            api_key=KEY,
        )

        pieces = [answer.output.choices[0] for answer in answers]

        assert "".join(piece.message.content for piece in pieces) == SUMMARY
        assert [piece.finish_reason for piece in pieces[-2:]] == ["null", "stop"]

    def test_thoughts_come_apart_from_the_answer(self) -> None:
        answers = Generation.call(
            "qwen-plus",
            messages=says(STORY),
            enable_thinking=True,
            result_format="message",
            stream=True,
            incremental_output=True,
            api_key=KEY,
        )

        messages = [answer.output.choices[0].message for answer in answers]

        assert "first sentence" in "".join(message.get("reasoning_content") or "" for message in messages)
        assert "".join(message.content for message in messages) == SUMMARY

    def test_errors_carry_their_code_streamed_or_not(self) -> None:
        plain = Generation.call("qwen-plus", messages=says(STORY), temperature=2.5, api_key=KEY)
        (event,) = Generation.call("qwen-plus", messages=says(STORY), temperature=2.5, stream=True, api_key=KEY)

        for answer in (plain, event):
            assert (answer.status_code, answer.code) == (HTTPStatus.BAD_REQUEST, "InvalidParameter")


class TestSummaries:
    def test_documents_keep_their_ids_and_instructions_stay_out(self, wire: httpx.Client) -> None:
        prompt = f'Summarise each.\n<document id="a7">\n{STORY}\n</document>\n<document id="b8">One.\n\nTwo!</document>'

        assert said(wire, prompt) == f"a7: {SUMMARY}\n\nb8: One. Two!"

    def test_a_summary_is_cut_at_the_tokens_it_may_have(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body(max_tokens=4)).json()

        (choice,) = answer["output"]["choices"]
        assert SUMMARY.startswith(choice["message"]["content"])
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["output_tokens"] == 4

    def test_a_stop_word_ends_it(self, wire: httpx.Client) -> None:
        assert said(wire, stop=["river"]) == "A wheel lifts water. The "

    def test_bullets_and_headlines_look_so(self, wire: httpx.Client) -> None:
        fenced = f"```\n{STORY}\n```"

        assert said(wire, f"Three bullets:\n{fenced}").splitlines()[1] == "- The river is fast."
        assert said(wire, f"A headline:\n{fenced}") == "A wheel lifts water"

    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            ("Answer in JSON.", {"summary": SUMMARY}),
            ('JSON: {"summary": ..., "points": [...], "sure": true}', {"points": 3, "summary": SUMMARY, "sure": True}),
            (
                'JSON by {"type": "object", "properties": {"id": {"type": "string"}, "n": {"type": "integer"}, '
                '"mood": {"enum": ["calm", "wild"]}, "points": {"type": "array", "maxItems": 2}}}',
                {"id": "a7", "n": 3, "mood": "calm", "points": 2},
            ),
        ],
    )
    def test_json_has_the_keys_that_the_prompt_asks_for(
        self, wire: httpx.Client, form: str, expected: dict[str, Any]
    ) -> None:
        document = f'<text id="a7">{STORY}</text>'

        found = json.loads(said(wire, form, document, response_format={"type": "json_object"}))

        assert {key: len(value) if isinstance(value, list) else value for key, value in found.items()} == expected

    def test_a_tool_that_is_named_is_called(self, wire: httpx.Client) -> None:
        parameters = {"type": "object", "properties": {"headline": {"type": "string"}}}
        function = {"name": "publish", "description": "Publish it.", "parameters": parameters}
        tool = {"type": "function", "function": function}

        forced = {"type": "function", "function": {"name": "publish"}}
        for choice, reason in ((forced, "stop"), ("auto", "tool_calls")):
            asked = body(f"publish this:\n{STORY}", tools=[tool], tool_choice=choice)
            (told,) = wire.post(PATH, json=asked).json()["output"]["choices"]
            (called,) = told["message"]["tool_calls"]
            assert called["function"]["name"] == "publish"
            assert "The river is fast." in json.loads(called["function"]["arguments"])["headline"]
            assert told["finish_reason"] == reason

    @pytest.mark.parametrize(
        "schema",
        [{"type": "any"}, {"properties": {"a": True, "b": {"$ref": "#/x"}}}, {"type": ["object", "null"], "items": 7}],
    )
    def test_a_strange_schema_is_still_answered_in_json(self, wire: httpx.Client, schema: dict[str, Any]) -> None:
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

        json.loads(said(wire, response_format=asked))

    def test_an_open_tag_on_every_line_takes_no_time(self) -> None:
        hostile = "".join(f"<p{number}>\n" for number in range(20_000))

        assert text.answer(PLUS, says(hostile), {}, 0).finish_reason == "stop"

    def test_the_same_call_has_the_same_answer(self) -> None:
        assert text.answer(PLUS, says(STORY), {}, 1) == text.answer(PLUS, says(STORY), {}, 1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"max_tokens": 0}, "Range of max_tokens should be [1, 32768]"),
            ({"max_tokens": 40_000}, "Range of max_tokens should be [1, 32768]"),
            ({"temperature": 2}, "Temperature should be in [0.0, 2.0)"),
            ({"top_p": 0}, "Range of top_p should be (0.0, 1.0]"),
            ({"n": 5}, "Range of n should be [1, 4]"),
            ({"seed": True}, "Range of seed"),
            ({"response_format": {"type": "json_object"}}, "must contain the word 'json'"),
            ({"enable_thinking": True}, "must be set to false for non-streaming calls"),
            ({"result_format": "xml"}, "result_format"),
            ({"tools": [{"type": "function"}]}, "tools"),
            ({"tool_choice": {"function": "publish"}}, "tool_choice"),
            ({"stop": [7]}, "stop"),
        ],
    )
    def test_a_bad_parameter_is_named(self, wire: httpx.Client, parameters: dict[str, Any], message: str) -> None:
        answer = wire.post(PATH, json=body(**parameters))

        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
        assert message in answer.json()["message"]

    @pytest.mark.parametrize("messages", [[], [{"role": "robot", "content": "hi"}], [{"role": "user", "content": 7}]])
    def test_messages_must_be_messages(self, wire: httpx.Client, messages: list[Any]) -> None:
        answer = wire.post(PATH, json=body() | {"input": {"messages": messages}})

        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")

    def test_an_empty_message_is_refused_under_a_code_that_lies(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body(" "))

        assert (answer.status_code, answer.json()["code"]) == (400, "ServiceUnavailableError")

    def test_a_prompt_over_the_context_is_refused(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body("水" * 30_000, model="qwen-max"))

        assert "Range of input length should be [1, 24576]" in answer.json()["message"]

    @pytest.mark.parametrize(
        ("model", "parameters", "status"),
        [
            ("qwen-plus", {}, 200),
            ("qwen3-32b", {}, 400),  # open weights think unless told not to
            ("qwen3-32b", {"enable_thinking": False}, 200),
            ("qwen3-max", {"enable_thinking": True}, 200),
            ("qwen-max", {"enable_thinking": True}, 400),
        ],
    )
    def test_who_may_think_without_a_stream(
        self, wire: httpx.Client, model: str, parameters: dict[str, Any], status: int
    ) -> None:
        assert wire.post(PATH, json=body(model=model, **parameters)).status_code == status

    def test_json_does_not_go_with_thinking(self, wire: httpx.Client) -> None:
        asked = body("json, please", model="qwen3-max", enable_thinking=True, response_format={"type": "json_object"})

        assert "not supported when enable_thinking is true" in wire.post(PATH, json=asked).json()["message"]

    def test_text_and_speech_have_paths_of_their_own(self, wire: httpx.Client) -> None:
        answer = wire.post("/services/aigc/multimodal-generation/generation", json=body())

        assert answer.json()["message"] == "url error, please check url!"


class TestStream:
    def test_the_framing_is_as_recorded(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body(), headers=SSE)
        first, *_, last = events(answer.content)

        assert answer.headers["content-type"] == "text/event-stream;charset=UTF-8"
        assert first[:3] == ["id:1", "event:result", ":HTTP_STATUS/200"]
        assert first[3].startswith('data:{"output":{"choices":[{')
        assert json.loads(last[3].removeprefix("data:"))["usage"]["output_tokens"] > 0

    def test_without_increments_each_frame_repeats_what_was_said(self, wire: httpx.Client) -> None:
        told = choices(wire.post(PATH, json=body(), headers=SSE).content)

        contents = [choice["message"]["content"] for choice in told]
        assert contents[-1] == SUMMARY
        assert all(later.startswith(earlier) for earlier, later in pairwise(contents))

    def test_usage_adds_up_frame_by_frame(self, wire: httpx.Client) -> None:
        told = documents(wire.post(PATH, json=body(incremental_output=True), headers=SSE).content)

        counts = [document["usage"]["output_tokens"] for document in told]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]

    def test_thinking_wants_increments(self, wire: httpx.Client) -> None:
        asked = body(enable_thinking=True, incremental_output=False)

        ((_, name, status, data),) = events(wire.post(PATH, json=asked, headers=SSE).content)

        assert (name, status) == ("event:error", ":HTTP_STATUS/400")
        assert "incremental_output" in data

    def test_a_bad_key_is_refused_before_the_stream(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body(), headers=SSE | {"Authorization": "Bearer x"})

        assert answer.status_code == 401

    def test_a_stream_may_be_cut_in_the_middle(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="truncated")

        with wire.stream("POST", PATH, json=body(), headers=SSE) as answer:
            pieces = answer.iter_bytes()
            assert next(pieces).startswith(b"id:1\n")
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)

        assert sandbox.ledger()["totals"]["billed_micros"] > 0

    def test_a_stream_may_end_early_in_good_order(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="stream_ends")

        told = choices(wire.post(PATH, json=body(incremental_output=True), headers=SSE).content)

        assert {choice["finish_reason"] for choice in told} == {"null"}
        assert SUMMARY.startswith("".join(choice["message"]["content"] for choice in told))

    def test_a_stream_may_break_off_with_an_error(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="stream_error", code="DataInspectionFailed")

        *told, last = events(wire.post(PATH, json=body(), headers=SSE).content)

        assert {event[1] for event in told} == {"event:result"}
        assert last[1:3] == ["event:error", ":HTTP_STATUS/400"]
        assert '"code":"DataInspectionFailed"' in last[3]


class TestTasks:
    def test_text_is_no_task(self, wire: httpx.Client) -> None:
        answer = wire.post(PATH, json=body(), headers=ASYNC)

        assert answer.status_code == 403
        assert answer.json()["message"] == "current user api does not support asynchronous calls."

    def test_unless_the_account_may(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(async_text=True)

        made = wire.post(PATH, json=body(), headers=ASYNC).json()["output"]
        told = wire.get(f"/tasks/{made['task_id']}").json()

        assert made["task_status"] == "PENDING"
        assert told["output"]["task_status"] == "SUCCEEDED"
        assert told["output"]["choices"][0]["message"]["content"] == SUMMARY
        assert told["usage"]["total_tokens"] > 0
        assert wire.get("/tasks", params={"model_name": "qwen-plus"}).json()["total"] == 1


class TestBill:
    def test_each_call_says_what_it_was_paid_for(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        usage = wire.post(PATH, json=body("水" * 1000)).json()["usage"]
        (task,) = sandbox.ledger()["tasks"]

        assert usage["input_tokens"] == task["usage"]["input_tokens"] == 1000
        assert task["billed_micros"] == round(1000 * 0.8 + usage["output_tokens"] * 2)

    def test_thinking_is_dearer(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        asked = body("水" * 1000, enable_thinking=True, incremental_output=True)
        *_, last = documents(wire.post(PATH, json=asked, headers=SSE).content)

        output_tokens = last["usage"]["output_tokens"]
        assert last["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
        assert sandbox.ledger()["totals"]["billed_micros"] == 800 + output_tokens * 8

    def test_a_system_prompt_seen_before_is_cached_and_cheaper(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        for _ in range(2):
            said(wire, "水" * 2000, STORY)

        first, second = sandbox.ledger()["tasks"]
        assert [task["usage"]["cached_tokens"] for task in (first, second)] == [0, 2000]
        assert first["billed_micros"] - second["billed_micros"] == 2000 * 0.8 * 0.8

    def test_other_accounts_have_caches_of_their_own(self, wire: httpx.Client) -> None:
        said(wire, "水" * 2000, STORY)

        answer = wire.post(PATH, json=body("水" * 2000, STORY), headers={"Authorization": "Bearer sk-two"}).json()

        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}

    def test_tokens_of_a_minute_are_kept_by_the_second(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(limits={"qwen-plus": {"tpm": 6_000}})

        codes = [wire.post(PATH, json=body("水" * 200)).json().get("code") for _ in range(2)]
        (minutes,) = sandbox.ledger()["peaks"]["per_minute"].values()

        assert codes == [None, "Throttling.AllocationQuota"]
        assert (minutes["requests qwen-plus"], minutes["tokens qwen-plus"]) == (2, 400)
        assert sandbox.ledger()["throttled"] == {"create": 1}

    def test_a_restarted_sandbox_knows_what_was_paid(self, tmp_path: Any) -> None:
        state = tmp_path / "state"
        bills = []
        with running(AT_ONCE, state=state) as sandbox:
            httpx.post(f"{sandbox.api}{PATH}", json=body(), headers={"Authorization": f"Bearer {KEY}"})
            bills.append(sandbox.ledger()["paid"])
        with running(AT_ONCE, state=state) as sandbox:
            bills.append(sandbox.ledger()["paid"])

        assert bills[0] == bills[1]
        assert bills[0]["qwen-plus"]["billed_micros"] > 0
