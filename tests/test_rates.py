"""How often a key may ask: counted over all processes in Redis, and never waiting for a Redis that does not answer."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis
from fastapi_problem.error import Problem
from serving import CLIP, eventually, served, settings_of

from api import limits
from api.limits import Rates
from tests.chaos.lines import Line, running
from worker.settings import Settings

KEY = uuid.uuid4()


def rates(environment: dict[str, str], api_rate: int, **more: str) -> Rates:
    return Rates(settings_of(environment, api_rate=api_rate, **more))


def refused(limiter: Rates, key: uuid.UUID) -> Problem | None:
    """Spends one request; the problem, where there was none to spend."""
    try:
        limiter.spend(key)
    except Problem as problem:
        return problem
    return None


def test_all_processes_share_a_keys_count(environment: dict[str, str]) -> None:
    first, second = rates(environment, 2), rates(environment, 2)
    key = uuid.uuid4()

    taken = [refused(limiter, key) for limiter in (first, second, first, second, first, second)]

    assert [problem.status if problem else None for problem in taken] == [None, None, None, None, 429, 429]
    assert refused(second, uuid.uuid4()) is None


def test_redis_is_asked_for_a_twentieth_at_once_and_no_request_is_lost(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, asked = rates(environment, 20), rates(environment, 20), []
    hit, key = first._shared.hit, uuid.uuid4()

    def counted(*given: Any, **more: Any) -> bool:
        asked.append(given)
        return hit(*given, **more)

    monkeypatch.setattr(first._shared, "hit", counted)

    of_first = sum(refused(first, key) is None for _ in range(3))
    of_second = sum(refused(second, key) is None for _ in range(37))
    of_first += refused(first, key) is None

    assert len(asked) == 2  # a rate of 20 is 40 in the window, and a twentieth of that are two
    assert (of_first, of_second) == (4, 36)


def test_requests_at_once_lose_nothing_of_what_each_of_them_counted(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter, key, together = rates(environment, 20), uuid.uuid4(), threading.Barrier(4)
    hit = limiter._shared.hit

    def counted(*given: Any, **more: Any) -> bool:
        together.wait(10)
        return hit(*given, **more)

    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(limiter._shared, "hit", counted)
        taken = sum(each is None for each in pool.map(lambda _: refused(limiter, key), range(4)))
    taken += sum(refused(limiter, key) is None for _ in range(40))

    assert taken == 40


def test_a_refusal_says_when_to_come_back_and_then_there_is_room(environment: dict[str, str]) -> None:
    limiter, key = rates(environment, 1), uuid.uuid4()
    for _ in range(2):
        assert refused(limiter, key) is None

    over = refused(limiter, key)

    assert over is not None
    assert over.headers is not None
    assert (over.status, over.type) == (429, "too_many_requests")
    assert 1 <= int(over.headers["retry-after"]) <= 2
    eventually(lambda: refused(limiter, key) is None)


def test_a_redis_that_hangs_delays_requests_once_and_the_process_counts_itself(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        limiter = rates(environment, 5, broker_url=f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        key, took = uuid.uuid4(), []
        for _ in range(10):
            began = time.monotonic()
            assert refused(limiter, key) is None
            took.append(time.monotonic() - began)

        over = refused(limiter, key)

    assert took[0] < 1.5  # a fifth of a second, and this machine's own delays
    assert sum(took[1:]) < 1.0  # nine times a fifth would be more
    assert over is not None


def test_an_answer_that_cannot_be_read_refuses_no_request(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = rates(environment, 1)
    monkeypatch.setattr(limiter._shared, "hit", lambda *_, **__: int("not a number"))

    taken = [refused(limiter, KEY) for _ in range(3)]

    assert [problem.status if problem else None for problem in taken] == [None, None, 429]


def test_requests_at_once_wait_for_a_hung_redis_side_by_side(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, ThreadPoolExecutor(8) as pool:
        limiter = rates(environment, 100, broker_url=f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        began = time.monotonic()
        found = list(pool.map(lambda _: refused(limiter, KEY), range(8)))

    assert found == [None] * 8
    assert time.monotonic() - began < 1.4  # eight times a fifth would be more


def test_the_shared_count_goes_on_when_redis_answers_again(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_AWAY_SECONDS", 0.05)
    url = httpx.URL(environment["NORIA_BROKER_URL"])
    line = Line(url.port or 0, lambda _data, _from_server: False)
    with running(line):
        through = str(url.copy_with(port=line.port))
        limiter, other = rates(environment, 100, broker_url=through), rates(environment, 100)
        assert refused(limiter, KEY) is None
        line.is_down = True
        assert refused(limiter, uuid.uuid4()) is None
        assert limiter._is_away
        line.is_down = False
        eventually(lambda: not limiter._is_away)
        key = uuid.uuid4()
        spent = sum(refused(other, key) is None for _ in range(201))

        assert spent == 200
        assert refused(limiter, key) is not None


def test_a_redis_that_answers_and_cannot_count_is_left_alone_until_it_can(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_AWAY_SECONDS", 0.05)
    limiter, hits, is_full = rates(environment, 100), [], True
    hit = limiter._shared.hit

    def full(*given: Any, **more: Any) -> bool:
        hits.append(given)
        if is_full:
            raise redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'")
        return hit(*given, **more)

    monkeypatch.setattr(limiter._shared, "hit", full)
    assert refused(limiter, KEY) is None
    eventually(lambda: len(hits) > 3)
    assert limiter._is_away

    is_full = False

    eventually(lambda: not limiter._is_away)


def test_three_hundred_submissions_in_a_loop_are_taken_at_the_default(environment: dict[str, str]) -> None:
    default = Settings.model_fields["api_rate"].default
    with served(environment, api_rate=default) as api, api.http(api.key("spring")) as http:
        statuses = {http.post("/v1/jobs", json=CLIP).status_code for _ in range(300)}

    assert default == 200
    assert statuses == {201}
