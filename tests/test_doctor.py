"""The doctor: what is well, what is wrong and what to do, and what it sets right."""

from __future__ import annotations

import json
import os
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
import time_machine
from peers import answers, peer
from pydantic import SecretStr
from sqlalchemy import create_engine
from stage import Stage

from ops import cli as command
from ops import doctor
from ops.cli import doctor as cli_doctor
from ops.cli.doctor import CHECKS
from ops.doctor import Exam, Verdict
from ops.local import servers
from worker import keys
from worker.settings import Account, Settings
from worker.states import State
from worker.storage import Bucket
from worker.storage.bucket import Upload


def settings_of(play: Stage, **changes: object) -> Settings:
    """The stage's settings, changed."""
    kept = {name: getattr(play.ctx.settings, name) for name in Settings.model_fields}
    return Settings.model_validate({**kept, **changes})


def examined(
    play: Stage, *names: str, fix: bool = False, paid: bool = False, **changes: object
) -> dict[Verdict, list[str]]:
    """What the named checks say, by verdict."""
    settings = settings_of(play, **changes)
    exam = Exam(settings, play.ctx.catalog, play.ctx.engine, play.ctx.bucket, fix=fix, paid=paid)
    said: dict[Verdict, list[str]] = {}
    for diagnosis in doctor.examine(exam, [check for check in CHECKS if check.name in names]):
        said.setdefault(diagnosis.found.verdict, []).append(diagnosis.found.what)
        if diagnosis.found.verdict in (Verdict.WARNING, Verdict.FAILURE):
            assert diagnosis.found.advice, f"{diagnosis.found.what}: and what is to be done?"
    return said


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port: int = closed.getsockname()[1]
        return port


def test_pruning_that_lags_by_two_nights_is_a_warning(play: Stage) -> None:
    play.sql("update projects set retention = '{\"outputs\": 30}'")
    assert examined(play, "retention").keys() == {Verdict.WELL}

    play.sql("update duties set done_at = now() - interval '49 hours' where name = 'prune'")
    said = examined(play, "retention")
    play.sql("update projects set retention = '{}'")

    assert any("has not gone for" in what for what in said[Verdict.WARNING])
    assert Verdict.WARNING not in examined(play, "retention")


def test_all_is_well_where_all_is(play: Stage) -> None:
    said = examined(play, "database", "upkeep", "stuck rows", "work", "accounts", "bucket", "provider", "webhooks")

    assert said.keys() == {Verdict.WELL}


def test_the_bucket_is_left_as_it_was_found(play: Stage) -> None:
    before = list(play.ctx.bucket.objects())

    examined(play, "bucket")

    assert list(play.ctx.bucket.objects()) == before
    assert play.ctx.bucket.uploads() == []


def test_a_database_that_is_away_is_one_failure_and_not_one_of_each_check(play: Stage) -> None:
    away = create_engine(f"postgresql+psycopg://noria@127.0.0.1:{closed_port()}/noria")
    exam = Exam(play.ctx.settings, play.ctx.catalog, away, play.ctx.bucket)

    found = list(doctor.examine(exam, [check for check in CHECKS if "database" in (check.name, check.needs)]))

    verdicts = [diagnosis.found.verdict for diagnosis in found]
    assert verdicts == [Verdict.FAILURE] + (len(found) - 1) * [Verdict.SKIPPED]
    assert len(found) > 5
    assert not doctor.is_well(found)


@pytest.mark.parametrize(("at", "verdict"), [("0001", Verdict.FAILURE), ("later", Verdict.WARNING)])
def test_another_schema_is_told(play: Stage, at: str, verdict: Verdict) -> None:
    play.sql("update alembic_version set version_num = :at", at=at)

    (what,) = examined(play, "database")[verdict]

    assert f"schema is at {at}" in what


def test_a_host_whose_clock_is_off_is_told(play: Stage) -> None:
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=1), tick=True):
        said = examined(play, "database")

    assert said[Verdict.WARNING] == ["its clock and this machine's differ by 1 h 00 m"]


def test_a_clock_that_does_not_tick_is_told(play: Stage) -> None:
    play.tick()
    assert examined(play, "clock").keys() == {Verdict.WELL}

    play.sql("update duties set due_at = now() - interval '5 minutes'")
    assert "late by 00:05:0" in examined(play, "clock")[Verdict.FAILURE][0]

    play.sql("delete from duties")
    assert "never ticked" in examined(play, "clock")[Verdict.FAILURE][0]


