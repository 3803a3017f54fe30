"""Speech without a voice: for each character a tone, so that a text can be heard, and told from another.

The length follows the text. 24 kHz, mono, 16 bits (Alibaba docs, "Qwen-TTS API reference").
"""

import hashlib
import math
import struct
from array import array
from functools import lru_cache

from ops.sandbox import tokens

RATE = 24_000  # samples a second
BYTES = 2  # a sample
HAN_SAMPLES, OTHER_SAMPLES = 2_880, 1_440  # a character: 0.12 and 0.06 s
LOUD = 9_000  # of 32,767
SCALE = (0, 2, 4, 7, 9, 12, 14, 16, 19, 21)  # half-tones above the voice: whatever follows sounds bearable
LOWEST, HALF_TONES = 130.8, 18  # Hz, and how far apart voices are


def pcm(text: str, voice: str) -> bytes:
    """Return a text as samples, little-endian."""
    base = hashlib.sha256(voice.encode()).digest()[0] % HALF_TONES
    return b"".join(_tone(base + SCALE[ord(character) % len(SCALE)], _is_han(character)) for character in text)


def wav(text: str, voice: str) -> bytes:
    """Return a text as a WAV file."""
    samples = pcm(text, voice)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE * BYTES, BYTES, 8 * BYTES)
    return struct.pack("<4sI4s", b"RIFF", 36 + len(samples), b"WAVE") + form + _chunk(b"data", samples)


def length(text: str) -> int:
    """Return how long a text sounds, in samples."""
    characters = len(tokens.HAN.findall(text))
    return characters * HAN_SAMPLES + (len(text) - characters) * OTHER_SAMPLES


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


def _is_han(character: str) -> bool:
    return tokens.HAN.match(character) is not None


@lru_cache(maxsize=256)
def _tone(half_tones: int, is_long: bool) -> bytes:
    count = HAN_SAMPLES if is_long else OTHER_SAMPLES
    step = math.tau * LOWEST * 2 ** (half_tones / 12) / RATE
    # Swelling and fading, so that no tone begins or ends with a click.
    samples = array("h", (round(LOUD * math.sin(math.pi * at / count) * math.sin(step * at)) for at in range(count)))
    return samples.tobytes()
