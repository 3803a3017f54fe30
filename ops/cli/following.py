"""Jobs followed to their end: asked for again and again, shown on the way, and their outputs fetched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from api.client import Client
from api.documents import JobDocument
from ops.cli import show, tables
from ops.cli.show import Job

_LOOKS_PER_SECOND = 20  # of the 50 requests that a key may make
_SHORTEST_PAUSE = 0.25  # seconds
_FRAME_LINES = 4  # of the live table beside its rows

_REVIEWED = "awaiting_review"  # all is made, and a person may take days to look at it

Rounds = Iterable[Sequence[Job]]  # the jobs as they are now, again and again

# The steps whose time people ask for, and the states that it is spent in.
STEPS: Mapping[str, frozenset[str]] = {
    "waited": frozenset({"queued", "held", "admitted"}),
    "submitted": frozenset({"submitting", "uncertain"}),
    "ran": frozenset({"running", "gathering"}),
    "copied": frozenset({"copying"}),
}


def follow(client: Client, ids: Sequence[str]) -> Iterator[list[Job]]:
    """The jobs as they are now, again and again until all are done; those that are done are not asked for again."""
    seen: dict[str, Job] = {}
    while True:
        open_ids = [job_id for job_id in ids if job_id not in seen or not _is_done(seen[job_id])]
        seen |= {job_id: client.job(job_id).as_json() for job_id in open_ids}
        yield [seen[job_id] for job_id in ids]
        if all(map(_is_done, seen.values())):
            return
        time.sleep(max(_SHORTEST_PAUSE, len(open_ids) / _LOOKS_PER_SECOND))


def succeeded(jobs: Sequence[Job]) -> bool:
    """Whether every one of them did."""
    return all(job["state"] in ("succeeded", _REVIEWED) for job in jobs)


def seconds_by_step(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How long a job that has ended spent in each of `STEPS`, by its history."""
    spent = dict.fromkeys(STEPS, 0.0)
    for event, seconds in show.timed(events):
        for step, states in STEPS.items():
            if event["to"] in states and seconds is not None:
                spent[step] += seconds
    return spent


def watched(rounds: Rounds, console: Console) -> Sequence[Job]:
    """Show every round; returns the last."""
    if console.is_terminal:
        return _live(rounds, console)
    return told(rounds, lambda job: console.print(tables.change(job), soft_wrap=True))


def told(rounds: Rounds, tell: Callable[[Job], None]) -> Sequence[Job]:
    """Call `tell` with each job whose state has changed since the round before; returns the last round."""
    states: dict[str, str] = {}
    jobs: Sequence[Job] = ()
    for jobs in rounds:
        for job in jobs:
            if states.get(job["id"]) != job["state"]:
                tell(job)
            states[job["id"]] = job["state"]
    return jobs


def _is_done(job: Job) -> bool:
    """Whether nothing more happens to the job by itself."""
    return bool(job["is_terminal"]) or job["state"] == _REVIEWED


def download(client: Client, jobs: Iterable[JobDocument], folder: Path) -> None:
    """Put the outputs of all jobs into a folder, and say the name of each file."""
    for job in jobs:
        for path in client.download_job(job, folder):
            show.ERR.print(str(path), markup=False, soft_wrap=True)


def _live(rounds: Rounds, console: Console) -> Sequence[Job]:
    jobs: Sequence[Job] = ()
    with Live(console=console, auto_refresh=False) as live:
        for jobs in rounds:
            live.update(tables.progress(jobs, console.height - _FRAME_LINES), refresh=True)
    return jobs
