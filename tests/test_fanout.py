"""Jobs whose children do the work: rounds and portions, the last child's end, failures, cancel, retry, and death."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from stage import Stage, stage

from ops.sandbox.testing import Sandbox
from worker import money
from worker.catalog import Catalog, Model, Usage
from worker.errors import Conflict
from worker.jobs import submission
from worker.kinds import KINDS, OFFERED
from worker.kinds.kind import Child, Expansion, Parent, ParentKind, Piece, Store
from worker.moves import children
from worker.tables import Job

MODEL = "wan2.2-t2i-flash"
ENDED = "update jobs set state = 'succeeded', finished_at = now(), run_at = null"
PICTURE = {"size": "1024*1024", "n": 1, "prompt_extend": False, "watermark": False}


class Album(BaseModel):
    """A test's own kind: rounds of pictures, made in portions."""

    model_config = ConfigDict(extra="forbid")

    rounds: list[list[str]]
    portion: int = 100


def _expand(parent: Parent, _: Store) -> Expansion:
    album = parent.input
    assert isinstance(album, Album)
    if parent.round == len(album.rounds):
        return Expansion()
    prompts = album.rounds[parent.round][parent.made :]
    made = tuple(
        Child("text-to-image", MODEL, {**PICTURE, "prompt": prompt}, {"prompt": prompt})
        for prompt in prompts[: album.portion]
    )
    return Expansion(made, note={"seen": parent.made + len(made)}, more=len(prompts) > album.portion)


def _assemble(parent: Parent, store: Store) -> Iterator[Piece]:
    told = [{"prompt": part.note["prompt"], "state": part.state} for part in parent.ended]
    yield Piece("index", "json", "application/json", [json.dumps(told).encode()])
    for part in parent.ended:
        for output in part.outputs:
            yield Piece(f"page-{part.place}", "png", "image/png", store.chunks(output.key))


def _album(all_or_none: bool) -> ParentKind:
    def check(_catalog: Catalog, _model: Model, raw: Any, _region: str | None) -> BaseModel:
        return Album.model_validate(raw)

    return ParentKind(
        name="album" if all_or_none else "scrapbook",
        input=Album,
        check=check,
        estimate=lambda _model, wanted: Usage({"images": sum(map(len, wanted.model_dump()["rounds"]))}),
        words=lambda _: "album",
        expand=_expand,
        assemble=_assemble,
        usage=lambda parent: {"images": len(parent.ended)},
        all_or_none=all_or_none,
    )


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (_album(True), _album(False)):
        monkeypatch.setitem(KINDS, kind.name, kind)
        monkeypatch.setitem(OFFERED, kind.name, kind)


def _make(play: Stage, rounds: list[list[str]], kind: str = "album", portion: int = 100) -> Job:
    return play.submit(kind, MODEL, input={"rounds": rounds, "portion": portion})


def _refuse(play: Stage, word: str) -> None:
    """The provider finds fault with every prompt that has the word."""
    play.sandbox.fault(where="create", what="task_fails", prompt_contains=word, code="DataInspectionFailed")


def _children(play: Stage, job: Job) -> list[Any]:
    return list(play.sql("select * from jobs where parent_id = :id order by round, place", id=job.id))


def test_children_do_the_work_and_the_parent_puts_it_together(play: Stage) -> None:
    job = _make(play, [["one", "two", "three"]])

    done = play.until(job)

    assert play.states(done) == ["queued", "gathering", "copying", "succeeded"]
    document = play.document(done)
    assert [output["role"] for output in document["outputs"]] == ["index", "page-0", "page-1", "page-2"]
    index = json.loads(b"".join(play.ctx.bucket.chunks(document["outputs"][0]["key"])))
    assert [entry["prompt"] for entry in index] == ["one", "two", "three"]
    assert done.usage == {"images": 3}
    assert len(play.sandbox.ledger()["tasks"]) == 3


def test_what_the_children_cost_is_what_the_parent_cost(play: Stage) -> None:
    job = _make(play, [["one", "two", "three"]])

    done = play.until(job)

    paid = play.sandbox.ledger()["totals"]["billed_micros"]
    assert (done.cost, done.billed) == (paid, "yes")
    lines = play.ledger(done)
    assert sum(micros for _, micros in lines) == paid, "what was reserved is given back, what was settled stays"
    assert [entry for entry, _ in lines].count("settle") == 3


def test_a_round_begins_when_the_last_of_the_one_before_has_ended(play: Stage) -> None:
    job = _make(play, [["one", "two"], ["three"]])

    play.until(job)

    first, second, third = _children(play, job)
    assert (third["round"], third["place"]) == (2, 0)
    assert third["created_at"] >= max(first["finished_at"], second["finished_at"])


