"""Media types by the first bytes: a name or a header may be wrong, and what is stored is served later.

Of outputs only media that a browser shows as media are accepted. HTML, SVG, XML and JSON begin with none of these
marks, so an error page that came with a 200 is never stored as a video.

Users' inputs may be text too. The bytes show that they are text, but hardly which kind: that the name decides.
"""

from __future__ import annotations

import codecs
import struct
from base64 import b64decode
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import BinaryIO

import imagesize
from tinytag import TinyTag, TinyTagException

SNIFFED = 64  # bytes that show the type
READ = 4096  # bytes that show whether all is text
HEADER = 1 << 20  # bytes of a picture that are searched for its size: cameras put previews before it


@dataclass(frozen=True)
class MediaType:
    """A content type, and the extension that goes with it."""

    content_type: str
    extension: str


MP4 = MediaType("video/mp4", "mp4")
MOV = MediaType("video/quicktime", "mov")
M4A = MediaType("audio/mp4", "m4a")
WEBM = MediaType("video/webm", "webm")
MP3 = MediaType("audio/mpeg", "mp3")

MARKS = {
    b"\x89PNG\r\n\x1a\n": MediaType("image/png", "png"),
    b"\xff\xd8\xff": MediaType("image/jpeg", "jpg"),
    b"GIF87a": MediaType("image/gif", "gif"),
    b"GIF89a": MediaType("image/gif", "gif"),
    b"ID3": MP3,
}

# Of files that begin with RIFF, by the bytes from the eighth on.
RIFF = {
    b"WEBP": MediaType("image/webp", "webp"),
    b"WAVE": MediaType("audio/wav", "wav"),
}

# The major brands that are not MP4 video; anything else with `ftyp` from the fourth byte on counts as MP4.
BRANDS: dict[bytes, MediaType | None] = {
    b"qt  ": MOV,
    b"M4A ": M4A,
    b"M4B ": M4A,
    b"avif": None,
    b"avis": None,
    b"heic": None,
    b"heix": None,
    b"mif1": None,
    b"msf1": None,
}

# What the provider takes (Alibaba docs, 'Wan image-to-video API' and 'Wan 2.7 reference-to-video API').
PICTURES = frozenset({"image/jpeg", "image/png", "image/bmp", "image/webp"})
SOUNDS = frozenset({"audio/wav", "audio/mpeg"})
CLIPS = frozenset({"video/mp4", "video/quicktime"})
MEDIA = PICTURES | SOUNDS | CLIPS

BMP = MediaType("image/bmp", "bmp")
PDF = MediaType("application/pdf", "pdf")
HTML = MediaType("text/html", "html")
PLAIN = MediaType("text/plain", "txt")

TEXTS = {
    ".md": MediaType("text/markdown", "md"),
    ".markdown": MediaType("text/markdown", "md"),
    ".html": HTML,
    ".htm": HTML,
    ".csv": MediaType("text/csv", "csv"),
    ".jsonl": MediaType("application/jsonl", "jsonl"),
    ".eml": MediaType("message/rfc822", "eml"),
}

_OPEN_XML = "application/vnd.openxmlformats-officedocument."
OFFICE = {  # ZIP files, told apart by the name alone
    ".docx": MediaType(_OPEN_XML + "wordprocessingml.document", "docx"),
    ".xlsx": MediaType(_OPEN_XML + "spreadsheetml.sheet", "xlsx"),
    ".pptx": MediaType(_OPEN_XML + "presentationml.presentation", "pptx"),
}

_READS = 20_000  # by which the length of a file is found: an MP3 without a length is read for 30 s of its frames
_LONGEST = 7 * 86_400  # seconds; a header that says more is wrong

_BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b")


def sniff_input(head: bytes, name: str) -> MediaType | None:
    """The type of a user's file, by its first `READ` bytes and its name; None: not an accepted type.

    Accepted are pictures, sound and clips that the provider takes, PDF, Office documents, and text of any kind.
    """
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return BMP
    if head.startswith(b"%PDF-"):
        return PDF
    if head.startswith(b"PK\x03\x04"):
        return OFFICE.get(PurePosixPath(name).suffix.lower())
    medium = sniff(head)
    if medium is not None:
        return medium if medium.content_type in MEDIA else None
    return _text(head, name) if _is_text(head) else None


