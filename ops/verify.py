"""Whether a file that was made really plays: every frame of it is decoded."""

from __future__ import annotations

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


def play(path: Path, content_type: str) -> Seen:
    """Decode all of a clip or picture; raises `Unplayable`."""
    try:
        return _picture(path) if content_type.startswith("image/") else _clip(path)
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
