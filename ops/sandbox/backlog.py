"""All batches of all accounts, with the files they read and write: made, run as the clock goes, listed, cancelled.

Source: Alibaba docs, "OpenAI-compatible Batch".
"""

import re
import uuid
from collections.abc import Mapping
from random import Random
from typing import Any

from ops.sandbox import batches, bills, files, lines
from ops.sandbox.batches import Batch
from ops.sandbox.faults import Faults, Rule, What
from ops.sandbox.files import File, Files
from ops.sandbox.lines import Flaw
from ops.sandbox.models import Model
from ops.sandbox.options import FailedLines, Options
from ops.sandbox.refusals import Refusal, invalid

HOUR = 3600.0
WINDOWS = (24 * HOUR, 336 * HOUR)
LONGEST = {"ds_name": 100, "ds_description": 200}  # characters of metadata
FILES_ASKED = 20  # input files that a list may be narrowed to
VALIDATING_SECONDS, FINALIZING_SECONDS = 1.0, 1.0
RUN_SECONDS, LINE_SECONDS = 600.0, 3.0  # reports tell of 596 s for 3 lines, 3,718 s for 1,000, 9,129 s for 2
RUN_SPREAD = (0.7, 1.3)


class Backlog:
    """Every batch and every file."""

    def __init__(self, seed: int) -> None:
        self.files = Files()
        self.drawn = Random(seed)
        self.by_id: dict[str, Batch] = {}
        self._settled: set[str] = set()

    def add(self, batch: Batch, models: Mapping[str, Model], most_lines: int) -> None:
        """Take a batch in, its input file read and checked."""
        content = self.files.find(batch.owner, batch.input_file_id).content
        batch.lines, flaws = lines.check(content, batch.endpoint, models, most_lines)
        batch.flaws = batch.flaws or flaws
        self.by_id[batch.id] = batch

    def recall(self, kind: str, row: dict[str, Any], models: Mapping[str, Model], most_lines: int) -> None:
        """Take in what the journal noted of before: a file, a batch, or the end of either."""
        match kind:
            case "file":
                self.files.add(File.from_row(row))
            case "file_deleted":
                self.files.bury(row["id"])
            case "batch":
                self.add(Batch.from_row(row), models, most_lines)
            case "batch_canceled":
                self.by_id[row["id"]].canceled_at = row["at"]

    def advance(self, models: Mapping[str, Model], faults: Faults, seed: int, now: float) -> None:
        """Answer the lines whose time has come, and lay down the files of batches that have settled."""
        for batch in self.by_id.values():
            while len(batch.outcomes) < batch.due(now):
                line = batch.lines[len(batch.outcomes)]
                batch.outcomes.append(lines.run(line, batch.id, models, faults.pick_for_line, seed, batch.stopped_at))
            if now >= batch.settled_at and batch.id not in self._settled:
                self._settled.add(batch.id)
                self._lay_down(batch)

    def find(self, owner: str, wanted: str, now: float) -> Batch:
        """Return an owner's batch, or raise the Refusal of an id that is none of theirs."""
        batch = self.by_id.get(wanted)
        if batch is None or batch.owner != owner or now < batch.created_at:
            raise Refusal(404, "NotFound", f"No batch found with id '{wanted}'.")
        return batch

    def cancel(self, owner: str, wanted: str, now: float) -> Batch:
        """Cancel a batch, or raise the Refusal of one that has ended; what was answered by now is paid for."""
        batch = self.find(owner, wanted, now)
        status = batch.status(now)
        if status in batches.ENDED:
            raise invalid(f"Cannot cancel a batch with status '{status}'.")
        if batch.canceled_at is None:
            batch.canceled_at = now
        return batch

    def listed(self, owner: str, query: dict[str, str], rule: Rule | None, now: float) -> list[Batch]:
        """Return an owner's batches that a query asks for, newest first, less what a fault hides."""
        start = files.instant(query, "create_after", now - batches.KEPT_SECONDS)
        end = files.instant(query, "create_before", now)
        if query.get("input_file_ids", "").count(",") >= FILES_ASKED:
            raise invalid(f"input_file_ids takes {FILES_ASKED} ids at most.")
        found = [
            batch
            for batch in self.by_id.values()
            if batch.owner == owner
            and max(start, now - batches.KEPT_SECONDS) <= batch.created_at <= min(end, now)
            and _fits(batch, query, now)
            and not _hides(rule, batch, now)
        ]
        return sorted(found, key=lambda batch: batch.created_at, reverse=True)

    def statement(self, models: Mapping[str, Model], now: float) -> list[dict[str, Any]]:
        """Return every batch's line of the ledger."""
        made = [batch for batch in self.by_id.values() if batch.created_at <= now]
        return [batches.entry(batch, _price(batch, models), now) for batch in made]

    def _lay_down(self, batch: Batch) -> None:
        for file in batches.files(batch):
            # One that was deleted before a restart stays so.
            if file is not None and file.id not in self.files.by_id:
                self.files.add(file)


