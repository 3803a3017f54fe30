"""The `noria` command: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import typer
from rich.cells import cell_len
from serving import CLIP, Served, eventually, served
from structlog.testing import capture_logs

from api.client import Client
from ops import cli
from ops.cli import reach
from ops.cli.reach import Door
from ops.local import servers as embedded
from ops.local.supervise import LocalError
from ops.local.up import UpOptions

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 24
ANIMATE = ("submit", "image-to-video", "--model", "wan2.5-i2v-preview", "--prompt", "it purrs")
SUBMIT = ("submit", "text-to-video", "--model", "wan2.5-t2v-plus", "--prompt", "a kitten runs")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of stdout as one JSON document."""
        return json.loads(self.out)


class Shell:
    """Runs commands in this process, as if typed in the folder `cwd`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], cwd: Path) -> None:
        self.capsys = capsys
        self.cwd = cwd

    def __call__(self, *arguments: str) -> Said:
        self.capsys.readouterr()
        code = cli.run(arguments)
        said = self.capsys.readouterr()
        return Said(code, said.out, said.err)


@pytest.fixture
def noria(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that what the command adds is forgotten afterwards
    return Shell(capsys, tmp_path)


@pytest.fixture
def api(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """An API without workers, which the environment names; what it logs is not on the command's stdout."""
    with capture_logs(), served(environment) as made:
        monkeypatch.setenv("NORIA_URL", made.url)
        monkeypatch.setenv("NORIA_KEY", made.key("spring"))
        monkeypatch.setenv("NORIA_DATABASE_URL", environment["NORIA_DATABASE_URL"])
        yield made


def test_every_command_takes_the_options_that_commands_share() -> None:
    """They are written once, in `ops.cli.reach`; `sandbox` hands its options on."""
    leaves = {name: {opt for param in leaf.params for opt in param.opts} for name, leaf in commands("noria", cli.app)}

    assert len(leaves) > 30
    assert [name for name, options in leaves.items() if not {"--json", "--home"} <= options] == ["noria sandbox"]
    assert {"--url", "--key"} <= leaves["noria schedules runs"]
    assert "--database-url" in leaves["noria keys create"]
    assert not [name for name, options in leaves.items() if ("--url" in options) is not ("--key" in options)]


def commands(path: str, app: typer.Typer) -> Iterator[tuple[str, Any]]:
    """Every command without commands of its own, by all of its words."""

    def below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(f"{path} {name}", inner)
        if not hasattr(command, "commands"):
            yield path, command

    yield from below(path, typer.main.get_command(app))


def test_a_submitted_job_is_printed_as_its_id_alone(noria: Shell, api: Served) -> None:
    said = noria(*SUBMIT, "--duration", "5", "--metadata", "sku=A1", "--custom-id", "row-1", "--priority", "high")

    row = api.row(said.out.strip())
    assert said.code == 0
    assert (row.model, row.custom_id, row.labels, row.priority) == ("wan2.5-t2v-preview", "row-1", {"sku": "A1"}, 1)
    assert row.input["duration"] == 5


RETIRED = ["text-to-image", "--model", "qwen-image-plus", "--prompt", "a shop"]


@pytest.mark.parametrize(
    "command", [["submit", *RETIRED], ["submit", *RETIRED, "--dry-run"], ["estimate", *RETIRED]], ids=" ".join
)
def test_a_warning_is_said_on_stderr(noria: Shell, api: Served, command: list[str]) -> None:
    said = noria(*command)

    assert said.code == 0
    assert "take qwen-image-2.0" in said.err
    assert "take" not in said.out
    assert "take" not in noria(*SUBMIT).err


def test_models_say_which_are_retired(noria: Shell, api: Served) -> None:
    assert "qwen-image-2.0" in noria("models", "text-to-image").out
    assert "(ended:" in noria("models", "text-to-image").out


def test_json_is_one_document_and_nothing_else_on_stdout(noria: Shell, api: Served) -> None:
    made = noria(*SUBMIT, "--json").json
    job_id = made["id"]

    shown, listed = noria("show", job_id, "--json").json, noria("list", "--json").json
    priced = noria("estimate", *SUBMIT[1:], "--json").json
    models = noria("models", "text-to-image", "--json").json
    canceled = noria("cancel", job_id, "--json").json

    assert shown["job"]["id"] == job_id
    assert [event["to"] for event in shown["events"]] == ["queued"]
    assert [job["id"] for job in listed] == [job_id]
    assert priced["cost"]["estimated"] == "1.50"
    assert models
    assert all("text-to-image" in model["kinds"] for model in models)
    assert canceled[0]["outcome"] == "canceled"


