"""Segments joined to one narration: to the sample, whatever their headers say; subtitles and a manifest with it."""

from __future__ import annotations

import io
import itertools
import json
import struct
import uuid
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import settings as examined
from hypothesis import strategies as st

from worker import catalog
from worker.kinds import speech
from worker.kinds.kind import Ended, Expansion, Found, Parent, Piece, Stored, Unfit
from worker.kinds.speech import audio, timeline
from worker.kinds.speech.audio import BadSound, Format
from worker.kinds.speech.timeline import Line
from worker.settings import Settings

MODEL = catalog.load().model("qwen3-tts-flash")
SETTINGS = Settings.model_validate({"database_url": "postgresql://", "broker_url": "redis://"})
MONO = Format(24_000, 1)
STREAMED = [0, 0xFFFFFFFF, 0x7FFFFFFF]


def wav(samples: bytes, form: Format = MONO, riff: int | None = None, said: int | None = None, bits: int = 16) -> bytes:
    """A WAV whose header says what it is told to of its lengths."""
    frame = form.channels * bits // 8
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, form.channels, form.rate, form.rate * frame, frame, bits)
    note = b"LIST" + struct.pack("<I", 4) + b"INFO"
    length = len(samples) if said is None else said
    whole = len(head) + len(note) + len(samples) + 12 if riff is None else riff
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + head + note + struct.pack("<4sI", b"data", length) + samples


@dataclass
class Shelf:
    """The bucket's part in it: objects by key; `late` after so many were looked into."""

    objects: dict[str, bytes] = field(default_factory=dict)
    late_after: int = 1 << 30
    seen: int = 0

    def chunks(self, key: str) -> Iterator[bytes]:
        self.seen += 1
        whole = self.objects[key]
        return (whole[at : at + 1000] for at in range(0, len(whole), 1000))

    def is_late(self) -> bool:
        return self.seen >= self.late_after

    def read(self, key: str, limit: int) -> bytes:
        raise AssertionError("nothing is read whole")

    def listing(self, prefix: str) -> Iterator[Found]:
        raise AssertionError("nothing is listed")

    def fetch(self, url: str, limit: int) -> tuple[bytes, str]:
        raise AssertionError("nothing is fetched")

    def put(self, name: str, chunks: Iterable[bytes], content_type: str) -> Stored:
        raise AssertionError("nothing is put beside")

    def unserved(self, model: str) -> str | None:
        raise AssertionError("nobody asks")


def parent(**raw: Any) -> Parent:
    return Parent(
        model=MODEL.id,
        input=speech.KIND.check(catalog.load(), MODEL, raw, None),
        note={},
        round=0,
        made=0,
        ended=(),
        prefixes=("p/",),
        settings=SETTINGS,
        catalog=catalog.load(),
    )


def expanded(made: Parent) -> tuple[Parent, list[Any]]:
    """The parent with the note that it was given, and all its children."""
    children: list[Any] = []
    said = Expansion(more=True)
    while said.more:
        said = speech.expand(replace(made, made=len(children)), Shelf())
        made = replace(made, note=said.note or made.note)
        children += said.children
    return replace(made, round=1), children


def spoken(made: Parent, files: list[bytes]) -> tuple[Parent, Shelf]:
    """The parent whose children came back with such files."""
    made, children = expanded(made)
    shelf = Shelf({f"p/{place}": content for place, content in enumerate(files)})
    ended = [
        Ended(
            id=uuid.uuid4(),
            round=1,
            place=place,
            kind=child.kind,
            model=child.model,
            note=child.note,
            state="succeeded",
            result=None,
            outputs=(Stored("audio", f"p/{place}", len(content), None),),
            usage={"characters": len(child.input["text"])},
            cost=48,
            error=None,
        )
        for place, (child, content) in enumerate(zip(children, files, strict=True))
    ]
    return replace(made, ended=ended), shelf


