"""Which documents a job has, and each one's bytes → its text: txt, md, html, pdf, docx, xlsx, pptx, eml.

What lies below a prefix is listed once, when the work begins, and the list is stored: objects that come later change
nothing for rounds that are under way.

The bytes tell what a file is, then its content type, never a name alone. Every way in which one document cannot be read
is `Unreadable`: an error of that document, not of the job. What was read is judged before a model is paid for it, by
`decoding.implausible`; what of a document is not in its text is a warning.
"""

from __future__ import annotations

import json
import mimetypes
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from worker.egress import NotAllowed, TooLarge
from worker.errors import NoriaError, NotFound
from worker.kinds import reading
from worker.kinds.kind import Found, Store
from worker.kinds.reading import decoding
from worker.kinds.reading.extract import READ
from worker.kinds.summary.input import MOST, Document

LIST = "documents.jsonl"
BYTES_LIMIT = 20 << 20
TEXT_LIMIT = 2_000_000  # characters
SECONDS = 60.0  # of the clock, for one document

_HEAD = 1024  # bytes that tell what a file is
_STAMP = 200  # characters at most, and on three pages at least, of what a scanner prints on each
_NAMED = 5  # attachments
_NAME = 100  # characters of a link's last part
_PAGE = 1000  # objects that a bucket lists at a time

# Possessive, so that a few comments are not matched in as many ways as there are subsets of them.
_HTML = re.compile(
    rb"\s*+(?><!--.*?-->\s*+)*+<(!doctype html|html|head|body|\?xml[^>]*>\s*<!doctype html)", re.I | re.S
)
_MAIL = re.compile(rb"[A-Z][\w-]{1,40}: .*^MIME-Version:", re.I | re.S | re.M)
_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([\w.:-]{1,40})", re.I)
_META = re.compile(rb"<(?:meta[^>]{1,200}?charset|\?xml[^>]{1,100}?encoding)\s*=\s*[\"']?([\w.:-]{1,40})", re.I)
_UNPRINTABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # more than what Postgres refuses
_BLANK = re.compile(r"\n[ \t]*\n\s*\n")

# What people send by mistake, by its first bytes.
_OTHERS = {
    b"\xd0\xcf\x11\xe0": "an old Office file, or one with a password",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x1f\x8b": "a compressed file",
    b"{\\rtf": "an RTF file",
}


class Unreadable(NoriaError):
    """One document gives no text: a stable code, and a sentence whose subject is the document."""

    code = "unreadable"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Reading:
    """A document's text, fit to be stored; `warning`: what of the document is not in it."""

    text: str
    warning: str | None = None


@dataclass(frozen=True)
class Item:
    """One document: what its line is called, and where it is."""

    id: str
    text: str | None = None
    url: str | None = None
    key: str | None = None
    slip: str | None = None  # why there is no document: a prefix that is not the project's; so called in stored lists


class TooMany(Exception):
    """There are more documents than one job takes; the message says of what."""


def given(wanted: Sequence[Document]) -> list[Item] | None:
    """The documents of the input; None where a prefix is still to be listed."""
    if any(document.prefix is not None for document in wanted):
        return None
    return list(_told_apart(_item(place, document) for place, document in enumerate(wanted)))


def listed(wanted: Sequence[Document], store: Store) -> list[Item]:
    """The documents with what is below the prefixes now; raises TooMany."""
    found: list[Item] = []
    for item in _told_apart(_items(wanted, store)):
        if len(found) == MOST:
            raise TooMany(f"there are more than {MOST:,} documents below the prefixes: choose fewer by since and until")
        found.append(item)
    return found


def as_list(items: Iterable[Item]) -> Iterator[bytes]:
    """The list as an object's bytes."""
    for item in items:
        known = {name: value for name, value in asdict(item).items() if value is not None}
        yield json.dumps(known, ensure_ascii=False).encode() + b"\n"


def listed_before(chunks: Iterable[bytes]) -> list[Item]:
    """The list from the object that `as_list` made."""
    return [Item(**json.loads(line)) for line in b"".join(chunks).splitlines()]


def fetch(item: Item, store: Store) -> Reading:
    """The document's text; raises Unreadable for good, CallFailed for a link that may answer later."""
    if item.text is not None:
        return Reading(clean(item.text))  # it is text already, so no reader of ours can be wrong
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
    return read(data, content_type)


def read(data: bytes, content_type: str = "") -> Reading:
    """The document's text from its bytes; raises Unreadable."""
    if not data.strip():
        raise Unreadable("empty", "is empty")
    if len(data) > BYTES_LIMIT:
        raise Unreadable("too_large", f"has more than {BYTES_LIMIT >> 20} MB")
    found = _found(data, content_type)
    if reason := decoding.implausible(found.text):
        raise Unreadable("unreadable", reason)
    return replace(found, text=clean(found.text))


def text_of(data: bytes, content_type: str = "") -> str:
    """The document's text; raises Unreadable."""
    return read(data, content_type).text


