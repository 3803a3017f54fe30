"""WAVs joined to the sample: what a segment truly holds, silence between, and one header that is right.

A header that was written before its sound was known may say 0 or four billion of it, so only the format is believed;
how much sound there is, the object's length tells. Nothing holds more than a piece of a segment in memory.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LONGEST = 2**32 - 1 - 36  # bytes of sound that a WAV's header can tell of; 24.8 hours of 24 kHz mono

_HEAD = 64 * 1024  # bytes within which the sound begins
_UNBOUNDED = b"\xff\xff\xff\x7f"
_SILENCE = bytes(64 * 1024)
_WIDTH = 2  # bytes of a sample


class BadSound(ValueError):
    """It is no WAV of 16-bit PCM, or holds another amount of sound than it did; the message says which."""


@dataclass(frozen=True)
class Format:
    """Samples a second, and channels of 16 bits each."""

    rate: int
    channels: int

    @property
    def frame(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * _WIDTH

    def frames(self, seconds: float) -> int:
        """How many samples a span takes, to the nearest."""
        return round(seconds * self.rate)

    def seconds(self, frames: int) -> float:
        """How long that many samples play."""
        return frames / self.rate


@dataclass(frozen=True)
class Sound:
    """What a WAV holds: its format, where its samples begin, and how many there are of each channel."""

    format: Format
    offset: int  # bytes
    frames: int


def measure(chunks: Iterable[bytes], size: int) -> Sound:
    """What a WAV of `size` bytes holds, by its first chunks; raises BadSound."""
    head = _head(iter(chunks))
    # Some say 0 of the whole while it is streamed, and the reader would look no further.
    stream = io.BytesIO(head[:4] + _UNBOUNDED + head[8:])
    try:
        with wave.open(stream) as reader:
            width, form = reader.getsampwidth(), Format(reader.getframerate(), reader.getnchannels())
            offset = stream.tell()
    except (wave.Error, EOFError) as error:
        raise BadSound(f"it is no WAV of PCM: {error}") from None
    if width != _WIDTH or form.rate < 1 or form.channels > 2:
        raise BadSound(f"it has {form.channels} channels of {8 * width} bits at {form.rate} Hz, not 1 or 2 of 16")
    there, said = max(0, size - offset), int.from_bytes(head[offset - 4 : offset], "little")
    return Sound(form, offset, (said if 0 < said < there else there) // form.frame)


def samples(chunks: Iterable[bytes], sound: Sound) -> Iterator[bytes]:
    """The samples alone, exactly as many as were measured; raises BadSound if there are fewer."""
    skip, left = sound.offset, sound.frames * sound.format.frame
    for chunk in chunks:
        taken = chunk[skip : skip + left]
        skip, left = max(0, skip - len(chunk)), left - len(taken)
        if taken:
            yield taken
        if not left:
            return
    if left:
        raise BadSound(f"it ends {left} bytes early")


def silence(form: Format, frames: int) -> Iterator[bytes]:
    """So many samples of nothing."""
    left = frames * form.frame
    while left > 0:
        yield _SILENCE[:left]
        left -= len(_SILENCE)


def header(form: Format, frames: int) -> bytes:
    """What a WAV of so many samples begins with; at most LONGEST bytes of them."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as writer:
        writer.setparams((form.channels, _WIDTH, form.rate, frames, "NONE", ""))
        writer.writeframesraw(b"")
        return stream.getvalue()  # before the end, at which it would be put right for no samples


def _head(chunks: Iterator[bytes]) -> bytes:
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD:
            break
    return bytes(head)
