"""Batches: calls from a file, answered at half the price within a window of a day or more.

A batch's status follows from the clock alone; its lines are answered one by one as their time comes, evenly over the
run, and can be had only when it has settled. Source: Alibaba docs, "OpenAI-compatible Batch"; recorded answers for
what is null when.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Self

from ops.sandbox import clock, lines
from ops.sandbox.files import File
from ops.sandbox.lines import Flaw, Line, Outcome

KEPT_SECONDS = 30 * clock.DAY  # a list goes no further back
ENDED = ("completed", "failed", "expired", "cancelled")
UNRUN = {
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
}


@dataclass(slots=True)
class Batch:
    """One batch. Instants are epoch seconds of the sandbox's clock."""

    id: str
    owner: str
    request_id: str  # of the create
    input_file_id: str
    output_file_id: str  # what the file will be called, if there is one
    error_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str]
    created_at: float
    validating_seconds: float
    base_seconds: float  # of its run, and so many more a line
    line_seconds: float
    finalizing_seconds: float
    window_seconds: float
    hides_failures: bool  # refused lines stand in the output file, and are counted as completed
    canceled_at: float | None = None
    lines: list[Line] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def run_seconds(self) -> float:
        """How long it runs, if it is let."""
        return self.base_seconds + self.line_seconds * len(self.lines)

    @property
    def started_at(self) -> float:
        """When its first line begins, if no flaw forbids it."""
        return self.created_at + self.validating_seconds

    @property
    def stopped_at(self) -> float:
        """When it runs no more: done, or out of time, or cancelled."""
        ends = [self.started_at + self.run_seconds, self.created_at + self.window_seconds]
        return min(ends if self.canceled_at is None else [*ends, self.canceled_at])

    @property
    def settled_at(self) -> float:
        """When its last status is reached."""
        return self.started_at if self.flaws else self.stopped_at + self.finalizing_seconds

    @property
    def end(self) -> str:
        """The status it comes to in the end."""
        if self.flaws:
            return "failed"
        if self.canceled_at is not None and self.canceled_at <= self.stopped_at:
            return "cancelled"
        return "completed" if self.started_at + self.run_seconds <= self.stopped_at else "expired"

    @property
    def model(self) -> str:
        """The model that all lines ask."""
        return str(self.lines[0].body["model"]) if self.lines else ""

    def status(self, now: float) -> str:
        """Return the status at an instant at which the batch is there."""
        if now >= self.settled_at:
            return self.end
        if self.canceled_at is not None and now >= self.canceled_at:
            return "cancelling"
        if now < self.started_at:
            return "validating"
        return "in_progress" if now < self.stopped_at else "finalizing"

    def due(self, now: float) -> int:
        """Return how many lines have been answered by `now`."""
        ran = min(now, self.stopped_at) - self.started_at
        if self.flaws or now < self.started_at or ran < 0:
            return 0
        # By the instants, as `end` has it: a difference of two of them is not exactly the seconds between.
        if self.end == "completed" and now >= self.stopped_at:
            return len(self.lines)
        return int(len(self.lines) * ran / self.run_seconds) if ran else 0

    def row(self) -> dict[str, Any]:
        """Return what the journal keeps; the lines are in the input file, what became of them follows."""
        names = (each.name for each in fields(self))
        kept = {name: getattr(self, name) for name in names if name not in ("lines", "outcomes")}
        return kept | {"flaws": [flaw.document() for flaw in self.flaws]}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """Return the batch that a row was made of, its lines unread."""
        return cls(**(row | {"flaws": [Flaw(**flaw) for flaw in row["flaws"]]}))


def document(batch: Batch, now: float) -> dict[str, Any]:
    """Return what a client is told about a batch; its outcomes up to `now` must stand in it."""
    status = batch.status(now)
    has_run = not batch.flaws and status != "validating" and batch.stopped_at >= batch.started_at
    has_output, has_errors = _has_files(batch) if now >= batch.settled_at else (False, False)
    times = {
        "in_progress_at": batch.started_at if has_run else None,
        "finalizing_at": batch.stopped_at if status in ("finalizing", "completed", "expired") else None,
        "cancelling_at": batch.canceled_at if status == "cancelled" else None,
    }
    times |= {f"{end}_at": batch.settled_at if status == end else None for end in ENDED}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": _errors(batch) if status == "failed" else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": status,
        "output_file_id": batch.output_file_id if has_output else None,
        "error_file_id": batch.error_file_id if has_errors else None,
        "created_at": int(batch.created_at),
        "expires_at": None,  # as recorded, whatever the window
        "request_counts": _counts(batch, status) if has_run else {"total": 0, "completed": 0, "failed": 0},
        "metadata": batch.metadata or None,
    } | {name: None if at is None else int(at) for name, at in times.items()}


def files(batch: Batch) -> tuple[File | None, File | None]:
    """Return the output file and the error file of a settled batch; None where no line belongs into it."""
    output = [outcome.row for outcome in batch.outcomes if _is_output(batch, outcome)]
    errors = [outcome.row for outcome in batch.outcomes if not _is_output(batch, outcome)]
    if batch.end in UNRUN:
        unrun = batch.lines[len(batch.outcomes) :]
        errors += [lines.skipped(line, batch.id, *UNRUN[batch.end]) for line in unrun]
    return _file(batch, batch.output_file_id, output), _file(batch, batch.error_file_id, errors)


def entry(batch: Batch, price_micros: int, now: float) -> dict[str, Any]:
    """Return a batch's line in the ledger; its outcomes up to `now` must stand in it."""
    answers = [outcome.answer for outcome in batch.outcomes if outcome.answer is not None]
    return {
        "batch_id": batch.id,
        "owner": batch.owner,
        "request_id": batch.request_id,
        "input_file_id": batch.input_file_id,
        "ds_name": batch.metadata.get("ds_name"),
        "model": batch.model,
        "status": batch.status(now),
        "lines": len(batch.lines),
        "paid_lines": len(answers),
        "failed_lines": len(batch.outcomes) - len(answers),
        "input_tokens": sum(answer.input_tokens for answer in answers),
        "output_tokens": sum(answer.output_tokens for answer in answers),
        "created_at": batch.created_at,
        "billed_micros": price_micros,
    }


def _is_output(batch: Batch, outcome: Outcome) -> bool:
    return batch.hides_failures or outcome.answer is not None


def _has_files(batch: Batch) -> tuple[bool, bool]:
    """Return whether a settled batch has an output file, and an error file, without writing them."""
    outputs = sum(_is_output(batch, outcome) for outcome in batch.outcomes)
    errors = (len(batch.lines) if batch.end in UNRUN else len(batch.outcomes)) - outputs
    return outputs > 0, errors > 0


def _file(batch: Batch, its_id: str, rows: list[dict[str, Any]]) -> File | None:
    if not rows:
        return None
    content = "".join(lines.dumped(row) + "\n" for row in rows).encode()
    return File(its_id, batch.owner, "batch_output", f"{its_id}.jsonl", content, int(batch.settled_at))


def _errors(batch: Batch) -> dict[str, Any]:
    return {"object": "list", "data": [flaw.document() for flaw in batch.flaws]}


def _counts(batch: Batch, status: str) -> dict[str, int]:
    total, ran = len(batch.lines), len(batch.outcomes)
    completed = sum(_is_output(batch, outcome) for outcome in batch.outcomes)
    # As recorded: what a cancelled batch did not run has failed.
    return {"total": total, "completed": completed, "failed": (total if status in UNRUN else ran) - completed}
