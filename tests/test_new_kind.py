"""A new kind is its file, a row in `KINDS` and its models in the catalog: the rest of Noria knows it by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from worker import catalog, kinds, money
from worker.catalog import Catalog, Model, Usage
from worker.errors import InvalidInput
from worker.jobs import submission
from worker.jobs.submission import Submission
from worker.kinds import fields
from worker.kinds.fields import Filled, Input
from worker.kinds.kind import CallKind, Request, Source
from worker.settings import Settings
from worker.states import Mode

NOW = datetime(2026, 11, 26, tzinfo=UTC)
SETTINGS = Settings(database_url=SecretStr("postgresql://"), broker_url=SecretStr("redis://"))
MODELS = """
  - family: Songs
    source: the test
    shared:
      kinds: [text-to-song]
      protocol: prompt
      path: /services/songs
      prompt_limit: 100
      takes: [lyrics]
      durations: [30, 60]
      default: {duration: 30}
      run_seconds: {early: 1, median: 2, late: 3}
      regions: {cn-beijing: {rps: 1, prices: [{from: 2025-01-01, unit: seconds, cny: 0.1}]}}
    models:
      song-1: {}
"""


class TextToSong(Input):
    """A song of given words."""

    lyrics: Filled = Field(description="what is sung", examples=["la la la"])
    duration: int | None = Field(None, description="seconds")


def _request(model: Model, region: str, wanted: BaseModel) -> Request:
    here = model.region(region)
    assert here is not None
    return Request(model.path, {"X-DashScope-Async": "enable"}, {"model": here.id, "input": wanted.model_dump()})


def _outputs(output: Mapping[str, Any]) -> tuple[Source, ...]:
    return (Source(output["song_url"], "audio", "mp3"),)


def _estimate(_: Model, wanted: BaseModel) -> Usage:
    return Usage({"seconds": wanted.model_dump()["duration"]})


SONG = CallKind(
    name="text-to-song",
    input=TextToSong,
    check=partial(fields.check, "text-to-song", TextToSong),
    request=_request,
    outputs=_outputs,
    usage=lambda model, wanted, _answer: _estimate(model, wanted),
    estimate=_estimate,
    words=lambda wanted: f"{wanted.model_dump()['duration']} s",
)


def with_songs() -> Catalog:
    path = Path(catalog.__file__).with_name("models.yaml")
    return catalog.parse(path.read_text() + MODELS)


def install() -> None:
    """The kind as if it had always been there; in a process of its own, before anything else is imported."""
    made = with_songs()
    catalog.load = catalog.shipped = lambda: made  # type: ignore[assignment]
    for rows in (kinds.KINDS, kinds.OFFERED):
        rows[SONG.name] = SONG


def output_of(program: str) -> str:
    """What the lines print, in a process that has the kind."""
    lines = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_new_kind as new\n"
    ran = subprocess.run(
        [sys.executable, "-c", f"{lines}new.install()\n{program}"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def songs(monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setitem(kinds.KINDS, SONG.name, SONG)
    monkeypatch.setitem(kinds.OFFERED, SONG.name, SONG)
    return with_songs()


def test_a_submission_of_the_kind_is_checked_priced_and_spelled(songs: Catalog) -> None:
    asked = Submission("text-to-song", "song-1", {"lyrics": "la la la"})

    prepared = submission.prepare(songs, SETTINGS, asked, NOW)

    assert (prepared.mode, prepared.input) == (Mode.TASK, {"lyrics": "la la la", "duration": 30})
    assert prepared.estimate == 3_000_000
    wanted = SONG.input.model_validate(prepared.input)
    assert money.estimate(songs, SETTINGS, SONG.name, "song-1", wanted, NOW.date()) == 3_000_000
    call = kinds.call(SONG.name).request(songs.model("song-1"), "cn-beijing", wanted)
    assert call.body == {"model": "song-1", "input": prepared.input}


def test_a_wrong_input_of_the_kind_is_refused_field_by_field(songs: Catalog) -> None:
    with pytest.raises(InvalidInput) as raised:
        submission.prepare(songs, SETTINGS, Submission("text-to-song", "song-1", {"lyrics": " ", "duration": 31}), NOW)

    assert {fault.pointer: fault.code for fault in raised.value.faults} == {
        "/input/lyrics": "blank",
        "/input/duration": "not_allowed",
    }


def test_the_openapi_page_has_the_kinds_input_and_an_example() -> None:
    described = output_of("""
import json
from fastapi import FastAPI
from api import app as served
from api.routes import jobs
app = FastAPI()
app.include_router(jobs.router)
print(json.dumps(served._described(app)))""")

    assert "lyrics" in json.loads(described)["components"]["schemas"]["TextToSong"]["properties"]
    assert '{"kind": "text-to-song", "model": "song-1", "input": {"lyrics": "la la la"}}' in described


def test_the_help_of_the_command_line_names_the_kind() -> None:
    shown = output_of("""
from typer.testing import CliRunner
from ops.cli import app
print(CliRunner().invoke(app, ["submit", "--help"]).output)""")

    assert "text-to-song" in shown
