"""The hourly look for tasks that no job owns: found, priced, told, and forgotten when they find an owner."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from stage import Stage

from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker.dashscope.responses import Accepted
from worker.kinds import text_to_video
from worker.steps import find

MODEL = "wan2.5-t2v-preview"
HOUR = 3600


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.01, queue_seconds=0, limits={"*": Limits(rps=1000)})) as made:
        yield made


def made_elsewhere(play: Stage, hours_ago: float = 1, **wanted: Any) -> str:
    """A task made with our key by somebody else."""
    play.sandbox.set(clock_offset_seconds=-hours_ago * HOUR)
    kind, model = text_to_video.KIND, play.ctx.catalog.model(MODEL)
    asked = kind.check(play.ctx.catalog, model, {"prompt": "not ours", **wanted}, None)
    answer = play.ctx.clients["default"].create(kind.request(model, "cn-beijing", asked), 5)
    play.sandbox.set(clock_offset_seconds=0)
    assert isinstance(answer, Accepted)
    assert answer.task_id
    return answer.task_id


def sweep(play: Stage) -> find.Swept:
    play.sql("update owners set sweep_at = now()")
    return find.sweep(play.ctx)


def kept(play: Stage) -> dict[str, int | None]:
    return {row["task_id"]: row["micros"] for row in play.sql("select task_id, micros from unowned")}


def test_a_task_that_nobody_owns_is_found_with_what_it_cost(play: Stage) -> None:
    task_id = made_elsewhere(play, duration=10, size="1280*720")

    found = sweep(play)

    assert found == find.Swept(1, 6_000_000)
    assert kept(play) == {task_id: 6_000_000}


def test_our_own_tasks_are_owned(play: Stage) -> None:
    play.sandbox.set(clock_offset_seconds=-HOUR)
    play.until(play.submit())
    play.sandbox.set(clock_offset_seconds=0)

    assert sweep(play) == find.Swept(0, 0)


def test_a_task_that_may_still_be_claimed_is_not_called_unowned(play: Stage) -> None:
    made_elsewhere(play, hours_ago=0)

    assert sweep(play) == find.Swept(0, 0)


def test_a_task_is_told_of_once_and_kept(play: Stage) -> None:
    task_id = made_elsewhere(play)
    first = sweep(play)

    second = sweep(play)

    assert (first.tasks, second.tasks) == (1, 0)
    assert set(kept(play)) == {task_id}


def test_a_failed_task_cost_nothing(play: Stage) -> None:
    play.sandbox.fault(where="create", what="task_fails", code="InternalError", times=1)
    task_id = made_elsewhere(play)

    sweep(play)

    assert kept(play) == {task_id: 0}


def test_a_task_that_finds_its_owner_is_forgotten(play: Stage) -> None:
    task_id = made_elsewhere(play)
    sweep(play)
    job = play.until(play.submit())
    play.sql("update attempts set task_id = :task where job_id = :id", task=task_id, id=job.id)

    sweep(play)

    assert kept(play) == {}


def test_more_tasks_than_a_page_holds_are_all_found(play: Stage) -> None:
    play.sandbox.set(max_page_size=2)
    made = {made_elsewhere(play) for _ in range(5)}

    sweep(play)

    assert set(kept(play)) == made


def test_an_account_that_does_not_tell_is_looked_through_again_soon(play: Stage) -> None:
    play.sandbox.fault(where="list", what="error", code="InternalError")

    assert sweep(play) == find.Swept(0, 0)

    (owner,) = play.sql("select sweep_at - now() as later from owners")
    assert timedelta(minutes=4) < owner["later"] < timedelta(minutes=6)


def test_the_tick_asks_for_the_look_when_its_hour_has_come_and_workers_do_it_once(play: Stage) -> None:
    made_elsewhere(play)
    play.play(play.tick())
    assert kept(play) == {}
    play.sql("update owners set sweep_at = now()")
    play.sql("update duties set due_at = now()")

    messages = play.tick()
    play.play(messages * 2)

    assert [message.task for message in messages if message.task != "noria.quotas"] == ["noria.sweep"]
    assert len(kept(play)) == 1
    assert play.sql("select sweep_at - now() > interval '59 minutes' as later from owners") == [{"later": True}]
