"""Sound as MP3, encoded as it passes; needs PyAV, which the extra `media` installs."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Iterator
from typing import Any

from worker.kinds.speech.wav_files import Format

_BLOCK = 24_000  # samples in one go
_BITS = 64_000  # a second, of one channel: more is not heard in speech


def is_installed() -> bool:
    """Whether this machine can make MP3s."""
    return importlib.util.find_spec("av") is not None


def encoded(pcm: Iterable[bytes], form: Format) -> Iterator[bytes]:
    """The MP3 of such samples, of 16 bits each, a piece at a time."""
    import av  # only here, since it need not be installed

    sink = io.BytesIO()
    layout = "mono" if form.channels == 1 else "stereo"
    # Without the first frame that tells the length, for which the end would have to be known, or gone back from.
    with av.open(_Forward(sink), "w", format="mp3", options={"write_xing": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=form.rate, layout=layout, bit_rate=_BITS * form.channels)
        for block in _blocks(pcm, _BLOCK * form.frame):
            container.mux(stream.encode(_frame(av, block, form, layout)))
            yield _drained(sink)
        container.mux(stream.encode(None))
    yield _drained(sink)


class _Forward:
    """A file that can only be written on, which is all that the encoder may do."""

    def __init__(self, sink: io.BytesIO) -> None:
        self.write = sink.write


def _frame(av: Any, block: bytes, form: Format, layout: str) -> Any:
    frame = av.AudioFrame(format="s16", layout=layout, samples=len(block) // form.frame, align=1)
    frame.sample_rate = form.rate
    frame.planes[0].update(block)
    return frame


def _blocks(pcm: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The samples in blocks of `size` bytes, and what is left."""
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
