"""A receiver that is down for half a day under five thousand events: none is lost, and the feed tells the same.

The events are of many jobs, and eight writers commit them at once. Time passes by moving what waits back in the
database, an hour at a time; between, everything that is due is sent, for as long as something is.
"""

from __future__ import annotations

import random
import socket
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

import peers
from peers import peer
from serving import PATIENCE, Served, eventually
from sqlalchemy import Connection, text
from stage import CLIP, Stage
from standardwebhooks import Webhook

from worker.jobs import submission
from worker.moves import bulk
from worker.webhooks import feed, registry
from worker.webhooks.feed import Place
from worker.webhooks.registry import Wanted

WRITERS, CHUNKS, JOBS = 8, 8, 8  # each writer moves its chunks of jobs by turns, a chunk in one transaction
LIFE = ["job.queued", *["job.held", "job.queued"] * 4, "job.canceled"]  # of each job
COUNT = WRITERS * CHUNKS * JOBS * len(LIFE)
HOURS = 12
PASSES = (
    "update deliveries set created_at = created_at - interval '1 h', run_at = run_at - interval '1 h'",
    "update dead_receivers set resume_at = resume_at - interval '1 h'",
)


@dataclass
class Hook:
    """A receiver that is overrun once it is back: it fails at the first call for one event in seven."""

    came: dict[str, list[tuple[dict[str, str], str]]] = field(default_factory=lambda: defaultdict(list))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, conn: socket.socket, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line.partition(":") for line in head.decode().split("\r\n")[1:]]
        headers = {name.lower(): value.strip() for name, _, value in lines}
        event = headers["webhook-id"]
        with self.lock:
            self.came[event].append((headers, body.decode()))
            is_overrun = len(self.came[event]) == 1 and int(event.removeprefix("evt_")) % 7 == 0
        conn.sendall(peers.whole(500 if is_overrun else 204, b""))


def test_nothing_is_lost_on_a_receiver_that_is_down_for_half_a_day_and_the_feed_tells_the_same(
    play: Stage, api: Served
) -> None:
    hook = Hook()
    with socket.socket() as down:
        down.bind(("127.0.0.1", 0))  # and does not listen: who calls is refused
        port = down.getsockname()[1]
        secret = register(play, f"http://127.0.0.1:{port}/")
        before, read = write_and_read(play)
        for _ in range(HOURS):
            deliver(play)
            for statement in PASSES:
                play.sql(statement)
        waiting = states(play)
    with peer(hook, port=port):
        for _ in range(2):
            deliver(play)
            play.sql("update deliveries set run_at = now() where state = 'waiting'")

    told = [f"evt_{row['id']}" for row in play.sql("select id from events order by xid, id")]
    assert (len(told), waiting, states(play)) == (COUNT, {"waiting": COUNT}, {"delivered": COUNT})
    assert hook.came.keys() == set(told)
    for event, calls in hook.came.items():
        assert len(calls) == (2 if int(event.removeprefix("evt_")) % 7 == 0 else 1)
        assert len({body for _, body in calls}) == 1
        for headers, body in calls:
            Webhook(secret).verify(body, headers)

    assert 0 < before < COUNT, "the reader began in the middle"
    assert read == told
    documents = list(over_http(api, play.project.name))
    assert [each["id"] for each in documents] == told
    lives = defaultdict(list)
    for each in documents:
        lives[each["data"]["id"]].append((each["sequence"], each["type"]))
    assert list(lives.values()) == [list(enumerate(LIFE, 1))] * (COUNT // len(LIFE))


def register(play: Stage, url: str) -> str:
    with play.ctx.engine.begin() as connection:
        return registry.make(connection, play.project.id, Wanted(url, ["job.*"], "")).secret


def states(play: Stage) -> dict[str, int]:
    return {row["state"]: row["n"] for row in play.sql("select state, count(*) as n from deliveries group by 1")}


def deliver(play: Stage) -> None:
    while messages := [message for message in play.tick() if message.task == "noria.deliver"]:
        play.play(messages)


# The writers, and the reader among them


def write_and_read(play: Stage) -> tuple[int, list[str]]:
    """Has all events written, and one reader begin meanwhile: how many there were by then, and all that it read."""
    half = threading.Barrier(WRITERS + 1, timeout=PATIENCE)
    with ThreadPoolExecutor(WRITERS + 1) as pool:
        writers = [pool.submit(write, play, random.Random(n), half) for n in range(WRITERS)]
        half.wait()
        before = play.sql("select count(*) as n from events")[0]["n"]
        read = read_all(play, lambda: all(writer.done() for writer in writers))
        for writer in writers:
            writer.result()
    return before, read


def write(play: Stage, dice: random.Random, half: threading.Barrier) -> None:
    """Lives of jobs, chunk by chunk; transactions take unequal times, and some are rolled back and made again."""
    chunks: list[list[uuid.UUID]] = [[] for _ in range(CHUNKS)]
    for n, event in enumerate(LIFE):
        if n == len(LIFE) // 2:
            half.wait()
        for chunk in chunks:
            committed(play, dice, lambda connection, c=chunk, e=event: move(play, connection, c, e))  # type: ignore[misc]


def committed(play: Stage, dice: random.Random, change: Callable[[Connection], None]) -> None:
    while True:
        with play.ctx.engine.connect() as connection:
            change(connection)
            connection.execute(text("select pg_sleep(:s)"), {"s": dice.random() / 100})
            if dice.random() > 0.1:
                return connection.commit()


def move(play: Stage, connection: Connection, chunk: list[uuid.UUID], event: str) -> None:
    now = datetime.now(UTC)
    if event == "job.held":
        bulk.hold(connection, play.project.id, chunk, now)
    elif event == "job.canceled":
        bulk.cancel(connection, play.project.id, chunk, now)
    elif not bulk.let_go(connection, play.project.id, chunk, now):
        chunk[:] = [submit(play, connection) for _ in range(JOBS)]


def submit(play: Stage, connection: Connection) -> uuid.UUID:
    said = submission.Submission("text-to-video", "wan2.5-t2v-preview", input=CLIP)
    prepared = submission.prepare(play.ctx.catalog, play.ctx.settings, said, datetime.now(UTC))
    return submission.submit(connection, play.project, prepared, None, datetime.now(UTC))[0].id


def read_all(play: Stage, is_over: Callable[[], bool]) -> list[str]:
    """What a reader finds that goes on page by page, from the first event until all is written and read."""
    found: list[str] = []
    place = Place()

    def goes_on() -> bool:
        nonlocal place
        is_last = is_over()  # looked at before the page
        with play.ctx.engine.connect() as connection:
            page = feed.page(connection, play.project.id, place, 100)
        found.extend(f"evt_{row.id}" for row in page.events)
        place = page.after
        return is_last and len(found) >= COUNT  # others' transactions may hold the last ones back for a while

    eventually(goes_on)
    return found


def over_http(api: Served, project: str) -> Iterator[dict[str, object]]:
    """The feed's documents from the first, as a client reads them."""
    with api.http(api.key(project)) as http:
        after, has_more = "0-0", True
        while has_more:
            page = http.get("/v1/events", params={"after": after, "limit": 500}).json()
            yield from page["data"]
            after, has_more = page["after"], page["has_more"]
