"""Text out of HTML, PDF, Office documents, mail and Markdown of strangers, and JSON that has to be repaired.

A small file can be made to keep a parser busy for hours or to fill the memory, and a thread cannot be stopped. So this
is a program, which `reading.run` starts: bytes on stdin, JSON on stdout, bounded in memory and in seconds of CPU. It
imports nothing of ours, so that it needs neither settings nor secrets, and each library only where it is used.
"""

from __future__ import annotations

import email
import email.policy
import json
import re
import resource
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

MEMORY = 1 << 30  # bytes
SECONDS = 30  # of CPU

_UNPACKED = 400 << 20  # bytes of an unpacked Office document, by its own directory
_ENTRIES = 20_000  # of its archive
_MESSAGE_PARTS = 1_000
_UNSEEN = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object"})
_BLOCK = re.compile(
    "address|article|aside|blockquote|br|dd|div|dl|dt|figcaption|footer|form|h[1-6r]|header|li|main|nav|ol|option|p|pre|"
    "section|table|title|tr|ul"
)
_CELLS = frozenset({"td", "th"})
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
_SPACES = re.compile(r"[ \t\r\f\v\u00a0\u3000]+")
_LINES = re.compile(r" ?\n[ \n]*")


class Refused(Exception):
    """The bytes give no text: a stable code, and a message for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def html(data: bytes, _: int) -> dict[str, Any]:
    """The text that a reader of the page sees, a line for each block, without scripts and styles. Bytes are UTF-8."""
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        soup = BeautifulSoup(data.decode(), "html.parser")
    except (ParserRejectedMarkup, ValueError, LookupError, AssertionError, RecursionError) as error:
        raise Refused("unreadable", f"is a broken page ({type(error).__name__})") from None
    return {"text": _LINES.sub("\n", _SPACES.sub(" ", "".join(_seen(soup)))).strip()}


def pdf(data: bytes, most: int) -> dict[str, Any]:
    """The text of each page; raises Refused where it has a password, is broken, or over `most` characters."""
    from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError

    try:
        return {"pages": list(_counted(_pages(data), most))}
    except (FileNotDecryptedError, DependencyError):
        raise Refused("encrypted", "is encrypted: store it without a password") from None
    except LimitReachedError:
        raise Refused("too_large", "unpacks to more than is read of one document") from None
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Refused("unreadable", f"is a broken PDF ({type(error).__name__})") from None


def office(data: bytes, most: int) -> dict[str, Any]:
    """The text of a .docx, .xlsx or .pptx; raises Refused where it is none, broken, or over `most` characters."""
    try:
        with ZipFile(BytesIO(data)) as archive:
            return {"text": "\n".join(_counted(_reader(archive)(archive), most))}
    except (Refused, MemoryError):
        raise
    except BadZipFile:
        raise Refused("unreadable", "is a broken or cut ZIP file, as Office documents are") from None
    except Exception as error:  # noqa: BLE001 - of two libraries and the XML parsers below them
        raise Refused("unreadable", f"is a broken Office document ({type(error).__name__})") from None


def mail(data: bytes, _: int) -> dict[str, Any]:
    """The main headers, the body as it was sent, and the names of the attachments, which are not read."""
    try:
        message = email.message_from_bytes(data, policy=email.policy.default)
        parts = [part for part, _ in zip(message.walk(), range(_MESSAGE_PARTS), strict=False)]
        body = message.get_body(("plain", "html"))
        sent = body.get_payload(decode=True) if body is not None else b""
        names = [part.get_filename() or part.get_content_type() for part in parts if part.is_attachment()]
        headers = [f"{name}: {message[name]}" for name in ("From", "To", "Cc", "Date", "Subject") if message[name]]
        charset = f"; charset={body.get_content_charset('')}" if body is not None else ""
        form = f"{body.get_content_type()}{charset}" if body is not None else "text/plain"
    except Exception as error:  # noqa: BLE001 - the parser of headers has many ways to fail
        raise Refused("unreadable", f"is broken mail ({type(error).__name__})") from None
    return {"head": "\n".join(headers), "body": b64encode(bytes(sent)).decode(), "type": form, "left_out": names}


def markdown(data: bytes, _: int) -> dict[str, Any]:
    """The text to be spoken: links by their words, rows of tables as lists; blocks of code are left out."""
    from markdown_it import MarkdownIt

    # Indented text is no code: the paragraphs of a novel begin so. A picture is parsed as a link after a "!".
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable(["code", "image"])
    blocks: list[str] = []
    cells: list[str] | None = None
    for token in parser.parse(data.decode()):
        if token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            blocks.append(", ".join(cells or ()))
            cells = None
        elif token.type in ("inline", "html_block"):
            text = _inline(token.children or [token])
            (blocks if cells is None else cells).append(text)
    return {"text": "\n\n".join(block.strip() for block in blocks if block.strip())}


def mended(data: bytes, _: int) -> dict[str, Any]:
    """The repaired JSON, as text; raises Refused where there is none in it."""
    import json_repair

    try:
        value = json_repair.loads(data.decode())
    except (ValueError, RecursionError):
        value = ""
    if not isinstance(value, dict | list) or not value:  # prose is repaired to nothing
        raise Refused("unreadable", "the answer is no JSON")
    return {"json": json.dumps(value)}


def _seen(soup: Any) -> Iterator[str]:
    """The page's texts in order, without recursion: pages may be nested tens of thousands deep."""
    from bs4.element import CData, NavigableString, Tag

    waiting: list[Any] = [soup]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tag):
            edge = "\n" if _BLOCK.fullmatch(node.name) else " " if node.name in _CELLS else ""
            inside = () if node.name in _UNSEEN else reversed(node.contents)
            waiting += [edge, *inside, edge]
        elif type(node) in (str, NavigableString, CData):  # not comments, which are strings too
            yield str(node)


