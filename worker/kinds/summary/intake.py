"""Which documents a job has, and one of them, read.

What lies below a prefix is listed once, at work time, and the list kept as working material: an object that comes
later changes nothing for rounds that are under way.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from urllib.parse import urlsplit

from worker.egress import NotAllowed, TooLarge
from worker.errors import NotFound
from worker.kinds.kind import Found, Store
from worker.kinds.summary import documents
from worker.kinds.summary.documents import BYTES_LIMIT, Reading, Unreadable
from worker.kinds.summary.form import MOST, Document

LIST = "documents.jsonl"

_NAME = 100  # characters of a link's last part
_PAGE = 1000  # objects that a bucket lists at a time


@dataclass(frozen=True)
class Item:
    """One document: what its line is called, and where it is."""

    id: str
    text: str | None = None
    url: str | None = None
    key: str | None = None
    slip: str | None = None  # why there is none here: a prefix that is not the project's


class TooMany(Exception):
    """There are more documents than one job takes; the message says of what."""


def given(wanted: Sequence[Document]) -> list[Item] | None:
    """The documents as the input has them; None where some of them are still to be listed."""
    if any(document.prefix is not None for document in wanted):
        return None
    return list(_told_apart(_item(place, document) for place, document in enumerate(wanted)))


def listed(wanted: Sequence[Document], store: Store) -> list[Item]:
    """The documents with what lies below the prefixes now; raises TooMany."""
    found: list[Item] = []
    for item in _told_apart(_all(wanted, store)):
        if len(found) == MOST:
            raise TooMany(f"there are more than {MOST:,} documents below the prefixes: choose fewer by since and until")
        found.append(item)
    return found


def kept(items: Iterable[Item]) -> Iterator[bytes]:
    """The list as an object's bytes."""
    for item in items:
        told = {name: value for name, value in asdict(item).items() if value is not None}
        yield json.dumps(told, ensure_ascii=False).encode() + b"\n"


def found_again(chunks: Iterable[bytes]) -> list[Item]:
    """The list from the object that `kept` made."""
    return [Item(**json.loads(line)) for line in b"".join(chunks).splitlines()]


def read(item: Item, store: Store) -> Reading:
    """The document's text, and what of it is not in it.

    Raises Unreadable for what will not change, CallFailed for a link that may answer later.
    """
    if item.text is not None:
        return Reading(documents.clean(item.text))  # nothing of ours can have read it wrong
    if item.slip is not None:
        raise Unreadable("not_found", item.slip)
    try:
        data, content_type = _bytes(item, store)
    except NotFound:
        raise Unreadable("not_found", "is not in the bucket, or not this project's") from None
    except TooLarge:
        raise Unreadable("too_large", f"has more than {BYTES_LIMIT >> 20} MB") from None
    except NotAllowed as error:
        raise Unreadable("not_allowed", f"lies where nothing is fetched from: {error}") from None
    return documents.read(data, content_type)


def _bytes(item: Item, store: Store) -> tuple[bytes, str]:
    if item.url is not None:
        return store.fetch(item.url, BYTES_LIMIT)
    assert item.key is not None, "a document is a text, a link or a key"
    # a name is a hint where neither the bytes nor anybody else says what they are
    return store.read(item.key, BYTES_LIMIT), mimetypes.guess_type(item.key)[0] or ""


def _all(wanted: Sequence[Document], store: Store) -> Iterator[Item]:
    for place, document in enumerate(wanted):
        if document.prefix is None:
            yield _item(place, document)
        else:
            yield from _below(document, store)


def _item(place: int, document: Document) -> Item:
    name = document.id or document.key or (_named(document.url) if document.url else str(place + 1))
    return Item(name, document.text, document.url, document.key)


def _named(url: str) -> str:
    """Its host and the last part of its path: a link may be signed, and what a document is called is told to others."""
    parts = urlsplit(url)
    last = parts.path.rstrip("/").rpartition("/")[2].partition(";")[0]
    return f"{parts.hostname}/{last[:_NAME]}" if last else f"{parts.hostname}"


def _told_apart(items: Iterable[Item]) -> Iterator[Item]:
    """The items, those that would be called like an earlier one by their number too."""
    seen: set[str] = set()
    for place, item in enumerate(items):
        yield replace(item, id=f"{item.id} ({place + 1})") if item.id in seen else item
        seen.add(item.id)


def _below(document: Document, store: Store) -> Iterator[Item]:
    assert document.prefix is not None, "only prefixes are listed"
    try:
        for count, found in enumerate(store.listing(document.prefix), 1):
            if count % _PAGE == 0 and store.is_late():
                raise TooMany(f"{document.prefix} has more objects than can be listed in time: give a longer prefix")
            if _is_meant(document, found):
                yield Item(found.key, key=found.key)
    except NotFound:
        yield Item(document.prefix, slip="is a prefix that is not this project's")


def _is_meant(document: Document, found: Found) -> bool:
    """Whether it changed in the half-open window; the marks that some tools leave for folders are no documents."""
    since, until = document.since, document.until
    in_window = (since is None or found.modified_at >= since) and (until is None or found.modified_at < until)
    return in_window and not (found.key.endswith("/") and not found.bytes)
