"""(f) The API: submissions a second and how long they take, and lists of ten thousand jobs."""

from __future__ import annotations

import time

from tests.bench import seeding, usage
from tests.bench.asking import Answer, ask, ask_all, clips
from tests.bench.figures import Figure, percentile
from tests.bench.rig import CLOSED, SIZES, Rig

NAME = "API"
_CLIENTS = 8
_FINISHED = 10_000
_LOOKS = 30
_LISTS = {
    "first page": "/v1/jobs?limit=100",
    "state=failed": "/v1/jobs?limit=100&state=failed",
    "kind=text-to-video": "/v1/jobs?limit=100&kind=text-to-video",
    "q=heron": "/v1/jobs?limit=100&q=heron",
}


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """Submissions to a lane that is closed, as fast as can be and then at half that rate; then lists."""
    requests = clips(400 if quick else 2_000, CLOSED, SIZES[CLOSED])
    rig.quiet()
    cpu, began = rig.cpu(), time.monotonic()
    fastest = ask_all(rig.door, requests, _CLIENTS)
    rate = len(fastest) / (time.monotonic() - began)
    used = usage.difference(cpu, rig.cpu())
    calm = ask_all(rig.door, requests, 2 * _CLIENTS, per_second=rate / 2)
    rig.sql(_END, model=CLOSED)
    seeding.finished(rig, _FINISHED)
    return [
        Figure(NAME, f"POST /v1/jobs, {_CLIENTS} clients", "a second", rate),
        *_spread(f"POST /v1/jobs, {_CLIENTS} clients", fastest),
        *_spread("POST /v1/jobs at half that rate", calm),
        Figure(NAME, "POST /v1/jobs: API", "ms CPU a request", used["api"] / len(fastest) * 1000),
        Figure(NAME, "POST /v1/jobs: Postgres", "ms CPU a request", used["postgres"] / len(fastest) * 1000),
        *(_list(rig, name, path) for name, path in _LISTS.items()),
        Figure(NAME, "jobs in these lists", "rows", float(rig.count("true"))),
    ]


def _spread(name: str, answers: list[Answer]) -> list[Figure]:
    took = [answer.seconds * 1000 for answer in answers]
    return [Figure(NAME, f"{name}: p{round(share * 100)}", "ms", percentile(took, share)) for share in (0.5, 0.99)]


def _list(rig: Rig, name: str, path: str) -> Figure:
    took = [ask(rig.door, ("GET", path, None)).seconds * 1000 for _ in range(_LOOKS)]
    return Figure(NAME, f"GET /v1/jobs, {name}: median", "ms", percentile(took, 0.5))


# What was submitted, so that it is a finished row among the others.
_END = """
    update jobs set state = 'canceled', finished_at = now(), run_at = null where model = :model and state = 'queued'
"""
