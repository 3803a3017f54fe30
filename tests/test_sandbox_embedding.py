"""The sandbox embeds texts as the provider does: for both official SDKs, in batches, and within the same limits."""

import io
import json
import math
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import dashscope
import httpx
import pytest
from dashscope import TextEmbedding
from openai import OpenAI

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running

KEY = "sk-one"
PATH = "/services/embeddings/text-embedding/text-embedding"
FAST = Options(
    run_seconds=0, queue_seconds=0, batch_validating_seconds=0, batch_run_seconds=0, batch_finalizing_seconds=0
)
POEM = ["风急天高猿啸哀", "渚清沙白鸟飞回", "无边落木萧萧下", "不尽长江滚滚来"]


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with running(FAST) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(served: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    served.reset()
    monkeypatch.setattr(dashscope, "base_http_api_url", served.api)
    monkeypatch.setattr(dashscope, "api_key", KEY)
    return served


@pytest.fixture
def wire(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox.api, headers={"Authorization": f"Bearer {KEY}"}, timeout=10) as opened:
        yield opened


@pytest.fixture
def sdk(sandbox: Sandbox) -> Iterator[OpenAI]:
    with OpenAI(api_key=KEY, base_url=f"{sandbox.url}/compatible-mode/v1", max_retries=0) as opened:
        yield opened


def body(*texts: str, model: str = "text-embedding-v4", **parameters: Any) -> dict[str, Any]:
    return {"model": model, "input": {"texts": list(texts)}, "parameters": parameters}


def test_the_official_sdk_embeds_a_text_a_list_and_a_file(sandbox: Sandbox) -> None:
    for given, count in ((POEM[0], 1), (POEM, 4), (io.StringIO("\n".join(POEM)), 4)):
        answer = TextEmbedding.call(model="text-embedding-v4", input=given, dimension=512, output_type="dense&sparse")

        assert answer.status_code == HTTPStatus.OK, answer
        made = answer.output["embeddings"]
        assert [each["text_index"] for each in made] == list(range(count))
        assert {len(each["embedding"]) for each in made} == {512}
        assert made[0]["sparse_embedding"][0].keys() == {"index", "value", "token"}


@pytest.mark.parametrize("asked", [{"encoding_format": "float"}, {}])
def test_the_openai_sdk_embeds_the_same_texts_alike(sdk: OpenAI, asked: dict[str, Any]) -> None:
    made = sdk.embeddings.create(model="text-embedding-v4", input=POEM, dimensions=1024, **asked)

    told = TextEmbedding.call(model="text-embedding-v4", input=POEM).output["embeddings"]
    assert [each.embedding for each in made.data] == [each["embedding"] for each in told]
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (28, 28)


def test_a_vector_is_of_length_one_and_tells_texts_and_purposes_apart(wire: httpx.Client) -> None:
    def vectors(**asked: Any) -> list[list[float]]:
        made = wire.post(PATH, json=body(*POEM[:2], **asked)).json()["output"]["embeddings"]
        return [each["embedding"] for each in made]

    first, second = vectors()

    assert math.isclose(sum(value * value for value in first), 1, rel_tol=1e-5)
    assert first != second
    assert vectors() == [first, second]
    assert vectors(text_type="query")[0] != first
    assert "embedding" not in wire.post(PATH, json=body(*POEM, output_type="sparse")).json()["output"]["embeddings"][0]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (body(*["a"] * 11), "batch size is invalid, it should not be larger than 10"),
        (body("水" * 8193), "Range of input length should be [1, 8192]"),
        (body(""), "Range of input length"),
        (body(), "contents is neither str nor list of str"),
        (body("a", dimension=100), "dimension should be one of"),
        (body("a", model="text-embedding-v3", dimension=2048), "dimension should be one of"),
        (body("a", output_type="sparce"), "output_type should be one of"),
        (body("a", model="qwen-plus"), "url error"),
    ],
)
def test_what_the_provider_refuses_is_refused_and_free(
    sandbox: Sandbox, wire: httpx.Client, asked: dict[str, Any], told: str
) -> None:
    answer = wire.post(PATH, json=asked)

    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert told in answer.json()["message"]
    assert sandbox.ledger()["totals"]["billed_micros"] == 0


def test_a_call_is_paid_for_by_the_tokens_of_its_texts(sandbox: Sandbox, wire: httpx.Client) -> None:
    usage = wire.post(PATH, json=body("水" * 4000, "水" * 2000)).json()["usage"]

    assert usage == {"total_tokens": 6000}
    assert sandbox.ledger()["paid"]["text-embedding-v4"] == {"input_tokens": 6000, "tasks": 1, "billed_micros": 3000}


def test_tokens_of_a_minute_are_kept(sandbox: Sandbox, wire: httpx.Client) -> None:
    sandbox.set(limits={"text-embedding-v4": {"tpm": 6_000}})

    codes = [wire.post(PATH, json=body("水" * 200)).json().get("code") for _ in range(2)]

    assert codes == [None, "Throttling.AllocationQuota"]


def line(n: int, url: str = "/v1/embeddings", **asked: Any) -> dict[str, Any]:
    given = {"model": "text-embedding-v4", "input": POEM, "dimensions": 64, **asked}
    return {"custom_id": str(n), "method": "POST", "url": url, "body": given}


def run(sdk: OpenAI, lines: list[dict[str, Any]]) -> Any:
    content = "\n".join(map(json.dumps, lines)).encode()
    file = sdk.files.create(file=("lines.jsonl", content), purpose="batch")
    made = sdk.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    return sdk.batches.retrieve(made.id)


def test_a_batch_of_embeddings_costs_half_and_a_bad_line_is_its_own(sandbox: Sandbox, sdk: OpenAI) -> None:
    batch = run(sdk, [line(0, input=["水" * 8000]), line(1, dimensions=65), line(2, input="水" * 8000)])

    told = [json.loads(each) for each in sdk.files.content(batch.output_file_id).text.splitlines()]
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 1)
    assert [len(each["response"]["body"]["data"][0]["embedding"]) for each in told] == [64, 64]
    assert sandbox.ledger()["totals"]["billed_micros"] == 16_000 * 0.25


def test_a_batch_takes_embeddings_of_embedding_models_alone(sdk: OpenAI) -> None:
    wrong = run(sdk, [line(0, model="qwen-plus")])

    assert (wrong.status, wrong.errors.data[0].code) == ("failed", "mismatched_url")
