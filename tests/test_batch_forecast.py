"""How long a batch will take, by the limits of today, what was learned, and who waits before it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from stage import Stage, stage

from ops.sandbox.testing import Sandbox, running
from worker import keys
from worker.batches import forecast
from worker.batches.forecast import Limits, Line
from worker.tables import Project

CLIP = ("text-to-video", "wan2.5-t2v-preview")
STILL = ("text-to-image", "wan2.5-t2i-preview")
MODEL = CLIP[1]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running() as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox) as made:
        limits(made)
        made.sql("insert into run_times (model, shape, early, median) values (:model, '480P 5', 50, 100)", model=MODEL)
        yield made


def limits(play: Stage, at_once: int = 5, seconds_apart: float = 1.0) -> None:
    play.sql(
        "update lanes set concurrency = :at_once, interval_us = :apart where model = :model",
        at_once=at_once,
        apart=seconds_apart * 1e6,
        model=MODEL,
    )


def span(play: Stage, jobs: int, group: tuple[str, str] = CLIP) -> float | None:
    """Seconds that so many jobs of the stage's project take."""
    with play.ctx.engine.connect() as connection:
        found = forecast.spans(connection, {group: jobs}, play.project.id, play.now())[group]
    return found.total_seconds() if found else None


def another(play: Stage, name: str) -> Project:
    with play.ctx.engine.begin() as connection:
        return keys.create_project(connection, name)


@pytest.mark.parametrize(
    ("jobs", "allowed", "line", "seconds"),
    [
        (1, Limits(5, 1, 0), Line(), 100),  # one takes as long as it runs
        (5, Limits(5, 1, 0), Line(), 104),  # the fifth leaves four seconds later
        (50, Limits(5, 1, 0), Line(), 1000),  # ten rounds
        (50, Limits(50, 0.1, 0), Line(), 590),  # the last leaves after 49 intervals
        (50, Limits(5, 1, 4), Line(), 1040),  # four run already, of each of which half is left
        (50, Limits(5, 1, 0), Line(own=50), 2000),
        (50, Limits(5, 1, 0), Line(others=((1000, 1.0),)), 2000),  # turn by turn
        (50, Limits(5, 1, 0), Line(others=((10, 1.0),)), 1200),  # who has few is soon done
        (50, Limits(5, 1, 0), Line(others=((1000, 3.0),)), 4000),  # three of a project of three times the weight
        (50, Limits(5, 1, 0), Line(own=10, others=((1000, 1.0),)), 2400),  # they are passed by others, too
        (50, Limits(5, 1, 0, opens=600), Line(), 1600),
    ],
)
def test_the_formula(jobs: int, allowed: Limits, line: Line, seconds: float) -> None:
    assert forecast.seconds(jobs, allowed, line, runs=100) == pytest.approx(seconds)


def test_a_lane_and_what_was_learned_of_it_tell(play: Stage) -> None:
    assert span(play, 50) == pytest.approx(1000)


def test_what_is_not_learned_yet_takes_what_the_catalog_says(play: Stage) -> None:
    play.sql("delete from run_times")

    assert span(play, 50) == pytest.approx(10 * play.ctx.catalog.model(MODEL).run_seconds.median)


def test_several_shapes_of_a_model_count_as_their_mean(play: Stage) -> None:
    play.sql("insert into run_times (model, shape, early, median) values (:model, '1080P 10', 100, 300)", model=MODEL)

    assert span(play, 50) == pytest.approx(2000)


def test_two_kinds_of_one_model_share_its_lanes(play: Stage) -> None:
    both = {CLIP: 20, ("image-to-video", MODEL): 30}
    with play.ctx.engine.connect() as connection:
        found = forecast.spans(connection, both, play.project.id, play.now())

    assert set(found.values()) == {timedelta(seconds=1000)}


def test_jobs_that_wait_already_are_before_it_and_one_more_ends_when_they_have(play: Stage) -> None:
    for _ in range(49):
        play.submit()

    assert span(play, 50) == pytest.approx(1980)
    assert span(play, 1) == pytest.approx(1000)


def test_others_go_by_turns_with_their_weight(play: Stage) -> None:
    summer = another(play, "summer")
    for _ in range(10):
        play.submit(project=summer)

    assert span(play, 5) == pytest.approx(200)
    play.sql("update projects set weight = 2 where name = 'summer'")
    assert span(play, 5) == pytest.approx(300)
    play.sql("update projects set paused_at = now() where name = 'summer'")
    assert span(play, 5) == pytest.approx(104)


def test_a_project_with_fewer_slots_than_its_lane_takes_longer(play: Stage) -> None:
    play.sql("update projects set max_in_flight = 1")

    assert span(play, 5) == pytest.approx(500)


def test_a_parked_lane_opens_by_itself(play: Stage) -> None:
    play.sql("update lanes set parked_until = now() + interval '10 minutes' where model = :model", model=MODEL)

    assert span(play, 50) == pytest.approx(1600, abs=2)


@pytest.mark.parametrize(
    "stop",
    [
        "update lanes set paused_at = now()",
        "update lanes set concurrency = 0",
        "update owners set paused_at = now()",
        "update owners set stopped_at = now(), stopped_until = now(), stopped_why = 'Arrearage'",
        "update projects set paused_at = now()",
        "delete from lanes",
    ],
)
def test_what_waits_for_a_person_has_no_known_end(play: Stage, stop: str) -> None:
    play.sql(stop)

    assert span(play, 5) is None


def test_what_is_made_in_parts_is_not_known(play: Stage) -> None:
    assert span(play, 5, ("summary", "qwen-flash")) is None
    assert span(play, 5, STILL) is not None
