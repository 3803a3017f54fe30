"""The embedding kind: inputs checked and priced, calls spelled as the documents have them, vectors put in order."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest

from worker import catalog, kinds
from worker.catalog import Variant
from worker.errors import Fault, InvalidInput
from worker.kinds import embedding, text_batch
from worker.kinds.embedding import embedding_call, rounds, texts, vectors
from worker.kinds.embedding.embedding_call import EmbeddingCall
from worker.kinds.embedding.input import Embedding, Mode
from worker.kinds.embedding.texts import Lost, Row
from worker.kinds.embedding.vectors import Vector
from worker.kinds.kind import Ended, Stored

TODAY = date(2026, 11, 27)
BEIJING, SINGAPORE = "cn-beijing", "ap-southeast-1"
V4, V3 = (catalog.load().model(name) for name in ("text-embedding-v4", "text-embedding-v3"))
POEM = ["风急天高猿啸哀", "渚清沙白鸟飞回", "无边落木萧萧下", "不尽长江滚滚来"]


def checked(name: str = V4.id, **raw: Any) -> Embedding:
    wanted = embedding.KIND.check(catalog.load(), catalog.load().model(name), raw, BEIJING)
    assert isinstance(wanted, Embedding)
    return wanted


def faults(name: str = V4.id, **raw: Any) -> dict[str, Fault]:
    with pytest.raises(InvalidInput) as raised:
        checked(name, **raw)
    return {fault.pointer: fault for fault in raised.value.faults}


# The input


def test_texts_are_all_that_is_needed_and_what_tells_vectors_apart_is_said() -> None:
    assert checked(texts=["a"]).model_dump(exclude_none=True, exclude={"texts", "format", "mode", "window"}) == {
        "dimension": 1024,
        "output_type": "dense",
        "text_type": "document",
    }


@pytest.mark.parametrize(
    ("name", "raw", "pointer", "code"),
    [
        ("text-embedding-v4", {}, "/input/texts", "required"),
        ("text-embedding-v4", {"texts": []}, "/input/texts", "too_short"),
        ("text-embedding-v4", {"texts": ["a"], "dimension": 100}, "/input/dimension", "not_allowed"),
        ("text-embedding-v3", {"texts": ["a"], "dimension": 2048}, "/input/dimension", "not_allowed"),
        ("text-embedding-v3", {"texts": ["a"], "instruct": "b"}, "/input/instruct", "not_taken"),
        ("text-embedding-v4", {"texts": ["a"], "output_type": "both"}, "/input/output_type", "not_allowed"),
        ("text-embedding-v4", {"texts": ["a"], "text_type": "title"}, "/input/text_type", "literal_error"),
        ("text-embedding-v4", {"texts": ["a"], "window": "1h"}, "/input/window", "bad_window"),
        ("text-embedding-v4", {"texts": ["a"], "mode": "batch", "text_type": "query"}, "/input/mode", "contradiction"),
        ("text-embedding-v4", {"texts": ["a"], "mode": "batch", "instruct": "b"}, "/input/mode", "contradiction"),
        ("qwen-plus", {"texts": ["a"]}, "/model", "wrong_kind"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_field(name: str, raw: dict[str, Any], pointer: str, code: str) -> None:
    found = faults(name, **raw)

    assert {pointer: fault.code for pointer, fault in found.items()} == {pointer: code}


@pytest.mark.parametrize("item", [{}, {"text": "a", "key": "b"}, {"key": "b", "id": "c"}, {"text": "\0"}])
def test_an_item_is_a_text_or_an_object(item: dict[str, Any]) -> None:
    assert any(pointer.startswith("/input/texts/0") for pointer in faults(texts=[item]))


def test_a_model_that_does_not_take_a_field_names_those_that_do() -> None:
    assert "text-embedding-v4" in faults("text-embedding-v3", texts=["a"], instruct="b")["/input/instruct"].message


def test_texts_are_priced_before_they_are_sent_and_objects_are_unknown() -> None:
    wanted = checked(texts=["水" * 5000, {"text": "水" * 5000}])

    assert V4.price(embedding.KIND.estimate(V4, wanted), BEIJING, TODAY) == 5_000
    assert V4.price(embedding.KIND.estimate(V4, wanted), SINGAPORE, TODAY) == 5_140
    assert embedding.KIND.estimate(V4, checked(texts=["a", {"key": "b"}])).units == {}


def test_a_batch_is_half_the_price() -> None:
    batched = catalog.load().variant(V4.id, Variant.BATCH)
    assert batched is not None

    lines = text_batch.TextBatch(key="k", lines=1, input_tokens=1_000_000)

    assert batched.price(text_batch.estimate(batched, lines), BEIJING, TODAY) == 250_000
    assert batched.region(SINGAPORE) is None


def test_the_words_of_a_job_hold_nothing_of_its_texts() -> None:
    assert embedding.KIND.words(checked(texts=["a", "b", {"key": "c"}])) == "2 texts, 1 object, 1024 numbers each"


# What is sent, beside what tests/test_official_samples.py has of it


def test_a_line_of_a_batch_is_the_compatible_sample() -> None:
    work = opened(texts=POEM, mode="batch")
    child, store = rounds.expand(work.parent, work.store).children[0], work.store

    asked = json.loads(store.objects[child.input["key"]])

    assert asked == {
        "custom_id": "0",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": V4.id, "dimensions": 1024, "encoding_format": "float", "input": POEM},
    }
    batched = catalog.load().model(child.model)
    assert kinds.call(child.kind).request(batched, BEIJING, text_batch.TextBatch(**child.input)).body["endpoint"] == (
        "/v1/embeddings"
    )


# The answer


@pytest.mark.parametrize(("usage", "tokens"), [({"total_tokens": 27}, 27), ({}, 28), (None, 28)])
def test_tokens_are_the_providers_count_or_ours(usage: Any, tokens: int) -> None:
    wanted = EmbeddingCall(texts=tuple(POEM), dimension=64, output_type="dense", text_type="document")

    assert embedding_call.KIND.usage(V4, wanted, {"usage": usage}).units == {"input_tokens": tokens}


# The rounds


class Bucket:
    """What a parent stored, by key."""

    def __init__(self, **objects: bytes) -> None:
        self.objects = dict(objects)

    def put(self, name: str, chunks: Iterable[bytes], _: str) -> Stored:
        self.objects[name] = b"".join(chunks)
        return Stored("work", name, len(self.objects[name]), None)

    def chunks(self, key: str) -> Iterator[bytes]:
        content = self.objects[key]
        return (content[start : start + 7] for start in range(0, len(content), 7))

    stream = chunks

    def is_late(self) -> bool:
        return False


def opened(bucket: Bucket | None = None, **raw: Any) -> Any:
    settings = SimpleNamespace(all_accounts=[SimpleNamespace(region=BEIJING)])
    parent = SimpleNamespace(
        model=V4.id, input=checked(**raw), note={}, round=0, made=0, ended=[], settings=settings, catalog=catalog.load()
    )
    return SimpleNamespace(parent=parent, store=bucket or Bucket())


@pytest.mark.parametrize(
    ("asked", "count", "mode", "why"),
    [
        ({}, 1_000, Mode.BATCH, "half the price"),
        ({}, 999, Mode.BATCH, "half the price"),
        ({}, 990, Mode.CALLS, "they are few"),
        ({"deadline_hours": 2}, 1_000, Mode.CALLS, "too few for a batch"),
        ({"text_type": "query"}, 1_000, Mode.CALLS, "dense vectors of documents only"),
        ({"mode": "calls"}, 1_000, Mode.CALLS, "as asked"),
    ],
)
def test_auto_takes_the_cheaper_way_that_the_input_allows(
    asked: dict[str, Any], count: int, mode: Mode, why: str
) -> None:
    work = opened(texts=["a"] * count, **asked)

    said = rounds.expand(work.parent, work.store)

    assert said.note is not None
    assert (said.note["mode"], why in said.why) == (mode, True)


def test_a_step_makes_no_more_calls_than_a_page_has() -> None:
    work = opened(texts=["a"] * 4_001, mode="calls")

    said = rounds.expand(work.parent, work.store)

    assert (len(said.children), said.more, (said.note or {})["at"]) == (200, True, 1)
    assert [page[1:] for page in (said.note or {})["pages"]] == [[2_000, 2_000], [2_000, 2_000], [1, 1]]


def test_more_texts_than_a_job_takes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST", 3)
    work = opened(Bucket(a=b"1\n2\n3\n"), texts=["0", {"key": "a"}])

    failure = rounds.expand(work.parent, work.store).failure

    assert failure is not None
    assert (failure.code, failure.cls) == ("too_many_texts", "validation")


# The vectors


def child(state: str = "succeeded", **more: Any) -> Ended:
    values = dict.fromkeys(("id", "round", "place", "kind", "model", "result", "usage", "cost", "error"))
    outputs = (Stored("answer", "made", 1, None),) if state == "succeeded" else ()
    return Ended(**{**values, "note": {}, "state": state, "outputs": outputs, **more})


def ends(answer: Any, *, count: int = 2, output_type: str = "dense") -> list[Vector | Lost]:
    wanted, rows = checked(texts=["a"], dimension=64, output_type=output_type), [Row(n, str(n)) for n in range(count)]
    bucket = Bucket(made=json.dumps({"embeddings": answer}).encode())
    made = vectors.of_page(wanted, rows, [rows], [child(note={"page": 0, "texts": [0, 1]})], bucket)  # type: ignore[arg-type]
    return [each.end for each in made]


def told(place: Any, numbers: int = 64, **more: Any) -> dict[str, Any]:
    return {"text_index": place, "embedding": [float(numbers)] * numbers, **more}


def test_vectors_go_to_the_texts_that_they_name_in_whatever_order_they_come() -> None:
    second = told(1) | {"embedding": [0.5] * 64}

    found = ends([second, told(0)])

    assert found == [Vector(array("d", [64.0] * 64), None), Vector(array("d", [0.5] * 64), None)]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ([told(0), told(1, numbers=32)], "wrong_dimension"),
        ([told(0), {"text_index": 1}], "wrong_dimension"),
        ([told(0), told(1) | {"embedding": ["a"] * 64}], "wrong_dimension"),
        ([told(0)], "missing"),
        ([told(0), told(2)], "missing"),
        ([told(0), told(1), told(1)], "missing"),
        ([told(0), told("1")], "missing"),
    ],
)
def test_a_vector_that_is_not_as_it_was_asked_for_is_none(answer: Any, code: str) -> None:
    first, second = ends(answer)

    assert isinstance(first, Vector)
    assert isinstance(second, Lost)
    assert second.code == code


def test_a_sparse_vector_that_was_asked_for_must_be_there() -> None:
    token = {"index": 7149, "value": 0.829, "token": "风"}

    first, second = ends([told(0, sparse_embedding=[token]), told(1)], output_type="dense&sparse")

    assert isinstance(first, Vector)
    assert first.sparse == [token]
    assert second == Lost("no_sparse_vector", "came back without the sparse vector that was asked for")


@pytest.mark.parametrize("number", [0.1, -0.0695386752486229, 1e-12, 3])
def test_numbers_are_written_as_they_came(number: float) -> None:
    (first, _) = ends([told(0) | {"embedding": [number] * 64}, told(1)])

    assert json.loads(vectors.line(vectors.Made("a", 0, first)))["embedding"] == [number] * 64