def test_tables_fit_eighty_columns(noria: Shell, api: Served) -> None:
    job_id = noria(*SUBMIT, "--custom-id", "a-rather-long-name-of-ones-own").out.strip()

    for command in (["list"], ["models"], ["keys", "list"], ["projects", "list"]):
        said = noria(*command)

        assert said.code == 0
        assert max(len(line) for line in said.out.splitlines()) <= 80
    assert job_id in noria("list").out


def test_no_table_cuts_what_people_need(noria: Shell, api: Served) -> None:
    noria(*SUBMIT, "--custom-id", "a-rather-long-name-of-ones-own-17")
    listed, models = noria("list").out, noria("models")

    assert "…" not in listed + models.out
    columns = [line.split("  ")[1:3] for line in listed.splitlines()[2:]]
    assert len(columns) > 1, "wrapped, not cut"
    assert "a-rather-long-name-of-ones-own-17" in "".join(re.findall(r"(?:^.{38}|^ {38})(\S*)", listed, re.MULTILINE))
    for row in (
        "wan2.5-t2v-preview .* 480P 0.30 /s",
        "qwen3-tts-flash .* 0.80 /10k",
        "qwen-plus .* 128K 0.80 /1M in",
        "wan3.0-video +text-to-video +2-30",
    ):
        assert re.search(f"^{row}", models.out, re.MULTILINE), row
    assert "1080P 1.00" in models.out


def test_a_refused_input_names_the_field_and_exits_5(noria: Shell, api: Served) -> None:
    said = noria(*SUBMIT, "--duration", "7", "--input", "watermrk=true")

    assert said.code == 5
    assert said.out == ""
    assert "input.duration: 7 is not one that wan2.5-t2v-preview takes: 5, 10" in said.err
    assert "did you mean watermark?" in said.err


def test_a_wrong_key_says_how_to_get_one(noria: Shell, api: Served) -> None:
    said = noria("list", "--key", "noria_nobody")

    assert said.code == 5
    assert "noria keys create PROJECT" in said.err


def test_where_nobody_listens_the_exit_code_is_4_at_once(noria: Shell) -> None:
    unknown, silent = noria("list"), noria("list", "--url", "http://127.0.0.1:9", "--key", "noria_x")
    database = noria("keys", "list", "--database-url", "postgresql+psycopg://a:b@127.0.0.1:9/x")

    assert [unknown.code, silent.code, database.code] == [4, 4, 4]
    assert "noria up" in unknown.err
    assert "Nothing answers at http://127.0.0.1:9" in silent.err
    assert "The database does not answer" in database.err


def test_a_wrong_command_line_exits_2(noria: Shell) -> None:
    assert noria("submit").code == 2
    assert noria("nonsense").code == 2
    assert noria(*SUBMIT, "--input", "no-equals-sign").code == 2
    assert noria("demo", "--real").code == 2


