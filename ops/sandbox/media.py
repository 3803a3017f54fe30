"""Clips and pictures that a person can tell apart at a glance, drawn in a few milliseconds.

The prompt's hash gives the colours and a mirrored pattern, so that a prompt in any script has a face; its words
are drawn as far as the built-in font has them. The task's id is drawn small and stands in the file's metadata, so
that a copied output can be traced to its task. The same task is always drawn with the same bytes.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import av
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

if TYPE_CHECKING:  # an order reads pictures by `sides`
    from ops.sandbox.orders import Order

LONG_SIDE = 256  # pixels, unless the true size is wanted
FRAMES_A_SECOND = 3
DISTINCT_FRAMES = 6  # a loop of these makes the clip: drawing and converting them is most of the cost
CELLS = 5  # the pattern's, each way
ENCODER = {"preset": "ultrafast", "tune": "zerolatency", "crf": "30"}
WHITE = (255, 255, 255)

CONTENT_TYPES = {"mp4": "video/mp4", "png": "image/png", "wav": "audio/wav"}


def ending(order: Order) -> str:
    """Return how the names of an order's files end."""
    if order.voice:
        return "wav"
    return "mp4" if order.seconds else "png"


@lru_cache(maxsize=64)
def render(order: Order, task_id: str, number: int, true_size: bool) -> bytes:
    """Return output `number` (from 1) of a task: an MP4 of the order's true duration, or a PNG."""
    still = _still(order, task_id, number, true_size)
    return _mp4(still, order.seconds, task_id) if order.seconds else _png(still, task_id)


def sides(content: bytes) -> tuple[int, int]:
    """Return the width and height of a picture; raises OSError or ValueError where it is none."""
    with Image.open(io.BytesIO(content)) as picture:
        return picture.size


def pad(content: bytes, size: int) -> tuple[bytes, int]:
    """Return a head and how many zero bytes follow it, together `size` long (or up to 15 short) and still playable.

    An MP4 gets a `free` box, of 16 bytes at least; after a PNG's end decoders ignore what follows.
    """
    missing = size - len(content)
    if missing < 16:
        return content, 0
    if content[4:8] != b"ftyp":
        return content, missing
    box = (1).to_bytes(4, "big") + b"free" + missing.to_bytes(8, "big")
    return content + box, missing - len(box)


def _still(order: Order, task_id: str, number: int, true_size: bool) -> Image.Image:
    width, height = _pixels(order.size, true_size)
    digest = hashlib.sha256(order.prompt.encode()).digest()
    image = Image.new("RGB", (width, height), _colour(digest[0], 0.75, 0.45))
    draw = ImageDraw.Draw(image)
    _draw_pattern(draw, digest, width, height)
    _draw_words(draw, order.prompt, width, height)
    label = f"{order.model} {order.size} #{number}\n{task_id}"
    draw.multiline_text((6, height - 4), label, WHITE, _font(max(8, height // 20)), anchor="ld", spacing=1)
    return image


def _pixels(size: str, true_size: bool) -> tuple[int, int]:
    width, height = (int(side) for side in size.split("*"))
    scale = 1.0 if true_size else min(1.0, LONG_SIDE / max(width, height))
    # H.264 with 4:2:0 colours wants even sides.
    return max(16, round(width * scale / 2) * 2), max(16, round(height * scale / 2) * 2)


def _draw_pattern(draw: ImageDraw.ImageDraw, digest: bytes, width: int, height: int) -> None:
    colour = _colour(digest[1], 0.55, 0.8)
    cell = min(width, height) * 0.5 / CELLS
    left, top = width - cell * CELLS - 6, 6
    for index in range(CELLS * CELLS):
        row, column = divmod(index, CELLS)
        mirrored = min(column, CELLS - 1 - column)
        if digest[2 + row * 3 + mirrored] & 1:
            x, y = left + column * cell, top + row * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)


def _draw_words(draw: ImageDraw.ImageDraw, prompt: str, width: int, height: int) -> None:
    words = prompt.encode("latin-1", "ignore").decode("latin-1").strip()
    points = max(12, height // 8)
    lines = textwrap.wrap(words, max(8, int(width / points * 1.7)))[:4]
    draw.multiline_text((8, 8), "\n".join(lines), WHITE, _font(points), stroke_width=1, stroke_fill=(0, 0, 0))


def _frame(still: Image.Image, step: int) -> Image.Image:
    frame = still.copy()
    width, height = frame.size
    radius = min(width, height) // 12
    x, y = round((width - 2 * radius) * step / (DISTINCT_FRAMES - 1)), round(height * 0.62)
    ImageDraw.Draw(frame).ellipse((x, y, x + 2 * radius, y + 2 * radius), fill=WHITE)
    return frame


def _mp4(still: Image.Image, seconds: int, task_id: str) -> bytes:
    loop = [_converted(_frame(still, step)) for step in range(DISTINCT_FRAMES)]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        container.metadata["comment"] = task_id
        stream = container.add_stream("libx264", rate=FRAMES_A_SECOND, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = still.width, still.height, "yuv420p"
        stream.codec_context.thread_count = 1
        for number, step in enumerate(_steps(seconds * FRAMES_A_SECOND)):
            loop[step].pts = number
            container.mux(stream.encode(loop[step]))
        container.mux(stream.encode())
    return file.getvalue()


def _converted(frame: Image.Image) -> av.VideoFrame:
    picture: av.VideoFrame = av.VideoFrame.from_image(frame)  # type: ignore[no-untyped-call]  # PyAV leaves it so
    return picture.reformat(format="yuv420p", threads=1)


def _steps(count: int) -> Iterator[int]:
    """Yield `count` steps of a movement there and back."""
    for number in range(count):
        turn = number % (2 * DISTINCT_FRAMES - 2)
        yield min(turn, 2 * DISTINCT_FRAMES - 2 - turn)


def _png(still: Image.Image, task_id: str) -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", task_id)
    file = io.BytesIO()
    _frame(still, 2).save(file, "PNG", pnginfo=notes, compress_level=1)
    return file.getvalue()


def _colour(hue: int, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue / 255, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


@lru_cache(maxsize=16)
def _font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(points)
