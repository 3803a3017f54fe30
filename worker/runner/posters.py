"""Posters: small JPEG stills of the videos and pictures in the bucket, each beside its output.

An output is marked `none` before it is read, in a commit of its own, and `made` at the end. So a file on which a worker
dies is never met again, and is no reason for the next worker to die. The price: a worker that is killed for another
reason leaves that one output without a poster. Decoding needs PyAV, which the extra `media` installs.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from fractions import Fraction
from functools import cache
from itertools import islice
from tempfile import TemporaryFile
from typing import IO, Any

from sqlalchemy import Connection, Engine, Row, text

from worker import database, log, storage
from worker.context import Context
from worker.storage import Bucket, Expected, StorageTrouble

_AWAY = timedelta(seconds=5)  # how long a statement waits for the database
_LARGEST = 128 << 20  # bytes of an output: /tmp is memory in the containers
_LONGER = 480  # pixels of the longer side; what is smaller stays as it is
_QUANTIZER = 3  # of MJPEG, 2 to 31: about a quality of 80
_PACKETS = 100  # within which the first frame is found
# Of the decoder, by FFmpeg's names: more pixels are refused before there is memory for them.
_BOUNDS = {"max_pixels": str(64 << 20), "threads": "1"}
# By the content types that `media` finds in outputs. Said to FFmpeg, which else guesses, and knows formats that name
# other files.
_FORMATS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "image/png": "png_pipe",
    "image/jpeg": "jpeg_pipe",
    "image/gif": "gif",
    "image/webp": "webp_pipe",
}

_log = log.get(__name__)


def carry_out(ctx: Context, seconds: float) -> None:
    """Makes what is wanted, the newest first, for some seconds; nothing where another is at it, or without PyAV."""
    if not _is_installed():
        return
    deadline = time.monotonic() + seconds
    with alone(ctx.engine) as is_alone:
        while is_alone and _make_next(ctx) and time.monotonic() < deadline:
            pass


def still(file: IO[bytes], content_type: str) -> bytes:
    """The first frame of a video or picture as a small JPEG; raises what PyAV raises, ValueError or LookupError."""
    import av  # only here, since it need not be installed

    with av.open(file, "r", format=_FORMATS[content_type], options=_BOUNDS) as container:
        frame = _first_frame(container)
    scale = min(1.0, _LONGER / max(frame.width, frame.height))
    # 4:2:0 colours want even sides
    width, height = (max(2, round(side * scale / 2) * 2) for side in (frame.width, frame.height))
    # a JPEG's colours are BT.601's; of large clips they are BT.709's
    picture = frame.reformat(width, height, "yuvj420p", dst_colorspace="ITU601")
    picture.pts = 0
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, picture.format.name
    encoder.time_base, encoder.qmin, encoder.qmax = Fraction(1), _QUANTIZER, _QUANTIZER
    return b"".join(bytes(packet) for packet in (*encoder.encode(picture), *encoder.encode(None)))


def _first_frame(container: Any) -> Any:
    stream = container.streams.video[0]
    stream.codec_context.options = _BOUNDS
    for packet in islice(container.demux(stream), _PACKETS):
        for frame in packet.decode():
            return frame
    raise ValueError("it shows no frame")


@cache
def _is_installed() -> bool:
    """Whether this machine can make posters; said once where not."""
    is_there = importlib.util.find_spec("av") is not None
    if not is_there:
        _log.warning("this worker makes no posters: they need the extra `media` (PyAV)")
    return is_there


@contextmanager
def alone(engine: Engine) -> Iterator[bool]:
    """Whether no other is at it, which then is so until the end of the block, or of a lease where the process dies."""
    lease = _lease(engine, _LEASE)
    try:
        yield lease is not None
    finally:
        if lease is not None:
            _lease(engine, _GIVE_BACK, lease=lease)


def _lease(engine: Engine, statement: Any, **bound: Any) -> datetime | None:
    def write(connection: Connection) -> datetime | None:
        until: datetime | None = connection.execute(statement, bound).scalar_one_or_none()
        return until

    return database.write(engine, write, "posters", _AWAY)


def _make_next(ctx: Context) -> bool:
    """Makes the next poster, if it can be made; whether to go on."""
    taken = database.write(ctx.engine, lambda connection: connection.execute(_TAKE).one_or_none(), "a poster", _AWAY)
    if taken is None:
        return False
    try:
        body = _read_and_decoded(ctx.bucket, taken)
        if body:
            ctx.bucket.put_stream(storage.poster(taken.key), (body,), "image/jpeg", Expected(len(body)))
    except StorageTrouble as trouble:
        _log.warning("the bucket is away; posters are made later", cause=trouble.code)
        _set(ctx.engine, _WANTED, taken)
        return False
    if body and not _set(ctx.engine, _MADE, taken):
        _set(ctx.engine, _DELETE, taken)
    return True


def _read_and_decoded(bucket: Bucket, taken: Row[Any]) -> bytes | None:
    """The still of an output; None where there is none to be had, for good. Raises StorageTrouble."""
    if taken.bytes > _LARGEST:
        return None
    with TemporaryFile() as file:
        try:
            for chunk in bucket.chunks(taken.key):
                file.write(chunk)
            file.seek(0)
            return still(file, taken.content_type)
        except StorageTrouble:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises
            _log.warning("an output has no poster", job=str(taken.job_id), n=taken.n, cause=type(error).__name__)
            return None


def _set(engine: Engine, statement: Any, taken: Row[Any]) -> int:
    """How many rows the statement wrote for the output that is taken."""
    values = {"job": taken.job_id, "n": taken.n, "key": storage.poster(taken.key)}
    rows: int = database.write(
        engine, lambda connection: connection.execute(statement, values).rowcount, "a poster", _AWAY
    )
    return rows


# In a row, since a lock of the session is another's through a pooler (ADR 0060).
_LEASE = text(
    """
    update duties set leased_until = now() + interval '3 minutes'
     where name = 'posters' and coalesce(leased_until <= now(), true)
    returning leased_until
    """
)
_GIVE_BACK = text(
    "update duties set leased_until = null where name = 'posters' and leased_until = :lease returning leased_until"
)
# A CTE, so that the planner cannot run the limited select more than once.
_TAKE = text(
    """
    with taken as materialized (
        select job_id, n from outputs where poster = 'wanted'
         order by created_at desc limit 1 for update skip locked
    )
    update outputs o set poster = 'none' from taken where o.job_id = taken.job_id and o.n = taken.n
    returning o.job_id, o.n, o.key, o.content_type, o.bytes
    """
)
_IS_TAKEN = "job_id = :job and n = :n and poster = 'none' and pruned_at is null"
_WANTED = text(f"update outputs set poster = 'wanted' where {_IS_TAKEN}")  # noqa: S608 - of constants
_MADE = text(f"update outputs set poster = 'made' where {_IS_TAKEN}")  # noqa: S608 - of constants
# of an output that went meanwhile
_DELETE = text("insert into deletions (key) values (:key) on conflict do nothing")
