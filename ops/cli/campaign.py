"""A campaign: a CSV in which each row is a job, checked whole before anything is submitted.

The columns `kind`, `model`, `custom_id`, `priority`, `webhook_url` and `metadata.KEY` are the job's; every other column
is a field of its input. Empty cells are left out. A row's Idempotency-Key is a hash of the row, so a second run of the
same file finds the jobs of the first, and after an edit only the edited rows are submitted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from api.client import ApiError, Client
from ops.local.supervise import LocalError

_OF_THE_JOB = frozenset({"kind", "model", "custom_id", "priority", "webhook_url"})
_OTHERS = {";": "semicolons", "\t": "tabs"}  # what tables are written with instead of commas
_METADATA = "metadata."
_TOO_MANY = "\0"  # the name for cells without a column; no column has it
_WRONG_INPUT = 422


class BadCampaign(LocalError):
    """The file, or some of its rows, cannot be submitted; the message names every wrong line."""

    exit_code = 5


@dataclass(frozen=True)
class Row:
    """One job to submit; `line` is where it begins in the file, from 1."""

    line: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Quote:
    """What the rows would cost: each one's price in CNY (None: not known), and the sum of those known; and warnings."""

    prices: Sequence[Decimal | None]
    warnings: Sequence[Mapping[str, Any]]

    @property
    def total(self) -> Decimal:
        return sum((price for price in self.prices if price is not None), Decimal(0))


def read(path: Path, shared: Mapping[str, Any]) -> list[Row]:
    """The rows of the file; `shared` is a body that fills in what a row leaves out. `BadCampaign` if it is none."""
    content = path.read_bytes()
    try:
        rows = list(_rows(content.decode("utf-8-sig"), shared))
    except UnicodeDecodeError:
        raise BadCampaign(f"{path} is not in UTF-8: save it as 'CSV UTF-8'.") from None
    except csv.Error as error:
        raise BadCampaign(f"{path} is no CSV: {error}.") from None
    if not rows:
        raise BadCampaign(f"{path} has no rows: its first line names the columns, each further line is a job.")
    return rows


def keys(rows: Sequence[Row], key: str | None) -> list[str]:
    """An Idempotency-Key for each row, by a hash of its body. Another `key` submits the same rows once more."""
    made: list[str] = []
    seen: Counter[str] = Counter()  # equal rows are jobs of their own
    for row in rows:
        digest = hashlib.sha256(json.dumps(row.body, sort_keys=True).encode()).hexdigest()[:32]
        seen[digest] += 1
        made.append(f"{key or 'csv'}-{digest}-{seen[digest]}")
    return made


def quote(client: Client, rows: Sequence[Row]) -> Quote:
    """What the rows would cost, by the API's own dry run; `BadCampaign` with every wrong line."""
    priced: list[dict[str, Any]] = []
    faults: list[str] = []
    for row in rows:
        try:
            priced.append(client.dry_run(row.body))
        except ApiError as error:
            if error.status != _WRONG_INPUT:
                raise
            faults += [f"line {row.line}: {fault}" for fault in faults_of(error)]
    if faults:
        raise BadCampaign("\n".join(["Nothing was submitted. What is wrong:", *faults]))
    return Quote([price(document) for document in priced], warnings(priced))


def warnings(documents: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the API warns of in its answers, each sentence once."""
    return list({one["message"]: one for document in documents for one in document["warnings"]}.values())


def price(document: Mapping[str, Any]) -> Decimal | None:
    """The estimate of a job or of a dry run, CNY."""
    estimated = document["cost"]["estimated"]
    return None if estimated is None else Decimal(estimated)


def faults_of(error: ApiError) -> list[str]:
    """Every wrong field that the API names, as `input.size: …`."""
    return [
        f"{fault['pointer'].strip('/').replace('/', '.') or 'body'}: {fault['message']}"
        for fault in error.problem.get("errors", [])
    ] or [str(error)]


def _rows(text: str, shared: Mapping[str, Any]) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=_TOO_MANY, strict=True)
    _check(reader.fieldnames or [])
    line = reader.line_num + 1
    for cells in reader:
        if _TOO_MANY in cells:
            raise BadCampaign(f"Line {line} has more cells than there are columns: is a comma not in quotes?")
        filled = {column: cell.strip() for column, cell in cells.items() if cell and cell.strip()}
        if filled:
            yield Row(line, _body(filled, shared))
        line = reader.line_num + 1  # a cell may hold line breaks


def _check(columns: Sequence[str]) -> None:
    if len(columns) == 1 and (other := next((each for each in _OTHERS if each in columns[0]), None)):
        raise BadCampaign(f"The first line has {_OTHERS[other]} and no comma: save it as a CSV with commas.")
    wrong = {column or "one without a name" for column in columns if columns.count(column) > 1 or not column.strip()}
    if wrong:
        raise BadCampaign(f"The first line names the columns, each once; see: {', '.join(sorted(wrong))}.")


def _body(filled: Mapping[str, str], shared: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {c.removeprefix(_METADATA): cell for c, cell in filled.items() if c.startswith(_METADATA)}
    fields = {c: cell for c, cell in filled.items() if c not in _OF_THE_JOB and not c.startswith(_METADATA)}
    job = {column: cell for column, cell in filled.items() if column in _OF_THE_JOB}
    return {
        **shared,
        **job,
        "input": {**shared.get("input", {}), **fields},
        "metadata": {**shared.get("metadata", {}), **metadata},
    }