@dataclass(frozen=True)
class Shape:
    """A picture's width and height in pixels as shown, and whether it has an alpha channel, by its header."""

    width: int
    height: int
    has_alpha: bool


def shape(head: bytes) -> Shape | None:
    """A picture's shape, by its first `HEADER` bytes; None where they do not show it. Nothing is decoded."""
    kind = sniff_input(head, "")
    if kind is None or kind.content_type not in PICTURES:
        return None
    try:
        width, height = imagesize.get(BytesIO(head[:HEADER]))
    except (ValueError, struct.error, IndexError, TypeError):  # a header that is cut or broken
        return None
    # The colour type of a PNG: 4 is grey with alpha, 6 is colour with alpha (PNG specification, 11.2.1).
    has_alpha = kind is MARKS[b"\x89PNG\r\n\x1a\n"] and head[25:26] in (b"\x04", b"\x06")
    return Shape(width, height, has_alpha) if width > 0 and height > 0 else None


def inline_shape(link: str) -> Shape | None:
    """The shape of a picture that stands in a link itself, `data:image/…;base64,…`; None where it does not show."""
    return shape(b64decode(link.partition(",")[2][: HEADER * 4 // 3 // 4 * 4] + "=="))


def seconds(body: BinaryIO, kind: MediaType) -> float | None:
    """How long a clip or sound plays, by its headers, to a millisecond; None where they do not show it."""
    if kind.content_type not in SOUNDS | CLIPS:
        return None
    try:
        found = TinyTag.get(f"it.{kind.extension}", file_obj=_Bounded(body), tags=False)  # type: ignore[arg-type]
    except (TinyTagException, OSError, ValueError, struct.error, IndexError, TypeError, KeyError, OverflowError):
        return None
    return round(found.duration, 3) if found.duration and 0 < found.duration < _LONGEST else None


class _Bounded:
    """A file of which only so much is read: a hostile one can keep a parser busy for minutes."""

    def __init__(self, body: BinaryIO) -> None:
        self._body, self._left = body, _READS
        self.seek, self.tell = body.seek, body.tell

    def read(self, length: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise OSError(f"more than {_READS} reads")
        return self._body.read(length if 0 <= length < HEADER else HEADER)


def is_document(kind: MediaType | None) -> bool:
    """Whether a user's file of that type can be read as a document."""
    return kind is not None and kind.content_type not in MEDIA


def sniff(head: bytes) -> MediaType | None:
    """The type of an output, by its first `SNIFFED` bytes; None: not an accepted type."""
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12], MP4)
    if head.startswith(b"RIFF"):
        return RIFF.get(head[8:12])
    if head.startswith(b"\x1aE\xdf\xa3"):  # Matroska; browsers play its subset WebM
        return WEBM if b"webm" in head[:SNIFFED] else None
    marked = (kind for mark, kind in MARKS.items() if head.startswith(mark))
    return next(marked, MP3 if _is_mpeg_audio(head) else None)


def _is_mpeg_audio(head: bytes) -> bool:
    """Whether a frame header of MPEG layer III begins here: sync, version, layer, bit rate, sample rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return False
    version, bit_rate, sample_rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and bit_rate not in (0, 15) and sample_rate != 3


def _is_text(head: bytes) -> bool:
    """Whether every byte can be text: UTF-8, UTF-16 with a byte-order mark, or a Chinese encoding."""
    return head.startswith(_BOMS) or _CONTROLS.isdisjoint(head)


def _text(head: bytes, name: str) -> MediaType:
    begins = head.removeprefix(codecs.BOM_UTF8).lstrip()[:SNIFFED].lower()
    if begins.startswith((b"<!doctype html", b"<html")):
        return HTML
    return TEXTS.get(PurePosixPath(name).suffix.lower(), PLAIN)
