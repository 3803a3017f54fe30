"""A database that was restored from a backup meets tasks that it does not know: they are said, and not paid twice."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stage import CLIP, Stage, stage
from typer.testing import CliRunner

from ops import audit
from ops.cli import app
from ops.local import servers
from ops.sandbox.testing import Sandbox
from worker import keys
from worker.claims import NOW
from worker.errors import NotTold
from worker.jobs import restored
from worker.lanes import account_stops
from worker.schedules import plan
from worker.states import TERMINAL, State
from worker.steps import poll
from worker.tables import Job

BINARIES = servers.find_binaries()["postgres"].parent
OTHER = "wan2.2-t2v-plus"


class Backup:
    """A dump of the stage's database, as `pg_dump` makes it."""

    def __init__(self, play: Stage, file: Path) -> None:
        self._play, self._file = play, file
        self._url = play.ctx.settings.database_url.get_secret_value().replace("+psycopg", "")
        self.made_at: datetime = play.now()
        self._run("pg_dump", "--format=custom", f"--file={file}", self._url)

    def restore(self) -> None:
        """All as it was; the processes are new ones."""
        self._play.ctx.engine.dispose()
        self._run("pg_restore", "--clean", "--single-transaction", f"--dbname={self._url}", str(self._file))

    def _run(self, program: str, *words: str) -> None:
        subprocess.run([BINARIES / program, *words], check=True, capture_output=True)


@pytest.fixture
def stopped(play: Stage) -> Iterator[Stage]:
    """A stage whose other model's lane is paused, so that what is for it waits."""
    pause(play, "lane", OTHER)
    yield play
    with play.ctx.engine.connect() as connection:
        assert audit.audit(connection.engine, since=None) == []


def clip(play: Stage, prompt: str, **more: Any) -> Job:
    return play.submit(input={**CLIP, "prompt": prompt}, **more)


def pause(play: Stage, what: str, name: str = "", now: Any = NOW) -> None:
    with play.ctx.engine.begin() as connection:
        account_stops.pause(connection, what, name, now)


def hold(play: Stage, job: Job) -> None:
    held = "state = 'held', held_for = 'batch', held_from = 'queued', run_at = null"
    play.sql(f"update jobs set {held} where id = :id", id=job.id)


def paid(play: Stage) -> int:
    return sum(bool(task["billed_micros"]) for task in play.sandbox.ledger()["tasks"])


def test_what_was_paid_for_since_the_backup_is_found_and_what_was_not_is_made(stopped: Stage, tmp_path: Path) -> None:
    play = stopped
    done, running = play.until(clip(play, "done")), play.until(clip(play, "on its way"), State.RUNNING)
    sent = [clip(play, prompt) for prompt in ("a heron", "a wheel", "twice", "twice")]
    waits = clip(play, "not before the lane is open", model=OTHER)
    backup = Backup(play, tmp_path / "noria.dump")
    for job in (running, *sent, clip(play, "lost with the rows")):
        assert play.until(job).state == State.SUCCEEDED
    assert paid(play) == 7

    backup.restore()
    found = restored.look(play.ctx, backup.made_at)
    for job in sent:
        assert play.until(job).state == State.SUCCEEDED, "though all creates are paused"
    pause(play, "all", now=None)
    pause(play, "lane", OTHER, None)
    for job in (running, waits):
        assert play.until(job).state == State.SUCCEEDED

    assert set(found.suspected) == {job.id for job in sent}
    assert (len(found.unowned), found.running, found.held, found.calls) == (1, [], [], 0)
    assert play.job(done).state == State.SUCCEEDED
    assert paid(play) == 8, "seven before, and the one that waited"
    assert play.states(sent[0])[1:] == ["uncertain", "running", "copying", "succeeded"]


def test_nothing_is_sent_before_somebody_has_looked(play: Stage, tmp_path: Path) -> None:
    """The rule that the others hold would break: without the look, all is paid for once more."""
    job = clip(play, "a heron")
    backup = Backup(play, tmp_path / "noria.dump")
    play.until(job)

    backup.restore()
    play.until(job)

    assert paid(play) == 2


def test_a_task_that_two_projects_may_have_asked_for_waits_for_a_person(stopped: Stage, tmp_path: Path) -> None:
    play = stopped
    with play.ctx.engine.begin() as connection:
        other = keys.create_project(connection, "summer-campaign")
    mine = clip(play, "a heron")
    backup = Backup(play, tmp_path / "noria.dump")
    play.until(mine)
    backup.restore()
    theirs = clip(play, "a heron", project=other)

    found = restored.look(play.ctx, backup.made_at)
    for job in (mine, theirs):
        assert play.until(job, State.HELD).held_for == "uncertain"

    assert set(found.suspected) == {mine.id, theirs.id}
    assert paid(play) == 1


def test_a_task_that_still_runs_is_told_of_and_compared_once_it_has_ended(stopped: Stage, tmp_path: Path) -> None:
    play = stopped
    jobs = [clip(play, "a heron") for _ in range(2)]
    backup = Backup(play, tmp_path / "noria.dump")
    play.sandbox.set(run_seconds=3600)
    play.until(jobs[0], State.RUNNING)
    backup.restore()

    early = restored.look(play.ctx, backup.made_at)
    play.sandbox.set(clock_offset_seconds=3601, run_seconds=0.05)
    later = restored.look(play.ctx, backup.made_at)
    again = restored.look(play.ctx, backup.made_at)
    pause(play, "all", now=None)
    for job in jobs:
        play.until(job)

    assert (len(early.running), early.suspected) == (len(play.sandbox.ledger()["tasks"]), [])
    assert later.suspected == [job.id for job in jobs][: len(early.running)]
    assert (again.suspected, again.unowned) == ([], [])
    assert paid(play) == 2


