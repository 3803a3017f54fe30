"""What became of a batch, as files: a report for a spreadsheet, results and errors as lines of JSON.

Each is a stream of chunks, made as they are read, so that neither the file nor a connection is held. Of a batch in
motion they say what is so far. Rows come in the order of the file, each with the newest take of its job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from worker import money, text
from worker.batches import items
from worker.batches.items import Item, Read
from worker.states import State
from worker.tables import Batch, Job, Output
from worker.text import moment

BOM = b"\xef\xbb\xbf"  # else Excel reads the file in the code page of the machine
_FAILED = frozenset({State.FAILED, State.EXPIRED, State.CANCELED, State.REJECTED})
_LABEL = "metadata."
_LABELS = 200  # names of metadata with a column each, as many as a file may have columns
_BEFORE = ("row", "line", "custom_id", "outcome", "state", "kind", "model")
_AFTER = (
    *("take", "review", "review_comment", "cost", "error_code", "error_message"),
    *("output", "outputs", "created_at", "finished_at"),
)


def report(read: Read, batch: Batch) -> Iterator[bytes]:
    """The rows as a CSV that Excel opens: UTF-8 with a BOM, CRLF, and no cell that is a formula.

    The metadata of rows that have very many names for it, each its own, are one column, as JSON.
    """
    found = read(lambda connection: items.labels(connection, batch, _LABELS + 1))
    keys = found if len(found) <= _LABELS else None
    named = ["metadata"] if keys is None else [_LABEL + key for key in keys]
    yield BOM + text.csv_of([[*_BEFORE, *named, *_AFTER]])
    for chunk in items.walk(read, batch):
        yield text.csv_of([_cells(item, keys) for item in chunk])


def results(read: Read, batch: Batch) -> Iterator[bytes]:
    """A line for each row whose job succeeded."""
    for chunk in items.walk(read, batch):
        yield _lines([_result(item, item.job) for item in chunk if item.job and item.job.state == State.SUCCEEDED])


def errors(read: Read, batch: Batch) -> Iterator[bytes]:
    """A line for each row that has faults, or whose job ended without an output that was kept."""
    for chunk in items.walk(read, batch):
        yield _lines([_error(item) for item in chunk if item.row.faults or (item.job and item.job.state in _FAILED)])


def _cells(item: Item, keys: Sequence[str] | None) -> list[Any]:
    row, job = item.row, item.job
    labels = (job.labels if job else row.labels) or {}
    code, message = _trouble(item)
    return [
        *(row.n, row.line, row.custom_id, row.outcome, job.state if job else None),
        *((job.kind, job.model) if job else (row.kind, row.model)),
        *([json.dumps(labels, ensure_ascii=False)] if keys is None else [labels.get(key) for key in keys]),
        *((job.take, job.review, job.review_note, money.shown(job.cost)) if job else (None,) * 4),
        *(code, message),
        *(item.outputs[0].key if item.outputs else None, len(item.outputs)),
        *((moment(job.created_at), moment(job.finished_at)) if job else (None, None)),
    ]


def _trouble(item: Item) -> tuple[str | None, str | None]:
    """The code and the words of what is wrong: of the job's error, or of the row's faults."""
    if item.row.faults:
        return item.row.faults[0]["code"], "; ".join(fault["message"] for fault in item.row.faults)
    error = (item.job.error if item.job else None) or {}
    return error.get("code"), error.get("message")


def _result(item: Item, job: Job) -> dict[str, Any]:
    return _of(item, job) | {
        "metadata": job.labels,
        "cost": money.shown(job.cost),
        "outputs": [_output(output) for output in item.outputs],
        "result": job.result,
    }


def _error(item: Item) -> dict[str, Any]:
    job = item.job
    said = _of(item, job) | {"outcome": item.row.outcome, "faults": item.row.faults or []}
    if job is None:
        return said
    return said | {
        "metadata": job.labels,
        "state": job.state,
        "error": job.error,
        "review_comment": job.review_note,
        "cost": money.shown(job.cost),
        "billed": job.billed,
    }


def _of(item: Item, job: Job | None) -> dict[str, Any]:
    return {
        "row": item.row.n,
        "line": item.row.line,
        "custom_id": item.row.custom_id,
        "job_id": str(job.id) if job else None,
        "kind": job.kind if job else item.row.kind,
        "model": job.model if job else item.row.model,
    }


def _output(output: Output) -> dict[str, Any]:
    return {
        "n": output.n,
        "role": output.role,
        "key": output.key,
        "sha256": output.sha256,
        "bytes": output.bytes,
        "content_type": output.content_type,
        "duration": float(output.duration) if output.duration is not None else None,
    }


def _lines(said: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for one in said)
