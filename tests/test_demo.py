"""The demo, run as a user runs it; and what it judges by."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import av
import httpx
import psutil
import pytest
from PIL import Image

from ops import verify
from ops.demo import receiver
from ops.demo.demo import CAMPAIGN
from ops.supervise import MARK, end_leftovers
from worker import webhooks

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


def test_the_demo_makes_twelve_files_that_play_and_leaves_nothing_running(home: Path) -> None:
    program = [sys.executable, "-c", "from ops.cli import main; main()", "demo", "--home", str(home), "--json"]

    done = subprocess.run(
        program, cwd=PROJECT, env={**os.environ, **MISLEADING}, capture_output=True, text=True, check=False, timeout=150
    )

    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["bad"] == []
    assert "webhooks delivered: 12, verified" in told["good"]
    assert any(
        line.startswith("by the sandbox's own bill: 12 tasks") and line.endswith("equal") for line in told["good"]
    )
    assert len({one["key"] for one in told["made"]}) == 12
    assert {path.name for path in (home / "outputs").iterdir()} == {one["file"] for one in told["made"]}
    assert _at_work_in(home) == []


def test_the_campaign_has_twelve_clips_and_pictures_in_two_languages() -> None:
    text = CAMPAIGN.read_text(encoding="utf-8")
    rows = text.splitlines()[1:]

    assert len(rows) == 12
    assert sum(",text-to-image," in row for row in rows) >= 1
    assert sum(row.isascii() for row in rows) >= 4
    assert sum(not row.isascii() for row in rows) >= 4


def test_every_frame_of_a_clip_is_counted_and_a_cut_one_is_found(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    _clip(whole, frames=12, rate=4)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    seen = verify.play(whole, "video/mp4")

    assert (seen.frames, seen.seconds, seen.width) == (12, 3.0, 64)
    with pytest.raises(verify.Unplayable):
        verify.play(cut, "video/mp4")


def test_a_picture_is_decoded_to_its_end(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.effect_noise((64, 48), 50).save(whole)
    cut.write_bytes(whole.read_bytes()[:900])

    assert verify.play(whole, "image/png") == verify.Seen(64, 48, 1, None)
    with pytest.raises(verify.Unplayable):
        verify.play(cut, "image/png")


def test_the_receiver_takes_what_is_signed_and_refuses_what_is_not() -> None:
    secret, body = webhooks.new_secret(), json.dumps({"type": "job.succeeded", "data": {"id": "job-1"}})
    right = webhooks.signed(1, body, secret, datetime.now(UTC))
    wrong = webhooks.signed(2, body, webhooks.new_secret(), datetime.now(UTC))

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
