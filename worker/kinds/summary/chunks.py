"""Texts made to fit one call: long ones cut where they pause, short ones put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from semantic_text_splitter import TextSplitter

from worker.catalog import Model
from worker.kinds import text

FULL = 12_000  # tokens of material in one call: more, and the middle of it is read less well

_RULES = 2_000  # tokens that are left for the instructions, a schema among them
_WINDOW = 8  # characters looked at for each token of a part; at three bytes a token, more than two parts


def room(model: Model, answer: int) -> int:
    """How many tokens of material fit one call beside an answer of so many."""
    return max(1_000, min(FULL, (model.context or FULL + answer + _RULES) - answer - _RULES))


def cut(whole: str, tokens: int) -> list[str]:
    """The text in parts of at most so many tokens, cut between paragraphs, else sentences, else words."""
    return [whole] if text.tokens(whole) <= tokens else list(_parts(whole, tokens))


def grouped(texts: Sequence[str], tokens: int) -> list[list[str]]:
    """The texts in order, in groups of at most so many tokens; each but the last has two or more, so it gets fewer."""
    groups: list[list[str]] = []
    used = 0
    for each in texts:
        size = text.tokens(each)
        if not groups or (len(groups[-1]) > 1 and used + size > tokens):
            groups.append([])
            used = 0
        groups[-1].append(each)
        used += size
    return groups


def _parts(whole: str, tokens: int) -> Iterator[str]:
    """Window by window, since the splitter's time grows with the square of a text without pauses.

    The last part of a window is short only because the window ends there: it is cut again with what follows.
    """
    splitter = TextSplitter.from_callback(text.tokens, tokens)
    start, window = 0, tokens * _WINDOW
    while len(whole) - start > window:
        *parts, (last, _) = splitter.chunk_indices(whole[start : start + window])
        yield from (part for _, part in parts)
        start += last
    yield from splitter.chunks(whole[start:])
