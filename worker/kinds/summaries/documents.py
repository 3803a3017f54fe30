"""A document's bytes → its text: txt, md, html, pdf, in the encodings that people have.

What the bytes are is told by the bytes, then by the content type, never by a name alone. Every way in which one
document cannot be read is `Unreadable`: an error of that document, not of the job.
"""

from __future__ import annotations

import codecs
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from worker.errors import NoriaError
from worker.kinds.summaries import extract

BYTES_LIMIT = 20 << 20
TEXT_LIMIT = 2_000_000  # characters
SECONDS = 60.0  # by the clock, for one document

_TRUSTED = 20_000  # bytes of HTML that the parser takes no second over, whatever they are
_HEAD = 1024  # bytes that tell what a file is
_SAMPLE = 65_536  # bytes that tell an encoding
_PROGRAM = str(Path(extract.__file__).resolve())

# A comment once read is never read again, or a few of them would be read in as many ways as there are subsets.
_HTML = re.compile(
    rb"\s*+(?><!--.*?-->\s*+)*+<(!doctype html|html|head|body|\?xml[^>]*>\s*<!doctype html)", re.I | re.S
)
_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([\w.:-]{1,40})", re.I)
# By the names that Python gives them. Not all that it knows: the time that some take grows with the square.
_CHARSETS = re.compile(
    r"ascii|utf-(8|16|32)(-[bl]e|-sig)?|cp\d+|iso8859-\d+|gb(2312|k|18030)|hz|big5(hkscs)?|shift_jis\w*|euc_\w+|"
    r"iso2022_\w+|koi8-[rtu]|tis-620|johab|mac-\w+"
)
_UNSTORABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_BLANK = re.compile(r"\n[ \t]*\n\s*\n")

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, which it begins with
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What people send by mistake, by its first bytes.
_OTHERS = {
    b"PK\x03\x04": "a ZIP file, as docx, xlsx and epub are",
    b"\xd0\xcf\x11\xe0": "an old Office file",
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


def text_of(data: bytes, content_type: str = "") -> str:
    """The document's text, fit to be stored; raises Unreadable."""
    if not data.strip():
        raise Unreadable("empty", "is empty")
    if len(data) > BYTES_LIMIT:
        raise Unreadable("too_large", f"has more than {BYTES_LIMIT >> 20} MB")
    declared = _declared(content_type)
    if b"%PDF-" in data[:_HEAD]:
        return clean(_apart("pdf", data, declared))
    if other := next((name for mark, name in _OTHERS.items() if data.startswith(mark)), None):
        raise Unreadable("unsupported", f"is {other}: txt, md, html and pdf are read")
    if _is_html(data, content_type):
        return clean(_here(data, declared) if len(data) <= _TRUSTED else _apart("html", data, declared))
    return clean(_decoded(data, declared))


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


def _is_html(data: bytes, content_type: str) -> bool:
    said = content_type.partition(";")[0].strip().lower()
    return said in ("text/html", "application/xhtml+xml") or _HTML.match(data[:_HEAD]) is not None


def _declared(content_type: str) -> str | None:
    """The charset that a content type names, if it is one that we know."""
    said = _CHARSET.search(content_type)
    try:
        name = codecs.lookup(said[1]).name if said else ""
    except (LookupError, ValueError):
        return None
    return name if _CHARSETS.fullmatch(name) else None


def _decoded(data: bytes, declared: str | None) -> str:
    """The text of plain bytes, by the first encoding that fits them whole."""
    for encoding in _encodings(data, declared):
        try:
            return data.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    if b"\0" in data:
        raise Unreadable("unsupported", "is no text: txt, md, html and pdf are read")
    return data.decode("cp1252", "replace")


def _encodings(data: bytes, declared: str | None) -> Iterator[str]:
    marked = next((encoding for bom, encoding in _BOMS.items() if data.startswith(bom)), None)
    if marked:
        yield marked
    sample = data[:_SAMPLE]
    if b"\0" in sample:
        yield from _wide(sample)
        return
    # A server's word for Latin is most often its default, and not about this file.
    if declared and declared not in ("iso8859-1", "ascii", "cp1252"):
        yield declared
    yield "utf-8"
    if _is_chinese(sample):
        yield "gb18030"


def _wide(sample: bytes) -> Iterator[str]:
    """UTF-16 without a mark: the zeros of its plain letters are all on one side."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > 20 * even:
        yield "utf-16-le"
    if even > 20 * odd:
        yield "utf-16-be"


def _is_chinese(sample: bytes) -> bool:
    """Whether bytes beyond ASCII read as GB 18030 are the everyday characters of GB 2312, as in real Chinese.

    Any Latin text can be read as GB 18030 too; it gives characters that nobody writes.
    """
    signs = [sign for sign in sample.decode("gb18030", "replace") if sign > "\x7f"]
    common = sum(1 for sign in signs if sign.encode("gb2312", "ignore"))
    return common >= 0.9 * len(signs)


def _here(data: bytes, charset: str | None) -> str:
    try:
        return extract.html(data, charset)
    except extract.Refused as refused:
        raise Unreadable(refused.code, str(refused)) from None


def _apart(form: str, data: bytes, charset: str | None) -> str:
    """The text as `extract` finds it in a process of its own, with nothing of our environment."""
    command = [sys.executable, "-I", _PROGRAM, form, str(TEXT_LIMIT), charset or ""]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=SECONDS, env={}, check=False)
    except subprocess.TimeoutExpired:
        raise Unreadable("too_slow", f"could not be read within {SECONDS:.0f} seconds") from None
    if done.returncode:
        raise Unreadable("too_slow", "takes more memory or time to read than one document is given")
    answer = json.loads(done.stdout)
    if "code" in answer:
        raise Unreadable(answer["code"], answer["message"])
    return str(answer["text"])
