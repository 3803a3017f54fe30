"""A document's bytes → its text: txt, md, html, pdf, docx, xlsx, pptx, eml, in the encodings that people have.

What the bytes are is told by the bytes, then by the content type, never by a name alone. Every way in which one
document cannot be read is `Unreadable`: an error of that document, not of the job. Whatever was read is judged before
a model is paid for it, by `decoding.implausible`; what of a document is not in its text is a warning.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from worker.errors import NoriaError
from worker.kinds.reading import child, decoding
from worker.kinds.reading.extract import READ

BYTES_LIMIT = 20 << 20
TEXT_LIMIT = 2_000_000  # characters
SECONDS = 60.0  # by the clock, for one document

_HEAD = 1024  # bytes that tell what a file is
_STAMP = 200  # characters at most, and on three pages at least, of what a scanner prints on each
_NAMED = 5  # attachments

# A comment once read is never read again, or a few of them would be read in as many ways as there are subsets.
_HTML = re.compile(
    rb"\s*+(?><!--.*?-->\s*+)*+<(!doctype html|html|head|body|\?xml[^>]*>\s*<!doctype html)", re.I | re.S
)
_MAIL = re.compile(rb"[A-Z][\w-]{1,40}: .*^MIME-Version:", re.I | re.S | re.M)
_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([\w.:-]{1,40})", re.I)
_META = re.compile(rb"<(?:meta[^>]{1,200}?charset|\?xml[^>]{1,100}?encoding)\s*=\s*[\"']?([\w.:-]{1,40})", re.I)
_UNSTORABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
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


def read(data: bytes, content_type: str = "") -> Reading:
    """What the document says; raises Unreadable."""
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
    text = storable(text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n"))
    text = _BLANK.sub("\n\n", text).strip()
    if not text.strip("\ufffd\n "):
        raise Unreadable("empty", "has no text in it")
    if len(text) > TEXT_LIMIT:
        raise Unreadable("too_long", f"has {len(text):,} characters; at most {TEXT_LIMIT:,} are read of one document")
    return text


def storable(text: str) -> str:
    """The text with a mark in place of what Postgres refuses, and of other control characters."""
    return _UNSTORABLE.sub("\ufffd", text)


def _found(data: bytes, content_type: str) -> Reading:
    said = content_type.partition(";")[0].strip().lower()
    if b"%PDF-" in data[:_HEAD]:
        return _of_pages(_apart("pdf", data)["pages"])
    if data.startswith(b"PK\x03\x04"):
        return Reading(_apart("office", data)["text"])
    if other := next((name for mark, name in _OTHERS.items() if data.startswith(mark)), None):
        raise Unreadable("unsupported", f"is {other}: {READ} are read")
    if said == "message/rfc822" or _MAIL.match(data[: 8 * _HEAD]):
        return _of_mail(_apart("mail", data))
    return _of_text(data, content_type)


def _of_text(data: bytes, content_type: str) -> Reading:
    """What is read as a page or as plain text."""
    said = content_type.partition(";")[0].strip().lower()
    if said in ("text/html", "application/xhtml+xml") or _HTML.match(data[:_HEAD]):
        page = _decoded(data, _declared(content_type) or _of_itself(data))
        return replace(page, text=_apart("html", page.text.encode(errors="replace"))["text"])
    return _decoded(data, _declared(content_type))


def _declared(content_type: str) -> str | None:
    """The encoding that a content type names, if it is one that we know."""
    said = _CHARSET.search(content_type)
    return decoding.known(said[1]) if said else None


def _of_itself(data: bytes) -> str | None:
    """The encoding that a page names."""
    said = _META.search(data[: 4 * _HEAD])
    return decoding.known(said[1].decode()) if said else None


def _decoded(data: bytes, declared: str | None) -> Reading:
    text = decoding.decoded(data, declared)
    if text is None and b"\0" in data[:_HEAD]:
        raise Unreadable("unsupported", f"is no text: {READ} are read")
    if text is None:
        raise Unreadable("unreadable", "is in an encoding that cannot be told, or damaged: save it as UTF-8")
    lost = text.count("\ufffd")
    return Reading(text, f"{lost:,} of its characters could not be read" if lost else None)


def _of_pages(pages: Sequence[str]) -> Reading:
    """The pages with text. A page of rubbish has none; nor has one with only the line that a scanner prints on each."""
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
    """Its head and its body, a text or a page: mail within it is text, or a few kilobytes would be read for hours."""
    body = b64decode(mail["body"])
    found = _of_text(body, mail["type"]) if body.strip() else Reading("")
    names = mail["left_out"]
    listed = ", ".join(map(str, names[:_NAMED])) + (f" and {len(names) - _NAMED:,} more" if names[_NAMED:] else "")
    left_out = f"attachments are not read: {listed}" if names else None
    return Reading(f"{mail['head']}\n\n{found.text}", "; ".join(filter(None, [found.warning, left_out])) or None)


def _apart(form: str, data: bytes) -> dict[str, Any]:
    """What a parser finds in a process of its own; raises Unreadable."""
    try:
        answer = child.run(form, data, TEXT_LIMIT, SECONDS)
    except child.Exhausted as error:
        raise Unreadable(error.code, str(error)) from None
    if "code" in answer:
        raise Unreadable(answer["code"], answer["message"])
    return answer
