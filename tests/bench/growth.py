"""(b) and (i): how many jobs a second go from end to end when tasks take no time, and what a job then costs."""

from __future__ import annotations

import time

from tests.bench import usage
from tests.bench.asking import ask_all, clips, until
from tests.bench.figures import Figure
from tests.bench.rig import FAST, SERVERS, SIZES, WORKERS, Rig

THROUGHPUT, GROWTH = "jobs a second, end to end", "growth"
RUN_SECONDS, BYTES = 0.05, 20_000
_PATIENCE = 120.0  # seconds that a size may take


def throughput(rig: Rig, quick: bool) -> list[Figure]:
    """Jobs a second from the first submission to the last output, without webhooks."""
    _learned(rig)
    jobs = 150 if quick else 600
    seconds, used = _run(rig, jobs)
    return [
        Figure(THROUGHPUT, f"{jobs} jobs", "jobs a second", jobs / seconds),
        *(Figure(THROUGHPUT, f"CPU of {name}", "cores", used[name] / seconds) for name in (*WORKERS, "api", *SERVERS)),
    ]


def growth(rig: Rig, quick: bool) -> list[Figure]:
    """CPU a job of workers and clock as more are submitted at once; a size that would take too long is left out."""
    _learned(rig)
    figures, rate = [], 0.0
    for jobs in (100, 400) if quick else (100, 1_000, 4_000, 10_000):
        if rate and jobs / rate > _PATIENCE:
            rig.say(f"{jobs} jobs are left out: they would take {jobs / rate:.0f} s")
            continue
        seconds, used = _run(rig, jobs)
        rate = jobs / seconds
        cost = sum(used[name] for name in WORKERS) / jobs * 1000
        figures += [
            Figure(GROWTH, f"{jobs:,} jobs: workers and clock", "ms CPU a job", cost),
            Figure(GROWTH, f"{jobs:,} jobs: Postgres", "ms CPU a job", used["postgres"] / jobs * 1000),
            Figure(GROWTH, f"{jobs:,} jobs", "jobs a second", rate),
        ]
    return figures


def _learned(rig: Rig) -> None:
    """Run times that are near zero are learned, or the first look would come late."""
    rig.sandbox.set(run_seconds=RUN_SECONDS, output_bytes=BYTES)
    if not rig.count(f"model = '{FAST}' and run_seconds is not null"):
        _run(rig, 8)
        rig.sql("update duties set due_at = now() where name = 'learn'")
        time.sleep(2.5)
    rig.quiet()


def _run(rig: Rig, jobs: int) -> tuple[float, dict[str, float]]:
    """Seconds until so many jobs were stored, and the CPU seconds by process."""
    before, cpu = rig.count(f"state = 'succeeded' and model = '{FAST}'"), rig.cpu()
    began = time.monotonic()
    ask_all(rig.door, clips(jobs, FAST, SIZES[FAST]))
    waiting = f"finished_at is null and model = '{FAST}'"
    assert until(lambda: not rig.count(waiting), _PATIENCE), f"they have not ended in {_PATIENCE:.0f} s"
    seconds = time.monotonic() - began
    done = rig.count(f"state = 'succeeded' and model = '{FAST}'") - before
    assert done == jobs, f"{done} of {jobs} jobs are stored"
    return seconds, usage.difference(cpu, rig.cpu())
