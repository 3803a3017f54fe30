"""A stand-in: the rows of a CSV with a header, of JSONL, or of a JSON list."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from worker.errors import Fault, InvalidInput


@dataclass(frozen=True)
class Found:
    format: Literal["csv", "jsonl", "json"]
    encoding: str | None
    delimiter: str | None


@dataclass(frozen=True)
class CellFault:
    pointer: str
    column: str | None
    code: str
    message: str


@dataclass(frozen=True)
class Row:
    n: int
    line: int
    body: dict[str, Any] | None
    faults: tuple[CellFault, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


def read(file: BinaryIO, name: str, content_type: str, limit: int = 50_000) -> tuple[Found, Iterator[Row]]:
    if name.endswith(".json") or content_type == "application/json":
        return Found("json", "utf-8", None), _numbered(_items(file), limit)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    if name.endswith(".jsonl"):
        return Found("jsonl", "utf-8", None), _numbered(_lines(text), limit)
    return Found("csv", "utf-8", ","), _numbered(_cells(text), limit)


def _numbered(rows: Iterator[tuple[int, Any, Mapping[str, str]]], limit: int) -> Iterator[Row]:
    n = 0
    for n, (line, body, columns) in enumerate(_readable(rows), start=1):
        if n > limit:
            raise InvalidInput([Fault("/file", "too_many_rows", f"has more than {limit} rows")])
        if isinstance(body, dict):
            yield Row(n, line, body, (), columns)
        else:
            yield Row(n, line, None, (CellFault("", None, "not_an_object", "must be an object"),), columns)
    if not n:
        raise InvalidInput([Fault("/file", "no_rows", "has no rows")])


def _readable(rows: Iterator[tuple[int, Any, Mapping[str, str]]]) -> Iterator[tuple[int, Any, Mapping[str, str]]]:
    try:
        yield from rows
    except (ValueError, csv.Error, RecursionError, AttributeError) as error:
        raise InvalidInput([Fault("/file", "unreadable", str(error)[:200])]) from None


def _items(file: BinaryIO) -> Iterator[tuple[int, Any, Mapping[str, str]]]:
    for n, item in enumerate(json.load(file), start=1):
        yield n, item, {}


def _lines(text: io.TextIOWrapper) -> Iterator[tuple[int, Any, Mapping[str, str]]]:
    for n, line in enumerate(text, start=1):
        if line.strip():
            try:
                yield n, json.loads(line), {}
            except ValueError:
                yield n, None, {}


def _cells(text: io.TextIOWrapper) -> Iterator[tuple[int, Any, Mapping[str, str]]]:
    reader = csv.DictReader(text)
    top = {"kind", "model", "custom_id", "priority", "webhook_url", "review", "not_after"}
    for cells in reader:
        body: dict[str, Any] = {}
        columns: dict[str, str] = {}
        for header, cell in cells.items():
            if not cell:
                continue
            if header.startswith("metadata."):
                name = header.removeprefix("metadata.")
                body.setdefault("metadata", {})[name] = cell
                columns[f"/metadata/{name}"] = header
            elif header in top:
                body[header] = cell
                columns[f"/{header}"] = header
            else:
                body.setdefault("input", {})[header] = int(cell) if cell.isdigit() else cell
                columns[f"/input/{header}"] = header
        yield reader.line_num, body, columns
