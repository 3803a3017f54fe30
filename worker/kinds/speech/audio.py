"""Sound: WAVs measured and joined to the sample, with exact silence between; and MP3, encoded as it passes.

A streamed WAV may have a length of 0 or four billion in its header, so only the header's format is trusted; the length
follows from the object's size. No more than a chunk of a segment is held in memory. MP3 needs PyAV, which the extra
`media` installs.
"""

from __future__ import annotations

import importlib.util
import io
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

LONGEST = 2**32 - 1 - 36  # bytes of sound that one WAV can hold; 24.8 hours of 24 kHz mono

_HEAD = 64 * 1024  # bytes within which the sound begins
_UNBOUNDED = b"\xff\xff\xff\x7f"
_SILENCE = bytes(64 * 1024)
_WIDTH = 2  # bytes of a sample
_BLOCK = 24_000  # samples that are encoded at once
_BITS = 64_000  # of MP3 a second and channel: more is not heard in speech


class BadSound(ValueError):
    """It is no WAV of 16-bit PCM, or its length has changed; the message says which."""


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
    """A WAV's format, where its samples begin, and how many there are of each channel."""

    format: Format
    offset: int  # bytes
    frames: int


def measure(chunks: Iterable[bytes], size: int) -> Sound:
    """What a WAV of `size` bytes contains, by its first chunks; raises BadSound."""
    head = _head(iter(chunks))
    # A streamed file may give its whole length as 0, at which the reader would stop.
    stream = io.BytesIO(head[:4] + _UNBOUNDED + head[8:])
    try:
        with wave.open(stream) as reader:
            width, form = reader.getsampwidth(), Format(reader.getframerate(), reader.getnchannels())
            offset = stream.tell()
    except (wave.Error, EOFError) as error:
        raise BadSound(f"it is no WAV of PCM: {error}") from None
    if width != _WIDTH or form.rate < 1 or form.channels > 2:
        raise BadSound(f"it has {form.channels} channels of {8 * width} bits at {form.rate} Hz, not 1 or 2 of 16")
    there, stated = max(0, size - offset), int.from_bytes(head[offset - 4 : offset], "little")
    return Sound(form, offset, (stated if 0 < stated < there else there) // form.frame)


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
    """The header of a WAV of so many samples; at most LONGEST bytes of them."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as writer:
        writer.setparams((form.channels, _WIDTH, form.rate, frames, "NONE", ""))
        writer.writeframesraw(b"")
        return stream.getvalue()  # before closing, which would correct the header to no samples


def makes_mp3() -> bool:
    """Whether this machine can make MP3s."""
    return importlib.util.find_spec("av") is not None


def mp3(pcm: Iterable[bytes], form: Format) -> Iterator[bytes]:
    """The samples as MP3, a chunk at a time."""
    import av  # only here, since it need not be installed

    sink = io.BytesIO()
    layout = "mono" if form.channels == 1 else "stereo"
    # Without the first frame, which tells the length: it could be written only at the end.
    with av.open(_Forward(sink), "w", format="mp3", options={"write_xing": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=form.rate, layout=layout, bit_rate=_BITS * form.channels)
        for block in _blocks(pcm, _BLOCK * form.frame):
            container.mux(stream.encode(_frame(av, block, form, layout)))
            yield _drained(sink)
        container.mux(stream.encode(None))
    yield _drained(sink)


def _head(chunks: Iterator[bytes]) -> bytes:
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD:
            break
    return bytes(head)


class _Forward:
    """A file that can only be written, so that the encoder never seeks."""

    def __init__(self, sink: io.BytesIO) -> None:
        self.write = sink.write


def _frame(av: Any, block: bytes, form: Format, layout: str) -> Any:
    frame = av.AudioFrame(format="s16", layout=layout, samples=len(block) // form.frame, align=1)
    frame.sample_rate = form.rate
    frame.planes[0].update(block)
    return frame


def _blocks(pcm: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The samples in blocks of `size` bytes, and the rest."""
    held = bytearray()
    for chunk in pcm:
        held += chunk
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _drained(sink: io.BytesIO) -> bytes:
    written = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return written
