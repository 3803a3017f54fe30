"""What the demo judges by: every file is opened and held against what was asked for.

A narration is held against its manifest to the sample: its sound is its segments and the silence between them, and
nothing more. The signatures of the webhooks are checked, and the sandbox's own bill is compared with ours.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import av
from PIL import Image, UnidentifiedImageError
from rich.console import Group, RenderableType
from rich.markup import escape

from api.client import Client
from ops.cli import following, show
from ops.cli.show import Job
from ops.demo.receiver import Mail
from ops.sandbox.testing import Sandbox

_MAIL_SECONDS = 15.0
_MICROS = 1_000_000
_CLOSE_SECONDS = 0.5  # between the length of a clip and what was asked for
_CLOSE_MILLISECONDS = 1  # to which subtitles are written

Files = Mapping[str, Path]  # by what their names end in: mp4, wav, srt


class Wrong(Exception):
    """A file opens, and is not what was asked for."""


class Unplayable(Exception):
    """The file is damaged, or is not what it says; the message says how."""


@dataclass(frozen=True)
class Seen:
    """What was decoded: the size in pixels, the frames, and their length in seconds (None: a still picture)."""

    width: int
    height: int
    frames: int
    seconds: float | None


@dataclass(frozen=True)
class Heard:
    """What was decoded of a sound: samples a second, and how many there are of each channel."""

    rate: int
    samples: int


@dataclass(frozen=True)
class Cue:
    """A subtitle as a player shows it, in milliseconds from the beginning."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Kept:
    """An output: its key in the bucket, and its file on this disk."""

    key: str
    file: str
    bytes: int


@dataclass(frozen=True)
class Made:
    """What became of one job; `fault` says what is wrong with it, None: nothing."""

    name: str
    kind: str
    model: str
    steps: Mapping[str, float]  # seconds in each of `STEPS`
    cost: Decimal  # CNY
    outputs: Sequence[Kept]
    holds: str  # what was found in them
    fault: str | None


@dataclass
class Findings:
    """A line for each thing that holds, and for each that does not."""

    good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def note(self, holds: bool, words: str) -> None:
        """Put a finding where it belongs."""
        (self.good if holds else self.bad).append(words)

    def shown(self) -> RenderableType:
        """One finding a line."""
        good = [f"[green]✓[/] {escape(words)}" for words in self.good]
        return Group(*good, *(f"[red]✗ {escape(words)}[/]" for words in self.bad))


def fetched(client: Client, job: Job, folder: Path, documents: frozenset[str]) -> Made:
    """The job's outputs on this disk, each opened; `documents` are the names of what a summary is to be of."""
    steps = following.seconds_by_step(show.plain_all(client.events(job["id"])))
    said = (show.name(job), job["kind"], job["model"], steps, Decimal(job["cost"]["actual"] or 0))
    if job["state"] != "succeeded":
        return Made(*said, outputs=(), holds="", fault=show.waits_for(job) or job["state"])
    paths = list(client.download_job(client.job(job["id"]), folder))
    kept = [Kept(one["key"], path.name, one["bytes"]) for one, path in zip(job["outputs"], paths, strict=True)]
    holds, fault = prove(job, {path.suffix[1:]: path for path in paths}, documents)
    return Made(*said, kept, holds, fault)


def files(jobs: Sequence[Job], made: Sequence[Made], findings: Findings) -> None:
    """Whether every job succeeded, and every file is what was asked for."""
    done = sum(job["state"] == "succeeded" for job in jobs)
    findings.note(done == len(jobs), f"{done} of {len(jobs)} jobs succeeded")
    faults = [f"{one.name}: {one.fault}" for one in made if one.fault]
    for fault in faults:
        findings.note(False, fault)
    if faults:
        return
    findings.note(True, "every clip and picture plays: all frames decoded, and as long as was asked for")
    findings.note(True, "the narration holds its text once, in order, and its pauses to the sample")
    findings.note(True, "the summaries are one for each document, and a digest")


def webhooks(mail: Mail, count: int, findings: Findings) -> None:
    """Whether every job's end was told, signed as it should be; waits a while for the last."""
    complete = mail.wait_for(count, _MAIL_SECONDS)
    forged = f", {mail.forged} with a wrong signature" if mail.forged else ""
    findings.note(complete and not mail.forged, f"webhooks delivered: {len(mail.told)}, verified{forged}")


def bill(sandbox: Sandbox, jobs: Sequence[Job], findings: Findings) -> None:
    """Whether each job and part of a job was taken by the sandbox once, and billed as we think it was.

    A create call that was refused, as one over the request rate, made nothing and is made again.
    """
    totals = sandbox.ledger()["totals"]
    billed = Decimal(totals["billed_micros"]) / _MICROS
    ours = sum((Decimal(job["cost"]["actual"] or 0) for job in jobs), Decimal(0))
    asked = sum(job["children"]["total"] if job["children"] else 1 for job in jobs)
    taken = totals["creates"] - totals["refused"]
    equal = totals["tasks"] == taken == asked and billed == ours
    words = f"by the sandbox's own bill: {totals['tasks']} tasks and calls, {show.money(billed)}"
    other = f"ours: {asked}, {show.money(ours)}, by {taken} create calls"
    findings.note(equal, f"{words} — {'equal' if equal else other}")


