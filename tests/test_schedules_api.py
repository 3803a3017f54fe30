"""Schedules over HTTP and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from serving import CLIP, Served, served
from structlog.testing import capture_logs

from api.client import Client
from ops import cli
from worker.schedules import fire as firing
from worker.schedules.plan import RunDocument

NIGHTLY: dict[str, Any] = {
    "name": "nightly",
    "cron": "30 2 * * *",
    "time_zone": "Europe/Berlin",
    "template": CLIP | {"custom_id": "clip-{{date}}", "metadata": {"week": "{{week}}"}},
}


@pytest.fixture
def api(environment: dict[str, str]) -> Iterator[Served]:
    with served(environment, max_schedules=3) as made:
        yield made


def made(http: httpx.Client, **more: Any) -> dict[str, Any]:
    answer = http.post("/v1/schedules", json=NIGHTLY | more)
    assert answer.status_code == 201, answer.text
    schedule: dict[str, Any] = answer.json()
    return schedule


def faults(answer: httpx.Response) -> dict[str, str]:
    """Pointer → code of a 422."""
    assert answer.status_code == 422, answer.text
    return {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]}


def fire(api: Served) -> int:
    """How many jobs the schedules submitted whose fire time has come."""
    context = api.app.state.context
    return len(firing.fire_due(context.engine, context.catalog, context.settings))


def due(api: Served, schedule: dict[str, Any]) -> None:
    """The schedule's next fire time has come, a moment ago."""
    api.sql("update schedules set next_at = date_trunc('minute', now()) where id = :id", id=schedule["id"])


def test_a_schedule_says_when_it_fires_next_and_what_it_submits(http: httpx.Client) -> None:
    answer = http.post("/v1/schedules", json=NIGHTLY)

    schedule = answer.json()
    times = [datetime.fromisoformat(fires) for fires in schedule["next"]]
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/schedules/{schedule['id']}"
    assert schedule["explained"] == "At 02:30 every day"
    assert schedule["template"] == NIGHTLY["template"]
    assert (schedule["overlap"], schedule["missed"], schedule["paused_at"]) == ("skip", "run_once", None)
    assert len(times) == 5
    assert all(timedelta(hours=22) < after - before < timedelta(hours=26) for before, after in pairwise(times))
    assert http.get(schedule["urls"]["self"]).json() == schedule


def test_the_jobs_of_a_schedule_are_listed_by_its_id(api: Served, http: httpx.Client) -> None:
    schedule, other = made(http), made(http, name="other")
    for each in (schedule, other):
        due(api, each)
    assert fire(api) == 2
    alone = http.post("/v1/jobs", json=CLIP).json()["id"]

    (run,) = http.get(schedule["urls"]["runs"]).json()["data"]
    found = http.get("/v1/jobs", params={"schedule": schedule["id"]}).json()["data"]
    assert [job["id"] for job in found] == [run["job_id"]]
    assert alone not in [job["id"] for job in found]
    assert http.get("/v1/jobs", params={"schedule": schedule["id"], "state": "failed"}).json()["data"] == []


def test_the_jobs_of_a_deleted_schedule_are_still_found_by_its_id(api: Served, http: httpx.Client) -> None:
    schedule = made(http)
    due(api, schedule)
    assert fire(api) == 1

    assert http.delete(schedule["urls"]["self"]).status_code == 204

    assert len(http.get("/v1/jobs", params={"schedule": schedule["id"]}).json()["data"]) == 1


def test_the_zone_is_the_projects_own_unless_said(http: httpx.Client) -> None:
    body = {name: value for name, value in NIGHTLY.items() if name != "time_zone"}

    assert http.post("/v1/schedules", json=body).json()["time_zone"] == "Asia/Shanghai"


def test_a_zone_that_is_hardly_meant_is_taken_and_warned_of(http: httpx.Client) -> None:
    inverted = made(http, time_zone="Etc/GMT+8")

    assert ["UTC-8" in warning["message"] for warning in inverted["warnings"]] == [True]
    assert made(http, name="other")["warnings"] == []


