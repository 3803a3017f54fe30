"""Whether a file that was made really plays: every frame of it is decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError


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
