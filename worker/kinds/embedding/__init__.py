"""Texts by the thousand, each as a vector.

The output is vectors.jsonl (or .parquet), a line for each text in the order in which they were given. A text that has
no vector is a line with its error; the job fails only if none has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from worker.catalog import Model, Usage
from worker.kinds import answers, fields, text
from worker.kinds.embedding import parquet, rounds, texts, vectors
from worker.kinds.embedding.input import Embedding, Mode, as_item
from worker.kinds.embedding.rounds import Work
from worker.kinds.embedding.texts import Lost
from worker.kinds.embedding.vectors import Made
from worker.kinds.kind import Parent, ParentKind, Piece, Store

NAME = "embedding"


def estimate(_: Model, wanted: Embedding) -> Usage:
    """The tokens, if all texts are in the input, by a count that is rather too high; nothing if some are in objects."""
    items = [as_item(given) for given in wanted.texts]
    if any(item.key is not None for item in items):
        return Usage()
    return Usage({"input_tokens": sum(text.tokens(item.text or "") for item in items)})


def words(wanted: Embedding) -> str:
    """ "40 texts, 1 object, 1024 numbers each"."""
    objects = sum(as_item(given).key is not None for given in wanted.texts)
    counts = ((len(wanted.texts) - objects, "text"), (objects, "object"))
    told = [f"{count:,} {name}{'s' if count > 1 else ''}" for count, name in counts if count]
    return ", ".join([*told, f"{wanted.dimension} numbers each"])


def variant(wanted: Embedding) -> str | None:
    """The other way to have its model that the input insists on; None where calls will do too."""
    return str(wanted.mode) if wanted.mode is Mode.BATCH else None


def assemble(parent: Parent, store: Store) -> Iterator[Piece]:
    """The vectors, page by page. What has none is counted on the way, for the job's usage."""
    work = rounds.reopened(parent, store)
    parent.note["failed"] = 0  # this step's own copy of the note
    pages = (_counted(parent, _page(work, number)) for number in range(len(work.pages)))
    if work.wanted.format == "parquet":
        yield Piece("vectors", "parquet", parquet.CONTENT_TYPE, parquet.chunks(pages, work.wanted.dimension or 0))
    else:
        lines = (vectors.line(made) for page in pages for made in page)
        yield Piece("vectors", "jsonl", "application/jsonl", lines)


def usage(parent: Parent) -> dict[str, Any]:
    """Texts, those without a vector, calls and batches that were answered, and tokens."""
    count = sum(rows for _, rows, _ in parent.note.get("pages", ()))
    used = [child.usage for child in parent.ended if child.usage]
    tokens = sum(int(answers.number(each.get("input_tokens")) or 0) for each in used)
    return {"texts": count, "failed": parent.note.get("failed", count), "calls": len(used), "input_tokens": tokens}


def _page(work: Work, number: int) -> list[Made]:
    rows = texts.read(work.pages[number], work.store)
    return list(vectors.of_page(work.wanted, rows, work.groups(rows), work.children[number], work.store))


def _counted(parent: Parent, page: Sequence[Made]) -> Sequence[Made]:
    parent.note["failed"] += sum(isinstance(made.end, Lost) for made in page)
    return page


KIND = ParentKind(
    name=NAME,
    input=Embedding,
    check=partial(fields.check, NAME, Embedding),
    estimate=estimate,
    words=words,
    keyed=("texts",),
    variant=variant,
    expand=rounds.expand,
    assemble=assemble,
    usage=usage,
    all_or_none=False,
)
