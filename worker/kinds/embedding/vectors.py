"""The vectors of a page, from the calls and the batch that made them, checked and put back into the texts' order.

A call tells the place of each text among its own, a batch's lines come in any order: both are read by name and place,
never by the order in which they come. One page is in memory at a time, its numbers as an array of doubles, which is
what Python makes of the provider's: written again they are the same.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.kinds import answers, text_batch
from worker.kinds.embedding.input import Embedding
from worker.kinds.embedding.texts import Lost, Row
from worker.kinds.kind import Ended, Store


@dataclass(frozen=True)
class Vector:
    """What a text became: numbers, or the tokens that matter and how much, or both."""

    dense: array[float] | None
    sparse: list[dict[str, Any]] | None


@dataclass(frozen=True)
class Made:
    """A line of the result: a text's id and place, and its vector or why it has none."""

    id: str
    index: int
    end: Vector | Lost


def of_page(
    wanted: Embedding, rows: Sequence[Row], groups: Sequence[Sequence[Row]], children: Iterable[Ended], store: Store
) -> Iterator[Made]:
    """The page's lines in the order of its texts."""
    found: dict[int, Vector | Lost] = {}
    for child in children:
        ends = _of_call(wanted, child, store) if "texts" in child.note else _of_batch(wanted, groups, child, store)
        for index, end in ends:
            if not isinstance(found.get(index), Vector):
                found[index] = end
    missing = Lost("missing", "was sent, and no vector came back")
    for row in rows:
        yield Made(row.id, row.index, row.lost or found.get(row.index, missing))


def answered(child: Ended, store: Store) -> set[int]:
    """The groups of a batch's page that were answered."""
    return {int(name) for name, _ in _batched(child, store)}


def line(made: Made) -> bytes:
    """As the result has it."""
    told: dict[str, Any] = {"id": made.id, "index": made.index}
    if isinstance(made.end, Lost):
        told |= {"embedding": None, "error": {"code": made.end.code, "message": made.end.message}}
    else:
        told["embedding"] = None if made.end.dense is None else made.end.dense.tolist()
        told |= {"sparse_embedding": made.end.sparse} if made.end.sparse is not None else {}
        told["error"] = None
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def lost(child: Ended) -> Lost:
    """Why a call that did not succeed gave nothing."""
    error = child.error or {}
    return Lost(str(error.get("code") or child.state), str(error.get("message") or f"its call was {child.state}"))


def _of_call(wanted: Embedding, child: Ended, store: Store) -> Iterator[tuple[int, Vector | Lost]]:
    indexes: list[int] = child.note["texts"]
    if child.state != "succeeded":
        yield from ((index, lost(child)) for index in indexes)
        return
    for output in child.outputs:
        body = json.loads(b"".join(store.chunks(output.key)))
        yield from _placed(wanted, body.get("embeddings"), "text_index", indexes)


def _of_batch(
    wanted: Embedding, groups: Sequence[Sequence[Row]], child: Ended, store: Store
) -> Iterator[tuple[int, Vector | Lost]]:
    for name, body in _batched(child, store):
        if int(name) < len(groups):
            yield from _placed(wanted, body.get("data"), "index", [row.index for row in groups[int(name)]])


def _batched(child: Ended, store: Store) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for output in child.outputs:
        if output.role == "results":
            lines = text_batch.answered(store.chunks(output.key))
            yield from ((name, body) for name, body in lines if name.isdecimal())


def _placed(wanted: Embedding, told: Any, place: str, indexes: Sequence[int]) -> Iterator[tuple[int, Vector | Lost]]:
    """The vectors by the places that the answer names; a place that it lacks, or names twice, proves nothing."""
    found = [answers.mapping(each) for each in answers.items(told)]
    places = [each.get(place) for each in found]
    for each, at in zip(found, places, strict=True):
        if isinstance(at, int) and 0 <= at < len(indexes) and places.count(at) == 1:
            yield indexes[at], _vector(wanted, each)


def _vector(wanted: Embedding, told: Mapping[str, Any]) -> Vector | Lost:
    output, dense, sparse = str(wanted.output_type), None, None
    if "dense" in output:
        dense = _numbers(told.get("embedding"))
        if dense is None or len(dense) != wanted.dimension:
            size = "no" if dense is None else f"{len(dense):,}"
            return Lost("wrong_dimension", f"came back as {size} numbers, and {wanted.dimension:,} were asked for")
    if "sparse" in output:
        sparse = [dict(answers.mapping(each)) for each in answers.items(told.get("sparse_embedding"))]
        if not sparse:
            return Lost("no_sparse_vector", "came back without the sparse vector that was asked for")
    return Vector(dense, sparse)


def _numbers(told: Any) -> array[float] | None:
    try:
        return array("d", told) if isinstance(told, list) else None
    except TypeError:
        return None
