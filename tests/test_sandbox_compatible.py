"""The sandbox speaks OpenAI's chat protocol as the provider's compatible interface does, for the `openai` SDK too."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running

KEY = "sk-one"
CHAT = "/chat/completions"
STORY = "A wheel lifts water. It is old.\n\nThe river is fast. Nobody swims.\n\n水车很高。它慢慢转。"
SUMMARY = "A wheel lifts water. The river is fast. 水车很高。"
TOOL = {
    "type": "function",
    "function": {
        "name": "file_summary",
        "parameters": {"type": "object", "properties": {"summary": {"type": "string"}}},
    },
}
NOT_STREAMED = "parameter.enable_thinking must be set to false for non-streaming calls"


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0, queue_seconds=0)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(served: Sandbox) -> Sandbox:
    served.reset()
    return served


@pytest.fixture
def wire(sandbox: Sandbox) -> Iterator[httpx.Client]:
    base = f"{sandbox.url}/compatible-mode/v1"
    with httpx.Client(base_url=base, headers={"Authorization": f"Bearer {KEY}"}, timeout=10, verify=False) as opened:
        yield opened


@pytest.fixture
def sdk(sandbox: Sandbox) -> Iterator[OpenAI]:
    with OpenAI(api_key=KEY, base_url=f"{sandbox.url}/compatible-mode/v1", max_retries=0) as opened:
        yield opened


def body(content: str = STORY, model: str = "qwen-plus", **parameters: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}]} | parameters


def frames(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    return [json.loads(frame.removeprefix("data: ")) for frame in answer.text.split("\n\n")[:-2]]


class TestOpenaiSdk:
    def test_a_chat_call_is_answered(self, sdk: OpenAI) -> None:
        answer = sdk.chat.completions.create(model="qwen-plus", messages=[{"role": "user", "content": STORY}])

        assert answer.choices[0].message.content == SUMMARY
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_a_stream_adds_up_and_ends_with_its_usage(self, sdk: OpenAI) -> None:
        chunks = list(
            sdk.chat.completions.create(
                model="qwen-plus",
                messages=[{"role": "user", "content": STORY}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )

        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == SUMMARY
        assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, "stop"]
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 0

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("InvalidApiKey", openai.AuthenticationError),
            ("Throttling.RateQuota", openai.RateLimitError),
            ("InternalError", openai.InternalServerError),
        ],
    )
    def test_an_error_is_of_the_class_that_its_status_says(
        self, sandbox: Sandbox, sdk: OpenAI, code: str, error: type[openai.APIStatusError]
    ) -> None:
        sandbox.fault(where="create", what="error", code=code)

        with pytest.raises(error) as raised:
            sdk.chat.completions.create(model="qwen-plus", messages=[{"role": "user", "content": STORY}])

        assert raised.value.code in ("invalid_api_key", "limit_requests", "internal_error")


class TestAnswers:
    def test_the_id_is_the_request_id_of_the_headers(self, wire: httpx.Client) -> None:
        answer = wire.post(CHAT, json=body())

        assert answer.json()["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
        assert (answer.json()["object"], answer.json()["model"]) == ("chat.completion", "qwen-plus")

    def test_usage_names_are_openais(self, wire: httpx.Client) -> None:
        usage = wire.post(CHAT, json=body()).json()["usage"]

        assert usage.keys() == {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}

    def test_a_stream_tells_no_usage_unless_asked(self, wire: httpx.Client) -> None:
        told = frames(wire.post(CHAT, json=body(stream=True)))

        assert [chunk["usage"] for chunk in told] == [None] * len(told)
        assert told[0]["choices"][0]["delta"]["role"] == "assistant"
        assert {chunk["id"] for chunk in told} == {told[0]["id"]}

    def test_an_answer_that_is_cut_says_so(self, wire: httpx.Client) -> None:
        [choice] = wire.post(CHAT, json=body(max_tokens=3)).json()["choices"]

        assert (choice["finish_reason"], SUMMARY.startswith(choice["message"]["content"])) == ("length", True)

    @pytest.mark.parametrize("streams", [False, True])
    def test_half_a_surrogate_pair_breaks_nothing(self, wire: httpx.Client, streams: bool) -> None:
        content = json.dumps(body("Half \ud83d a pair.", stream=streams)).encode()

        answer = wire.post(CHAT, content=content)

        assert (answer.status_code, "Half" in answer.text) == (200, True)

    def test_json_is_given_where_it_is_asked_for(self, wire: httpx.Client) -> None:
        asked = body(f'Answer in JSON: {{"summary": "..."}}\n\n<document>{STORY}</document>')

        [choice] = wire.post(CHAT, json=asked | {"response_format": {"type": "json_object"}}).json()["choices"]

        assert json.loads(choice["message"]["content"]) == {"summary": SUMMARY}

    def test_a_tool_is_called_whole_or_in_pieces(self, wire: httpx.Client) -> None:
        asked = body(f"Use file_summary.\n\n<document>{STORY}</document>", tools=[TOOL])

        [choice] = wire.post(CHAT, json=asked).json()["choices"]
        told = frames(wire.post(CHAT, json=asked | {"stream": True}))

        [call] = choice["message"]["tool_calls"]
        deltas = [delta for chunk in told for delta in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert (choice["finish_reason"], call["function"]["name"]) == ("tool_calls", "file_summary")
        assert deltas[0]["function"]["name"] == "file_summary"
        assert "".join(delta["function"]["arguments"] for delta in deltas) == call["function"]["arguments"]
        assert json.loads(call["function"]["arguments"]) == {"summary": SUMMARY}


class TestThinking:
    def test_thinking_is_streamed_apart_from_the_answer(self, wire: httpx.Client) -> None:
        asked = body(enable_thinking=True, stream=True, stream_options={"include_usage": True})

        told = frames(wire.post(CHAT, json=asked))

        deltas = [chunk["choices"][0]["delta"] for chunk in told[:-1]]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas)
        assert "".join(delta.get("content") or "" for delta in deltas) == SUMMARY
        assert told[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0

    @pytest.mark.parametrize("asked", [body(enable_thinking=True), body(model="qwen3-32b")])
    def test_a_call_that_is_not_streamed_may_not_think(self, wire: httpx.Client, asked: dict[str, Any]) -> None:
        answer = wire.post(CHAT, json=asked)

        error = {
            "code": "invalid_parameter_error",
            "param": None,
            "message": NOT_STREAMED,
            "type": "invalid_request_error",
        }
        assert (answer.status_code, answer.json()["error"]) == (400, error)

    def test_an_open_model_answers_once_it_is_told_not_to_think(self, wire: httpx.Client) -> None:
        assert wire.post(CHAT, json=body(model="qwen3-32b", enable_thinking=False)).status_code == 200


class TestRefusals:
    @pytest.mark.parametrize(
        ("asked", "status", "code"),
        [
            (body(model="qwen-9000"), 404, "model_not_found"),
            (body(model="wan2.5-t2v-preview"), 404, "model_not_found"),
            (body(temperature=2), 400, "invalid_parameter_error"),
            (body(seed=2**31), 400, "invalid_parameter_error"),
            (body(response_format={"type": "json_object"}), 400, "invalid_parameter_error"),
            (body(stream_options={"include_usage": True}), 400, "invalid_parameter_error"),
            ({"model": "qwen-plus"}, 400, "invalid_parameter_error"),
            ({"model": "qwen-plus", "messages": "hello"}, 400, "invalid_parameter_error"),
            ({"messages": []}, 400, "invalid_parameter_error"),
            ([], 400, "invalid_parameter_error"),
        ],
    )
    def test_what_cannot_be_answered_is_refused_in_openais_envelope(
        self, sandbox: Sandbox, wire: httpx.Client, asked: Any, status: int, code: str
    ) -> None:
        answer = wire.post(CHAT, json=asked)

        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert answer.json().keys() == {"error", "request_id"}
        assert sandbox.ledger()["totals"]["billed_micros"] == 0

    def test_a_tools_answer_to_no_call_is_refused(self, wire: httpx.Client) -> None:
        messages = [{"role": "user", "content": STORY}, {"role": "tool", "content": "7", "tool_call_id": "call_1"}]

        answer = wire.post(CHAT, json=body() | {"messages": messages})

        assert answer.status_code == 400
        assert "tool_calls" in answer.json()["error"]["message"]

    def test_a_body_that_is_no_json_is_refused(self, wire: httpx.Client) -> None:
        assert wire.post(CHAT, content=b"{").json()["error"]["code"] == "invalid_parameter_error"

    @pytest.mark.parametrize("header", ["", "Bearer nonsense"])
    def test_a_missing_or_bad_key_is_refused(self, sandbox: Sandbox, header: str) -> None:
        answer = httpx.post(f"{sandbox.url}/compatible-mode/v1{CHAT}", json=body(), headers={"Authorization": header})

        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


class TestBooks:
    def test_a_call_costs_the_same_by_either_interface(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        native = {"model": "qwen-plus", "input": {"messages": body()["messages"]}, "parameters": {}}
        headers = dict(wire.headers)
        wire.post(CHAT, json=body())
        httpx.post(f"{sandbox.api}/services/aigc/text-generation/generation", json=native, headers=headers)

        one, other = sandbox.ledger()["tasks"]

        assert one["billed_micros"] == other["billed_micros"] > 0
        assert one["usage"] == other["usage"]

    def test_both_interfaces_share_the_models_limits(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(limits={"qwen-plus": {"rpm": 2}})

        answers = [wire.post(CHAT, json=body()) for _ in range(3)]

        assert [answer.status_code for answer in answers].count(429) >= 1
        assert answers[-1].json()["error"]["code"] == "limit_requests"

    def test_tokens_over_the_minutes_quota_are_refused_in_words_of_billing(
        self, sandbox: Sandbox, wire: httpx.Client
    ) -> None:
        sandbox.set(limits={"qwen-plus": {"tpm": 1}})
        wire.post(CHAT, json=body())

        answer = wire.post(CHAT, json=body())

        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")

    def test_a_long_system_prompt_seen_before_is_cached(self, wire: httpx.Client) -> None:
        messages = [{"role": "system", "content": "rule " * 1000}, {"role": "user", "content": STORY}]

        told = [wire.post(CHAT, json={"model": "qwen-plus", "messages": messages}).json() for _ in range(2)]

        cached = [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in told]
        assert cached[0] == 0
        assert cached[1] >= 1024


class TestFaults:
    @pytest.mark.parametrize(("what", "tasks"), [("reset", 0), ("lost_answer", 1), ("lost_body", 1), ("truncated", 1)])
    @pytest.mark.parametrize("streams", [False, True])
    def test_a_cut_line_leaves_a_call_that_is_paid_or_none(
        self, sandbox: Sandbox, wire: httpx.Client, what: str, tasks: int, streams: bool
    ) -> None:
        sandbox.fault(where="create", what=what, times=1)

        with pytest.raises(httpx.TransportError):
            wire.post(CHAT, json=body(stream=streams))

        assert sandbox.ledger()["totals"]["tasks"] == tasks

    def test_a_stream_may_break_off_with_an_error(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="stream_error", code="InternalError")

        *before, last = wire.post(CHAT, json=body(stream=True)).text.split("\n\n")[:-1]

        assert before
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"

    def test_an_error_may_hide_under_200(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="error_in_200", code="Throttling.BurstRate")

        answer = wire.post(CHAT, json=body())

        assert (answer.status_code, answer.json()["error"]["code"]) == (200, "limit_burst_rate")

    def test_a_fault_is_met_by_the_words_it_names_alone(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="create", what="error", code="DataInspectionFailed", prompt_contains="naughty")

        answers = [wire.post(CHAT, json=body(content)) for content in ("A naughty text.", "A nice text.")]

        assert [answer.status_code for answer in answers] == [400, 200]
        assert answers[0].json()["error"]["code"] == "data_inspection_failed"
