"""Jobs as a person watches them: a live table on a terminal, elsewhere a line for each change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.live import Live

from ops.cli import show
from ops.cli.following import Job

_FRAME_LINES = 4  # of the live table beside its rows

Rounds = Iterable[Sequence[Job]]  # the jobs as they are now, again and again


def watched(rounds: Rounds, console: Console) -> Sequence[Job]:
    """Show every round; returns the last."""
    if console.is_terminal:
        return _live(rounds, console)
    return told(rounds, lambda job: console.print(show.change(job), soft_wrap=True))


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


def _live(rounds: Rounds, console: Console) -> Sequence[Job]:
    jobs: Sequence[Job] = ()
    with Live(console=console, auto_refresh=False) as live:
        for jobs in rounds:
            live.update(show.progress(jobs, show.now(), console.height - _FRAME_LINES), refresh=True)
    return jobs
