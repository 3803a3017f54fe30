"""Which texts a job has, in pages: objects with a line a text, so that no step holds more than a page of them.

They are read once, when the work begins, and stored: a user's object that changes later changes nothing for a job that
is under way. What is wrong with one text is its own error; nothing of it is sent, or paid for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

from worker.catalog import Model
from worker.kinds import text
from worker.kinds.embedding.input import MOST, Embedding, as_item
from worker.kinds.kind import Store
from worker.text import storable

PAGE = 2_000  # texts; with 2,048 numbers each, their vectors take 33 MB
BYTES_LIMIT = 200 << 20  # of all objects that a job names
LINE_LIMIT = 1 << 20  # bytes of one line; no text of 8,192 tokens is as long

_JSON_NAMES = (".jsonl", ".ndjson")
_SURELY = 2  # our count of tokens is at most twice the true one
_JSONL = "application/jsonl"


class TooMuch(Exception):
    """There are more texts than one job takes; the message says what of."""


@dataclass(frozen=True)
class Lost:
    """Why a text has no vector: a stable code, and a message for a person."""

    code: str
    message: str


@dataclass(frozen=True)
class Row:
    """A text in its place among all; `lost`: why it is not sent."""

    index: int
    id: str
    text: str = ""
    lost: Lost | None = None


@dataclass(frozen=True)
class Page:
    """A stored page: its object, its texts, those of them that are sent."""

    key: str
    rows: int
    sent: int


def stored(wanted: Embedding, model: Model, store: Store) -> list[Page]:
    """All texts, stored in pages; raises TooMuch, and NotFound where an object is not the project's."""
    rows = _rows(wanted, model, store)
    pages: list[Page] = []
    while page := list(islice(rows, PAGE)):
        name, lines = f"texts-{len(pages)}.jsonl", (json.dumps(asdict(row)).encode() + b"\n" for row in page)
        kept = store.put(name, lines, _JSONL)
        pages.append(Page(kept.key, len(page), sum(row.lost is None for row in page)))
    return pages


def read(page: Page, store: Store) -> list[Row]:
    """The texts of a page."""
    lines = b"".join(store.chunks(page.key)).splitlines()
    return [_row(json.loads(line)) for line in lines]


def groups(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """The texts that are sent, as many a call as the model takes."""
    sent = [row for row in rows if row.lost is None]
    return [sent[start : start + most] for start in range(0, len(sent), most)]


def fault(words: str, model: Model) -> Lost | None:
    """What is wrong with a text, as far as that can be told before it is paid for."""
    if not words.strip():
        return Lost("empty", "is empty")
    if model.text_tokens and text.tokens(words) // _SURELY > model.text_tokens:
        return Lost(
            "too_long", f"has more than {model.text_tokens:,} tokens, which is all that {model.id} reads of one"
        )
    return None


def _row(kept: dict[str, Any]) -> Row:
    lost = kept.pop("lost")
    return Row(**kept, lost=Lost(**lost) if lost else None)


def _rows(wanted: Embedding, model: Model, store: Store) -> Iterator[Row]:
    """Every text in its place."""
    read = _Read()
    found = chain.from_iterable(_of(as_item(given), store, read) for given in wanted.texts)
    for index, (name, words, lost) in enumerate(found):
        if index == MOST:
            raise TooMuch(f"there are more than {MOST:,} texts: give fewer to a job")
        lost = lost or fault(words, model)
        yield Row(index, name or str(index + 1), "" if lost else words, lost)


_Found = tuple[str | None, str, Lost | None]


@dataclass
class _Read:
    """How much of objects was read for a job: one object may be named many times, and hold no text at all."""

    size: int = 0

    def count(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks; raises TooMuch where they are too many, with those of the objects before."""
        for chunk in chunks:
            self.size += len(chunk)
            if self.size > BYTES_LIMIT:
                raise TooMuch(f"the objects have more than {BYTES_LIMIT >> 20} MB: give less to a job")
            yield chunk


def _of(item: Any, store: Store, read: _Read) -> Iterator[_Found]:
    if item.key is None:
        yield item.id, item.text, None
        return
    is_json = item.key.lower().endswith(_JSON_NAMES)
    for line in _lines(read.count(store.stream(item.key))):
        if line.strip():
            yield _of_json(line) if is_json else _of_text(line)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of an object; of one that is too long, its beginning."""
    line = bytearray()
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        line += first[: LINE_LIMIT + 1 - len(line)]
        for other in others:
            yield bytes(line)
            line = bytearray(other[: LINE_LIMIT + 1])
    yield bytes(line)


def _of_text(line: bytes) -> _Found:
    if len(line) > LINE_LIMIT:
        return None, "", Lost("too_long", f"is a line of more than {LINE_LIMIT >> 20} MB")
    try:
        return None, storable(line.decode("utf-8-sig").strip()), None
    except UnicodeDecodeError:
        return None, "", Lost("bad_text", "is not UTF-8")


def _of_json(line: bytes) -> _Found:
    """A line of JSONL: a text, or an object with `text`, and `id` where it has one."""
    _, words, lost = _of_text(line)
    if lost:
        return None, "", lost
    try:
        value = json.loads(words)
    except (ValueError, RecursionError):
        return None, "", Lost("bad_line", "is a line that is no JSON")
    given = value if isinstance(value, dict) else {"text": value}
    name = given.get("id")
    known = storable(str(name))[:200] if isinstance(name, str | int) else None
    if not isinstance(given.get("text"), str):
        return known, "", Lost("bad_line", "is a line without a text: it must be a text, or an object with `text`")
    return known, storable(given["text"]), None