def bend(batch: Batch, rule: Rule, now: float) -> None:
    """Make a batch fail, run or begin as a fault says."""
    if rule.what is What.TASK_FAILS:
        _, code, message = rule.error
        batch.flaws = [Flaw(code, message)]
    elif rule.what is What.TASK_RUNS:
        batch.base_seconds, batch.line_seconds = rule.after_ms / 1000, 0.0
    elif rule.what is What.EXECUTED_LATE:
        batch.created_at = now + rule.after_ms / 1000


def order(document: Any, owner: str, request_id: str, options: Options, random: Random, now: float) -> Batch:
    """Return the batch that a create asks for, its input file unread, or raise the Refusal it earns."""
    if not isinstance(document, dict):
        raise Refusal(400, "BadRequest.IllegalInput", "The request body is not valid JSON.")
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(document.get(name), str) or not document[name]:
            raise invalid(f"Missing required parameter: '{name}'.")
    if document["endpoint"] not in lines.ENDPOINTS:
        raise invalid(f"endpoint must be one of {list(lines.ENDPOINTS)}.")
    scale = options.time_scale * random.uniform(*RUN_SPREAD)
    return Batch(
        id=f"batch_{uuid.uuid4()}",
        owner=owner,
        request_id=request_id,
        input_file_id=document["input_file_id"],
        output_file_id=files.file_id("batch_output"),
        error_file_id=files.file_id("batch_output"),
        endpoint=document["endpoint"],
        completion_window=document["completion_window"],
        metadata=_metadata(document.get("metadata") or {}),
        created_at=now,
        validating_seconds=_seconds(options.batch_validating_seconds, VALIDATING_SECONDS * scale),
        base_seconds=_seconds(options.batch_run_seconds, RUN_SECONDS * scale),
        line_seconds=LINE_SECONDS * scale if options.batch_run_seconds is None else 0.0,
        finalizing_seconds=_seconds(options.batch_finalizing_seconds, FINALIZING_SECONDS * scale),
        window_seconds=_window(document["completion_window"]),
        hides_failures=options.failed_lines is FailedLines.OUTPUT_FILE,
    )


def _price(batch: Batch, models: Mapping[str, Model]) -> int:
    """Return what the lines that were answered cost, in micro-CNY: half of what single calls would."""
    answers = [outcome.answer for outcome in batch.outcomes if outcome.answer is not None]
    if batch.model == lines.TEST_MODEL or not answers:
        return 0
    return bills.price_of_batch(models[batch.model], answers)


def _seconds(fixed: float | None, drawn: float) -> float:
    return drawn if fixed is None else fixed


def _window(text: str) -> float:
    match = re.fullmatch(r"([1-9]\d{0,3})([hd])", text)
    seconds = int(match[1]) * (HOUR if match[2] == "h" else 24 * HOUR) if match else 0.0
    shortest, longest = WINDOWS
    if not shortest <= seconds <= longest:
        raise invalid("completion_window must be in [24h, 336h], in whole hours (h) or days (d).")
    return seconds


def _metadata(given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise invalid("metadata must be an object of strings.")
    for name, longest in LONGEST.items():
        if len(given.get(name, "")) > longest:
            raise invalid(f"metadata.{name} has {longest} characters at most.")
    return given


def _fits(batch: Batch, query: dict[str, str], now: float) -> bool:
    name, inputs, statuses = (query.get(each) for each in ("ds_name", "input_file_ids", "status"))
    if name and name not in batch.metadata.get("ds_name", ""):
        return False
    if inputs and batch.input_file_id not in inputs.split(","):
        return False
    return not statuses or batch.status(now) in statuses.split(",")


def _hides(rule: Rule | None, batch: Batch, now: float) -> bool:
    if rule is None:
        return False
    is_young = batch.created_at > now - rule.after_ms / 1000
    return rule.what is What.MISSES or (rule.what is What.LAG and is_young)