def test_every_wrong_field_of_form_clock_and_template_is_named_in_one_answer(http: httpx.Client) -> None:
    body = {
        "name": "",
        "cron": "0 0 30 2 *",
        "time_zone": "Europe/Berln",
        "template": CLIP
        | {"input": {"prompt": "{{dat}}", "size": "1*1"}, "priority": "urgent", "metadata": {"k": "{{date"}},
        "overlap": "never",
        "extra": 1,
    }

    assert faults(http.post("/v1/schedules", json=body)) == {
        "/name": "too_short",
        "/cron": "bad_cron",
        "/time_zone": "unknown_zone",
        "/template/input/prompt": "unknown_variable",
        "/template/input/size": "not_allowed",
        "/template/priority": "not_allowed",
        "/template/metadata/k": "bad_variable",
        "/overlap": "not_allowed",
        "/extra": "unknown_field",
    }
    assert http.get("/v1/schedules").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ([], {"": "not_an_object"}),
        ({}, {"/name": "required", "/cron": "required", "/template": "required"}),
        (NIGHTLY | {"template": []}, {"/template": "dict_type"}),
        (NIGHTLY | {"template": {}}, {"/template/kind": "required", "/template/input": "required"}),
        (NIGHTLY | {"cron": 5, "time_zone": 5}, {"/cron": "string_type", "/time_zone": "string_type"}),
        (NIGHTLY | {"cron": "* * * * * *"}, {"/cron": "bad_cron"}),
        (NIGHTLY | {"name": "a\0b"}, {"/name": "bad_text"}),
        (NIGHTLY | {"template": CLIP | {"custom_id": "{{run}}" * 4}}, {"/template/custom_id": "too_long"}),
    ],
)
def test_what_is_no_schedule_is_refused(http: httpx.Client, body: Any, found: dict[str, str]) -> None:
    assert faults(http.post("/v1/schedules", json=body)).items() >= found.items()


def test_making_one_may_be_repeated_and_a_name_belongs_to_one(http: httpx.Client) -> None:
    first = made(http)

    again = http.post("/v1/schedules", json=NIGHTLY)
    other = http.post("/v1/schedules", json=NIGHTLY | {"cron": "0 3 * * *"})

    assert (again.status_code, again.json()) == (200, first)
    assert (other.status_code, other.json()["code"]) == (409, "schedule_exists")


def test_a_project_may_have_so_many(http: httpx.Client) -> None:
    for name in ("a", "b", "c"):
        made(http, name=name)

    refused = http.post("/v1/schedules", json=NIGHTLY)

    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_schedules")


def test_a_change_keeps_what_it_does_not_say_and_is_checked_as_a_whole(http: httpx.Client) -> None:
    schedule = made(http)
    path = schedule["urls"]["self"]

    changed = http.patch(path, json={"time_zone": "Asia/Tokyo"}).json()
    wrong = http.patch(path, json={"cron": "x", "template": CLIP | {"model": "wan0"}, "nonsense": 1})

    assert changed["time_zone"] == "Asia/Tokyo"
    assert changed["next"] != schedule["next"]
    assert {**changed, "time_zone": 0, "next": 0, "updated_at": 0} == {
        **schedule, "time_zone": 0, "next": 0, "updated_at": 0
    }  # fmt: skip
    assert faults(wrong) == {"/cron": "bad_cron", "/template/model": "unknown_model", "/nonsense": "unknown_field"}
    assert http.get(path).json() == changed
    assert http.patch(path, json={}).json()["next"] == changed["next"]


def test_a_run_shows_its_job_and_the_jobs_its_variables(http: httpx.Client, api: Served) -> None:
    schedule = made(http)
    due(api, schedule)

    assert fire(api) == 1

    (run,) = http.get(schedule["urls"]["runs"]).json()["data"]
    job = http.get(f"/v1/jobs/{run['job_id']}").json()
    assert (run["trigger"], run["outcome"], run["job_state"]) == ("clock", "submitted", "queued")
    assert job["custom_id"].startswith("clip-20")
    assert "-W" in job["metadata"]["week"]
    assert http.get(schedule["urls"]["self"]).json()["job_id"] == job["id"]


