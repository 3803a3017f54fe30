"""Deliveries that flow: a message's thread goes on with what waits, and each delivery is told once."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import peers
from peers import Peer, peer
from post import Post
from sqlalchemy import Engine, event
from stage import Stage

from worker import egress, tick
from worker.webhooks import receivers, sending

TOLD = peers.answers(204, b"")


def write(play: Stage, url: str, count: int = 1) -> None:
    with play.ctx.engine.begin() as connection:
        Post(connection).write(play.project, url, count, play.now() - timedelta(minutes=1))


def deliver(play: Stage, messages: list[tick.Message]) -> None:
    for message in messages:
        play.runner.deliver(message.numbers)


def told(receiver: Peer) -> Counter[bytes]:
    """How often each message came."""
    return Counter(re.findall(rb"webhook-id: *(\S+)", b"\n".join(receiver.requests), re.IGNORECASE))


def states(play: Stage) -> dict[str, int]:
    return {row["state"]: row["n"] for row in play.sql("select state, count(*) as n from deliveries group by 1")}


def courier(play: Stage, transport: egress.Transport | None = None, **more: timedelta) -> sending.Courier:
    return sending.Courier(
        play.ctx.engine, transport or play.ctx.webhooks, play.ctx.settings, play.ctx.patience, **more
    )


def commits(engine: Engine) -> list[object]:
    found: list[object] = []
    event.listen(engine, "commit", found.append)
    return found


# What waits flows


def test_all_that_waits_for_a_receiver_goes_with_one_tick_over_one_connection_in_a_few_commits(play: Stage) -> None:
    with peer(TOLD) as receiver:
        write(play, receiver.url, 100)
        messages = play.tick()
        counted = commits(play.ctx.engine)

        deliver(play, messages[:1])

        assert (len(messages), receiver.connections) == (2, 1)
        assert len(told(receiver)) == 100 - receivers.ROWS, "the other message's are another's"
        assert set(told(receiver).values()) == {1}
        assert len(counted) <= 5, "a take, then one for each handful"
        deliver(play, messages[1:])
    assert states(play) == {"delivered": 100}


def test_a_thread_goes_on_to_the_other_receivers_of_its_project(play: Stage) -> None:
    with peer(TOLD) as one, peer(TOLD) as two, peer(TOLD) as three:
        write(play, one.url)
        messages = play.tick()
        for receiver in (two, three):
            write(play, receiver.url)

        deliver(play, messages)

        assert states(play) == {"delivered": 3}
        assert [set(told(receiver).values()) for receiver in (one, two, three)] == [{1}] * 3
    assert play.hints == 0, "nothing waits"


def test_a_thread_whose_turn_is_over_gives_back_what_it_has_not_tried(play: Stage) -> None:
    with peer(TOLD) as receiver:
        write(play, receiver.url, 20)
        (first, _) = play.tick()

        assert courier(play, turn=timedelta(0)).deliver(first.numbers), "some wait for a tick"

        assert receiver.requests == []
    left = play.sql("select 1 from deliveries where claimed is null and run_at <= now() and tries + crashes = 0")
    assert len(left) == 20 - receivers.ROWS


# Each is told once, and none is lost


def test_repeated_messages_tell_nobody_twice(play: Stage) -> None:
    with peer(TOLD) as receiver:
        for _ in range(3):
            write(play, receiver.url, 40)
        messages = play.tick()

        with ThreadPoolExecutor(8) as pool:
            for each in [pool.submit(deliver, play, messages) for _ in range(8)]:
                each.result()

        assert len(told(receiver)) == 120
        assert set(told(receiver).values()) == {1}
    assert states(play) == {"delivered": 120}


def test_lost_messages_are_sent_again_and_late_ones_do_nothing(play: Stage) -> None:
    with peer(TOLD) as receiver:
        write(play, receiver.url, 10)
        late = play.tick()
        play.sql("update deliveries set run_at = now() - interval '1 s'")

        deliver(play, play.tick())
        deliver(play, late)

        assert (len(told(receiver)), set(told(receiver).values())) == (10, {1})


def test_an_outcome_whose_claim_is_lost_is_not_written_and_the_others_are(play: Stage) -> None:
    def steals(conn: socket.socket, request: bytes) -> None:
        play.sql("update deliveries set claim = claim + 1 where id = (select max(id::text)::uuid from deliveries)")
        TOLD(conn, request)

    with peer(steals) as receiver:
        write(play, receiver.url, 5)
        deliver(play, play.tick())

        assert sum(told(receiver).values()) == 5
    assert states(play) == {"delivered": 4, "waiting": 1}
    assert play.sql("select claimed, tries from deliveries where state = 'waiting'") == [
        {"claimed": "taken", "tries": 0}
    ]


def test_what_a_dead_worker_had_in_hand_goes_alone_and_holds_two_threads(play: Stage) -> None:
    with peer(TOLD) as receiver:
        write(play, receiver.url, 30)
        for message in play.tick():
            with play.ctx.engine.begin() as connection:
                assert len(receivers.take(connection, message.numbers)) == receivers.ROWS
        play.sql("update deliveries set run_at = now() - interval '2 min' where claimed is not null")

        again = play.tick()

        assert [len(message.claims) for message in again] == [1, 1]
        assert play.tick() == []
        deliver(play, again)
        assert len(told(receiver)) == 2, "a thread does not go on from what a worker died on"
        while messages := play.tick():
            deliver(play, messages)
        assert (len(told(receiver)), set(told(receiver).values())) == (30, {1})


def test_a_mistake_of_ours_in_one_delivery_costs_the_others_nothing(play: Stage) -> None:
    seen: list[str] = []

    def answers(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["webhook-id"])
        if len(seen) == 3:
            raise ValueError("a mistake of ours")
        return httpx.Response(204)

    write(play, "https://receiver.example/", 8)
    (message,) = play.tick()

    courier(play, httpx.MockTransport(answers)).deliver(message.numbers)

    assert len(set(seen)) == 8
    assert states(play) == {"delivered": 7, "waiting": 1}
    assert play.sql("select claimed from deliveries where state = 'waiting'") == [{"claimed": "taken"}]


# A receiver that does not answer


def test_a_receiver_that_hangs_holds_two_threads_and_delays_nobody(play: Stage) -> None:
    asked, free = threading.Semaphore(0), threading.Event()

    def hangs(_conn: socket.socket, _request: bytes) -> None:
        asked.release()
        free.wait(20)
        raise OSError("no answer")

    with peer(hangs) as dead, peer(TOLD) as one, peer(TOLD) as two, ThreadPoolExecutor(8) as pool:
        write(play, dead.url, 40)
        held = [pool.submit(deliver, play, [message]) for message in play.tick()]
        assert all(asked.acquire(timeout=10) for _ in range(2))
        for receiver in (one, two):
            write(play, receiver.url, 40)

        for _ in range(3):
            deliver(play, play.tick())

        assert [len(told(receiver)) for receiver in (one, two)] == [40, 40]
        assert len(dead.requests) == 2
        dead.close()
        free.set()
        for each in held:
            each.result()
    assert play.sql("select sum(tries) as n, count(claimed) as held from deliveries where state = 'waiting'") == [
        {"n": 2, "held": 0}
    ]
    assert play.sql("select failures from dead_receivers") == [{"failures": 2}]
    assert play.tick() == [], "the receiver has a pause"


def test_an_answer_ends_the_silence_before_the_message_goes_on(play: Stage) -> None:
    with peer(TOLD) as receiver:
        write(play, receiver.url, 3)
        (message,) = play.tick()
        play.sql(
            "insert into dead_receivers select distinct project_id, receiver, 4, now() - interval '1 s' from deliveries"
        )

        deliver(play, [message])

    assert play.sql("select * from dead_receivers") == []


def test_threads_that_go_on_at_once_never_share_a_receiver(play: Stage) -> None:
    for n in range(3):
        write(play, f"https://n{n}.example/", 100)
    together = threading.Barrier(8)

    def goes_on(_: int) -> int | None:
        with play.ctx.engine.begin() as connection:
            connection.exec_driver_sql("select 1")
            together.wait()
            found = receivers.next_receiver(connection, play.project.id, 0)
            if found is not None:
                assert receivers.take_more(connection, play.project.id, found)
            return found

    with ThreadPoolExecutor(8) as pool:
        given = [found for found in pool.map(goes_on, range(8)) if found is not None]

    assert len(given) == len(set(given)) == 3