def clean(text: str) -> str:
    """The text without what Postgres refuses, and without long runs of empty lines; raises Unreadable."""
    text = printable(text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n"))
    text = _BLANK.sub("\n\n", text).strip()
    if not text.strip("\ufffd\n "):
        raise Unreadable("empty", "has no text in it")
    if len(text) > TEXT_LIMIT:
        raise Unreadable("too_long", f"has {len(text):,} characters; at most {TEXT_LIMIT:,} are read of one document")
    return text


def printable(text: str) -> str:
    """The text with U+FFFD in place of what Postgres refuses, and of other control characters."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _bytes(item: Item, store: Store) -> tuple[bytes, str]:
    if item.url is not None:
        return store.fetch(item.url, BYTES_LIMIT)
    assert item.key is not None, "a document is a text, a link or a key"
    # the name is a hint where neither the bytes nor a content type tell
    return store.read(item.key, BYTES_LIMIT), mimetypes.guess_type(item.key)[0] or ""


def _items(wanted: Sequence[Document], store: Store) -> Iterator[Item]:
    for place, document in enumerate(wanted):
        if document.prefix is None:
            yield _item(place, document)
        else:
            yield from _below(document, store)


def _item(place: int, document: Document) -> Item:
    name = document.id or document.key or (_named(document.url) if document.url else str(place + 1))
    return Item(name, document.text, document.url, document.key)


def _named(url: str) -> str:
    """Its host and the last part of its path: a link may be signed, and a document's name is shown to others."""
    parts = urlsplit(url)
    last = parts.path.rstrip("/").rpartition("/")[2].partition(";")[0]
    return f"{parts.hostname}/{last[:_NAME]}" if last else f"{parts.hostname}"


def _told_apart(items: Iterable[Item]) -> Iterator[Item]:
    """The items; a name that an earlier one has is followed by the item's number."""
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
    """Whether it changed in the half-open window; the empty objects that some tools make for folders are left out."""
    since, until = document.since, document.until
    in_window = (since is None or found.modified_at >= since) and (until is None or found.modified_at < until)
    return in_window and not (found.key.endswith("/") and not found.bytes)


def _found(data: bytes, content_type: str) -> Reading:
    if b"%PDF-" in data[:_HEAD]:
        return _of_pages(_apart("pdf", data)["pages"])
    if data.startswith(b"PK\x03\x04"):
        return Reading(_apart("office", data)["text"])
    if other := next((name for mark, name in _OTHERS.items() if data.startswith(mark)), None):
        raise Unreadable("unsupported", f"is {other}: {READ} are read")
    if _base(content_type) == "message/rfc822" or _MAIL.match(data[: 8 * _HEAD]):
        return _of_mail(_apart("mail", data))
    return _of_text(data, content_type)


def _of_text(data: bytes, content_type: str) -> Reading:
    """What is read as a page or as plain text."""
    if _base(content_type) in ("text/html", "application/xhtml+xml") or _HTML.match(data[:_HEAD]):
        page = _decoded(data, _declared(content_type) or _of_itself(data))
        return replace(page, text=_apart("html", page.text.encode(errors="replace"))["text"])
    return _decoded(data, _declared(content_type))


def _base(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _declared(content_type: str) -> str | None:
    """The encoding that a content type names, if it is one that we know."""
    found = _CHARSET.search(content_type)
    return decoding.known(found[1]) if found else None


def _of_itself(data: bytes) -> str | None:
    """The encoding that a page names."""
    found = _META.search(data[: 4 * _HEAD])
    return decoding.known(found[1].decode()) if found else None


def _decoded(data: bytes, declared: str | None) -> Reading:
    text = decoding.decoded(data, declared)
    if text is None and b"\0" in data[:_HEAD]:
        raise Unreadable("unsupported", f"is no text: {READ} are read")
    if text is None:
        raise Unreadable("unreadable", "is in an encoding that cannot be told, or damaged: save it as UTF-8")
    lost = text.count("\ufffd")
    return Reading(text, f"{lost:,} of its characters could not be read" if lost else None)


def _of_pages(pages: Sequence[str]) -> Reading:
    """The pages with text; a page of rubbish has none, nor one with only the line that a scanner prints on each."""
    counts = Counter(page.strip() for page in pages)
    written = [page for page in pages if page.strip() and not (counts[page.strip()] > 2 and len(page) <= _STAMP)]
    reasons = list(map(decoding.implausible, written))
    kept = [page for page, reason in zip(written, reasons, strict=True) if reason is None]
    if not written:
        raise Unreadable("no_text", "is a PDF of pictures, with no text in it")
    if not kept:
        raise Unreadable("unreadable", str(reasons[0]))
    lost = len(pages) - len(kept)
    what = "no text" if len(kept) == len(written) else "no text that can be read"
    return Reading("\n\n".join(kept), f"{lost:,} of {len(pages):,} pages hold {what}" if lost else None)


def _of_mail(mail: dict[str, Any]) -> Reading:
    """Its head and its body, a text or a page. Mail within it is text: else a few kilobytes could take hours."""
    body = b64decode(mail["body"])
    found = _of_text(body, mail["type"]) if body.strip() else Reading("")
    names = mail["left_out"]
    listed = ", ".join(map(str, names[:_NAMED])) + (f" and {len(names) - _NAMED:,} more" if names[_NAMED:] else "")
    left_out = f"attachments are not read: {listed}" if names else None
    return Reading(f"{mail['head']}\n\n{found.text}", "; ".join(filter(None, [found.warning, left_out])) or None)


def _apart(form: str, data: bytes) -> dict[str, Any]:
    """The answer of a parser in a process of its own; raises Unreadable."""
    try:
        answer = reading.run(form, data, TEXT_LIMIT, SECONDS)
    except reading.Exhausted as error:
        raise Unreadable(error.code, str(error)) from None
    if "code" in answer:
        raise Unreadable(answer["code"], answer["message"])
    return answer