def test_a_schedule_of_a_retired_model_says_so_when_it_is_made_and_when_it_fires(
    http: httpx.Client, api: Served
) -> None:
    picture = {"kind": "text-to-image", "model": "qwen-image-plus", "input": {"prompt": "a shop"}}
    schedule = made(http, template=picture)
    due(api, schedule)

    assert fire(api) == 1

    (run,) = http.get(schedule["urls"]["runs"]).json()["data"]
    (warning,) = schedule["warnings"]
    assert (warning["pointer"], warning["code"]) == ("/template/model", "retired_model")
    assert "take qwen-image-2.0" in warning["message"]
    assert (run["outcome"], run["why"]) == ("submitted", warning["message"])
    assert made(http, name="other")["warnings"] == []


def test_a_schedule_whose_model_the_provider_retires_is_refused_and_says_which_to_take(
    http: httpx.Client, api: Served
) -> None:
    schedule = made(http)
    question = {"kind": "text", "model": "qwen-turbo", "input": {"prompt": "x"}}
    api.sql("update schedules set template = '" + json.dumps(question) + "'")
    due(api, schedule)

    assert fire(api) == 0

    (run,) = http.get(schedule["urls"]["runs"]).json()["data"]
    assert run["outcome"] == "refused"
    assert "take qwen3.6-flash" in run["why"]
    assert "take qwen3.6-flash" in http.get(schedule["urls"]["self"]).json()["warnings"][0]["message"]


def test_a_pause_and_a_resume_are_shown_in_the_next_times(http: httpx.Client) -> None:
    path = made(http)["urls"]["self"]

    paused = http.post(path + "/pause").json()
    resumed = http.post(path + "/resume").json()

    assert paused["paused_at"] is not None
    assert paused["next"] == []
    assert resumed["paused_at"] is None
    assert len(resumed["next"]) == 5


def test_run_now_is_answered_with_what_became_of_it(http: httpx.Client, api: Served) -> None:
    path = made(http)["urls"]["self"] + "/run"
    said = {"idempotency-key": "k1"}

    first = http.post(path, headers=said)
    again = http.post(path, headers=said)
    api.sql("update runs set fire_at = fire_at - interval '1 minute'")
    second = http.post(path)

    assert (first.status_code, first.json()["outcome"]) == (201, "submitted")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert again.json()["id"] == first.json()["id"]
    assert (second.json()["trigger"], second.json()["outcome"]) == ("person", "skipped")
    assert "of the run before is queued" in second.json()["why"]
    for answer in (first, second):
        Draft202012Validator(RunDocument.model_json_schema()).validate(answer.json())


def test_runs_come_in_pages_the_latest_first(http: httpx.Client, api: Served) -> None:
    schedule = made(http, cron="* * * * *")
    api.sql("update schedules set next_at = date_trunc('minute', now()) - interval '4 minutes'")
    fire(api)

    first = http.get(schedule["urls"]["runs"], params={"limit": 3}).json()
    rest = http.get(schedule["urls"]["runs"], params={"limit": 3, "cursor": first["next_cursor"]}).json()

    times = [run["fire_at"] for run in first["data"] + rest["data"]]
    assert times == sorted(times, reverse=True)
    assert (len(first["data"]), len(set(times)), rest["has_more"]) == (3, 5, False)


