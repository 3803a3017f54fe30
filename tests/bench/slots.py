"""A lane's slots: the share of the time that they are busy, and what a limit costs that is halved and restored.

    python -m tests.bench.slots --slots 5 --run-seconds 60 --minutes 8
    python -m tests.bench.slots --slots 5 --run-seconds 60 --minutes 8 --spread
    python -m tests.bench.slots --slots 20 --run-seconds 10 --minutes 12 --halve concurrency
    python -m tests.bench.slots --slots 40 --run-seconds 2 --minutes 9 --halve rate

All that `noria up` runs is run in a folder of its own: API, workers, clock and servers, with a sandbox that refuses
every create over its limits. More jobs are submitted than can be done in the time. Where that is asked for, a limit is
halved a third into the run, and restored a third later. The sandbox's books say the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from ops.cli import reach, show
from ops.cli.admin import project_made
from ops.local import up
from ops.sandbox.testing import Sandbox
from worker import keys

MODEL, SANDBOX_SECONDS = "wanx2.1-t2v-turbo", 60  # the median that the sandbox gives the model, and ±30 % about it
CLIP = {"prompt": "a kitten", "size": "832*480"}
SETTLING = 60.0  # seconds in which a lane may learn that its limit was halved
RECOVERING = 120.0  # seconds in which it must have learned that it was restored
SPARE = 1.2  # jobs, of those that can be done


@dataclass(frozen=True)
class Run:
    """What is run: tasks at once, how long one takes (exactly, or with the sandbox's spread), creates a second."""

    slots: int
    run_seconds: float
    rps: float
    seconds: float
    spread: bool
    halve: str | None  # "concurrency" or "rate"

    @property
    def jobs(self) -> int:
        """More than can be done."""
        return math.ceil(min(self.slots / self.run_seconds, self.rps) * self.seconds * SPARE) + self.slots


@dataclass(frozen=True)
class Books:
    """What the sandbox wrote down: tasks (begin, end), refused creates, and when the limit was halved and restored."""

    tasks: Sequence[tuple[float, float]]
    refused: Sequence[float]
    halved_at: float
    restored_at: float
    ended_at: float

    def made(self, start: float, end: float) -> int:
        """Tasks that began in that time."""
        return sum(start <= began < end for began, _ in self.tasks)

    def turned_away(self, start: float, end: float) -> int:
        """Creates that were refused in that time."""
        return sum(start <= at < end for at in self.refused)


def main() -> None:
    """Measure, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=5)
    parser.add_argument("--run-seconds", type=float, default=60)
    parser.add_argument("--rps", type=float, default=5)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--spread", action="store_true", help="run times as the sandbox draws them, 30 % either way")
    parser.add_argument("--halve", choices=["concurrency", "rate"])
    said = parser.parse_args()
    run = Run(said.slots, said.run_seconds, said.rps, said.minutes * 60, said.spread, said.halve)
    print(json.dumps(measure(run), indent=2))


def measure(run: Run) -> dict[str, Any]:
    """How busy the slots were; and, where a limit was halved, what that cost in creates and in time."""
    with _folder() as folder, _stack(folder / "home", run) as (door, sandbox):
        with reach.api(door) as api:
            began = time.time()
            for n in range(run.jobs):
                api.submit({"kind": "text-to-video", "model": MODEL, "input": {**CLIP, "prompt": f"a kitten, {n}"}})
        halved_at = _at(began + run.seconds / 3, sandbox, _limits(run, 0.5)) if run.halve else math.inf
        restored_at = _at(began + run.seconds * 2 / 3, sandbox, _limits(run, 1)) if run.halve else math.inf
        time.sleep(max(0.0, began + run.seconds - time.time()))
        books = _books(sandbox.ledger(), halved_at, restored_at)
    is_bound_by_rate = run.halve == "rate"  # then the slots are never full
    return ({} if is_bound_by_rate else _busy(books, run)) | (_halved(books) if run.halve else {})


def _busy(books: Books, run: Run) -> dict[str, Any]:
    """From the instant that all slots were taken first until the last start, before a limit was halved."""
    until = min(books.halved_at, max(began for began, _ in books.tasks))
    changes = sorted([(at, 1) for at, _ in books.tasks] + [(at, -1) for _, at in books.tasks])
    counts = list(accumulate(change for _, change in changes))
    full = next(n for n, count in enumerate(counts) if count >= run.slots)
    at_work = sum(
        count * (min(later, until) - at)
        for ((at, _), (later, _)), count in list(zip(pairwise(changes), counts, strict=False))[full:]
        if at < until
    )
    since = changes[full][0]
    share = at_work / run.slots / (until - since)
    begun = books.made(since, until)
    return {
        "slots busy": round(share, 4),
        "measured, seconds": round(until - since, 1),
        "tasks begun in that time": begun,
        "a slot free between two tasks, seconds": round((1 - share) * run.slots * (until - since) / max(1, begun), 2),
        "most at once": max(counts),
        "creates refused": books.turned_away(0, min(books.halved_at, books.ended_at)),
    }


def _halved(books: Books) -> dict[str, Any]:
    """What halving cost: the share of creates that were refused, and how many tasks began, by phase."""
    before = (min(began for began, _ in books.tasks) + SETTLING, books.halved_at)
    learning = (books.halved_at, books.halved_at + SETTLING)
    lower = (learning[1], books.restored_at)
    rising = (books.restored_at, books.restored_at + RECOVERING)
    after = (rising[1], books.ended_at)
    full = _rate(books, *before)
    return {
        "tasks a minute before": round(full, 1),
        "in the first minute": _phase(books, *learning),
        "from then on until it was restored": _phase(books, *lower),
        "in the two minutes after that": _phase(books, *rising),
        "from then on": _phase(books, *after) | {"share of the rate before": round(_rate(books, *after) / full, 3)},
    }


def _phase(books: Books, start: float, end: float) -> dict[str, Any]:
    made, refused = books.made(start, end), books.turned_away(start, end)
    share = refused / max(1, made + refused)
    return {
        "seconds": round(end - start),
        "tasks a minute": round(_rate(books, start, end), 1),
        "creates": made + refused,
        "refused": refused,
        "share refused": round(share, 4),
    }


def _rate(books: Books, start: float, end: float) -> float:
    return books.made(start, end) * 60 / (end - start)


def _books(ledger: Mapping[str, Any], halved_at: float, restored_at: float) -> Books:
    tasks = [(task["submitted_at"], task["ended_at"] or math.inf) for task in ledger["tasks"]]
    refused = [create["received_at"] for create in ledger["creates"] if create["refusal"]]
    return Books(tasks, refused, halved_at, restored_at, time.time())


def _at(moment: float, sandbox: Sandbox, limits: Mapping[str, Any]) -> float:
    """Sets the sandbox's limits at that instant, and returns it."""
    time.sleep(max(0.0, moment - time.time()))
    sandbox.set(limits=limits)
    return time.time()


def _limits(run: Run, share: float) -> dict[str, Any]:
    halves = {"concurrency": run.halve == "concurrency", "rate": run.halve == "rate"}
    slots = round(run.slots * (share if halves["concurrency"] else 1))
    return {"*": {"concurrency": slots, "rps": run.rps * (share if halves["rate"] else 1)}}


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
        yield Path(folder)


@contextmanager
def _stack(home: Path, run: Run) -> Iterator[tuple[reach.Door, Sandbox]]:
    """Everything, running, with one project; its limits are the sandbox's."""

    def prepare(settings: Mapping[str, str]) -> dict[str, str]:
        with reach.database(home, settings["NORIA_DATABASE_URL"]) as connection:
            key = keys.new_key(connection, project_made(connection, "bench"), "bench")[1]
        limits = {MODEL: {"concurrency": run.slots, "rps": run.rps}}
        return {"BENCH_KEY": key, "NORIA_LIMITS": json.dumps(limits), "NORIA_API_RATE": "1000"}

    scale = run.run_seconds / SANDBOX_SECONDS
    with up.stack(up.UpOptions(home, time_scale=scale), prepare, show.ERR.print) as made:
        sandbox = Sandbox(made.addresses["sandbox"])
        sandbox.set(
            over_concurrency="refuse",
            queue_seconds=0,
            run_seconds=None if run.spread else run.run_seconds,
            limits=_limits(run, 1),
        )
        yield reach.Door(made.addresses["API"].removesuffix("/docs"), made.prepared["BENCH_KEY"]), sandbox


if __name__ == "__main__":
    main()
