"""Summaries without a model: the first sentence of each paragraph, from the documents that a prompt holds.

A prompt marks its documents off by tags (`<document id="7">…</document>`) or fences; a prompt that marks none is
one document. What stands outside the marks are instructions.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

MOST_SENTENCES = 12  # of a document: evenly taken, if it has more paragraphs
MOST_CHARACTERS = 400  # of a sentence
OPENING = re.compile(r"<(?P<tag>[A-Za-z][\w-]*+)(?P<attributes>[^<>]*)>")
CLOSING = re.compile(r"</(?P<tag>[A-Za-z][\w-]*)>")
FENCE = re.compile(r"^(?:```|~~~|\"\"\"|<<<|---{2,})[^\n]*$", re.MULTILINE)
ID = re.compile(r"""\bid\s*[=:]\s*["']?([\w.:/@+-]+)""", re.IGNORECASE)
SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|[。！？]|$)")


@dataclass(frozen=True)
class Document:
    """One text to summarise; the id is empty where the prompt gives none."""

    id: str
    text: str

    def sentences(self) -> list[str]:
        """Return the first sentence of each paragraph, of `MOST_SENTENCES` paragraphs at most."""
        paragraphs = [part for part in re.split(r"\n\s*\n", self.text) if part.strip()]
        step = max(1.0, len(paragraphs) / MOST_SENTENCES)
        taken = [paragraphs[int(number * step)] for number in range(min(len(paragraphs), MOST_SENTENCES))]
        return [_first_sentence(paragraph) for paragraph in taken]


def split(prompt: str) -> tuple[str, list[Document]]:
    """Return a prompt's instructions and the documents that it marks off, if any."""
    return _tagged(prompt) or _fenced(prompt) or (prompt, [])


def _tagged(prompt: str) -> tuple[str, list[Document]] | None:
    closings = _closings(prompt)
    documents, outside, position = [], [], 0
    for opening in OPENING.finditer(prompt):
        ends = closings.get(opening["tag"], [])
        following = bisect_left(ends, opening.end())
        if opening.start() < position or following == len(ends):
            continue
        documents.append(Document(_id(opening["attributes"]), prompt[opening.end() : ends[following]].strip()))
        outside.append(prompt[position : opening.start()])
        position = ends[following] + len(opening["tag"]) + 3
    return ("".join([*outside, prompt[position:]]), documents) if documents else None


def _closings(prompt: str) -> dict[str, list[int]]:
    """Return where each tag is closed: looked for once, since a hostile text may open thousands."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for closing in CLOSING.finditer(prompt):
        found[closing["tag"]].append(closing.start())
    return found


def _fenced(prompt: str) -> tuple[str, list[Document]] | None:
    parts = FENCE.split(prompt)
    if len(parts) < 3:
        return None
    outside, inside = parts[::2], parts[1::2]
    # The id of a fenced text stands before it.
    documents = [Document(_id(before[-200:]), text.strip()) for before, text in zip(outside, inside, strict=False)]
    return "\n".join(outside), documents


def _id(text: str) -> str:
    found = ID.findall(text)
    return str(found[-1]) if found else ""


def _first_sentence(paragraph: str) -> str:
    flat = re.sub(r"\s+", " ", paragraph).strip().lstrip("#*- ")
    found = SENTENCE.match(flat[:MOST_CHARACTERS])
    return found[0] if found else flat[:MOST_CHARACTERS]