def test_schedules_come_in_pages_and_are_found_by_name(http: httpx.Client) -> None:
    for name in ("a", "b", "c"):
        made(http, name=name)

    first = http.get("/v1/schedules", params={"limit": 2}).json()
    rest = http.get("/v1/schedules", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    named = http.get("/v1/schedules", params={"name": "b"}).json()

    assert [found["name"] for found in first["data"] + rest["data"]] == ["c", "b", "a"]
    assert [found["name"] for found in named["data"]] == ["b"]


def test_a_deleted_schedule_is_gone_and_its_job_is_not(http: httpx.Client) -> None:
    path = made(http)["urls"]["self"]
    job_id = http.post(path + "/run").json()["job_id"]

    assert http.delete(path).status_code == 204
    assert http.get(path).status_code == http.delete(path).status_code == 404
    assert http.get(f"/v1/jobs/{job_id}").json()["state"] == "queued"


class TestCommands:
    @pytest.fixture
    def noria(
        self, environment: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
    ) -> Iterator[Any]:
        """Runs `noria schedules …` in this process: exit code, stdout, stderr."""
        with capture_logs(), served(environment) as api:
            for name, value in {"COLUMNS": "80", "NORIA_URL": api.url, "NORIA_KEY": api.key("spring")}.items():
                monkeypatch.setenv(name, value)
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.setenv(name, "")
            monkeypatch.chdir(tmp_path)

            def run(*arguments: str) -> tuple[int, str, str]:
                capsys.readouterr()
                code = cli.run(["schedules", *arguments])
                said = capsys.readouterr()
                return code, said.out, said.err

            yield run

    def test_a_schedule_is_made_from_options_and_looked_at_by_its_name(self, noria: Any) -> None:
        template = ("--kind", "text-to-video", "--model", "wan2.5-t2v-preview", "--input", "prompt=the {{date}}")

        code, printed, _ = noria("create", "nightly", "--cron", "30 2 * * *", "--zone", "Europe/Berlin", *template)
        shown = json.loads(noria("show", "nightly", "--json")[1])

        assert (code, printed.strip()) == (0, shown["schedule"]["id"])
        assert shown["schedule"]["template"]["input"] == {"prompt": "the {{date}}"}
        assert shown["runs"] == []

    def test_a_schedule_is_made_from_a_file(self, noria: Any, tmp_path: Path) -> None:
        (tmp_path / "nightly.json").write_text(json.dumps(NIGHTLY))

        schedule = json.loads(noria("create", "--file", "nightly.json", "--json")[1])

        assert schedule["template"] == NIGHTLY["template"]

    def test_each_command_does_what_it_says_in_eighty_columns(self, noria: Any, tmp_path: Path) -> None:
        (tmp_path / "nightly.json").write_text(json.dumps(NIGHTLY | {"name": "a-rather-long-name-for-a-schedule"}))
        noria("create", "--file", "nightly.json")
        name = "a-rather-long-name-for-a-schedule"

        said = {word: noria(word, name) for word in ("pause", "resume", "run", "show", "runs")}
        said["list"] = noria("list")
        said["delete"] = noria("delete", name)

        assert {code for code, _, _ in said.values()} == {0}
        assert max(len(line) for _, out, _ in said.values() for line in out.splitlines()) <= 80
        assert "At 02:30 every day" in said["show"][1]
        assert "queued" in said["runs"][1]
        assert "No schedules." in noria("list")[2]

    def test_a_run_that_submits_nothing_exits_1(self, noria: Any, tmp_path: Path) -> None:
        (tmp_path / "nightly.json").write_text(json.dumps(NIGHTLY))
        noria("create", "--file", "nightly.json")
        noria("run", "nightly", "--json")

        codes = {noria("run", "nightly")[0] for _ in range(2)}

        assert codes <= {1, 5}  # skipped, or refused since it is the same second
        assert noria("show", "nobody")[0] == 5
        assert "nobody" in noria("show", "nobody")[2]

    def test_wrong_fields_are_named_as_they_are_written(self, noria: Any) -> None:
        code, _, err = noria(
            "create", "x", "--cron", "61 2 * * *", "--kind", "text-to-video", "--input", "prompt={{x}}"
        )

        assert code == 5
        assert "cron: has a bad minute" in err
        assert "template.input.prompt: has {{x}}, and variables are: date" in err

    def test_the_client_repeats_a_run_under_its_key(self, api: Served) -> None:
        with Client(api.url, api.key("spring")) as client:
            schedule = client.make_schedule(NIGHTLY)
            first = client.run_schedule(schedule.id, "k1")
            again = client.run_schedule(schedule.id, "k1")

            assert first.id == again.id
            assert [run.id for run in client.runs(schedule.id)] == [first.id]
            assert client.change_schedule(schedule.id, {"missed": "skip"}).missed == "skip"
