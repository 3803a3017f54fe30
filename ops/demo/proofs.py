"""Whether the files of one job are what was asked for: each is opened as a player, or a reader, would.

A narration is held against its manifest to the sample: what its segments last, and the silence that was asked for
between them, is all that its sound may hold.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ops.cli import show
from ops.cli.following import Job
from ops.demo import verify

_CLOSE_SECONDS = 0.5  # between the length of a clip and what was asked for
_CLOSE_MILLISECONDS = 1  # to which subtitles are written

Files = Mapping[str, Path]  # by what their names end in: mp4, wav, srt


class Wrong(Exception):
    """A file opens, and is not what was asked for."""


def prove(job: Job, files: Files, documents: frozenset[str]) -> tuple[str, str | None]:
    """What was found in a few words, and what is wrong with it; `documents` is what a summary is to be of."""
    try:
        return _PROOFS.get(job["kind"], _seen)(job, files, documents), None
    except (verify.Unplayable, Wrong) as error:
        return "", str(error)


def _seen(job: Job, files: Files, _: frozenset[str]) -> str:
    """Of a clip its length, of a picture its size."""
    [path], asked = files.values(), job["input"].get("duration")
    seen = verify.play(path, job["outputs"][0]["content_type"])
    if seen.seconds is None or asked is None:
        return f"{seen.width}×{seen.height}"
    is_as_asked = abs(seen.seconds - asked) <= _CLOSE_SECONDS
    _hold(is_as_asked, f"{path.name} lasts {seen.seconds:.1f} s, {asked} s were asked for")
    return f"{seen.seconds:.1f} s"


def _narration(job: Job, files: Files, _: frozenset[str]) -> str:
    """How long it lasts."""
    heard, told = verify.hear(files["wav"]), json.loads(files["json"].read_text(encoding="utf-8"))
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
    _hold(bool(files["md"].read_text(encoding="utf-8").strip()), f"{files['md'].name} says nothing")
    return f"{len(lines)} summaries"


_PROOFS: Mapping[str, Callable[[Job, Files, frozenset[str]], str]] = {"speech": _narration, "summary": _summaries}


def _pauses(asked: Mapping[str, Any], segments: list[dict[str, Any]]) -> Iterator[float]:
    """The silence after each segment but the last, in seconds, by what was asked for."""
    for one, following in itertools.pairwise(segments):
        yield asked["pause" if one["paragraph"] == following["paragraph"] else "paragraph_pause"]


def _subtitled(path: Path, asked_ms: int) -> None:
    cues = verify.cues(path)
    _hold(bool(cues), f"{path.name} has no cues")
    _hold(all(one.end <= two.start for one, two in itertools.pairwise(cues)), f"cues of {path.name} overlap")
    ends = cues[-1].end
    _hold(abs(ends - asked_ms) <= _CLOSE_MILLISECONDS, f"{path.name} ends after {ends} ms, the sound after {asked_ms}")


def _dense(texts: Iterator[str]) -> str:
    """The texts in one, without blanks, which are not spoken."""
    return "".join("".join(texts).split())


def _hold(holds: bool, words: str) -> None:
    if not holds:
        raise Wrong(words)