def joined(made: Parent, shelf: Shelf) -> tuple[Parent, dict[str, tuple[Piece, bytes]]]:
    """The parent as it was put together, and its pieces by extension."""
    said = speech.expand(made, shelf)
    assert said.failure is None
    assert (said.children, said.more) == ((), False)
    made = replace(made, note=said.note or made.note)
    return made, {piece.extension: (piece, b"".join(piece.chunks)) for piece in speech.assemble(made, shelf)}


def played(content: bytes) -> tuple[int, bytes]:
    with wave.open(io.BytesIO(content)) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (24_000, 1, 2)
        return reader.getnframes(), reader.readframes(reader.getnframes())


SAID = st.sampled_from([None, *STREAMED])


@examined(max_examples=60, deadline=None)
@given(
    segments=st.lists(
        st.tuples(st.integers(1, 3000), SAID, SAID),
        min_size=1,
        max_size=6,
    ),
    pause=st.floats(0, 0.5),
)
def test_the_whole_is_the_sum_of_segments_and_pauses_to_the_sample(
    segments: list[tuple[int, int | None, int | None]], pause: float
) -> None:
    sounds = [struct.pack("<h", n + 1) * frames for n, (frames, _, _) in enumerate(segments)]
    files = [wav(content, riff=riff, said=said) for content, (_, riff, said) in zip(sounds, segments, strict=True)]
    made, shelf = spoken(parent(paragraphs=[{"text": "Hello."}] * len(files), paragraph_pause=pause), files)

    made, pieces = joined(made, shelf)

    frames, content = played(pieces["wav"][1])
    assert content == bytes(2 * round(pause * 24_000)).join(sounds)
    assert frames == sum(n for n, _, _ in segments) + (len(files) - 1) * round(pause * 24_000)
    assert pieces["wav"][0].duration == frames / 24_000
    assert speech.usage(made)["seconds"] == round(frames / 24_000, 3)


def test_what_follows_the_sound_is_not_heard() -> None:
    made, shelf = spoken(parent(text="Hello."), [wav(b"\1\0" * 500) + b"LIST" + bytes(40)])

    _, pieces = joined(made, shelf)

    assert played(pieces["wav"][1]) == (500, b"\1\0" * 500)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (wav(bytes(100), Format(16_000, 1)), "16000"),
        (wav(bytes(100), Format(24_000, 2)), "2 channels"),
        (wav(bytes(100), bits=8), "8 bits"),
        (b"\xff\xfb\x90\x00" + bytes(500), "no WAV"),
        (b"RIFF", "no WAV"),
        (b"", "no WAV"),
        (wav(b""), "empty"),
    ],
)
def test_segments_that_do_not_go_together_are_refused_by_number(second: bytes, reason: str) -> None:
    made, shelf = spoken(parent(paragraphs=[{"text": "One."}, {"text": "Two."}]), [wav(bytes(100)), second])

    failure = speech.expand(made, shelf).failure

    assert failure is not None
    assert failure.code == "parts_unfit"
    assert failure.message.startswith("segment 2 ")
    assert reason in failure.message


def test_all_that_are_to_blame_are_named_at_once_and_the_format_of_most_is_right() -> None:
    odd, good = wav(bytes(100), Format(16_000, 1)), wav(bytes(100))
    made, shelf = spoken(parent(paragraphs=[{"text": "Hello."}] * 5), [odd, good, b"RIFF", good, wav(b"")])

    said = speech.expand(made, shelf)

    assert said.failure is not None
    assert said.failure.message.startswith("segment 1 cannot be joined: it has 1 channels at 16000 Hz")
    assert said.unfit == tuple(made.ended[place].id for place in (0, 2, 4))


def test_a_narration_that_is_made_again_is_measured_anew() -> None:
    made, shelf = spoken(parent(paragraphs=[{"text": "Hello."}] * 3, paragraph_pause=0), [wav(bytes(100))] * 3)
    made, _ = joined(made, shelf)
    shelf.objects["p/1"] = wav(bytes(4000))
    again = replace(made.ended[1], outputs=(Stored("audio", "p/1", len(shelf.objects["p/1"]), None),))
    made = replace(made, ended=[made.ended[0], again, made.ended[2]])

    _, pieces = joined(made, shelf)

    assert len(pieces["wav"][1]) == 44 + 100 + 4000 + 100