def _inline(tokens: Any) -> str:
    texts: list[str] = []
    for token in tokens:
        if token.type == "link_open" and texts and texts[-1].endswith("!"):
            texts[-1] = texts[-1][:-1]
        text = _COMMENT.sub("", token.content) if token.type.startswith("html") else token.content
        texts.append("\n" if token.type in ("softbreak", "hardbreak") else text)
    return "".join(texts)


def _pages(data: bytes) -> Iterator[str]:
    from pypdf import PdfReader
    from pypdf.errors import FileNotDecryptedError

    reader = PdfReader(BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise FileNotDecryptedError("it has a password")
    yield from (page.extract_text() for page in reader.pages)


def _counted(texts: Iterator[str], most: int) -> Iterator[str]:
    for text in texts:
        most -= len(text)
        if most < 0:
            raise Refused("too_long", "has more text than is read of one document")
        yield text


def _reader(archive: ZipFile) -> Callable[[ZipFile], Iterator[str]]:
    entries = archive.infolist()
    if len(entries) > _ENTRIES or sum(entry.file_size for entry in entries) > _UNPACKED:
        raise Refused("too_large", "unpacks to more than is read of one document")
    names = {entry.filename for entry in entries}
    found = next((read for part, read in _OFFICE.items() if part in names), None)
    if found is None:
        raise Refused("unsupported", f"is a ZIP file and no Office document: {READ} are read")
    return found


def _docx(archive: ZipFile) -> Iterator[str]:
    """The body with its tables and text boxes, then the notes at its foot and end."""
    return _parts(archive, re.compile(r"word/(document|footnotes|endnotes)()\.xml"))


def _pptx(archive: ZipFile) -> Iterator[str]:
    """The slides, then what the speaker noted on them."""
    return _parts(archive, re.compile(r"ppt/(slides/s|notesSlides/notesS)lide(\d+)\.xml"))


def _xlsx(archive: ZipFile) -> Iterator[str]:
    """The sheets' cells as they were last shown, a line for each row."""
    import openpyxl

    for sheet in openpyxl.load_workbook(archive.fp, read_only=True, data_only=True).worksheets:
        sheet.reset_dimensions()  # the file's own may be false
        yield sheet.title
        for row in sheet.iter_rows(values_only=True):
            cells = [str(cell) for cell in row if cell is not None]
            if cells:
                yield "\t".join(cells)


def _parts(archive: ZipFile, wanted: re.Pattern[str]) -> Iterator[str]:
    from lxml import etree

    found = [part for part in map(wanted.fullmatch, archive.namelist()) if part]
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    for part in sorted(found, key=lambda part: (_ORDER.index(part[1]), int(part[2] or 0))):
        yield from _paragraphs(etree.fromstring(archive.read(part[0]), parser))


def _paragraphs(element: Any) -> Iterator[str]:
    """A line for each paragraph of Office's XML, without the copies that are there for old readers."""
    from lxml import etree

    line: list[str] = []
    fallback = 0
    for event, node in etree.iterwalk(element, events=("start", "end")):
        tag = etree.QName(node).localname if isinstance(node.tag, str) else ""
        fallback += (tag == "Fallback") * (1 if event == "start" else -1)
        if fallback or event == "start":
            continue
        if tag == "t":
            line.append(node.text or "")
        elif tag in ("tab", "br"):
            line.append("\t")
        elif tag == "p" and "".join(line).strip():
            yield "".join(line).strip()
            line = []


_ORDER = ("document", "footnotes", "endnotes", "slides/s", "notesSlides/notesS")
READ = "txt, md, html, pdf, docx, xlsx, pptx and eml"
_OFFICE: dict[str, Callable[[ZipFile], Iterator[str]]] = {
    "word/document.xml": _docx,
    "xl/workbook.xml": _xlsx,
    "ppt/presentation.xml": _pptx,
}
_FORMS: dict[str, Callable[[bytes, int], dict[str, Any]]] = {
    "html": html,
    "pdf": pdf,
    "office": office,
    "mail": mail,
    "markdown": markdown,
    "json": mended,
}


def _bound() -> None:
    """Limits memory and CPU, forbids files, and makes the process the first to be killed when memory runs out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/oom_score_adj").write_text("1000")


def main(form: str, most: str) -> None:
    """Reads stdin as `form` and prints what it answers, or {"code", "message"}."""
    _bound()
    try:
        answer = _FORMS[form](sys.stdin.buffer.read(), int(most))
    except Refused as refused:
        answer = {"code": refused.code, "message": str(refused)}
    except MemoryError:
        answer = {"code": "too_large", "message": "unpacks to more than is read of one document"}
    # ASCII, so that lone surrogates pass too
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
