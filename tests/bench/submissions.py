"""(f) The API: submissions a second and how long they take, and lists of ten thousand jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ops.local import servers
from ops.local.supervise import has_logged
from tests.bench import load, seeding, usage
from tests.bench.asking import Door, Request, ask, clips
from tests.bench.figures import Figure, percentile
from tests.bench.rig import CLOSED, SIZES, Rig

NAME = "API"
_CLIENTS = 16
_WARMING = 200  # requests
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
    requests = clips(400 if quick else 3_000, CLOSED, SIZES[CLOSED])
    figures = _submissions(rig, requests) + _floor(rig, requests)
    rig.sql(_END, model=CLOSED)
    seeding.finished(rig, _FINISHED)
    return [
        *figures,
        *(_list(rig, name, path) for name, path in _LISTS.items()),
        Figure(NAME, "jobs in these lists", "rows", float(rig.count("true"))),
    ]


def _submissions(rig: Rig, requests: Sequence[Request]) -> list[Figure]:
    load.press(rig.door, requests[:_WARMING], _CLIENTS)
    rig.quiet()
    cpu, own, began = rig.cpu(), time.process_time(), time.monotonic()
    fastest = load.press(rig.door, requests, _CLIENTS)
    rate = len(fastest) / (time.monotonic() - began)
    used = usage.difference(cpu, rig.cpu()) | {"clients": time.process_time() - own}
    calm = load.press(rig.door, requests, _CLIENTS, per_second=rate / 2)
    return [
        Figure(NAME, f"POST /v1/jobs, {_CLIENTS} clients", "a second", rate),
        *_spread(f"POST /v1/jobs, {_CLIENTS} clients", fastest),
        *_spread("POST /v1/jobs at half that rate", calm),
        *(_cpu(f"POST /v1/jobs: {name}", used[name], fastest) for name in ("api", "postgres", "clients")),
    ]


def _floor(rig: Rig, requests: Sequence[Request]) -> list[Figure]:
    """What FastAPI takes for a request that does nothing, under the same load."""
    port = int(rig.door.url.rpartition(":")[2]) + 2000
    command = f"uvicorn tests.bench.peers.empty:app --host {servers.HOST} --port {port} --http h11 --no-access-log"
    empty = rig.program("empty", command, has_logged("Uvicorn running"), {})
    with rig.beside([empty]) as pids:
        door = Door(f"http://{servers.HOST}:{port}", rig.door.key)
        load.press(door, requests[:_WARMING], _CLIENTS)
        cpu = rig.cpu(**pids)
        took = load.press(door, requests, _CLIENTS)
        used = usage.difference(cpu, rig.cpu(**pids))
    return [_cpu("an empty FastAPI route", used["empty"], took)]


def _cpu(name: str, seconds: float, took: list[float]) -> Figure:
    return Figure(NAME, name, "ms CPU a request", seconds / len(took) * 1000)


def _spread(name: str, seconds: list[float]) -> list[Figure]:
    took = [each * 1000 for each in seconds]
    return [Figure(NAME, f"{name}: p{round(share * 100)}", "ms", percentile(took, share)) for share in (0.5, 0.99)]


def _list(rig: Rig, name: str, path: str) -> Figure:
    took = [ask(rig.door, ("GET", path, None)).seconds * 1000 for _ in range(_LOOKS)]
    return Figure(NAME, f"GET /v1/jobs, {name}: median", "ms", percentile(took, 0.5))


# What was submitted, so that it is a finished row among the others.
_END = """
    update jobs set state = 'canceled', finished_at = now(), run_at = null where model = :model and state = 'queued'
"""