def test_a_round_is_made_in_portions_without_waiting_for_the_first(play: Stage) -> None:
    job = _make(play, [["one", "two", "three", "four", "five"]], portion=2)

    done = play.until(job)

    assert [(child["round"], child["place"]) for child in _children(play, job)] == [(1, n) for n in range(5)]
    assert done.state == "succeeded"
    assert done.note == {"seen": 5}


def test_a_project_has_so_many_parts_at_work_and_its_parents_wait_for_room(
    sandbox: Sandbox, environment: dict[str, str]
) -> None:
    with stage(environment | {"NORIA_MAX_WAITING": "2"}, sandbox) as play:
        play.sql("update lanes set paused_at = now()")
        job = _make(play, [["one", "two", "three"]], portion=2)
        other = _make(play, [["four"]])
        play.drive(lambda: _waits(play, job) and _waits(play, other), bool)
        full = [len(_children(play, parent)) for parent in (job, other)]
        play.sql(ENDED + " where parent_id = :id and place = 0", id=job.id)
        play.sql("update jobs set run_at = now() where id = :id", id=job.id)
        play.drive(lambda: _children(play, job), lambda found: len(found) == 3)
        play.sql("update lanes set paused_at = null")
        play.sql("update jobs set run_at = now() where id = :id and run_at is not null", id=other.id)

        assert full == [2, 0]
        assert (play.until(job).state, play.until(other).state) == ("succeeded", "succeeded")


def _waits(play: Stage, job: Job) -> bool:
    found = play.job(job)
    is_due = found.run_at is None or found.run_at < play.now() + timedelta(seconds=2)
    return found.state == "gathering" and found.claimed is None and not is_due


def test_two_children_that_end_in_one_instant_are_seen_by_the_tick(play: Stage) -> None:
    job = _make(play, [["one", "two"]])
    play.drive(lambda: _children(play, job), lambda found: len(found) == 2)
    play.sql(  # both ended, and nobody said so
        ENDED + " where parent_id = :id", id=job.id
    )
    assert play.job(job).run_at is None

    play.sql("update duties set due_at = now() where name = 'gather'")

    assert play.until(job).state == "succeeded"


def test_the_last_childs_end_wakes_its_parent_and_no_other_does(play: Stage) -> None:
    job = _make(play, [["one", "two"]])
    first, second = play.drive(lambda: _children(play, job), lambda found: len(found) == 2)

    def end(child: Any) -> bool:
        play.sql(ENDED + " where id = :id", id=child["id"])
        return play.ctx.wake(job.id)

    assert (end(first), end(second)) == (False, True)


def test_one_that_needs_all_of_its_parts_stops_at_the_first_failure(play: Stage) -> None:
    play.sandbox.set(limits={MODEL: {"concurrency": 1}})
    play.sql("update lanes set concurrency = 1 where model = :model", model=MODEL)
    _refuse(play, "bad")
    job = _make(play, [["bad", "two", "three", "four"]])

    done = play.until(job)

    assert done.state == "failed"
    assert done.error is not None
    assert done.error["code"] == "content_refused" or "part 1 of round 1" in done.error["message"]
    first, *others = [child["state"] for child in _children(play, job)]
    assert first == "failed"
    assert "canceled" in others


def test_a_retry_repeats_only_what_did_not_succeed(play: Stage) -> None:
    _refuse(play, "bad")
    job = _make(play, [["one", "bad", "three"]])
    failed = play.until(job)
    assert failed.state == "failed"
    play.sandbox.clear_faults()

    with play.ctx.engine.begin() as connection:
        again = submission.retry(connection, play.project.id, job.id, play.now())
    done = play.until(job)

    assert again.state == "gathering"
    assert done.state == "succeeded"
    paid = [child["attempts"] for child in _children(play, job)]
    assert max(paid) <= 2
    assert len({child["task_id"] for child in _children(play, job)}) == 3


def test_one_that_does_not_need_all_of_its_parts_tells_which_failed(play: Stage) -> None:
    _refuse(play, "bad")
    job = _make(play, [["one", "bad", "three"]], kind="scrapbook")

    done = play.until(job)

    assert done.state == "succeeded"
    index = json.loads(b"".join(play.ctx.bucket.chunks(play.document(done)["outputs"][0]["key"])))
    assert [entry["state"] for entry in index] == ["succeeded", "failed", "succeeded"]