def prove(job: Job, files: Files, documents: frozenset[str]) -> tuple[str, str | None]:
    """What was found in a few words, and what is wrong with it; `documents` is what a summary is to be of."""
    try:
        return _PROOFS.get(job["kind"], _seen)(job, files, documents), None
    except (Unplayable, Wrong) as error:
        return "", str(error)


def play(path: Path, content_type: str) -> Seen:
    """Decode all of a clip or picture; raises `Unplayable`."""
    with _opening(path):
        return _picture(path) if content_type.startswith("image/") else _clip(path)


def hear(path: Path) -> Heard:
    """Decode all of a sound; raises `Unplayable`."""
    with _opening(path), av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return Heard(stream.rate, sum(frame.samples for frame in container.decode(stream)))


def cues(path: Path) -> list[Cue]:
    """The subtitles of an SRT or WebVTT, in their order; raises `Unplayable`."""
    with _opening(path), av.open(str(path)) as container:
        packets = container.demux(container.streams.subtitles[0])
        return [Cue(p.pts, p.pts + (p.duration or 0), bytes(p).decode()) for p in packets if p.pts is not None]


def _seen(job: Job, files: Files, _: frozenset[str]) -> str:
    """Of a clip its length, of a picture its size."""
    [path], asked = files.values(), job["input"].get("duration")
    seen = play(path, job["outputs"][0]["content_type"])
    if seen.seconds is None or asked is None:
        return f"{seen.width}×{seen.height}"
    is_as_asked = abs(seen.seconds - asked) <= _CLOSE_SECONDS
    _hold(is_as_asked, f"{path.name} lasts {seen.seconds:.1f} s, {asked} s were asked for")
    return f"{seen.seconds:.1f} s"


def _narration(job: Job, files: Files, _: frozenset[str]) -> str:
    """How long it lasts."""
    heard, told = hear(files["wav"]), json.loads(files["json"].read_text(encoding="utf-8"))
    segments = told["segments"]
    spoken = sum(round((one["end"] - one["start"]) * heard.rate) for one in segments)
    silent = sum(round(pause * heard.rate) for pause in _pauses(job["input"], segments))
    words = f"{files['wav'].name} holds {heard.samples:,} samples, its segments and pauses {spoken + silent:,}"
    _hold(heard.samples == spoken + silent == told["samples"], words)
    asked = (part["text"] for part in job["input"]["paragraphs"])
    _hold(
        _dense(asked) == _dense(one["text"] for one in segments), "what was spoken is not the text, once and in order"
    )
    for form in ("srt", "vtt"):
        _subtitled(files[form], asked_ms=round(told["seconds"] * 1000))
    return show.seconds(told["seconds"])


def _summaries(_: Job, files: Files, documents: frozenset[str]) -> str:
    """How many documents have a summary."""
    lines = [json.loads(line) for line in files["jsonl"].read_text(encoding="utf-8").split("\n") if line]
    names = [line["id"].rpartition("/")[2] for line in lines]
    _hold(sorted(names) == sorted(documents), f"the lines of {files['jsonl'].name} are not one for each document")
    missing = [line["id"] for line in lines if not line["summary"]]
    _hold(not missing, f"without a summary: {', '.join(missing)}")
    _hold(bool(files["md"].read_text(encoding="utf-8").strip()), f"{files['md'].name} is empty")
    return f"{len(lines)} summaries"


_PROOFS: Mapping[str, Callable[[Job, Files, frozenset[str]], str]] = {"speech": _narration, "summary": _summaries}


def _pauses(asked: Mapping[str, Any], segments: list[dict[str, Any]]) -> Iterator[float]:
    """The silence after each segment but the last, in seconds, by what was asked for."""
    for one, later in itertools.pairwise(segments):
        yield asked["pause" if one["paragraph"] == later["paragraph"] else "paragraph_pause"]


def _subtitled(path: Path, asked_ms: int) -> None:
    shown = cues(path)
    _hold(bool(shown), f"{path.name} has no cues")
    _hold(all(one.end <= two.start for one, two in itertools.pairwise(shown)), f"cues of {path.name} overlap")
    ends = shown[-1].end
    _hold(abs(ends - asked_ms) <= _CLOSE_MILLISECONDS, f"{path.name} ends after {ends} ms, the sound after {asked_ms}")


def _dense(texts: Iterator[str]) -> str:
    """The texts in one, without blanks, which are not spoken."""
    return "".join("".join(texts).split())


def _hold(holds: bool, words: str) -> None:
    if not holds:
        raise Wrong(words)


@contextlib.contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, UnidentifiedImageError, OSError, IndexError) as error:
        raise Unplayable(f"{path.name} cannot be opened: {error}") from error


def _picture(path: Path) -> Seen:
    with Image.open(path) as picture:
        picture.load()
        return Seen(picture.width, picture.height, 1, None)


def _clip(path: Path) -> Seen:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        if not frames or not stream.average_rate:
            raise Unplayable(f"{path.name} has no frames.")
        return Seen(stream.width, stream.height, frames, float(frames / stream.average_rate))
