"""`noria batch`, `noria batches` and `noria review`: what they print, make and leave alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from rich.console import Console
from serving import Served
from test_cli import PNG, Shell, api, noria

from ops.cli import batches, review

__all__ = ["api", "noria"]

CSV = """custom_id,kind,model,prompt,size,duration,metadata.sku
first,text-to-video,wan2.5-t2v-preview,a kitten runs,832*480,5,A1
第二,text-to-image,wan2.2-t2i-flash,"一只猫，在月光下",1024*1024,,B2
"""
README = Path(__file__).resolve().parents[1] / "README.md"
SEND = ("batch", "campaign.csv", "--yes", "--detach", "--json")


@pytest.fixture
def file(noria: Shell) -> Path:
    path = noria.cwd / "campaign.csv"
    path.write_text("\ufeff" + CSV, encoding="utf-8")  # as Excel writes it
    return path


def jobs(noria: Shell) -> list[dict[str, Any]]:
    return list(noria("list", "--json").json)


def test_a_file_makes_its_jobs_once_however_often_it_is_sent(noria: Shell, api: Served, file: Path) -> None:
    first = noria(*SEND).json
    again = noria(*SEND).json
    once = jobs(noria)
    anew = noria(*SEND, "--repeat", "second-run").json

    assert first["report"]["cost"] == "1.64"
    assert {job["custom_id"]: job["metadata"] for job in once} == {"first": {"sku": "A1"}, "第二": {"sku": "B2"}}
    assert (first["rows"]["made"], again["rows"]["existing"], anew["rows"]["made"]) == (2, 2, 2)
    assert len(once) == 2
    assert len(jobs(noria)) == 4


def test_the_readmes_campaign_is_right_as_it_stands(noria: Shell, api: Served, file: Path) -> None:
    section = README.read_text(encoding="utf-8").partition("### Render a campaign")[2]
    file.write_text(section.split("```")[1].lstrip(), encoding="utf-8")

    said = noria("batch", "campaign.csv", "--dry-run", "--json").json

    assert (said["rows"]["total"], said["report"]["faults"]) == (3, [])


def test_after_an_edit_only_the_edited_rows_are_new(noria: Shell, api: Served, file: Path) -> None:
    noria(*SEND)
    file.write_text(CSV.replace("A1", "A2"), encoding="utf-8")

    again = noria(*SEND).json

    assert (again["rows"]["made"], again["rows"]["existing"]) == (1, 1)


def test_every_wrong_line_is_reported_and_nothing_is_made(noria: Shell, api: Served, file: Path) -> None:
    wrong = CSV + "third,text-to-video,wan9,x,,,\n" + "fourth,text-to-video,wan2.5-t2v-preview,x,1*1,3,\n"
    file.write_text(wrong, encoding="utf-8")

    said = noria("batch", "campaign.csv", "--yes")
    rest = noria(*SEND, "--skip-bad").json

    assert said.code == 5
    for begins in ("line 4, column model: ", "line 5, column size: ", "line 5, column duration: "):
        assert begins in said.err
    assert "--skip-bad" in said.err
    assert (rest["rows"]["made"], rest["rows"]["skipped"]) == (2, 2)
    assert len(noria("batches", "--json").json) == 1


def test_a_report_that_nobody_may_act_on_is_a_document_all_the_same(noria: Shell, api: Served, file: Path) -> None:
    """With --json a file with faults was a sentence alone, and a dry run of it ended with 0."""
    file.write_text(CSV + "third,text-to-video,wan9,x,,,\n", encoding="utf-8")

    said = [noria("batch", "campaign.csv", "--json", *more) for more in (("--yes",), ("--dry-run",))]

    assert [(each.code, each.json["report"]["faults"][0]["line"]) for each in said] == [(5, 4)] * 2
    assert noria("batches", "--json").json == []


def test_a_file_that_is_none_is_refused_in_plain_words(noria: Shell, api: Served, file: Path) -> None:
    file.write_bytes(b"")

    said = noria("batch", "campaign.csv", "--yes")

    assert said.code == 5
    assert "empty" in said.err
    assert noria("batches", "--json").json == []


def test_nobody_to_ask_means_no(noria: Shell, api: Served, file: Path) -> None:
    said = noria("batch", "campaign.csv")

    assert said.code == 5
    assert "2 rows; ¥1.64" in said.err
    assert "give --yes" in said.err
    assert noria("batches", "--json").json == []


def test_a_person_is_asked(noria: Shell, api: Served, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    asked: list[str] = []
    monkeypatch.setattr(typer, "confirm", lambda question, **_: asked.append(question) or len(asked) > 1)

    no, yes = noria("batch", "campaign.csv", "--detach"), noria("batch", "campaign.csv", "--detach")

    assert (no.code, yes.code, len(asked)) == (5, 0, 2)
    assert [each["id"] for each in noria("batches", "--json").json] == [yes.out.strip()]


def test_who_breaks_off_at_the_question_leaves_no_draft(
    noria: Shell, api: Served, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())  # which is at its end, as by Ctrl-D

    said = noria("batch", "campaign.csv")

    assert (said.code, said.err.strip().splitlines()[-1]) == (5, "Nothing was made.")
    assert noria("batches", "--json").json == []


def test_what_is_there_already_costs_nothing_and_nobody_is_asked(noria: Shell, api: Served, file: Path) -> None:
    noria(*SEND)

    again = noria("batch", "campaign.csv", "--detach")

    assert again.code == 0
    assert "campaign.csv: 2 rows, 2 there already; nothing to make" in again.err


def test_a_dry_run_leaves_no_draft(noria: Shell, api: Served, file: Path) -> None:
    said = noria("batch", "campaign.csv", "--dry-run", "--json")

    assert said.json["report"]["cost"] == "1.64"
    assert noria("batches", "--json").json == []
    assert jobs(noria) == []


def test_what_rows_leave_out_comes_from_options(noria: Shell, api: Served, file: Path) -> None:
    file.write_text("prompt\na kitten\n")
    options = ("--kind", "text-to-video", "--model", "wan2.5-t2v-plus", "--input", "duration=5", "--priority", "high")
    when = ("--not-after", "2126-01-01T00:00:00Z")

    far = noria(*SEND, *options, *when)
    noria(*SEND, *options, "--review", "--metadata", "wave=1")

    [job] = jobs(noria)
    assert far.code == 5
    assert (job["model"], job["input"]["duration"], job["priority"]) == ("wan2.5-t2v-preview", 5, "high")
    assert (job["metadata"], job["review"]["decision"]) == ({"wave": "1"}, None)


def test_files_that_rows_name_are_uploaded_once_and_a_second_run_makes_nothing_twice(noria: Shell, api: Served) -> None:
    spring = noria.cwd / "spring"
    (spring / "photos").mkdir(parents=True)
    (spring / "photos" / "cat.png").write_bytes(PNG)
    row = "image-to-video,wan2.5-i2v-preview,photos/cat.png"
    (spring / "clips.csv").write_text(f"kind,model,img_url,prompt\n{row},it purrs\n{row},it jumps\n")
    send = ("batch", "spring/clips.csv", "--yes", "--detach", "--json")

    first, again = noria(*send).json, noria(*send).json
    named = {job["input"]["img_url"] for job in jobs(noria)}
    (spring / "photos" / "cat.png").write_bytes(PNG + b"another cat")
    changed = noria(*send).json

    assert (first["rows"]["made"], again["rows"]["existing"], changed["rows"]["made"]) == (2, 2, 2)
    assert len(named) == 1
    assert len(noria("files", "--json").json) == 2


def test_every_file_that_is_not_there_is_reported_before_anything_is_uploaded(noria: Shell, api: Served) -> None:
    (noria.cwd / "cat.png").write_bytes(PNG)
    row = "image-to-video,wan2.5-i2v-preview"
    (noria.cwd / "campaign.csv").write_text(f"kind,model,img_url,audio_url\n{row},cat.png,\n{row},dog.png,bark.wav\n")

    said = noria("batch", "campaign.csv", "--yes")

    assert said.code == 5
    assert "line 3: img_url: there is no file dog.png" in said.err
    assert "line 3: audio_url: there is no file bark.wav" in said.err
    assert noria("files", "--json").json == []


def test_a_batch_is_followed_to_its_end_and_exits_1_where_a_job_did_not_succeed(
    noria: Shell, api: Served, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = noria(*SEND).json
    looks: Iterator[str] = iter(
        [
            "update jobs set state = 'succeeded', run_at = null, finished_at = now() where custom_id = 'first'",
            "update jobs set state = 'failed', run_at = null, finished_at = now() where custom_id <> 'first'",
            "update batches set state = 'completed', completed_at = now(), run_at = null",
        ]
    )
    monkeypatch.setattr("ops.cli.batches.time", SimpleNamespace(sleep=lambda _: api.sql(next(looks))))

    said = noria("batches", "watch", made["id"])

    assert said.code == 1
    assert "1 queued, 1 succeeded" in said.err
    assert "1 succeeded, 1 failed" in said.err
    assert said.out.strip() == made["id"]


def test_a_batch_that_waits_for_people_alone_is_left_to_them(noria: Shell, api: Served, file: Path) -> None:
    made = noria(*SEND, "--review").json
    api.sql("update jobs set state = 'awaiting_review', run_at = null")

    said = noria("batches", "watch", made["id"])

    assert said.code == 0
    assert f"2 jobs to be looked at: noria review --batch {made['id']}" in said.err


def test_a_batch_is_paused_resumed_and_canceled(noria: Shell, api: Served, file: Path) -> None:
    made = noria(*SEND).json

    paused, resumed = noria("batches", "pause", made["id"]), noria("batches", "resume", made["id"])
    canceled = noria("batches", "cancel", made["id"], "--json").json

    assert "paused" in paused.out
    assert "held 2" in paused.out
    assert "queued 2" in resumed.out
    assert canceled["jobs"]["by_state"] == {"canceled": 2}


def test_what_failed_is_made_again_once_its_price_is_agreed_to(noria: Shell, api: Served, file: Path) -> None:
    made = noria(*SEND).json
    noria("batches", "cancel", made["id"])

    plan, no, yes = (noria("batches", "retry", made["id"], *more) for more in (("--dry-run",), (), ("--yes",)))

    assert "2 jobs, ¥1.64" in plan.err
    assert plan.out == ""
    assert (no.code, yes.code) == (5, 0)
    assert {job["state"] for job in jobs(noria)} == {"queued"}


def test_a_report_is_written_to_a_file(noria: Shell, api: Served, file: Path) -> None:
    made = noria(*SEND).json

    noria("batches", "export", made["id"], "-o", "out.csv")

    assert "第二" in (noria.cwd / "out.csv").read_text(encoding="utf-8-sig")
    assert noria("batches", "export", made["id"], "--json").json == {"file": "report.csv"}
    assert noria("batches", "export", made["id"], "no.csv").code == 5
    assert sorted(path.name for path in noria.cwd.glob("*.*")) == ["campaign.csv", "out.csv", "report.csv"]


def test_outputs_are_kept_rejected_and_made_again(noria: Shell, api: Served, file: Path) -> None:
    noria(*SEND, "--review")
    api.sql("update jobs set state = 'awaiting_review', run_at = null")
    listed = noria("review", "--json").json
    first, second = sorted(job["id"] for job in listed)

    kept = noria("review", "approve", first, "--json").json
    again = noria("review", "reroll", second, "--comment", "too dark", "--prompt", "a bright cat", "--json").json

    assert kept[0]["state"] == "succeeded"
    assert again["job"]["state"] == "rejected"
    assert (again["next_take"]["take"], again["next_take"]["input"]["prompt"]) == (2, "a bright cat")
    assert noria("review").err.strip() == "Nothing waits for a review."


def test_a_person_decides_one_after_the_other(
    noria: Shell, api: Served, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noria(*SEND, "--review")
    api.sql("update jobs set state = 'awaiting_review', run_at = null")
    monkeypatch.setattr("sys.stdin", Terminal())
    answers = iter(["?", "k", "e", "too dark", "a bright cat"])
    monkeypatch.setattr(review.typer, "prompt", lambda *_, **__: next(answers))

    said = noria("review")

    assert "1 of 2" in said.out
    assert "take 2: " in said.out
    assert sorted(job["state"] for job in jobs(noria)) == ["queued", "rejected", "succeeded"]


def test_what_somebody_else_decided_meanwhile_is_said_and_the_next_one_comes(
    noria: Shell, api: Served, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noria(*SEND, "--review")
    api.sql("update jobs set state = 'awaiting_review', run_at = null")
    monkeypatch.setattr("sys.stdin", Terminal())

    def answer(*_: Any, **__: Any) -> str:
        if not (waiting := waiting_jobs(api)):
            raise typer.Abort
        api.sql("update jobs set review = 'rejected', state = 'rejected', finished_at = now() where id = :id",
                id=waiting[0])  # fmt: skip
        return "k"

    monkeypatch.setattr(review.typer, "prompt", answer)

    said = noria("review")

    assert said.code == 0
    assert said.err.count("it was rejected before, which is final") >= 1
    assert "2 of 2" in said.out


def waiting_jobs(api: Served) -> list[Any]:
    """The jobs that wait for a review, the newest first, as they are listed."""
    waiting = "select id from jobs where state = 'awaiting_review' order by id desc"
    return [row["id"] for row in api.sql(waiting)]


def test_the_bar_fits_eighty_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    states = {"queued": 4000, "held": 3, "running": 5, "awaiting_review": 12, "succeeded": 5900, "failed": 80}
    found = {
        "name": "campaign.csv",
        "state": "running",
        "finish_at": None,
        "jobs": {"total": 10_000, "unfinished": 4020, "by_state": states},
        "cost": {"actual": "8850.00", "to_come": "6030.00", "estimated": "15000.00"},
        "review": {"waiting": 12, "approved": 5000, "rejected": 3, "cost_per_approved": "1.77"},
    }

    console.print(batches.progress(found, console))

    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    assert "5,992 of 10,000" in lines[0]


class Terminal(io.StringIO):
    """Where a person sits."""

    def isatty(self) -> bool:
        return True
