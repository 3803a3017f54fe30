"""(j) Campaigns: a file of ten thousand rows checked and committed while others submit, and a large batch looked at.

While the large one is looked at its jobs move, so many a second, in the order of their rows.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.bench import load, usage
from tests.bench.asking import Door, ask, clips
from tests.bench.figures import Figure, percentile
from tests.bench.rig import CLOSED, SIZES, Rig

NAME = "campaigns"
_ROWS, _LARGE = 10_000, 50_000
_BESIDE, _RATE = 4, 40.0  # clients that submit meanwhile, and requests a second of all of them
_LOOKS = 50
_OPEN = 5  # pages of the console that are left open
_MOVES_A_SECOND = 100
_TIMEOUT = 300.0  # seconds


def measure(rig: Rig, quick: bool) -> list[Figure]:
    """A file of new rows, the same file again, and counts of a batch of fifty thousand rows."""
    share = 10 if quick else 1
    rows, large = _ROWS // share, _LARGE // share
    ask(rig.door, ("POST", "/v1/batches", {"items": [clips(1, CLOSED, SIZES[CLOSED])[0][2]]}))
    content = _file(rows)
    figures = _together(rig, f"{rows:,} rows", content) + _together(rig, f"the same {rows:,} rows again", content)
    batch = _send(rig.door, "/v1/batches?commit=true", _file(large))
    took, counted = list[float](), list[float]()
    with _moving(rig, batch["id"]):
        for _ in range(_LOOKS):
            took.append(ask(rig.door, ("GET", f"/v1/batches/{batch['id']}", None)).seconds * 1000)
            counted.append(_counted(rig, batch["id"]))
        figures += _console(rig, batch["id"], f"of {large:,} rows that move", quick)
    figures += [_looked(f"GET /v1/batches/… of {large:,} rows that move", took, share) for share in (0.5, 0.9)]
    figures += [_looked(f"counts of {large:,} jobs that move, by Postgres", counted, share) for share in (0.5, 0.9)]
    rig.sql(_END, model=CLOSED)
    return figures


def _console(rig: Rig, batch: str, what: str, quick: bool) -> list[Figure]:
    """What a page of the batch takes, a gallery of 500 jobs, and what pages cost that are left open."""
    page, gallery = f"/console/batches/{batch}", f"/console/gallery?batch={batch}&state=&most=500"
    with httpx.Client(base_url=rig.door.url, trust_env=False, timeout=_TIMEOUT) as http:
        link = http.post("/console/link", headers={"authorization": f"Bearer {rig.door.key}"}).json()["url"]
        assert http.get(link[link.index("/console/") :]).status_code == 303, "the link signs in"
        took: dict[str, list[float]] = {"its page": [], "a gallery of 500 of them": []}
        for _ in range(_LOOKS):
            for path, seconds in zip((page, gallery), took.values(), strict=True):
                began = time.monotonic()
                assert http.get(path).status_code == 200, path
                seconds.append((time.monotonic() - began) * 1000)
        idle = _used(rig, [], quick)
        live = [http.build_request("GET", f"{page}/live") for _ in range(_OPEN)]
        looked = {name: (_used(rig, live, quick)[name] - idle[name]) / _OPEN for name in idle}
    named = [(f"console: {name} {what}", each) for name, each in took.items()]
    return [
        *(_looked(name, each, share) for name, each in named for share in (0.5, 0.9)),
        *(Figure(NAME, f"console: a page left open {what}, {name}", "% of a core", x) for name, x in looked.items()),
    ]


def _used(rig: Rig, live: list[httpx.Request], quick: bool) -> dict[str, float]:
    """The share of a core, in percent, that API and Postgres take while these streams are read."""
    pids, span = {name: rig.stack.processes[name] for name in ("api", "postgres")}, 5 if quick else 30
    with ExitStack() as held:
        client = held.enter_context(httpx.Client(trust_env=False, timeout=_TIMEOUT))
        for request in live:
            answer = client.send(request, stream=True)
            held.callback(answer.close)
            assert answer.status_code == 200, "the page follows"
        before = usage.cpu_seconds(pids)
        time.sleep(span)
        after = usage.cpu_seconds(pids)
    return {name: 100 * (after[name] - before[name]) / span for name in pids}


def _together(rig: Rig, what: str, content: bytes) -> list[Figure]:
    draft, checked = _beside(rig, f"{what}, checked", lambda: _send(rig.door, "/v1/batches", content))
    commit = ("POST", draft["urls"]["commit"], None)
    _, committed = _beside(rig, f"{what}, committed", lambda: ask(rig.door, commit).body)
    return checked + committed


def _beside(rig: Rig, what: str, act: Callable[[], Any]) -> tuple[Any, list[Figure]]:
    """What is done, how long it takes, what the API holds at the most, and what submissions take meanwhile."""
    api = rig.stack.processes["api"]
    usage.forget_peak(api)
    held, waited = usage.peak(api), list[float]()
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        doing = pool.submit(lambda: (act(), time.monotonic() - began))
        while not doing.done():
            waited += load.press(rig.door, clips(int(_RATE / 4), CLOSED, SIZES[CLOSED]), _BESIDE, per_second=_RATE)
        done, seconds = doing.result()
    beside = [
        Figure(NAME, f"{what}: POST /v1/jobs beside, p{round(at * 100)}", "ms", percentile(waited, at) * 1000)
        for at in (0.5, 0.99)
    ]
    return done, [
        Figure(NAME, what, "s", seconds),
        Figure(NAME, f"{what}: memory of the API, more", "MB", usage.peak(api) - held),
        *beside,
    ]


def _file(rows: int) -> bytes:
    """A CSV of rows that no other file has."""
    mark = uuid.uuid4()
    lines = (
        f'text-to-video,{CLOSED},"a heron stands in the reeds, mist over the water, {mark}",{SIZES[CLOSED]},{n},A{n}'
        for n in range(rows)
    )
    return "\n".join(("kind,model,prompt,size,custom_id,metadata.sku", *lines, "")).encode()


def _send(door: Door, path: str, content: bytes) -> dict[str, Any]:
    """The batch that a file makes."""
    edge = uuid.uuid4().hex
    part = f'--{edge}\r\ncontent-disposition: form-data; name="file"; filename="campaign.csv"\r\n\r\n'.encode()
    headers = {"authorization": f"Bearer {door.key}", "content-type": f"multipart/form-data; boundary={edge}"}
    parts = urlsplit(door.url)
    assert parts.hostname, "an address has a host"
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT)
    connection.request("POST", path, part + content + f"\r\n--{edge}--\r\n".encode(), headers)
    answer = connection.getresponse()
    said: dict[str, Any] = json.loads(answer.read())
    assert answer.status == 201, f"POST {path}: {answer.status} {said}"
    return said


def _looked(what: str, took: list[float], share: float) -> Figure:
    return Figure(NAME, f"{what}: p{round(share * 100)}", "ms", percentile(took, share))


@contextmanager
def _moving(rig: Rig, batch: str) -> Iterator[None]:
    """Jobs of the batch move meanwhile, in the order of their rows."""
    stop = threading.Event()
    jobs = rig.sql("select id from jobs where batch_id = :batch order by batch_row", batch=batch)

    def move() -> None:
        began = time.monotonic()
        for n in itertools.count():
            if stop.wait(max(0.0, began + n / _MOVES_A_SECOND - time.monotonic())):
                return
            at, step = divmod(n, len(_MOVES))
            rig.sql(f"update jobs set {_MOVES[step]} where id = :job", job=jobs[at].id)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _counted(rig: Rig, batch: str) -> float:
    """How many milliseconds Postgres takes to count the batch."""
    plan = rig.sql(
        "explain (analyze, format json) select * from batch_groups(array[cast(:batch as uuid)])", batch=batch
    )
    return float(plan[0][0][0]["Execution Time"])


# a job's life, without what the engine writes beside
_MOVES = (
    "state = 'admitted'",
    "state = 'submitting'",
    "state = 'running', run_at = now() + interval '1 min'",
    "state = 'copying', billed = 'yes', cost = estimate",
    "state = 'succeeded', finished_at = now(), run_at = null",
)
# What was submitted, so that it is a finished row for what follows.
_END = """
    update jobs set state = 'canceled', finished_at = now(), run_at = null where model = :model and state = 'queued'
"""
