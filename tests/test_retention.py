"""What a project no longer keeps goes: objects before rows, and never what something still needs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from serving import served
from stage import Stage, stage

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker import keys, retention, storage
from worker.errors import InvalidInput, NotFound
from worker.inputs import files
from worker.retention import holds, statements
from worker.storage import Bucket, StorageTrouble
from worker.tables import Job, Project


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.01, queue_seconds=0)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox) as made:
        yield made


def keep(play: Stage, project: Project | None = None, **days: int | None) -> Project:
    with play.ctx.engine.begin() as connection:
        return keys.set_retention(connection, (project or play.project).name, days)


def made(play: Stage, project: Project | None = None, **more: Any) -> tuple[Job, str]:
    """A succeeded job, and its output's key."""
    job = play.until(play.submit(project=project, **more))
    assert job.state == "succeeded", job.error
    return job, play.sql("select key from outputs where job_id = :id", id=job.id)[0]["key"]


def prune(play: Stage, days: int = 31) -> int:
    """How many rows go, that many days from now."""
    later = play.now() + timedelta(days=days)
    return sum(one.rows for one in retention.prune(play.ctx.engine, play.ctx.bucket, None, later, 60))


def uploaded(play: Stage, name: str) -> str:
    """The key of a text that the project uploaded."""
    content = f"What {name} says.".encode()
    given = files.draft(f"{name}.txt", io.BytesIO(content))
    return files.keep(play.ctx.engine, play.ctx.bucket, play.project.id, given, play.now())[0].key


def _die(*_: Any) -> None:
    raise KeyboardInterrupt


def is_there(play: Stage, key: str) -> bool:
    return play.ctx.bucket.head(key) is not None


def hold(play: Stage, project: Project, job: Job | None = None) -> Any:
    with play.ctx.engine.begin() as connection:
        return holds.add(connection, project.id, job.id if job else None, None, "a lawsuit")


def test_an_output_goes_after_its_days_and_its_row_says_so(play: Stage) -> None:
    job, key = made(play)
    keep(play, outputs=30)

    assert prune(play, days=29) == 0
    assert is_there(play, key)
    assert prune(play, days=31) == 1

    assert not is_there(play, key)
    (output,) = play.document(job)["outputs"]
    assert output["pruned_at"] is not None
    assert output["sha256"]
    assert prune(play, days=31) == 0


def test_the_link_to_an_output_that_has_gone_says_since_when(play: Stage, environment: dict[str, str]) -> None:
    job, _ = made(play)
    keep(play, outputs=30)
    prune(play)

    with served(environment) as there, there.http(there.key(play.project.name)) as http:
        answer = http.get(f"/v1/jobs/{job.id}/outputs/0")
        shown = http.get("/v1/project").json()

    assert (answer.status_code, answer.json()["code"]) == (410, "pruned")
    assert shown["retention"] == {"outputs": 30}


def test_what_has_no_days_is_kept_for_ever(play: Stage) -> None:
    _, key = made(play)
    keep(play, outputs=30)
    keep(play, outputs=None)

    assert prune(play, days=9999) == 0

    assert is_there(play, key)


def test_a_dry_run_says_what_would_go_and_changes_nothing(play: Stage) -> None:
    _, key = made(play)
    keep(play, outputs=30)

    with play.ctx.engine.connect() as connection:
        (found,) = retention.due(connection, None, play.now() + timedelta(days=31))

    assert (found.what, found.rows) == ("outputs", 1)
    assert found.bytes == play.ctx.bucket.head(key).bytes  # type: ignore[union-attr]


