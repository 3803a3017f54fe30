"""A text cut into segments: below the limit, at good places, nothing lost and nothing repeated."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.kinds.speech import script
from worker.kinds.speech.script import Paragraph

FAMILY = "👨‍👩‍👧‍👦"
FLAG = "🇨🇳"
ACCENTED = "e\u0301\u0327"
HANGUL = "\u1112\u1161\u11ab"
MIXED = "他说：“价格是 ¥1,299.00。真的！”然后走了。Then Dr. Smith said: “It costs $1,299.00!” 你好吗？3.14 很好…… "
MARKS = ["。", "！”", ". ", "? ", "，", "、", "; ", "Dr. ", "1,299.00", "¥", "“", "”", "\n", "\r\n", "\n\n", " ", "\t"]
ODD = ["字", "word ", "مرحبا ", "สวัสดี", "\x07", "\u2028", "\u200d", "\u202e", "\ufeff", "\u0301"]
SCRAPS = st.sampled_from([*MARKS, *ODD, FAMILY, FLAG, ACCENTED, HANGUL])
HOSTILE = st.lists(SCRAPS | st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=60).map("".join)
MEASURES = st.sampled_from([script.in_bytes, len, script.in_columns])


def paragraph(text: str, pause: float = 0.7) -> Paragraph:
    return Paragraph(text, "Cherry", "Auto", None, pause)


def pieces(text: str, limit: int = 60) -> list[str]:
    return list(script.cut(text, limit, script.in_bytes))


def spoken(text: str) -> str:
    return "".join(text.split())


# Cutting


@settings(max_examples=300, deadline=None)
@given(text=HOSTILE, limit=st.integers(4, 80), measure=MEASURES)
@example(text="a" + "\u0301" * 200, limit=10, measure=script.in_bytes)
@example(text=FAMILY * 20, limit=26, measure=script.in_bytes)
def test_pieces_are_within_the_limit_and_joined_they_are_the_text(
    text: str, limit: int, measure: Callable[[str], int]
) -> None:
    found = list(script.cut(text, limit, measure))

    assert "".join(found) == text
    assert all(0 < measure(piece) <= limit for piece in found)


@settings(max_examples=150, deadline=None)
@given(
    graphemes=st.lists(st.sampled_from([FAMILY, FLAG, ACCENTED, HANGUL, "字", "，", "。", "a", " "]), max_size=120),
    limit=st.integers(26, 90),  # bytes; a family has 25
)
def test_what_is_seen_as_one_character_stays_whole(graphemes: list[str], limit: int) -> None:
    found = pieces("".join(graphemes), limit)

    ends = set(itertools.accumulate(map(len, graphemes)))
    assert set(itertools.accumulate(map(len, found))) <= ends


def test_sentences_stay_whole_and_closing_quotes_stay_with_them() -> None:
    text = "他说：“价格是 ¥1,299.00。真的！”然后走了。“Wait!” she said. It costs $1,299.00."

    assert pieces(text, 50) == [
        "他说：“价格是 ¥1,299.00。真的！”",
        "然后走了。“Wait!” she said. ",
        "It costs $1,299.00.",
    ]


def test_the_stop_of_a_title_ends_no_sentence() -> None:
    assert pieces("It was late. Then Dr. Smith and J. R. Hartley left.", 40) == [
        "It was late. ",
        "Then Dr. Smith and J. R. Hartley left.",
    ]


def test_a_sentence_above_the_limit_is_cut_at_a_clause() -> None:
    text = "When the wheel had turned all night long, and the moon was gone, the miller at last went home to sleep."

    assert pieces(text, 60) == [
        "When the wheel had turned all night long, ",
        "and the moon was gone, the miller at last went home to ",
        "sleep.",
    ]


def test_a_line_that_an_editor_wrapped_is_no_sentence_and_a_verse_is() -> None:
    prose = "The old wheel turned and turned and nobody in the valley\nknew why. It was spring. "
    verse = "Tyger Tyger, burning bright\nIn the forests of the night\nWhat immortal hand"

    assert pieces(prose, 70) == [prose[:-15], "It was spring. "]
    assert pieces(verse, 60) == ["Tyger Tyger, burning bright\nIn the forests of the night\n", "What immortal hand"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(MIXED * (100_000 // len(MIXED)), id="mixed"),
        pytest.param("字" * 100_000, id="no stops"),
        pytest.param("我们今天去公园，" * 12_500, id="no sentence ends"),
        pytest.param("a" * 50_000, id="50 kB without a space"),
        pytest.param(FAMILY * 14_000, id="emoji"),
        pytest.param("a" + "\u0301" * 100_000, id="one letter with all its marks"),
        pytest.param(" " * 100_000 + ".", id="blanks"),
        pytest.param("a\n" * 50_000, id="lines"),
    ],
)
def test_a_hundred_thousand_characters_are_cut_in_seconds(text: str) -> None:
    began = time.monotonic()
    found = pieces(text, 600)

    assert time.monotonic() - began < 5  # a tenth of a second, unless something grows with the square
    assert "".join(found) == text


# Segments


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(HOSTILE, max_size=4), limit=st.integers(8, 80))
def test_every_character_that_can_be_spoken_is_sent_once_and_in_order(texts: list[str], limit: int) -> None:
    found = script.segments(map(paragraph, texts), 0.25, limit, script.in_bytes)

    sent = "".join(segment.text for segment in found)
    assert [c for c in sent if c.isalnum()] == [c for text in texts for c in text if c.isalnum()]
    assert all(segment.text == segment.text.strip() and script.is_spoken(segment.text) for segment in found)
    assert all(0 <= segment.pause <= script.LONGEST_PAUSE for segment in found)
    assert not found or found[-1].pause == 0


def test_a_hundred_thousand_mixed_characters_are_sent_whole() -> None:
    text = MIXED * (100_000 // len(MIXED))

    found = script.segments([paragraph(text)], 0.25, 600, script.in_bytes)

    assert spoken("".join(segment.text for segment in found)) == spoken(text)
    assert max(script.in_bytes(segment.text) for segment in found) <= 600
    assert len(found) < script.in_bytes(text) / 500  # few calls: they are filled


def test_pauses_tell_segments_from_paragraphs() -> None:
    found = script.segments([paragraph("One. Two."), paragraph("Three!")], 0.25, 6, script.in_bytes)

    assert [(segment.paragraph, segment.text, segment.pause) for segment in found] == [
        (1, "One.", 0.25),
        (1, "Two.", 0.7),
        (2, "Three!", 0.0),
    ]


def test_what_cannot_be_spoken_is_a_longer_pause_and_no_call() -> None:
    lines = ["…", "Before.", "* * *", "——", "After."]

    found = script.segments(map(paragraph, lines), 0.25, 600, script.in_bytes)

    assert [segment.text for segment in found] == ["Before.", "After."]
    assert found[0].pause == pytest.approx(3 * 0.7)


def test_silence_upon_silence_ends_somewhere() -> None:
    lines = ["Before.", *["***"] * 1000, "After."]

    assert script.segments(map(paragraph, lines), 0.25, 600, script.in_bytes)[0].pause == script.LONGEST_PAUSE


def test_blank_lines_divide_paragraphs_whatever_ends_a_line() -> None:
    text = "\n\nOne\nstill one.\r\n \t\r\nTwo.\r\rThree.\n"

    assert script.paragraphs(text) == ["One\nstill one.", "Two.", "Three.\n"]
