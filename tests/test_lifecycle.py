"""The life of a job, as a story: from the submission to the webhook, and the ways in which it may end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from stage import CLIP, Stage, stage

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker.states import State


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0.2, queue_seconds=0)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], sandbox: Sandbox) -> Iterator[Stage]:
    with stage(environment, sandbox) as made:
        yield made


def test_a_clip_goes_from_submission_to_the_bucket(play: Stage) -> None:
    job = play.submit()

    ended = play.until(job)

    assert ended.state == State.SUCCEEDED
    assert play.states(job) == ["queued", "admitted", "submitting", "running", "copying", "succeeded"]
    shown = play.document(job)
    assert shown["outputs"][0]["content_type"] == "video/mp4"
    assert shown["cost"] == {"currency": "CNY", "estimated": "1.50", "actual": "1.50", "billed": "yes"}