def test_cancel_reaches_the_children(play: Stage) -> None:
    play.sql("update lanes set concurrency = 0 where model = :model", model=MODEL)
    job = _make(play, [["one", "two", "three"]])
    play.drive(lambda: _children(play, job), lambda found: len(found) == 3)

    assert play.cancel(job) == "requested"

    assert play.until(job).state == "canceled"
    assert {child["state"] for child in _children(play, job)} == {"canceled"}
    assert sum(micros for _, micros in play.ledger(job)) == 0
    assert play.sandbox.ledger()["tasks"] == []


def test_cancel_waits_for_what_the_provider_has_begun(play: Stage) -> None:
    play.sandbox.set(run_seconds=0.6)
    play.sql("update lanes set concurrency = 1 where model = :model", model=MODEL)
    job = _make(play, [["one", "two"]])
    play.drive(lambda: _children(play, job), lambda found: any(child["task_status"] == "RUNNING" for child in found))

    play.cancel(job)
    done = play.until(job)

    states = sorted(child["state"] for child in _children(play, job))
    assert (done.state, states) == ("canceled", ["canceled", "succeeded"])
    assert done.cost == play.sandbox.ledger()["totals"]["billed_micros"]


def test_a_child_is_neither_canceled_nor_retried_alone(play: Stage) -> None:
    job = _make(play, [["one"]])
    child = Job.of(play.drive(lambda: _children(play, job), lambda found: len(found) == 1)[0])

    with pytest.raises(Conflict, match="part of job"):
        play.cancel(child)
    with pytest.raises(Conflict, match="part of job"), play.ctx.engine.begin() as connection:
        submission.retry(connection, play.project.id, child.id, play.now())


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_parent_that_dies_in_a_step_makes_nothing_twice(play: Stage, is_recorded: bool) -> None:
    job = _make(play, [["one", "two", "three"], ["four"]], portion=2)
    for _ in range(2):
        taken, step, clock = play.begin(job)
        move = next(step)
        if is_recorded:
            play.ctx.record(taken, move, clock)
        step.close()  # type: ignore[attr-defined]
        # the lease of the dead lapses, and so do those of the messages that the test has dropped
        play.sql("update jobs set run_at = now() where claimed is not null")

    done = play.until(job)

    assert done.state == "succeeded"
    assert [(child["round"], child["place"]) for child in _children(play, job)] == [(1, 0), (1, 1), (1, 2), (2, 0)]
    assert len(play.sandbox.ledger()["tasks"]) == 4


def test_a_commit_whose_answer_was_lost_makes_no_child_twice(play: Stage) -> None:
    job = _make(play, [["one", "two"]])
    play.drive(lambda: _children(play, job), lambda found: len(found) == 2)
    rows = [{"round": 1, "place": n, "kind": "text-to-image", "model": MODEL, "input": PICTURE} for n in (0, 1)]

    with play.ctx.engine.begin() as connection:
        children.Make(rows).carry_out(connection, play.job(job), play.now())

    assert len(_children(play, job)) == 2


def test_a_parent_of_many_children_costs_a_tick_nothing(play: Stage) -> None:
    play.sql("update lanes set concurrency = 0 where model = :model", model=MODEL)
    job = _make(play, [[f"picture {n}" for n in range(2000)]], portion=500)
    play.drive(lambda: _children(play, job), lambda found: len(found) == 2000)

    assert play.job(job).run_at is None
    assert play.tick() == []
    with play.ctx.engine.begin() as connection:
        plan = connection.exec_driver_sql(
            "explain (analyze, buffers, format json) update jobs set run_at = now()"
            " where id = %s and state = 'gathering' and not exists"
            " (select from jobs as child where child.parent_id = jobs.id and child.finished_at is null)",
            (job.id,),
        ).scalar_one()
        connection.rollback()
    assert plan[0]["Plan"]["Shared Hit Blocks"] < 40


def test_the_reservation_of_a_parent_is_given_back_when_it_fails(play: Stage) -> None:
    _refuse(play, "")
    job = _make(play, [["one", "two"]])

    assert play.until(job).state == "failed"

    assert sum(micros for _, micros in play.ledger(job)) == 0
    assert money.shown(play.job(job).cost) is None


def test_a_parent_that_cannot_go_on_sees_its_children_to_their_end_first(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expand(parent: Parent, store: Store) -> Expansion:
        if parent.made:
            store.read("somebody-elses/key", 100)
        return replace(_expand(parent, store), more=True)

    monkeypatch.setitem(KINDS, "album", replace(_album(True), expand=expand))
    play.sql("update lanes set concurrency = 0 where model = :model", model=MODEL)
    job = _make(play, [["one", "two"]])

    done = play.until(job)

    assert done.state == "failed"
    assert done.error is not None
    assert done.error["code"] == "not_found"
    assert {child["state"] for child in _children(play, job)} == {"canceled"}
