"""The bytes of a file → its lines, in the encoding that all of it is in.

A file is decoded whole before a row of it is read, so that no row is read in a wrong encoding. No more than a row is in
memory: a line is read only as far as a row may be long.
"""

from __future__ import annotations

import codecs
import io
import re
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from worker import media
from worker.errors import Fault, InvalidInput
from worker.kinds.reading import decoding

ROW = 1 << 20  # characters of a row, and bytes where it is JSON: the body of a job has no more
POINTER = "/file"  # to which faults of a file as a whole point
_MOST = 2_000_000  # lines: a spreadsheet has 1,048,576 rows, many of them empty
_CHUNK = 1 << 18  # bytes
_SAMPLE = 1 << 16  # characters, to judge whether a text may be Chinese
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ENCODINGS = {"utf-8-sig": "utf-8", "utf-16-le": "utf-16", "utf-16-be": "utf-16"}  # by Python's codecs
_NARROW = ("utf-8", "gb18030")
_ASCII = re.compile("[\0-\x7f]+")
_WHOLE = 4  # times as many characters are whole as are damaged, where a text is in UTF-8 and damaged
_FEW = 0.02  # of the bytes of a text may be NULs, each a fault of its row
_TEXTS = ("text/", "application/jsonl", "message/")  # content types
_BINARY = {
    b"\xd0\xcf\x11\xe0": "an Excel workbook, or another file of Office before 2007",
    b"PK\x03\x04": "a ZIP archive, or a file of Office",
    b"%PDF-": "a PDF",
    b"\x1f\x8b": "compressed by gzip",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"SQLite": "a SQLite database",
}
_SAVE = "save the table as 'CSV UTF-8 (comma delimited)'"


def refused(code: str, message: str) -> InvalidInput:
    """The refusal of a file as a whole."""
    return InvalidInput([Fault(POINTER, code, message)])


def encoding(file: BinaryIO, name: str) -> str:
    """The Python codec that reads the whole file without a fault; raises InvalidInput where none does."""
    file.seek(0)
    head = file.read(media.READ)
    if what := _no_text(head, name):
        raise refused("binary", f"is {what}: {_SAVE}")
    furthest = 1
    for codec in _codecs(head):
        broken = _broken(file, codec)
        if broken is None:
            return codec
        furthest = max(furthest, broken)
    said = f"is not in UTF-8, UTF-16 or GB18030, as line {furthest} shows"
    raise refused("unknown_encoding", f"{said}: {_SAVE}")


def _no_text(head: bytes, name: str) -> str | None:
    """What a file is that is no text, as the rest of "is …"."""
    if head.startswith(b"PK\x03\x04") and (name.lower().endswith((".xlsx", ".xlsm")) or b"xl/" in head):
        return "an Excel workbook"
    if known := next((what for mark, what in _BINARY.items() if head.startswith(mark)), None):
        return known
    kind = media.sniff(head) or media.sniff_input(head, name)
    if kind is media.HTML:
        return "a web page (HTML), whatever its name says"
    if kind is not None and not kind.content_type.startswith(_TEXTS):
        return kind.content_type
    return "no text" if _codecs(head) == _NARROW and head.count(0) > _FEW * len(head) else None


def _codecs(head: bytes) -> tuple[str, ...]:
    """Those that a file may be in, by its beginning."""
    marked = next((codec for mark, codec in _MARKS.items() if head.startswith(mark)), None)
    wide = marked or _wide(head)
    return (wide,) if wide else _NARROW


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: it begins with ASCII, as the names of columns and JSON do."""
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else None


def _broken(file: BinaryIO, codec: str) -> int | None:
    """The line at which the file is no longer in that encoding; None: it is, to its end."""
    decoder = codecs.getincrementaldecoder(codec)()
    sample, line = "", 1
    file.seek(0)
    try:
        while chunk := file.read(_CHUNK):
            decoded = decoder.decode(chunk)
            line += decoded.count("\n")
            if codec == "gb18030" and len(sample) < _SAMPLE:
                sample += _ASCII.sub(" ", decoded)
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        return line + bytes(error.object[: error.start]).count(b"\n")
    return None if codec != "gb18030" or _is_chinese(sample) else 1


def _is_chinese(text: str) -> bool:
    """Whether a text in GB18030 is what it seems to be; most bytes of other encodings are a text in it too.

    It is not where nearly all of it is UTF-8, which then is damaged; nor where most characters end in a letter of
    ASCII, as the ü of cp1252 and the letter after it do.
    """
    pairs = [char.encode("gb18030", "ignore") for char in text]
    in_utf8 = b"".join(pairs).decode("utf-8", "replace")
    damaged = in_utf8.count("\ufffd")
    whole = len(in_utf8) - len(in_utf8.encode("ascii", "ignore")) - damaged
    lettered = sum(len(pair) == 2 and pair[1:].isalpha() for pair in pairs)
    is_mistaken = whole > _WHOLE * damaged or 2 * lettered > len(text.replace(" ", ""))
    return not is_mistaken and decoding.implausible(text) is None


class _Text(io.TextIOWrapper):
    """Does not close the file, which is the caller's."""

    def close(self) -> None:
        """Does nothing."""


class Lines:
    """The lines of a file with their ends, counted; an iterator of those of one row, which may not be endless."""

    def __init__(self, file: BinaryIO, codec: str) -> None:
        file.seek(0)
        self._text = _Text(file, codec, newline="")
        self._again: deque[str] = deque()  # lines that are to be read once more
        self._row: list[str] = []
        self._left = ROW  # characters of the row
        self.number = 0  # of the line that was read last
        self.began = 1  # the line at which the row begins
        self.ended = False

    def peek(self) -> str:
        """The first line that is not blank; it is read again. "": there is none."""
        while (line := self.line()).isspace():
            pass
        self._again.append(line)
        self.number -= 1
        return line

    def line(self) -> str:
        """The next line, "" after the last; of one that is longer than a row may be only the beginning."""
        line = self._again.popleft() if self._again else self._from_file()
        self.number += 1
        if self.number > _MOST:
            raise refused("too_many_lines", f"has more than {_MOST:,} lines, empty ones among them")
        return line

    def _from_file(self) -> str:
        line = rest = self._text.readline(ROW + 1)
        while len(line) > ROW and rest and not rest.endswith(("\n", "\r")):
            rest = self._text.readline(ROW)
        return line

    def begin(self) -> int:
        """Begins a row: its line."""
        self._left, self.began, self._row = ROW, self.number + 1, []
        return self.began

    def retreat(self) -> None:
        """Ends the row after its first line: the others are read again, as rows of their own."""
        self._again.extendleft(reversed(self._row[1:]))
        self.number = self.began

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.line()
        self.ended = not line
        if not line:
            raise StopIteration
        self._left -= len(line)
        self._row.append(line)
        if self._left >= 0:
            return line
        if self.number > self.began:
            raise self.unclosed()
        raise refused("row_too_long", f"has over {ROW >> 20} MiB in line {self.number}")

    def unclosed(self) -> InvalidInput:
        """The refusal of a file whose row does not end."""
        advice = 'a quote within a cell is written twice ("")'
        said = f"has a quote that is not closed within {ROW >> 20} MiB, in the row that begins in line {self.began}"
        return refused("unclosed_quote", f"{said}: {advice}")