def test_keys_that_expire_within_two_weeks_are_told_unless_they_are_rotated_and_out_of_use(play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        for name, days in {"ci": 13, "app": 15, "lost": 3, "site": 13, "old": 13}.items():
            until = play.now() + timedelta(days=days)
            key, _ = keys.new_key(connection, play.project, name, expires_at=until)
            if name == "lost":
                keys.revoke(connection, str(key.id))
            if name in ("site", "old"):
                keys.rotate(connection, key.id, timedelta(hours=1))
    play.sql("update api_keys set last_used_at = now() where name = 'site' and replaced_by is not null")
    play.sql("update api_keys set expires_at = null where name in ('site', 'old') and replaced_by is null")

    told = examined(play, "keys")[Verdict.WARNING]

    assert sorted(re.sub(r"noria_\S+", "K", what) for what in told) == [
        "the key K (ci) of spring-campaign expires in 12 days 23:59:00",
        "the key K (site) of spring-campaign expires in 00:59:00",
    ]
    assert examined(play, "keys")[Verdict.WELL] == ["keys that work: 6"]


def test_work_that_nobody_does_is_told(play: Stage) -> None:
    play.until(play.submit())
    play.sql("update jobs set state = 'running', finished_at = null, run_at = now() - interval '1 hour', crashes = 2")

    said = examined(play, "work")

    assert "1 rows that are running have been due for up to 01:00:00" in said[Verdict.FAILURE][0]
    assert "killed a worker" in said[Verdict.WARNING][0]


def test_messages_that_nobody_takes_are_told(play: Stage) -> None:
    play.submit()
    assert play.tick(), "it is sent out, and nobody plays it"
    play.sql("update jobs set run_at = run_at - interval '45 s'")

    assert "no worker takes them" in examined(play, "work")[Verdict.WARNING][0]


def test_rows_that_nobody_would_pick_are_told_and_made_due_with_a_new_claim(play: Stage) -> None:
    job = play.until(play.submit())
    play.sql("update jobs set state = 'running', finished_at = null, run_at = null")
    assert "nobody will pick them" in examined(play, "stuck rows")[Verdict.FAILURE][0]

    assert Verdict.FIXED in examined(play, "stuck rows", fix=True)

    assert examined(play, "stuck rows").keys() == {Verdict.WELL}
    assert play.job(job).claim == job.claim + 1
    assert play.job(job).run_at is not None


def test_a_job_that_awaits_a_review_is_counted_and_left_alone_by_the_fix(play: Stage) -> None:
    job = play.until(play.submit(review="required"), State.AWAITING_REVIEW)

    said = examined(play, "stuck rows", fix=True)

    assert said.keys() == {Verdict.WELL}
    assert any("1 jobs wait for a review" in what for what in said[Verdict.WELL])
    assert play.job(job).run_at is None


def test_a_lease_that_runs_is_left_alone_by_the_fix(play: Stage) -> None:
    job = play.submit()
    taken = play.take(job)

    assert Verdict.FIXED not in examined(play, "stuck rows", fix=True)

    assert play.job(job).claim == taken.claim


def test_jobs_that_wait_for_a_person_and_long_doubts_are_told(play: Stage) -> None:
    play.until(play.submit())
    play.until(play.submit())
    play.sql(
        "update jobs set state = 'uncertain', finished_at = null, run_at = now(), state_at = now() - interval '1 h'"
    )
    play.sql(
        "update jobs set state = 'held', held_for = 'uncertain', held_from = 'uncertain', run_at = null"
        " where id = (select min(id::text)::uuid from jobs)"
    )

    said = examined(play, "stuck rows")[Verdict.WARNING]

    assert any("1 jobs are held for uncertain" in what for what in said)
    assert any("1 jobs are uncertain long after" in what for what in said)


def test_an_account_whose_creates_are_stopped_is_told_with_the_reason(play: Stage) -> None:
    play.sql("update owners set stopped_until = now() + interval '5 minutes', stopped_why = 'Arrearage: pay the bill'")

    assert "Arrearage" in examined(play, "accounts")[Verdict.FAILURE][0]


def test_a_key_that_the_provider_refuses_is_told(play: Stage) -> None:
    play.sandbox.set(any_key=False)

    (what,) = examined(play, "provider")[Verdict.FAILURE]

    assert "401" in what


def test_an_address_where_dashscope_is_not_is_told_with_the_setting(play: Stage) -> None:
    with peer(answers(404, b"<html>not found</html>")) as other:
        exam = Exam(
            settings_of(play, accounts=(Account(url=other.url),)), play.ctx.catalog, play.ctx.engine, play.ctx.bucket
        )
        (found,) = doctor.examine(exam, [check for check in CHECKS if check.name == "provider"])

    assert "HTTP 404" in found.found.what
    assert "NORIA_DASHSCOPE_URL" in found.found.advice


def test_a_database_that_takes_no_writes_is_not_well(play: Stage) -> None:
    url = play.ctx.settings.database_url.get_secret_value()
    reading = create_engine(url, connect_args={"options": "-c default_transaction_read_only=on"})
    exam = Exam(play.ctx.settings, play.ctx.catalog, reading, play.ctx.bucket)

    found = list(doctor.examine(exam, [check for check in CHECKS if check.name == "database"]))
    reading.dispose()

    assert any("read-only" in each.found.what for each in found if each.found.verdict is Verdict.FAILURE)


def test_inputs_that_a_provider_outside_gets_as_uploads_are_told_and_tried(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "worker.settings.addresses.is_near", lambda url: url == play.ctx.settings.s3_public_endpoint_url
    )
    said = examined(play, "provider", "bucket")
    assert "inputs are uploaded, since the provider cannot follow links to http://127" in said[Verdict.WARNING][0]
    assert Verdict.WARNING not in examined(play, "provider", input_handover="upload")

    page = json.dumps({"total": 0, "data": [], "total_page": 0, "page_no": 1, "page_size": 100}).encode()
    with peer(answers(200, page)) as other:
        said = examined(play, "provider", accounts=(Account(url=other.url),), input_handover="upload")
    assert "that fails: no policy for an upload" in said[Verdict.FAILURE][0]


def test_links_that_the_provider_gets_must_work_and_users_may_be_elsewhere(play: Stage) -> None:
    nowhere = f"https://127.0.0.1:{closed_port()}"

    bucket = Bucket(settings_of(play, s3_public_endpoint_url=nowhere))
    for handed, verdict in (("link", Verdict.FAILURE), ("upload", Verdict.WARNING)):
        exam = Exam(
            settings_of(play, s3_public_endpoint_url=nowhere, input_handover=handed),
            play.ctx.catalog,
            play.ctx.engine,
            bucket,
        )
        found = list(doctor.examine(exam, [check for check in CHECKS if check.name == "bucket"]))
        assert [each.found.verdict for each in found if "nowhere" in each.found.what] == [verdict]


def test_doctor_asks_whom_the_stack_here_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("NORIA_", "DASHSCOPE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-real")
    home = servers.make_home(tmp_path / "home")
    servers.kept_ports(home)

    servers.announce(home, {"API": "a", "sandbox": "b"})
    sandboxed = cli_doctor.settings_of(home)[0].all_accounts[0]
    servers.announce(home, {"API": "a"})
    real = cli_doctor.settings_of(home)[0].all_accounts[0]

    assert sandboxed.url.startswith("http://127.0.0.1")
    assert sandboxed.key == SecretStr("sk-sandbox")
    assert real.url == "https://dashscope.aliyuncs.com"
    assert real.key == SecretStr("sk-real")


def test_a_providers_clock_that_differs_by_minutes_is_told(play: Stage) -> None:
    late = (datetime.now(UTC) - timedelta(minutes=7)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    page = json.dumps({"total": 0, "data": [], "total_page": 0, "page_no": 1, "page_size": 100}).encode()
    with peer(answers(200, page, date=late)) as other:
        said = examined(play, "provider", accounts=(Account(url=other.url),))

    assert "clock and ours differ by 7 m" in said[Verdict.FAILURE][0]


def test_a_wire_that_would_reach_private_addresses_is_told(play: Stage) -> None:
    said = examined(play, "webhooks", egress_allow=("169.254.0.0/16",))

    assert "private address" in said[Verdict.FAILURE][0]


def test_a_broker_that_answers_is_well_and_one_that_is_away_fails(play: Stage) -> None:
    assert Verdict.FAILURE not in examined(play, "broker")

    said = examined(play, "broker", "workers", broker_url=SecretStr(f"redis://127.0.0.1:{closed_port()}/0"))

    assert len(said[Verdict.FAILURE]) == 1
    assert said[Verdict.SKIPPED] == ["needs the broker"]


def test_a_queue_that_nobody_empties_is_told(play: Stage) -> None:
    url = play.ctx.settings.broker_url.get_secret_value()
    with redis.Redis.from_url(url) as client:
        client.rpush("noria:transfer", *range(1001))

    assert "1001 messages wait in the queue transfer" in examined(play, "broker")[Verdict.FAILURE][0]


def test_queues_without_a_worker_are_told(play: Stage) -> None:
    said = examined(play, "workers")[Verdict.FAILURE]

    assert any("no worker is at the queue transfer" in what for what in said)


def test_uploads_that_never_ended_are_told_after_a_day_and_ended(play: Stage) -> None:
    class Old(Bucket):
        """A bucket whose uploads were all begun two days ago."""

        def uploads(self) -> list[Upload]:
            began_at = datetime.now(UTC) - timedelta(days=2)
            return [Upload(upload.key, upload.id, began_at) for upload in super().uploads()]

    play.ctx.bucket._s3.create_multipart_upload(Bucket=play.ctx.settings.s3_bucket, Key="left")
    assert examined(play, "uploads").keys() == {Verdict.WELL}, "it was begun just now"

    for fix, verdict in ((False, Verdict.WARNING), (True, Verdict.FIXED)):
        exam = Exam(play.ctx.settings, play.ctx.catalog, play.ctx.engine, Old(play.ctx.settings), fix=fix)
        (found,) = doctor.examine(exam, [check for check in CHECKS if check.name == "uploads"])
        assert found.found.verdict is verdict
    assert play.ctx.bucket.uploads() == []


def test_the_command_prints_one_json_document_and_its_code_says_whether_all_is_well(
    play: Stage, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**environment, "NORIA_DASHSCOPE_URL": play.sandbox.url}.items():
        monkeypatch.setenv(name, value)

    code = command.run(["doctor", "--json"])

    document = json.loads(capsys.readouterr().out)
    assert code == 1, "no worker runs here"
    assert document["well"] is False
    assert {found["check"] for found in document["found"]} == {check.name for check in CHECKS}


def test_the_audit_command_says_what_broke_and_its_code_too(
    play: Stage, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NORIA_DATABASE_URL", environment["NORIA_DATABASE_URL"])
    job = play.until(play.submit())
    assert command.run(["audit"]) == 0
    assert "Every promise was kept" in capsys.readouterr().out

    play.sql("delete from outputs")
    assert command.run(["audit", "--json"]) == 1

    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["invariant"] == "I5"
    assert finding["job"] == str(job.id)


def test_a_parent_that_rests_while_its_children_work_is_not_overlooked(play: Stage) -> None:
    play.sql("update lanes set concurrency = 0")
    job = play.submit("speech", "qwen3-tts-flash", input={"text": "One. Two."})
    made = "select id from jobs where parent_id = :id"
    play.drive(lambda: play.sql(made, id=job.id), bool)
    play.drive(lambda: play.job(job).run_at, lambda at: at is None)
    assert examined(play, "stuck rows").keys() == {Verdict.WELL}

    play.sql("update jobs set state = 'succeeded', finished_at = now(), run_at = null where parent_id = :id", id=job.id)

    assert "nobody will pick them" in examined(play, "stuck rows")[Verdict.FAILURE][0]


@pytest.mark.parametrize("same", [True, False])
def test_an_api_that_goes_by_another_catalog_is_told(play: Stage, same: bool) -> None:
    digest = play.ctx.catalog.digest if same else "0123456789ab"
    body = json.dumps({"status": "ok", "catalog": digest}).encode()

    with peer(answers(200, body)) as other:
        found = examined(play, "catalog", public_url=f"http://127.0.0.1:{other.port}")

    assert set(found) == {Verdict.WELL if same else Verdict.WARNING}
    assert digest in str(found) or same
