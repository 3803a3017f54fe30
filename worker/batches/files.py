"""Files of many jobs: the rows of a CSV, of JSON lines or of a JSON list, streamed.

A file is decoded twice: first whole and strictly, to find the encoding, so that no row is read in a wrong one; then row
by row. No more of it is in memory than one row (but JSON that is no JSON lines, which is bounded for that). What is
wrong with a row is a fault of that row; what makes all the rows doubtful, e.g. a quote that is never closed, is a
refusal of the file, which may come after rows have been read.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal

from worker import text
from worker.batches import columns
from worker.batches.columns import BadCell, Column
from worker.batches.lines import ENCODINGS, ROW, Lines, encoding, refused

Format = Literal["csv", "jsonl", "json"]

_WHOLE = 4 << 20  # bytes of JSON in one piece
_HEADER = 1 << 16  # characters
_FAULTS, _POINTER = 20, 1000  # of one row, and characters of what each points to: a report may have 50,000 rows
_DELIMITERS = ",;\t"
_EMPTY = ' \t\r\n,;"'  # what a row of empty cells is made of
_SEP = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # a first line that tells Excel the delimiter, and that it hides
_SAID: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/json": "json",
}
_OPENS = re.compile(r'\s*(\{\s*"items"\s*:\s*)?\[\s*')
_COMMA = re.compile(r"\s*,\s*")
_CLOSES = (re.compile(r"\s*\]\s*"), re.compile(r"\s*\]\s*\}\s*"))  # by whether an object is around it
_BATCH_LINE = frozenset({"method", "url", "body"})  # of OpenAI's Batch API

_QUOTES = 'has a quote at a wrong place: a cell with quotes is in quotes, and its own are written twice ("")'
_MORE_CELLS = (
    'has more cells than the {} columns of the first row: a cell that holds a delimiter has to be in quotes (")'
)
_OF_BATCH = "has requests of OpenAI's Batch API: send jobs as POST /v1/jobs takes them, {kind, model, input, custom_id}"
_TOO_LONG = (
    f"has over {ROW >> 20} MiB in line {{}}: upload pictures, sound and documents (POST /v1/files), and name them by "
    "their keys"
)

# The limit of one cell holds for the whole process: it is raised once, and a row's is kept in `lines`.
csv.field_size_limit(max(csv.field_size_limit(), 2 * ROW))


@dataclass(frozen=True)
class Found:
    """What a file is."""

    format: Format
    encoding: str  # utf-8, utf-16, utf-32, gb18030
    delimiter: str | None  # of a CSV


@dataclass(frozen=True)
class CellFault:
    """What is wrong with a row: the field of the job ("": the row), and the column's name, None where there is none."""

    pointer: str
    column: str | None
    code: str
    message: str


@dataclass(frozen=True)
class Row:
    """What a row says of a job; the fields that have faults are left out of `body`."""

    n: int  # from 1
    line: int  # of the file, where it begins, from 1
    body: dict[str, Any] | None  # None: it cannot be read
    faults: tuple[CellFault, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)  # pointer → name of the column, in a table


def read(file: BinaryIO, name: str, content_type: str, limit: int = 50_000) -> tuple[Found, Iterator[Row]]:
    """What the file is, and its rows. It has to stay open until the last, and is not closed.

    Raises InvalidInput for what is wrong with the file as a whole; so does the iterator, e.g. at the first row over the
    limit.
    """
    codec = encoding(file, name)
    lines = Lines(file, codec)
    begins = lines.peek()
    if not begins:
        raise refused("empty_file", "is empty")
    found = Found(_format(begins, name, content_type), ENCODINGS.get(codec, codec), None)
    if found.format == "csv":
        delimiter, rows = _table(lines, begins)
        found = replace(found, delimiter=delimiter)
    else:
        rows = _json_lines(lines) if found.format == "jsonl" else _json_list(file, codec)
    numbered = _numbered(rows, limit)
    first = next(numbered, None)
    if first is None:
        advice = ": its first row names the columns, each further row is a job" if found.format == "csv" else ""
        raise refused("no_rows", f"has no rows{advice}")
    return found, chain([first], numbered)