def test_a_held_job_is_left_to_a_person(play: Stage, tmp_path: Path) -> None:
    job = clip(play, "a heron")
    backup = Backup(play, tmp_path / "noria.dump")
    play.until(job)
    backup.restore()
    hold(play, job)

    found = restored.look(play.ctx, backup.made_at)

    assert (found.held, found.suspected) == ([job.id], [])
    assert play.job(job).state == State.HELD


def test_a_job_that_waits_is_looked_for_before_one_that_is_held(play: Stage, tmp_path: Path) -> None:
    jobs = [clip(play, "twice") for _ in range(2)]
    backup = Backup(play, tmp_path / "noria.dump")
    hold(play, jobs[0])
    play.until(jobs[1])
    backup.restore()
    hold(play, jobs[0])

    found = restored.look(play.ctx, backup.made_at)

    assert (found.suspected, found.held) == ([jobs[1].id], [])


def test_a_task_that_failed_was_not_paid_for(play: Stage, tmp_path: Path) -> None:
    job = clip(play, "a heron")
    backup = Backup(play, tmp_path / "noria.dump")
    play.sandbox.fault(where="create", what="task_fails", code="DataInspectionFailed", times=1)
    assert play.until(job).state == State.FAILED
    backup.restore()

    found = restored.look(play.ctx, backup.made_at)

    assert (found.suspected, found.running, found.unowned) == ([], [], [])


def test_a_list_that_is_cut_short_proves_nothing(play: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [clip(play, f"heron {n}") for n in range(12)]
    backup = Backup(play, tmp_path / "noria.dump")
    for job in jobs:
        play.until(job)
    backup.restore()
    monkeypatch.setattr(poll, "_PAGES", 1)
    play.sandbox.set(max_page_size=10)

    with pytest.raises(NotTold, match="did not list all"):
        restored.look(play.ctx, backup.made_at)

    assert {play.job(job).state for job in jobs} == {State.QUEUED}


def test_the_command_says_what_to_do(
    play: Stage, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = clip(play, "a heron")
    play.submit("text", "qwen-flash", input={"prompt": "How many days has a year?"})
    backup = Backup(play, tmp_path / "noria.dump")
    play.until(job)
    backup.restore()
    for name, value in {**environment, "NORIA_DASHSCOPE_URL": play.sandbox.url}.items():
        monkeypatch.setenv(name, value)

    said = CliRunner().invoke(app, ["restored", backup.made_at.isoformat(timespec="seconds")])

    assert said.exit_code == 0, said.output
    assert "1 jobs that wait may have been sent since" in said.stdout
    assert "1 jobs wait for calls that are in no list" in said.stdout
    assert play.job(job).state == State.UNCERTAIN
    assert play.job(job).state not in TERMINAL
    old = CliRunner().invoke(app, ["restored", "2026-01-01T00:00:00+0800"])
    assert (old.exit_code, "The provider lists a day" in old.stdout) == (1, True)


def test_a_task_that_two_accounts_see_is_told_of_once(
    environment: dict[str, str], sandbox: Sandbox, tmp_path: Path
) -> None:
    accounts = [{"name": n, "owner": "company", "url": sandbox.url, "key": "sk-test"} for n in ("dev", "prod")]
    with stage(environment, sandbox, accounts=accounts) as play:
        backup = Backup(play, tmp_path / "noria.dump")
        play.until(clip(play, "lost with the rows"))
        backup.restore()

        found = restored.look(play.ctx, backup.made_at)

    assert len(found.unowned) == 1


def test_an_account_that_is_younger_than_the_backup_is_looked_at_and_paused_too(play: Stage) -> None:
    play.sql("delete from lanes")
    play.sql("delete from owners")
    play.sql("insert into owners (name) values ('the first')")
    job = play.submit()

    restored.look(play.ctx, play.now() - timedelta(hours=1))

    play.play(play.tick())
    assert play.attempts(job) == []


@pytest.mark.parametrize(("state", "held_from"), [("queued", None), ("gathering", None), ("held", "gathering")])
def test_a_parent_whose_parts_may_have_been_made_since_is_counted(
    play: Stage, state: str, held_from: str | None
) -> None:
    job = play.submit("speech", "qwen3-tts-flash", input={"text": "One. " * 300})
    moved = "state = :state, held_from = :held_from, held_for = case when :state = 'held' then 'crashes' end"
    play.sql(f"update jobs set {moved} where id = :id", id=job.id, state=state, held_from=held_from)

    assert restored.look(play.ctx, play.now() - timedelta(hours=1)).calls == 1


def test_a_schedule_that_would_fire_once_more_is_named(play: Stage) -> None:
    template = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": CLIP}
    with play.ctx.engine.begin() as connection:
        for name in ("nightly", "later"):
            plan.make(connection, play.project, plan.Plan(name, "30 2 * * *", "UTC", template), 10, play.now())
    play.sql("update schedules set next_at = now() - interval '1 hour' where name = 'nightly'")

    assert restored.look(play.ctx, play.now() - timedelta(hours=2)).schedules == [f"{play.project.name}: nightly"]
