"""The demo, run as a user runs it; and what it judges by."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import httpx
import psutil
import pytest
from PIL import Image

from ops.demo import judge, receiver, workloads
from ops.demo.workloads import CAMPAIGN
from ops.local.supervise import MARK, end_leftovers
from worker import webhooks
from worker.kinds.speech import script, timeline
from worker.kinds.summary import documents

PROJECT = Path(__file__).resolve().parents[1]
MISLEADING = {
    "DASHSCOPE_API_KEY": "sk-real",
    "NORIA_DASHSCOPE_URL": "http://127.0.0.1:9",
    "NORIA_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:9/none",
    "NORIA_URL": "http://127.0.0.1:9",
    "NORIA_KEY": "noria_elsewhere",
}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that an ordinary user's PostgreSQL may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="noria-demo-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_demo_makes_clips_a_narration_and_summaries_and_leaves_nothing_running(home: Path) -> None:
    program = [sys.executable, "-c", "from ops.cli import main; main()", "demo", "--home", str(home), "--json"]

    done = subprocess.run(
        program, cwd=PROJECT, env={**os.environ, **MISLEADING}, capture_output=True, text=True, check=False, timeout=150
    )

    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["bad"] == []
    assert "webhooks delivered: 14, verified" in told["good"]
    assert any(line.startswith("by the sandbox's own bill: ") and line.endswith("equal") for line in told["good"])
    outputs = [output for one in told["made"] for output in one["outputs"]]
    assert len({output["key"] for output in outputs}) == 12 + len(("wav", "srt", "vtt", "json")) + len(("jsonl", "md"))
    assert {path.name for path in (home / "outputs").iterdir()} == {output["file"] for output in outputs}
    assert [one["holds"] for one in told["made"] if one["kind"] == "summary"] == ["12 summaries"]
    assert _at_work_in(home) == []


def test_the_campaign_has_twelve_clips_and_pictures_in_two_languages() -> None:
    text = CAMPAIGN.read_text(encoding="utf-8")
    rows = text.splitlines()[1:]

    assert len(rows) == 12
    assert sum(",text-to-image," in row for row in rows) >= 1
    assert sum(row.isascii() for row in rows) >= 4
    assert sum(not row.isascii() for row in rows) >= 4


def test_the_narration_is_long_and_in_two_languages() -> None:
    text = workloads.NARRATION.read_text(encoding="utf-8")
    english = [part.isascii() for part in script.paragraphs(text)]

    assert 3_000 <= len(text) <= 5_000
    assert english == [False, True] * (len(english) // 2)


def test_a_dozen_documents_of_every_form_can_be_read() -> None:
    read = {path: documents.text_of(path.read_bytes()) for path in workloads.brought()}

    assert len(read) == 12
    assert {path.suffix for path in read} == {".txt", ".md", ".html", ".pdf"}
    assert sum(not text.isascii() and "\u3002" in text for text in read.values()) >= 4


def test_a_narration_is_held_against_its_parts_its_pauses_and_its_text(tmp_path: Path) -> None:
    job, files = _narration(tmp_path)

    assert judge.prove(job, files, frozenset()) == ("1.7 s", None)


def test_a_narration_with_a_sample_too_few_is_found(tmp_path: Path) -> None:
    job, files = _narration(tmp_path, missing=1)

    _, fault = judge.prove(job, files, frozenset())

    assert fault == "narration.wav holds 40,799 samples, its segments and pauses 40,800"


def test_a_narration_that_leaves_a_word_out_is_found(tmp_path: Path) -> None:
    job, files = _narration(tmp_path)
    job["input"]["paragraphs"][1]["text"] += " Nobody spoke this."

    _, fault = judge.prove(job, files, frozenset())

    assert fault == "what was spoken is not the text, once and in order"


def test_subtitles_that_outlast_the_sound_are_found(tmp_path: Path) -> None:
    job, files = _narration(tmp_path, subtitles_end=2.5)

    _, fault = judge.prove(job, files, frozenset())

    assert fault == "narration.srt ends after 2500 ms, the sound after 1700"


@pytest.mark.parametrize(
    ("summary", "of", "fault"),
    [
        ("It rained.", {"weather.txt"}, None),
        ("It rained.", {"weather.txt", "budget.md"}, "the lines of summaries.jsonl are not one for each document"),
        (None, {"weather.txt"}, "without a summary: inbox/demo/weather.txt"),
    ],
)
def test_summaries_are_one_for_each_document(
    tmp_path: Path, summary: str | None, of: set[str], fault: str | None
) -> None:
    files = {"jsonl": tmp_path / "summaries.jsonl", "md": tmp_path / "digest.md"}
    files["jsonl"].write_text(json.dumps({"id": "inbox/demo/weather.txt", "summary": summary}) + "\n")
    files["md"].write_text("All of it in a word.")

    found = judge.prove({"kind": "summary"}, files, frozenset(of))

    assert found == (("1 summaries", None) if fault is None else ("", fault))


def test_every_frame_of_a_clip_is_counted_and_a_cut_one_is_found(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    _clip(whole, frames=12, rate=4)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    seen = judge.play(whole, "video/mp4")

    assert (seen.frames, seen.seconds, seen.width) == (12, 3.0, 64)
    with pytest.raises(judge.Unplayable):
        judge.play(cut, "video/mp4")


def test_a_picture_is_decoded_to_its_end(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.effect_noise((64, 48), 50).save(whole)
    cut.write_bytes(whole.read_bytes()[:900])

    assert judge.play(whole, "image/png") == judge.Seen(64, 48, 1, None)
    with pytest.raises(judge.Unplayable):
        judge.play(cut, "image/png")


class _Books:
    """A sandbox of which only the ledger is asked."""

    def __init__(self, **totals: int) -> None:
        self._totals = totals

    def ledger(self) -> dict[str, Any]:
        return {"totals": self._totals}


@pytest.mark.parametrize(
    ("creates", "refused", "equal"),
    [(2, 0, True), (3, 1, True), (3, 0, False)],
    ids=["each asked once", "one throttled and asked again", "one asked twice"],
)
def test_a_refused_create_call_is_none_that_was_paid(creates: int, refused: int, equal: bool) -> None:
    jobs = [{"cost": {"actual": "1.5"}, "children": None}] * 2
    findings = judge.Findings()

    judge.bill(_Books(tasks=2, creates=creates, refused=refused, billed_micros=3_000_000), jobs, findings)  # type: ignore[arg-type]

    assert (bool(findings.good), bool(findings.bad)) == (equal, not equal)


def test_the_receiver_takes_what_is_signed_and_refuses_what_is_not() -> None:
    secret, body = webhooks.new_secret(), json.dumps({"type": "job.succeeded", "data": {"id": "job-1"}})
    right = webhooks.signed("evt_1", body, secret, datetime.now(UTC))
    wrong = webhooks.signed("evt_2", body, webhooks.new_secret(), datetime.now(UTC))

    with receiver.receiving(secret) as mail:
        answers = [httpx.post(mail.url, content=body, headers=headers).status_code for headers in (wrong, right)]
        came = mail.wait_for(1, seconds=5)

    assert answers == [400, 204]
    assert came
    assert (mail.told, mail.forged) == ({"job-1": "job.succeeded"}, 1)


def test_a_demo_inside_the_home_of_noria_up_is_none_of_its_leftovers(home: Path) -> None:
    stack = home / "demo" / "stack"
    (stack / "postgres").mkdir(parents=True)
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=stack / "postgres") as server:
        executables = [Path(psutil.Process(server.pid).exe())]

        end_leftovers(home, executables, said.append)
        survived = server.poll() is None
        end_leftovers(stack, executables, said.append)

        assert survived
        assert not psutil.pid_exists(server.pid)


def _narration(folder: Path, missing: int = 0, subtitles_end: float = 1.7) -> tuple[dict[str, Any], dict[str, Path]]:
    """A job of two paragraphs, half a second each and 0.7 s between them, and its files."""
    texts = ["The wheel turns.", "Water waits for nobody."]
    places = [(0.0, 0.5), (1.2, subtitles_end)]
    files = {form: folder / f"narration.{form}" for form in ("wav", "json", "srt", "vtt")}
    with wave.open(str(files["wav"]), "wb") as sound:
        sound.setparams((1, 2, 24_000, 0, "NONE", ""))
        sound.writeframes(bytes(2 * (40_800 - missing)))
    spoken = zip(texts, [(0.0, 0.5), (1.2, 1.7)], strict=True)
    segments = [{"paragraph": n, "start": a, "end": b, "text": text} for n, (text, (a, b)) in enumerate(spoken)]
    told = {"samples": 40_800, "seconds": 1.7, "segments": segments}
    files["json"].write_text(json.dumps(told))
    lines = [timeline.Line(text, start, end) for text, (start, end) in zip(texts, places, strict=True)]
    for form in ("srt", "vtt"):
        files[form].write_text(timeline.subtitles(lines, form))
    asked = {"paragraphs": [{"text": text} for text in texts], "pause": 0.25, "paragraph_pause": 0.7}
    return {"kind": "speech", "input": asked}, files


def _clip(path: Path, frames: int, rate: int) -> None:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            noise = Image.effect_noise((64, 48), 50).convert("RGB")
            picture: av.VideoFrame = av.VideoFrame.from_image(noise)  # type: ignore[no-untyped-call]
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _at_work_in(home: Path) -> list[str]:
    """Processes that carry a mark of a home in there, or work in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            marked = process.environ().get(MARK, "").startswith(str(home))
            if marked or process.cwd().startswith(str(home)):
                found.append(process.name())
    return found