def _numbered(rows: Iterable[Row], limit: int) -> Iterator[Row]:
    for n, row in enumerate(rows, 1):
        if n > limit:
            raise refused("too_many_rows", f"has more than {limit:,} rows: divide it into several files")
        yield replace(row, n=n)


def _format(begins: str, name: str, content_type: str) -> Format:
    """By the first line; where that may be several, by the file's name and type."""
    said = _SAID.get(PurePosixPath(name).suffix.lower()) or _SAID.get(content_type.partition(";")[0].strip().lower())
    if _OPENS.match(begins):
        return "json"
    if begins.lstrip().startswith("{"):
        is_line = said == "jsonl" and begins.strip() != "{"
        return "jsonl" if is_line or _is_job(begins) else "json"
    return said or "csv"


def _is_job(line: str) -> bool:
    try:
        value = columns.parsed(line)
        return isinstance(value, dict) and "items" not in value
    except (ValueError, RecursionError):
        return False


def _table(lines: Lines, begins: str) -> tuple[str, Iterator[Row]]:
    """The delimiter, and the rows below the header."""
    said = _separator(lines, begins)
    written = _header(lines)
    read_as = {each: _cells(written, each) for each in said or _DELIMITERS}
    delimiter = max(read_as, key=lambda each: (columns.known(read_as[each]), len(read_as[each])))
    header = read_as[delimiter]
    while header and not header[-1].strip():
        header.pop()
    return delimiter, _rows(lines, delimiter, len(header), columns.columns(header))


def _separator(lines: Lines, begins: str) -> str:
    """The delimiter that a first line names, which is read then; "" where there is no such line."""
    sep = _SEP.fullmatch(begins)
    if sep is None:
        return ""
    if sep[1] not in _DELIMITERS:
        raise refused("unknown_delimiter", f"has {sep[1]} between its columns; it must be a comma, semicolon or tab")
    lines.line()
    return sep[1]


def _header(lines: Lines) -> str:
    """The first row that has a cell."""
    row, is_open = "", False
    lines.begin()
    for line in lines:
        row += line
        is_open ^= line.count('"') % 2 == 1
        if len(row) > _HEADER:
            raise lines.unclosed() if is_open else refused("no_header", f"has a first row of over {_HEADER} characters")
        if not is_open and row.strip(_EMPTY):
            return row
        if not is_open:
            row, _ = "", lines.begin()
    raise lines.unclosed() if is_open else refused("empty_file", "is empty")


def _cells(row: str, delimiter: str) -> list[str]:
    return [cell for cells in _reader(io.StringIO(row, newline=""), delimiter, strict=False) for cell in cells]


def _reader(lines: Iterable[str], delimiter: str, *, strict: bool) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=strict)


def _rows(lines: Lines, delimiter: str, width: int, named: list[Column]) -> Iterator[Row]:
    names = {column.pointer: column.header for column in named}
    unnamed = sorted(set(range(width)) - {column.at for column in named})
    reader = _reader(lines, delimiter, strict=True)
    while not lines.ended:
        line = lines.begin()
        try:
            cells = [cell.strip() for cell in next(reader, ())]
        except csv.Error:
            if lines.ended:
                raise lines.unclosed() from None
            fault = f"{_QUOTES} (seen in line {lines.number})"
            lines.retreat()  # else the rows that a quote opened by mistake spans would be lost without a word
            yield _bad(line, "bad_quotes", fault, names)
            continue
        if any(cells[width:]):
            yield _bad(line, "too_many_cells", _MORE_CELLS.format(width), names)
        elif any(cells):
            cells += [""] * (width - len(cells))
            _hold_named(line, cells, unnamed)
            yield _row(line, cells, named, names)


