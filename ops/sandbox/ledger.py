"""The sandbox's own bill: what was received, what was made of it, what it would have cost.

It is kept apart from what clients are told: a create whose answer was lost stands here with its task and price.
"""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from ops.sandbox.limits import Peaks
from ops.sandbox.tasks import Status, Task, Tasks

PROMPT_CHARACTERS = 200  # of a text task's prompt; its create has all of it


@dataclass(slots=True)
class Create:
    """One create call as it came, and what became of it."""

    received_at: float
    owner: str
    model: str
    prompt: str  # uncut
    body_sha256: str
    request_id: str
    task_id: str | None = None  # null: it made nothing
    refusal: str | None = None  # the code it was refused with
    fault: str | None = None  # the fault it met


@dataclass(slots=True)
class BatchCreate:
    """One create of a batch that was carried out."""

    received_at: float
    owner: str
    request_id: str
    fault: str | None  # the fault it met
    ds_name: str | None = None
    batch_id: str | None = None  # null: it made nothing
    refusal: str | None = None  # the code it was refused with


class Ledger:
    """Everything that came in since the sandbox started; the tasks themselves are kept elsewhere."""

    def __init__(self) -> None:
        self.creates: list[Create] = []
        self.batch_creates: list[BatchCreate] = []
        self.downloads: Counter[str] = Counter()  # answered link GETs by task id
        self.throttled: Counter[str] = Counter()  # 429 answers by interface
        self.peaks = Peaks(1.0)
        self.minutes = Peaks(60.0)  # of speech and text: requests, refused ones included, and tokens
        self._in_flight: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def note_in_flight(self, owner: str, model: str, count: int) -> None:
        """Keep the most tasks a lane ever had pending or running."""
        self._in_flight[owner][model] = max(self._in_flight[owner][model], count)

    def statement(self, tasks: Tasks, faults: Counter[str], now: float) -> dict[str, Any]:
        """Return the whole ledger as JSON; money in micro-CNY, instants in epoch seconds."""
        made = [self._entry(task, now) for task in tasks.by_id.values()]
        return {
            "totals": self.totals(tasks, now),
            "creates": [asdict(create) for create in self.creates],
            "batch_creates": [asdict(create) for create in self.batch_creates],
            "tasks": made,
            "peaks": {
                "in_flight": self._in_flight,
                "per_second": self.peaks.table(),
                "per_minute": self.minutes.table(),
            },
            "paid": _paid(made),
            "calls": self.peaks.totals(),
            "throttled": self.throttled,
            "faults": faults,
        }

    def queries(self) -> dict[str, Any]:
        """Return what was asked by owner and interface, the most in a second, and what was refused."""
        return {"calls": self.peaks.totals(), "peaks": self.peaks.table(), "throttled": self.throttled}

    def totals(self, tasks: Tasks, now: float) -> dict[str, Any]:
        """Return the counts and the bill alone."""
        return {
            "creates": len(self.creates),
            "refused": sum(create.refusal is not None for create in self.creates),
            "tasks": len(tasks.by_id),
            "by_status": Counter(task.status(now).value for task in tasks.by_id.values()),
            "billed_micros": sum(task.billed_micros(now) for task in tasks.by_id.values()),
            "downloads": self.downloads.total(),
        }

    def _entry(self, task: Task, now: float) -> dict[str, Any]:
        status = task.status(now)
        return {
            "task_id": task.id,
            "owner": task.owner,
            "model": task.order.model,
            "prompt": task.order.prompt[: None if task.answer is None else PROMPT_CHARACTERS],
            "size": task.order.size,
            "seconds": task.order.seconds,
            "pictures": task.order.pictures,
            "body_sha256": task.body_sha256,
            "request_id": task.request_id,
            "status": status,
            "is_async": task.is_async,
            "submitted_at": task.submitted_at,
            "started_at": task.started_at,
            "ended_at": task.ended_at if status in (Status.SUCCEEDED, Status.FAILED) else task.canceled_at,
            "billed_micros": task.billed_micros(now),
            "downloads": self.downloads[task.id],
            "usage": task.usage,
        }


def _paid(made: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Return model → how many of its tasks were billed, for how many units of each kind, and for how much."""
    paid: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entry in made:
        if entry["status"] is Status.SUCCEEDED:
            paid[entry["model"]].update(entry["usage"] | {"tasks": 1, "billed_micros": entry["billed_micros"]})
    return paid
