"""Text out of HTML and PDF, which anybody may have made.

A parser can be kept busy for hours, or fill the memory, by a small file made for it, and no thread can be stopped.
So this is also a program, which `documents` runs for what may be hostile: bytes on stdin, JSON on stdout, bounded
in memory and in seconds of CPU. It imports nothing of ours, so that it needs neither settings nor secrets.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from bs4 import BeautifulSoup
from bs4.element import CData, NavigableString, Tag
from bs4.exceptions import ParserRejectedMarkup
from pypdf import PdfReader
from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError

MEMORY = 1 << 30  # bytes
SECONDS = 30  # of CPU

_UNSEEN = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object"})
_BLOCK = re.compile(
    "address|article|aside|blockquote|br|dd|div|dl|dt|figcaption|footer|form|h[1-6r]|header|li|main|nav|ol|option|p|pre|"
    "section|table|title|tr|ul"
)
_CELLS = frozenset({"td", "th"})
_SPACES = re.compile(r"[ \t\r\f\v\u00a0\u3000]+")
_LINES = re.compile(r" ?\n[ \n]*")


class Refused(Exception):
    """The bytes give no text: a stable code, and a sentence for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def html(data: bytes, charset: str | None) -> str:
    """What a reader of the page sees, a line for each block, scripts and styles out; raises Refused if it is broken."""
    try:
        soup = BeautifulSoup(data, "html.parser", from_encoding=charset)
    except (ParserRejectedMarkup, ValueError, LookupError, AssertionError, RecursionError) as error:
        raise Refused("unreadable", f"is a broken page ({type(error).__name__})") from None
    return _LINES.sub("\n", _SPACES.sub(" ", "".join(_seen(soup)))).strip()


def pdf(data: bytes, limit: int) -> str:
    """The text of all pages; raises Refused where it is encrypted, broken, without text, or over `limit` characters."""
    try:
        pages = list(_pages(data, limit))
    except (FileNotDecryptedError, DependencyError):
        raise Refused("encrypted", "is encrypted: store it without a password") from None
    except LimitReachedError:
        raise Refused("too_large", "unpacks to more than is read of one document") from None
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Refused("unreadable", f"is a broken PDF ({type(error).__name__})") from None
    text = "\n\n".join(pages).strip()
    if not text:
        raise Refused("no_text", "is a PDF of pictures, with no text in it")
    return text


def _seen(soup: BeautifulSoup) -> Iterator[str]:
    """The page's texts in order. No recursion and no edits of the tree: pages may be nested tens of thousands deep."""
    waiting: list[Any] = [soup]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tag):
            edge = "\n" if _BLOCK.fullmatch(node.name) else " " if node.name in _CELLS else ""
            inside = () if node.name in _UNSEEN else reversed(node.contents)
            waiting += [edge, *inside, edge]
        elif type(node) in (str, NavigableString, CData):  # not comments and the like, which are strings too
            yield str(node)


def _pages(data: bytes, limit: int) -> Iterator[str]:
    reader = PdfReader(BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise FileNotDecryptedError("it has a password")
    for page in reader.pages:
        text = page.extract_text()
        limit -= len(text)
        if limit < 0:
            raise Refused("too_long", "has more text than is read of one document")
        yield text


def main(form: str, limit: str, charset: str) -> None:
    """Reads stdin as `form` (html, pdf) and prints {"text"} or {"code", "message"}."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    data = sys.stdin.buffer.read()
    try:
        answer = {"text": pdf(data, int(limit)) if form == "pdf" else html(data, charset or None)}
    except Refused as refused:
        answer = {"code": refused.code, "message": str(refused)}
    except MemoryError:
        answer = {"code": "too_large", "message": "unpacks to more than is read of one document"}
    # plain ASCII, so that half of a surrogate pair gets through as well
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