def test_objects_of_a_run_that_was_killed_are_deleted_by_the_next(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    job, key = made(play)
    keep(play, outputs=30)
    with monkeypatch.context() as dying:
        dying.setattr(type(play.ctx.bucket), "delete", _die)
        with pytest.raises(KeyboardInterrupt):
            prune(play)

    assert is_there(play, key)
    assert play.document(job)["outputs"][0]["pruned_at"] is not None
    keep(play, outputs=None)
    play.sql("update duties set done_at = :then", then=NIGHT - timedelta(days=1))
    assert is_sent(play, NIGHT), "though no project has days any more"
    assert prune(play) == 0
    assert not is_there(play, key)
    assert play.sql("select * from deletions") == []


def test_an_object_that_the_bucket_keeps_stops_no_other(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, first), (_, second) = made(play), made(play)
    keep(play, outputs=30)
    delete = Bucket.delete

    def refused(bucket: Bucket, key: str) -> None:
        if key == first:
            raise StorageTrouble("locked")
        delete(bucket, key)

    with monkeypatch.context() as locked:
        locked.setattr(Bucket, "delete", refused)
        assert prune(play) == 2
    assert (is_there(play, first), is_there(play, second)) == (True, False)
    assert [row["key"] for row in play.sql("select key from deletions")] == [first]

    prune(play)
    assert not is_there(play, first)


def test_the_texts_that_a_parent_worked_with_go_with_its_outputs(play: Stage) -> None:
    job = play.until(play.submit(kind="embedding", model="text-embedding-v4", input={"texts": ["A heron."]}))
    work = f"{storage.stem(job)}/work/"
    assert [*play.ctx.bucket.listing(work)]
    keep(play, outputs=30)

    assert prune(play) > 0

    assert [*play.ctx.bucket.listing(work)] == []


def test_a_file_goes_after_its_days_but_not_while_unfinished_work_names_it(play: Stage) -> None:
    used, idle = (uploaded(play, name) for name in ("used", "idle"))
    play.submit(kind="summary", model="qwen-flash", input={"documents": [{"key": used}], "mode": "calls"})
    keep(play, inputs=30)

    assert (prune(play, days=29), prune(play)) == (0, 1)

    assert (is_there(play, used), is_there(play, idle)) == (True, False)
    assert [row["key"] for row in play.sql("select key from files")] == [used]


def test_a_file_that_was_named_just_before_it_was_locked_stays(play: Stage) -> None:
    key = uploaded(play, "used")
    play.submit(kind="summary", model="qwen-flash", input={"documents": [{"key": key}], "mode": "calls"})
    locked = [row["id"] for row in play.sql("select id from files")]

    with play.ctx.engine.begin() as connection:
        said = {"project": play.project.id, "files": locked}
        assert connection.execute(statements.PRUNE_INPUTS, said).all() == []

    assert [row["key"] for row in play.sql("select key from files")] == [key]


def test_files_that_unfinished_work_names_keep_no_other_from_going(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(retention._ROWS, "inputs", 1)
    used, idle = (uploaded(play, name) for name in ("used", "idle"))
    play.submit(kind="summary", model="qwen-flash", input={"documents": [{"key": used}], "mode": "calls"})
    keep(play, inputs=30)

    assert prune(play) == 1

    assert (is_there(play, used), is_there(play, idle)) == (True, False)


@pytest.mark.parametrize("below", ["{project}/", "{project}/files/"])
def test_what_lies_below_a_prefix_of_unfinished_work_stays(play: Stage, below: str) -> None:
    key = uploaded(play, "used")
    documents = [{"prefix": below.format(project=play.project.id)}]
    play.submit(kind="summary", model="qwen-flash", input={"documents": documents, "mode": "calls"})
    locked = [row["id"] for row in play.sql("select id from files")]
    keep(play, inputs=30)

    assert prune(play) == 0

    with play.ctx.engine.begin() as connection:
        said = {"project": play.project.id, "files": locked}
        assert connection.execute(statements.PRUNE_INPUTS, said).all() == []
    assert is_there(play, key)


def test_an_output_that_has_gone_is_no_input(play: Stage) -> None:
    made = play.until(play.submit("text-to-image", "wan2.2-t2i-flash", input={"prompt": "a wheel"}))
    (key,) = (row["key"] for row in play.sql("select key from outputs where job_id = :id", id=made.id))
    keep(play, outputs=30)
    prune(play)

    with pytest.raises(InvalidInput, match="neither a file nor an output"):
        play.submit("image-to-video", "wan2.5-i2v-preview", input={"prompt": "it turns", "image_url": key})


def test_a_file_under_a_hold_of_its_project_stays(play: Stage) -> None:
    key = uploaded(play, "used")
    keep(play, inputs=30)
    hold(play, play.project)

    assert prune(play) == 0
    assert is_there(play, key)


def test_another_projects_outputs_stay(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "other")
    _, key = made(play, other)
    made(play)
    keep(play, outputs=30)

    assert prune(play) == 1

    assert is_there(play, key)


@pytest.mark.parametrize("on", ["project", "job"])
def test_what_is_held_stays_until_it_is_released(play: Stage, on: str) -> None:
    job, key = made(play)
    keep(play, outputs=30)
    held = hold(play, play.project, job if on == "job" else None)

    assert prune(play) == 0
    assert is_there(play, key)
    with play.ctx.engine.begin() as connection:
        holds.release(connection, held)

    assert prune(play) == 1


def test_a_hold_on_another_projects_job_is_refused(play: Stage) -> None:
    job, _ = made(play)
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "other")

    with pytest.raises(NotFound):
        hold(play, other, job)


@pytest.mark.parametrize(
    "change",
    [
        "update jobs set state = 'failed'",
        "update jobs set billed = 'unknown'",
        "update attempts set closed_at = null",
        "with b as (insert into batches (project_id, name, state, digest, source, report, rows)"
        " select project_id, 'b', 'running', '', '{}', '{}', 1 from jobs returning id)"
        " update jobs set batch_id = b.id from b",
        "insert into schedules (project_id, name, cron, time_zone, template)"
        " select project_id, 'nightly', '0 2 * * *', 'UTC', jsonb_build_object('input', key) from outputs",
        "insert into jobs (project_id, kind, model, input)"
        " select project_id, 'text', 'm', jsonb_build_object('img_url', key) from outputs",
        "insert into jobs (project_id, kind, model, input) select project_id, 'summary', 'm',"
        """ jsonb_build_object('documents', jsonb_build_array(jsonb_build_object('prefix', project_id || '/')))"""
        " from outputs",
    ],
    ids=[
        *("failed", "bill unknown", "open attempt", "batch not complete", "named by a schedule", "named by a job"),
        "below a job's prefix",
    ],
)
def test_what_something_still_needs_stays(play: Stage, change: str) -> None:
    _, key = made(play)
    keep(play, outputs=30)
    play.sql(change)

    assert prune(play) == 0

    assert is_there(play, key)


def test_only_deliveries_that_have_ended_go(play: Stage) -> None:
    job, _ = made(play, webhook_url="https://example.com/hook")
    keep(play, deliveries=30)
    assert play.deliveries()
    assert prune(play) == 0
    play.sql("update deliveries set state = 'delivered', run_at = null, claimed = null, finished_at = now()")

    held = hold(play, play.project, job)
    assert prune(play) == 0
    with play.ctx.engine.begin() as connection:
        holds.release(connection, held)

    assert prune(play) > 0
    assert not play.deliveries()


def test_pruning_changes_nothing_in_the_ledger(play: Stage) -> None:
    made(play)
    keep(play, outputs=30)
    before = play.sql("select sum(micros) from ledger"), play.sql("select sum(micros) from ledger_sums")

    assert prune(play) == 1

    assert (play.sql("select sum(micros) from ledger"), play.sql("select sum(micros) from ledger_sums")) == before


@pytest.mark.parametrize("days", [{"outputs": 0}, {"outputs": 40_000}, {"rows": 30}])
def test_days_that_make_no_sense_are_refused(play: Stage, days: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        keep(play, **days)


def is_sent(play: Stage, now: datetime) -> bool:
    """Whether the tick sends for pruning then; duties that are not this one wait."""
    play.sql("update duties set due_at = case when name = 'prune' then now() else 'infinity' end")
    return "noria.prune" in {message.task for message in play.tick(now)}


NIGHT = datetime(2030, 5, 1, 19, 0, tzinfo=UTC)  # 03:00 in Shanghai
SECOND = timedelta(seconds=1)


def test_each_night_the_tick_asks_for_pruning_until_nothing_is_left(play: Stage) -> None:
    made(play)
    play.sql("update outputs set created_at = :old", old=NIGHT - timedelta(days=40))
    play.sql("update jobs set finished_at = :old", old=NIGHT - timedelta(days=40))
    keep(play, outputs=30)
    play.sql("update duties set done_at = :then", then=NIGHT - timedelta(hours=20))

    assert not is_sent(play, NIGHT - SECOND)
    assert is_sent(play, NIGHT)
    assert is_sent(play, NIGHT + timedelta(minutes=1))

    retention.nightly(play.ctx.engine, play.ctx.bucket, NIGHT, 0)  # no time at all: a portion went, more may be left
    assert is_sent(play, NIGHT + timedelta(minutes=2))
    retention.nightly(play.ctx.engine, play.ctx.bucket, NIGHT, 0)  # nothing was found, however long that took
    assert not is_sent(play, NIGHT + timedelta(hours=23))
    assert is_sent(play, NIGHT + timedelta(days=1))


def test_a_night_without_anything_to_prune_is_done(play: Stage) -> None:
    play.sql("update duties set done_at = :then", then=NIGHT - timedelta(days=9))

    assert not is_sent(play, NIGHT)
    keep(play, outputs=30)

    assert not is_sent(play, NIGHT + SECOND)  # not in the middle of the day on which days are set
    assert is_sent(play, NIGHT + timedelta(days=1))
