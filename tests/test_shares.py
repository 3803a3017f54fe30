"""The transfer threads are shared: parents that read slow links leave some for the copies and for other projects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from stage import Stage

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import keys, tick
from worker.states import State
from worker.tables import Job, Project

MODEL = "qwen-flash"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(call_seconds=0)) as made:
        yield made


def gathering(play: Stage, project: Project, count: int) -> None:
    """Parents of a project, all of which are due."""
    wanted = {"documents": [{"text": "It tells of sales."}], "mode": "calls"}
    made = [play.submit("summary", MODEL, project=project, input=wanted) for _ in range(count)]
    play.sql(
        "update jobs set state = 'gathering', run_at = now() - interval '1 s' where id = any(:ids)",
        ids=[job.id for job in made],
    )


def sent(play: Stage, messages: list[tick.Message]) -> Counter[str]:
    """How many parents of each project are in the messages."""
    found: list[Job] = [
        Job.of(row)
        for message in messages
        for claim in message.claims
        for row in play.sql("select * from jobs where id = :id and mode = 'parent'", id=claim.id)
    ]
    return Counter(play.ctx.project_name(job) for job in found)


def test_one_projects_parents_take_a_share_of_the_threads_and_others_theirs(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "another-tenant")
    gathering(play, play.project, 20)
    gathering(play, other, 2)

    first, second, third = play.tick(), play.tick(), play.tick()

    assert sent(play, first) == {"spring-campaign": 8}
    assert sent(play, second) == {"another-tenant": 2}
    assert sent(play, third) == {}
    for message in first:  # taken by workers, which go on for minutes
        for claim in message.claims:
            play.spend(claim.id, claim.number)
    assert sent(play, play.tick()) == {}


def test_a_project_whose_parents_were_looked_at_has_its_share_again(play: Stage) -> None:
    gathering(play, play.project, 12)
    play.play(play.tick())

    found = play.drive(
        lambda: [row["state"] for row in play.sql("select state from jobs where mode = 'parent'")],
        lambda states: set(states) == {State.SUCCEEDED},
    )

    assert len(found) == 12