def test_more_than_a_wav_can_tell_of_is_refused_before_a_byte_is_joined() -> None:
    vast = audio.Sound(MONO, 44, audio.LONGEST // 2 - 10)
    made, shelf = spoken(parent(paragraphs=[{"text": "One."}, {"text": "Two."}]), [wav(bytes(2)), wav(bytes(40))])
    before = {**made.note, "sounds": [[24_000, 1, vast.offset, vast.frames]]}

    failure = speech.expand(replace(made, note=before), shelf).failure

    assert failure is not None
    assert failure.code == "too_long"


def test_segments_are_made_in_portions_of_hundreds() -> None:
    made = parent(paragraphs=[{"text": f"Line {n}."} for n in range(600)])

    first = speech.expand(made, Shelf())
    _, children = expanded(made)

    assert (len(first.children), first.more) == (250, True)
    assert [child.input["text"] for child in children] == [f"Line {n}." for n in range(600)]


def test_the_limit_of_the_first_portion_holds_for_all() -> None:
    made = parent(text="字" * 1000 + "。")
    first = speech.expand(made, Shelf())
    changed = replace(
        made, note=first.note or {}, settings=SETTINGS.model_copy(update={"speech_limit_unit": "characters"})
    )

    again = speech.expand(changed, Shelf())

    assert again.children == first.children
    assert max(len(child.input["text"].encode()) for child in first.children) == 600
    assert len(speech.expand(replace(changed, note={}), Shelf()).children) == 2


def test_a_step_that_has_had_its_time_goes_on_where_it_was() -> None:
    made, shelf = spoken(parent(paragraphs=[{"text": "Hello."}] * 5), [wav(bytes(2 * n)) for n in range(1, 6)])
    shelf.late_after = 3

    part = speech.expand(made, shelf)
    rest = speech.expand(replace(made, note=part.note or {}), replace(shelf, late_after=1 << 30, seen=0))

    assert (part.more, part.failure) == (True, None)
    assert [frames for *_, frames in (rest.note or {})["sounds"]] == [1, 2, 3, 4, 5]


def test_a_text_that_is_cut_otherwise_than_it_was_spoken_is_not_joined() -> None:
    made, shelf = spoken(parent(text="Hello."), [wav(bytes(100))])
    changed = replace(made, input=speech.KIND.check(catalog.load(), MODEL, {"text": "Hello there."}, None))

    failure = speech.expand(changed, shelf).failure

    assert failure is not None
    assert "submit it again" in failure.message


def test_a_segment_that_shrank_in_the_bucket_is_noticed() -> None:
    made, shelf = spoken(parent(text="Hello."), [wav(bytes(5000))])
    made = replace(made, note=speech.expand(made, shelf).note or {})
    shelf.objects["p/0"] = shelf.objects["p/0"][:-100]

    with pytest.raises(Unfit, match=r"segment 1 .* 100 bytes early"):
        list(next(iter(speech.assemble(made, shelf))).chunks)


def test_the_manifest_says_where_each_segment_is() -> None:
    script = [{"text": "Who is there?", "voice": "ethan", "pause_after": 1}, {"text": "谁啊？", "language": "chinese"}]
    made, shelf = spoken(parent(paragraphs=script), [wav(bytes(2 * 24_000)), wav(bytes(2 * 12_000))])

    made, pieces = joined(made, shelf)

    manifest = json.loads(pieces["json"][1])
    assert manifest["seconds"] == 2.5
    assert manifest["segments"][1] == {
        "job": str(made.ended[1].id),
        "key": "p/1",
        "paragraph": 2,
        "voice": "Cherry",
        "language": "Chinese",
        "start": 2.0,
        "end": 2.5,
        "cost": "0.000048",
        "text": "谁啊？",
    }
    assert speech.usage(made) == {"characters": 16, "segments": 2, "seconds": 2.5}


def test_only_the_formats_asked_for_are_made() -> None:
    made, shelf = spoken(parent(text="Hello.", formats="mp3", subtitles=[]), [wav(bytes(4800))])

    _, pieces = joined(made, shelf)

    assert list(pieces) == ["mp3", "json"]


def test_an_mp3_plays_as_long_as_the_wav() -> None:
    tone = struct.pack("<24000h", *(9000 * (-1) ** (n // 40) for n in range(24_000)))
    made, shelf = spoken(parent(paragraphs=[{"text": "Hello."}] * 3, formats=["wav", "mp3"]), [wav(tone)] * 3)

    _, pieces = joined(made, shelf)

    piece, content = pieces["mp3"]
    with av.open(io.BytesIO(content)) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0))
    assert piece.duration == pytest.approx(4.4)
    assert heard / 24_000 == pytest.approx(4.4, abs=0.15)  # MP3 has whole frames, and a start of its own
    assert len(content) < len(pieces["wav"][1]) / 5


def test_an_mp3_of_two_channels_is_made_as_well() -> None:
    content = b"".join(audio.mp3([bytes(30_000), bytes(66_000)], Format(24_000, 2)))

    with av.open(io.BytesIO(content)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) / 24_000 == pytest.approx(1.0, abs=0.15)


def test_a_header_is_right_up_to_four_gigabytes() -> None:
    head = audio.header(MONO, audio.LONGEST // 2)

    with wave.open(io.BytesIO(head)) as reader:
        assert reader.getnframes() == audio.LONGEST // 2


def test_silence_is_exact_and_holds_no_memory() -> None:
    assert sum(map(len, audio.silence(MONO, 240_001))) == 480_002
    assert max(map(len, audio.silence(MONO, 240_001))) <= 64 * 1024


def test_fewer_samples_than_were_measured_are_an_error() -> None:
    with pytest.raises(BadSound, match="6 bytes early"):
        list(audio.samples([bytes(44), bytes(4)], audio.Sound(MONO, 44, 5)))


# Subtitles

TALK = Line(
    "Once upon a time a wheel turned in the river. 有一天，水车停了下来。"
    "没有人知道为什么！The miller went to see, and he saw a fish.",
    10.0,
    22.0,
)


def test_cues_fit_a_screen_and_share_the_time_of_their_segment() -> None:
    found = list(timeline.cues(TALK))

    assert [cue.text for cue in found] == [
        "Once upon a time a wheel turned in the river. 有一天，水车停了下来。",
        "没有人知道为什么！The miller went to see, and he saw a fish.",
    ]
    assert (found[0].start, found[-1].end) == (10.0, 22.0)
    assert found[0].end == found[1].start == pytest.approx(10 + 12 * 66 / (66 + 62), abs=0.2)


def test_subtitles_are_written_in_both_formats() -> None:
    assert timeline.subtitles([Line("Hello\n  there.", 3599.5, 3601.25)], "srt") == (
        "1\n00:59:59,500 --> 01:00:01,250\nHello there.\n\n"
    )
    assert (
        timeline.subtitles([Line("Hello.", 0, 1.0)], "vtt") == "WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.000\nHello.\n\n"
    )


@pytest.mark.parametrize("odd", [r"{\i1}C:\new{\p1} {b}", "1 < 2 & <i>x</i>", "a --> b", "……"])
def test_no_text_is_taken_for_a_command(odd: str) -> None:
    line = Line(f"Look: {odd}", 0, 5)

    srt, vtt = timeline.subtitles([line], "srt"), timeline.subtitles([line], "vtt")

    assert srt.replace("\u2060", "").splitlines()[2] == line.text
    assert vtt.count("-->") == srt.count("-->") == 1
    assert "<" not in vtt


def test_cues_follow_one_another_over_the_whole_narration() -> None:
    texts = [{"text": "The wheel turned. " * 20, "pause_after": 1.5}, {"text": "And stopped."}]
    made, shelf = spoken(parent(paragraphs=texts), [wav(bytes(2 * 24_000 * 20)), wav(bytes(2 * 24_000))])

    _, pieces = joined(made, shelf)

    times = [line.split(" --> ") for line in pieces["srt"][1].decode().splitlines() if "-->" in line]
    assert times[-1] == ["00:00:21,500", "00:00:22,500"]
    assert len(times) > 4
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(times))