def test_a_wrong_setting_is_named_before_anything_is_started(noria: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-never-sent")
    monkeypatch.setenv("NORIA_POLL_QPS", "many")
    monkeypatch.setenv("NORIA_EGRESS_ALLOW", "everything")

    said = noria("up", "--real")

    assert said.code == 2
    assert "NORIA_POLL_QPS: " in said.err
    assert "NORIA_EGRESS_ALLOW: " in said.err
    assert not (noria.cwd / ".noria").exists()


def test_a_home_that_is_in_use_exits_3(noria: Shell) -> None:
    home = noria.cwd / "demo"
    home.mkdir()
    with embedded.hold(home):
        said = noria("demo", "--home", str(home))

    assert said.code == 3
    assert f"already runs in {home}" in said.err


def test_an_address_of_the_console_is_printed_alone_and_signs_in(noria: Shell, api: Served) -> None:
    url = noria("console").out.strip()  # 300 characters, on one line

    assert url.startswith("http://127.0.0.1")
    entered = httpx.get(api.url + url[url.index("/console/") :], trust_env=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/console/batches")
    assert noria("console", "--json").json["url"] != url


def test_a_key_is_printed_alone_and_works_until_it_is_revoked(noria: Shell, api: Served) -> None:
    created = noria("keys", "create", "autumn", "--name", "ci")
    key = created.out.strip()
    works = noria("list", "--key", key)
    listed = noria("keys", "list", "autumn", "--json").json

    revoked = noria("keys", "revoke", listed[0]["prefix"])

    assert created.out.count("\n") == 1
    assert works.code == 0
    assert listed[0] | {"project": "autumn", "name": "ci", "revoked_at": None} == listed[0]
    assert revoked.code == 0
    assert eventually(lambda: noria("list", "--key", key).code == 5)  # the API remembers a key for a second


def test_a_key_is_made_for_a_while_and_with_a_scope_and_listed_with_both(noria: Shell, api: Served) -> None:
    key = noria("keys", "create", "spring", "--scope", "read", "--expires", "90d", "--name", "ci").out.strip()
    refused = noria(*SUBMIT, "--key", key)
    listed = noria("keys", "list", "spring")
    made = noria("keys", "list", "spring", "--json").json[-1]

    ends = datetime.fromisoformat(made["expires_at"])
    assert (made["scope"], made["replaced_by"]) == ("read", None)
    assert abs(ends - datetime.fromisoformat(made["created_at"]) - timedelta(days=90)) < timedelta(minutes=1)
    assert refused.code == 5
    assert "the scope submit" in refused.err
    assert "--scope" in refused.err
    assert re.split(r" {2,}", listed.out.splitlines()[0].strip()) == [
        "key", "project", "name", "scope", "created", "last used", "expires"
    ]  # fmt: skip
    assert re.search(rf"spring +ci +read +\S{{10}} +\S{{10}} +{ends:%Y-%m-%d}", listed.out)


def test_a_key_is_rotated_by_its_name_and_the_old_one_works_meanwhile(noria: Shell, api: Served) -> None:
    old = noria("keys", "create", "spring", "--name", "ci").out.strip()
    rotated = noria("keys", "rotate", "ci", "--keep", "2")
    new = rotated.out.strip()
    before, after = (noria("keys", "list", "spring", "--json").json[-n] for n in (2, 1))

    again = noria("keys", "rotate", before["id"])
    noria("keys", "rotate", "ci", "--keep", "0")

    assert rotated.out.count("\n") == 1
    assert (old[:14], new[:14]) == (before["prefix"], after["prefix"])
    assert (before["replaced_by"], after["expires_at"]) == (after["id"], None)
    assert before["expires_at"] is not None
    assert noria("list", "--key", old).code == 0
    assert noria("list", "--key", new).code == 5
    assert (again.code, "rotate that one" in again.err) == (5, True)
    assert noria("keys", "rotate", "nobody's").code == 5


@pytest.mark.parametrize("span", ["90", "0d", "soon", "1w", "-1d"])
def test_a_wrong_span_makes_no_key(noria: Shell, api: Served, span: str) -> None:
    said = noria("keys", "create", "spring", f"--expires={span}")

    assert said.code == 2
    assert len(api.sql("select from api_keys")) == 1


def test_projects_are_set_up_and_their_secret_shown_and_rotated(noria: Shell, api: Served) -> None:
    changed = noria("projects", "set", "spring", "--weight", "3", "--time-zone", "Europe/Lisbon", "--json").json
    first, again = noria("projects", "secret", "spring").out, noria("projects", "secret", "spring").out

    rotated = noria("projects", "secret", "spring", "--rotate").out

    assert (changed["weight"], changed["time_zone"]) == (3, "Europe/Lisbon")
    assert first == again
    assert first.startswith("whsec_")
    assert rotated.startswith("whsec_")
    assert rotated != first


def test_an_unknown_project_and_a_wrong_zone_exit_5(noria: Shell, api: Served) -> None:
    assert noria("projects", "secret", "nobody").code == 5
    assert (
        "time_zone is not a zone of the tz database, like Asia/Shanghai"
        in noria("projects", "set", "spring", "--time-zone", "Mars").err
    )


def test_a_project_has_a_bounded_number_of_tasks_in_flight(noria: Shell, api: Served) -> None:
    api.key("spring")

    assert noria("projects", "set", "spring", "--max-in-flight", "100000").code == 0
    assert noria("projects", "set", "spring", "--max-in-flight", "100001").code == 2


def test_what_is_no_text_or_says_nothing_is_a_usage_error(noria: Shell, api: Served) -> None:
    api.key("spring")

    shown = [
        noria("projects", "set", "spring", "--usage-key", "\udcff"),
        noria("holds", "add", "spring", "--why", " "),
    ]

    assert [each.code for each in shown] == [2, 2]
    assert "An argument is not text in UTF-8." in shown[0].err
    assert noria("holds", "list", "--json").json == []


def test_a_dry_run_prices_and_submits_nothing(noria: Shell, api: Served) -> None:
    said = noria(*SUBMIT, "--dry-run", "--json")

    assert said.json["cost"] == {"currency": "CNY", "estimated": "1.50"}
    assert noria("list", "--json").json == []


def test_a_dry_run_of_a_narration_shows_its_first_segments_a_line_each(noria: Shell, api: Served) -> None:
    script = [{"text": "水不等人。" * 60, "voice": "Eldric Sage"}, *({"text": "Who is\nthere?"} for _ in range(20))]
    wanted = json.dumps(script)

    total, *lines, rest = noria("submit", "speech", "--input", f"paragraphs={wanted}", "--dry-run").out.splitlines()

    assert re.fullmatch(r"1 job, ¥\d+\.\d+, in 22 segments", total)
    assert (len(lines), rest) == (10, "and 12 more")
    assert all(cell_len(line) <= 80 for line in lines)
    assert lines[0].split()[:4] == ["1", "360", "Eldric", "Sage"]
    assert lines[2].index("Who is there?") == lines[-1].index("Who is there?")
    assert lines[-1].split() == ["10", "13", "Cherry", "Who", "is", "there?"]


def test_watch_tells_each_change_and_exits_1_when_a_job_did_not_succeed(noria: Shell, api: Served) -> None:
    good, bad = noria(*SUBMIT).out.strip(), noria(*SUBMIT).out.strip()
    noria("cancel", bad)
    api.sql("update jobs set state = 'succeeded', run_at = null, finished_at = now() where id = :id", id=good)

    fine, both = noria("watch", good), noria("watch", good, bad, "--json")

    assert fine.code == 0
    assert "succeeded" in fine.out
    assert both.code == 1
    assert [json.loads(line)["state"] for line in both.out.splitlines()] == ["succeeded", "canceled"]


def test_watch_ends_where_only_a_person_can_go_on(noria: Shell, api: Served) -> None:
    job_id = noria(*SUBMIT).out.strip()
    api.sql("update jobs set state = 'awaiting_review', review = 'required', run_at = null")

    watched = noria("watch", job_id)

    assert (watched.code, "awaiting_review" in watched.out) == (0, True)


def test_a_list_is_narrowed_by_its_filters(noria: Shell, api: Served) -> None:
    noria(*SUBMIT, "--custom-id", "one", "--metadata", "sku=A1")
    noria("submit", "text-to-image", "--model", "wan2.2-t2i-flash", "--prompt", "a poster", "--custom-id", "two")

    def names(*filters: str) -> list[str]:
        return [job["custom_id"] for job in noria("list", *filters, "--json").json]

    assert names() == ["two", "one"]
    assert names("--limit", "1") == ["two"]
    assert names("--metadata", "sku=A1") == ["one"]
    assert names("--kind", "text-to-image", "--state", "queued") == ["two"]
    assert names("--text", "poster") == ["two"]
    assert names("--state", "failed") == []


def test_a_job_is_shown_with_what_it_waits_for_and_how_long_each_step_took(noria: Shell, api: Served) -> None:
    job_id = noria(*SUBMIT, "--custom-id", "row-1").out.strip()

    said = noria("show", job_id)

    assert "waits for one of the model's concurrent tasks" in said.out
    assert "~1.50 CNY" in said.out
    assert "queued" in said.out.splitlines()[-1]


def test_a_picture_of_this_machine_is_uploaded_and_named_by_its_key(noria: Shell, api: Served) -> None:
    (noria.cwd / "cat.png").write_bytes(PNG)

    job = noria(*ANIMATE, "--image", "cat.png", "--json").json

    file = noria("files", "--json").json[0]
    assert job["input"]["img_url"] == file["key"]
    assert (file["name"], file["content_type"]) == ("cat.png", "image/png")
    assert noria(*ANIMATE, "--image", "https://example.com/cat.png", "--json").json["input"]["img_url"][:5] == "https"
    assert noria(*ANIMATE, "--image", "dog.png").err == (
        "Nothing was submitted. What is wrong:\nimg_url: there is no file dog.png\n"
    )


def test_what_is_spoken_and_what_is_summarised_comes_from_files(noria: Shell, api: Served) -> None:
    day = noria.cwd / "day"
    (day / "north").mkdir(parents=True)
    (day / ".git").mkdir()
    for name, content in {
        "a.txt": b"The wheel turned all day.",
        "north/b.md": "# 一天\n水车转了一天。".encode(),
        ".git/c.txt": b"Not meant.",
        "d.exe": b"\0\0\0\0",
        "REPORT": b"Level 12.",
        "e.log": b"",
        "f.docx": b"PK\3\4",
        "g.png": PNG,
    }.items():
        (day / name).write_bytes(content)
    (noria.cwd / "script.txt").write_bytes("水车转了一天。老李在渠边说，水是不会等人的。".encode("gbk"))
    (noria.cwd / "script.md").write_text("# 一天\n\n**水车**转了一天。[pause 2s]", encoding="utf-16")
    (noria.cwd / "script.bin").write_bytes(bytes(range(256)))
    (noria.cwd / "empty").mkdir()

    spoken = noria("submit", "speech", "--text-file", "script.txt", "--model", "qwen3-tts-flash", "--json").json
    marked = noria("submit", "speech", "--text-file", "script.md", "--model", "qwen3-tts-flash", "--json").json
    rubbish = noria("submit", "speech", "--text-file", "script.bin", "--model", "qwen3-tts-flash")
    told = noria("submit", "summary", "--documents", "day", "--model", "qwen-flash", "--json")
    summed = told.json
    refused = noria("submit", "summary", "--documents", "day/d.exe", "--model", "qwen-flash")
    nothing = noria("submit", "summary", "--documents", "empty", "--model", "qwen-flash")

    assert spoken["input"]["text"] == "水车转了一天。老李在渠边说，水是不会等人的。"
    assert (marked["input"]["text"], marked["input"]["markup"]) == ("一天\n\n水车转了一天。[pause 2s]", "markdown")
    assert (rubbish.code, "script.bin is no text" in rubbish.err) == (2, True)
    assert [document["id"] for document in summed["input"]["documents"]] == ["REPORT", "a.txt", "f.docx", "north/b.md"]
    assert [line for line in told.err.splitlines() if line.startswith("left out")] == [
        "left out: .git/c.txt is hidden",
        "left out: d.exe is no document",
        "left out: e.log is empty",
        "left out: g.png is no document",
    ]
    assert {document["key"] for document in summed["input"]["documents"]} == {
        file["key"] for file in noria("files", "--json").json
    }
    assert (refused.code, nothing.code) == (5, 5)
    assert "day/d.exe: file: must be a picture" in refused.err
    assert "There is no document in empty" in nothing.err


def test_files_are_uploaded_listed_and_deleted(noria: Shell, api: Served) -> None:
    (noria.cwd / "cat.png").write_bytes(PNG)
    (noria.cwd / "notes.txt").write_text("Some words.")

    keys = noria("files", "upload", "cat.png", "notes.txt").out.split()
    listed = noria("files").out
    ids = [key.rpartition("/")[2].partition(".")[0] for key in keys]
    deleted = noria("files", "delete", *ids)

    assert all(len(line) <= 80 for line in listed.splitlines())
    assert all(word in listed for word in (*ids, "cat.png", "image/png", "32 B"))
    assert deleted.code == 0
    assert noria("files").err == "No files.\n"
    assert noria("files", "delete", *ids).code == 5


def test_a_job_that_is_made_in_parts_is_shown_with_them(noria: Shell, api: Served) -> None:
    job_id = noria(*SUBMIT).out.strip()
    api.sql("update jobs set mode = 'parent', state = 'gathering', round = 1, run_at = null")
    api.sql(
        "insert into jobs (project_id, parent_id, round, place, kind, model, input, state, finished_at, run_at, error)"
        " select project_id, id, 1, part, kind, model, input, case when part < 3 then 'succeeded' else 'failed' end,"
        " now(), null, case when part = 3 then cast(:error as jsonb) end from jobs, generate_series(0, 3) as part",
        error=json.dumps({"class": "provider", "code": "nothing", "message": "nothing came"}),
    )
    api.sql(
        "insert into events (job_id, project_id, sequence, type, entered)"
        " select id, project_id, 1, 'job.queued', 'queued' from jobs where parent_id is not null"
    )

    shown, parts = noria("show", job_id), noria("children", job_id)
    failed = noria("children", job_id, "--state", "failed", "--json").json

    assert "4: 3 succeeded, 1 failed" in shown.out
    assert "3 of 4 parts are made; 1 failed" in shown.out
    assert f"1.4 {failed[0]['id']} nothing came" in " ".join(shown.out.split())
    assert [line.split()[0] for line in parts.out.splitlines()[2:]] == ["1.1", "1.2", "1.3", "1.4"]
    assert all(len(line) <= 80 for said in (shown, parts) for line in said.out.splitlines())
    assert failed[0]["id"] in noria("show", failed[0]["id"]).out
    assert noria("children", failed[0]["id"]).err == "No such parts.\n"


def test_a_job_is_made_again(noria: Shell, api: Served) -> None:
    job_id = noria(*SUBMIT).out.strip()
    early = noria("retry", job_id)
    noria("cancel", job_id)

    again = noria("retry", job_id)

    assert early.code == 5
    assert "it is queued: only what failed" in early.err
    assert again.out.startswith(f"{job_id}  queued, ")


def test_a_kept_key_goes_nowhere_but_where_it_belongs(tmp_path: Path) -> None:
    reach.keep(tmp_path, Door("http://127.0.0.1:1234", "noria_kept"))

    assert reach.door(tmp_path, None, None).key == "noria_kept"
    assert (tmp_path / "client.json").stat().st_mode & 0o077 == 0
    with pytest.raises(reach.NotReachable, match="wants a key"):
        reach.door(tmp_path, "https://elsewhere.example", None)


def test_the_installed_command_prints_nothing_but_its_result(api: Served, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from ops.cli import main; main()"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        return subprocess.run(
            [*program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    made, missing = run(*SUBMIT), run("show", str(uuid.uuid4()))

    assert (made.returncode, made.stderr) == (0, "")
    assert uuid.UUID(made.stdout.strip())
    assert (missing.returncode, missing.stdout) == (5, "")
    assert "noria list" in missing.stderr


def test_a_custom_id_with_a_control_character_is_refused_by_its_name(api: Served) -> None:
    with api.http(api.key("spring")) as http:
        for custom_id in ("\x1b[2J", "a\nb", "\x9bH", "a\x7f"):
            answer = http.post("/v1/jobs", json={**CLIP, "custom_id": custom_id})

            assert answer.status_code == 422
            assert [(f["pointer"], f["code"]) for f in answer.json()["errors"]] == [("/custom_id", "control_character")]
        assert http.post("/v1/jobs", json={**CLIP, "custom_id": "行 17 🎬"}).status_code == 201


def test_no_text_of_a_job_moves_the_terminals_cursor(
    noria: Shell, api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b]0;pwned\x07\x1b[2J\x9b1m\x7f\u202e"
    job_id = noria(*SUBMIT).out.strip()
    error = {"class": "provider", "code": "x", "message": evil, "hint": evil, "retryable": False}
    api.sql(
        "update jobs set custom_id = :evil, labels = cast(:labels as jsonb), state = 'failed', run_at = null,"
        " finished_at = now(), error = cast(:error as jsonb), input = input || cast(:input as jsonb)",
        evil=evil, labels=json.dumps({"a": evil}), error=json.dumps(error), input=json.dumps({"prompt": evil}),
    )  # fmt: skip
    api.sql("update events set why = :evil", evil=evil)

    for command in (["list"], ["show", job_id], ["watch", job_id], ["list", "--json"], ["watch", job_id, "--json"]):
        said = noria(*command)

        assert "pwned" in said.out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said.out + said.err), command
    assert noria("list", "--json").json[0]["custom_id"] == evil, "JSON says the same, escaped"


@pytest.mark.parametrize("outcome", ["sent", "accepted", "refused", "not_sent", "unknown", "absent"])
def test_an_attempt_is_shown_whatever_of_it_is_known(noria: Shell, api: Served, outcome: str) -> None:
    job_id = noria(*SUBMIT).out.strip()
    api.sql(
        "insert into attempts (id, job_id, project_id, number, owner, account, region, model, request_hash, outcome)"
        " select gen_random_uuid(), id, project_id, 1, 'o', 'a', 'cn-beijing', model, '', :outcome from jobs",
        outcome=outcome,
    )

    said = noria("show", job_id)

    assert (said.code, said.err) == (0, "")
    assert re.search(rf"^1 +{outcome} +unknown", said.out, re.MULTILINE)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9", "what://ever", "http://[half"])
def test_no_proxy_of_the_environment_stands_between_the_command_and_this_machine(
    noria: Shell, api: Served, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)

    assert noria("list", "--json").json == []


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "what://ever"])
def test_a_proxy_that_cannot_be_used_is_a_sentence(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("all_proxy", proxy)

    with pytest.raises(httpx.ProxyError, match="no proxy is what all_proxy names"):
        Client("https://noria.example", "noria_key")


@pytest.mark.parametrize(
    ("name", "value"), [("NORIA_KEY", "noria_键"), ("NORIA_URL", "http://[half"), ("NORIA_URL", "localhost")]
)
def test_what_the_environment_has_wrong_is_a_sentence(
    noria: Shell, api: Served, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    said = noria("list")

    assert said.code == 4
    assert said.err


@pytest.mark.parametrize("ending", ["/", "/v1", "/v1/", "/docs"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_the_apis_address_is_taken_as_it_is_copied(
    noria: Shell, api: Served, monkeypatch: pytest.MonkeyPatch, scheme: str, ending: str
) -> None:
    """`noria up` shows it with /v1, and that was "no such route"."""
    monkeypatch.setenv("NORIA_URL", scheme + api.url.removeprefix("http://") + ending)

    assert noria("list").code == 0


def test_up_runs_the_sandbox_in_a_tenth_of_the_times_and_says_so(
    noria: Shell, api: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[UpOptions] = []

    def stack(options: UpOptions, *_: object) -> Any:
        asked.append(options)
        raise LocalError("enough")

    monkeypatch.setattr("ops.local.up.stack", stack)
    for arguments in (["up"], ["up", "--true-times"], ["up", "--time-scale", "0.02"]):
        assert noria(*arguments).err == "enough\n"
    assert [options.time_scale for options in asked] == [0.1, 1.0, 0.02]

    addresses = {"API": "a", "Flower": "f", "S3": "s", "sandbox": "x"}
    for options in asked[:2]:
        running: Any = SimpleNamespace(addresses=addresses)
        embedded.make_home(noria.cwd / ".noria")
        cli._welcome(options, running, Door(api.url, api.key("spring")), as_json=False)
    tenth, whole = capsys.readouterr().out.split("Noria runs on")[1:]
    assert "0.1 of the provider's times; --true-times" in tenth
    assert "--true-times" not in whole
    assert re.search(r"^  console +http://\S+/console/enter\?link=\S+  \(signs in once", tenth, re.MULTILINE)


def test_webhooks_are_registered_tried_and_sent_again(noria: Shell, api: Served) -> None:
    made = noria("webhooks", "create", "http://127.0.0.1:9/hooks", "--event", "job.*", "--json").json
    noria(*SUBMIT)
    tried = noria("webhooks", "test", made["id"])
    listed = noria("webhooks", "list").out
    (delivery,) = noria("webhooks", "deliveries", made["id"], "--json").json
    rotated = noria("webhooks", "rotate", made["id"])
    again = noria("webhooks", "redeliver", made["id"], delivery["id"])
    by_nothing = noria("webhooks", "redeliver", made["id"])
    gone = noria("webhooks", "delete", made["id"])

    assert made["secret"].startswith("whsec_")
    assert (tried.code, "127.0.0.1" in tried.out) == (1, True)
    assert made["id"] in listed
    assert "whsec_" not in listed
    assert rotated.out.strip().startswith("whsec_")
    assert (again.code, again.out.strip()) == (0, "1 are due again.")
    assert by_nothing.code == 5
    assert (gone.code, noria("webhooks", "list").out) == (0, "")