def _row(line: int, cells: list[str], named: list[Column], names: Mapping[str, str]) -> Row:
    body: dict[str, Any] = {}
    faults: list[CellFault] = []
    for column in named:
        if not (cell := cells[column.at]):
            continue
        try:
            value = column.meaning(cell)
        except BadCell as bad:
            faults.append(CellFault(column.pointer, column.header, bad.code, str(bad)))
            continue
        if value != "":  # as a pair of quotes is in full width
            of = body if column.group is None else body.setdefault(column.group, {})
            of[column.name] = value
    return Row(0, line, body, tuple(faults), names)


def _hold_named(line: int, cells: list[str], unnamed: list[int]) -> None:
    """Raises InvalidInput for a cell in a column that has no name."""
    for at in unnamed:
        if cells[at]:
            where = f"column {columns.letters(at)} has no name in the first row"
            raise refused("unnamed_column", f"{where}, and a cell in line {line}: name it, or take it out")


def _json_lines(lines: Lines) -> Iterator[Row]:
    while line := lines.line():
        if not line.isspace():
            yield _json_line(lines.number, line)


def _json_line(number: int, line: str) -> Row:
    if len(line) > ROW // 4 and len(line.strip().encode()) > ROW:
        return _bad(number, "too_long", _TOO_LONG.format(number))
    try:
        return _object(number, columns.parsed(line))
    except RecursionError:
        return _bad(number, "too_deep", f"is nested more than {text.DEPTH} levels deep")
    except ValueError as error:
        return _bad(number, "invalid_json", f"is not JSON: {columns.reason(error)}")


def _json_list(file: BinaryIO, codec: str) -> Iterator[Row]:
    """The rows of JSON in one piece; a line and a reason where it is no JSON."""
    file.seek(0)
    data = file.read(_WHOLE + 1)
    if len(data) > _WHOLE:
        advice = "send JSON lines (.jsonl), which have one object a line and no list around them"
        raise refused("too_large", f"is JSON of over {_WHOLE >> 20} MiB in one piece: {advice}")
    written = data.decode(codec).replace("\r\n", "\n").replace("\r", "\n")
    line, last = 1, 0
    try:
        for at, end, value in _items(written):
            line, last = line + written.count("\n", last, at), at
            is_long = end - at > ROW // 4 and len(written[at:end].encode()) > ROW
            yield _bad(line, "too_long", _TOO_LONG.format(line)) if is_long else _object(line, value)
    except RecursionError:
        raise refused("too_deep", f"is nested more than {text.DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise refused("invalid_json", f"is not JSON, in line {error.lineno}: {columns.reason(error)}") from None
    except ValueError as error:
        raise refused("invalid_json", f"is not JSON, after line {line}: {error}") from None


def _items(written: str) -> Iterator[tuple[int, int, Any]]:
    """Where each item of the list begins and ends, and the item."""
    opened = _OPENS.match(written)
    if opened is None:
        raise refused("not_a_list", 'must be a list of jobs, or {"items": a list of jobs} with nothing beside it')
    at, goes_on = opened.end(), not written.startswith("]", opened.end())
    while goes_on:
        value, end = columns.DECODER.raw_decode(written, at)
        yield at, end, value
        comma = _COMMA.match(written, end)
        goes_on = comma is not None
        at = comma.end() if comma else end
    if not _CLOSES[opened[1] is not None].fullmatch(written, at):
        raise json.JSONDecodeError("Expecting ',' or the end of the list", written, at)


def _object(line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        return _bad(line, "not_an_object", "must be an object: a job as POST /v1/jobs takes it")
    if value.keys() >= _BATCH_LINE:
        raise refused("openai_batch", _OF_BATCH)
    body, slips = text.scrubbed(value)
    faults = (CellFault(where[:_POINTER], None, code, message) for where, code, message in slips[:_FAULTS])
    return Row(0, line, body, tuple(faults))


def _bad(line: int, code: str, message: str, names: Mapping[str, str] | None = None) -> Row:
    """A row that cannot be read."""
    return Row(0, line, None, (CellFault("", None, code, message),), names or {})
