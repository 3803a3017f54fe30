"""What a document has so far: a tree of answers, from its parts up to its summary.

Level 0 is what the parts of the document say, each level above joins the one below in fewer answers, and where a
level has one place, that is the summary. The digest is such a tree, whose level 0 are the summaries. A tree is
read from the children that have ended, so a job that is taken up by another worker, or made again, goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from worker.kinds import answers, text
from worker.kinds.kind import Ended, Parent, Store
from worker.kinds.summary import documents, lines

DIGEST = -1  # in place of a document's number

COUNTED = ("input_tokens", "output_tokens", "cached_tokens")


@dataclass(frozen=True)
class Answer:
    """What a call said, the tokens it took, and whether it ended for want of more."""

    content: str
    usage: dict[str, int]
    is_cut: bool = False


@dataclass(frozen=True)
class Slip:
    """Why a document has no summary: a stable code, and a sentence."""

    code: str
    message: str

    def as_json(self) -> dict[str, str]:
        """As results and notes have it."""
        return asdict(self)


@dataclass
class Tree:
    """The answers by level and place. `floor`: the lowest level whose only answer is the summary."""

    floor: int = 0
    sizes: dict[int, int] = field(default_factory=dict)  # places of each level that was begun
    parts: dict[tuple[int, int], Answer | Slip] = field(default_factory=dict)
    again: Answer | Slip | None = None  # to the question whose first answer did not fit
    spent: list[dict[str, int]] = field(default_factory=list)  # the tokens of each call

    @property
    def top(self) -> int:
        """The highest level that was begun; -1 where none was."""
        return max(self.sizes, default=-1)

    @property
    def slip(self) -> Slip | None:
        """The first failure of a part; no summary is made of the others alone."""
        failed = ((place, part) for (_, place), part in sorted(self.parts.items()) if isinstance(part, Slip))
        place, slip = next(failed, (0, None))
        if slip is None or self.sizes.get(0, 1) == 1:
            return slip
        return Slip(slip.code, f"part {place + 1}: {slip.message}")

    @property
    def final(self) -> Answer | None:
        """The summary, as it was first said; None: it is not made yet."""
        part = self.parts.get((self.top, 0)) if self.sizes.get(self.top) == 1 and self.top >= self.floor else None
        return part if isinstance(part, Answer) else None

    def missing(self, level: int) -> list[int]:
        """The places of a level that nothing is known of."""
        return [place for place in range(self.sizes.get(level, 0)) if (level, place) not in self.parts]

    def said(self, level: int) -> list[str]:
        """What the level's answers say, in their order."""
        places = sorted(place for at, place in self.parts if at == level)
        found = (self.parts[level, place] for place in places)
        return [part.content for part in found if isinstance(part, Answer)]

    def add(self, level: int, place: int, of: int, part: Answer | Slip) -> None:
        """One more answer. A document that changed since it was first cut is not mixed with what it was."""
        if self.sizes.setdefault(level, of) != of:
            self.parts = {key: kept for key, kept in self.parts.items() if key[0] != level}
            self.sizes[level] = of
        if not isinstance(self.parts.get((level, place)), Answer):
            self.parts[level, place] = part


def grown(parent: Parent, store: Store) -> dict[int, Tree]:
    """The trees by the number of their document, and of the digest, from all children that have ended."""
    trees: dict[int, Tree] = {DIGEST: Tree(floor=1)}
    for child in parent.ended:
        if child.kind == text.NAME:
            _hang(trees, child)
        else:
            _hang_lines(trees, child, store)
    return trees


def spent(trees: Mapping[int, Tree]) -> dict[str, int]:
    """The calls that were answered for all of them, and their tokens."""
    usages = [usage for tree in trees.values() for usage in tree.spent]
    return {"calls": len(usages), **{name: sum(usage[name] for usage in usages) for name in COUNTED}}


def is_refused(child: Ended) -> bool:
    """Whether the provider does not do the call as a task for this account: it is made as a call then.

    Alibaba docs, 'Error messages': AccessDenied, "current user api does not support asynchronous calls".
    """
    said = answers.mapping((child.error or {}).get("provider"))
    return said.get("code") == "AccessDenied" and "asynchronous" in str(said.get("message")).lower()


def _hang(trees: dict[int, Tree], child: Ended) -> None:
    if is_refused(child):
        return
    note = child.note
    tree = trees.setdefault(note["document"], Tree())
    part = _answer(child.result, child.usage) if child.state == "succeeded" else _slip(child)
    if isinstance(part, Answer):
        tree.spent.append(part.usage)
    if note.get("again"):
        tree.again = part
    else:
        tree.add(note["level"], note["place"], note["of"], part)


def _hang_lines(trees: dict[int, Tree], child: Ended, store: Store) -> None:
    """The lines of a batch that were answered; the others are made by calls, as if they had never been in it."""
    for document, place, of, body in _answered(child, store):
        tree = trees.setdefault(document, Tree())
        part = _answer(text.result(body), answers.tokens(answers.mapping(body.get("usage"))))
        tree.spent.append(part.usage)
        tree.add(0, place, of, part)


def _answered(child: Ended, store: Store) -> Iterator[tuple[int, int, int, Mapping[str, Any]]]:
    for output in child.outputs:
        if output.role == "results":
            yield from lines.answered(store.chunks(output.key))


def _answer(result: Mapping[str, Any] | None, usage: Mapping[str, Any] | None) -> Answer:
    said = result or {}
    tokens = {name: int(answers.number((usage or {}).get(name)) or 0) for name in COUNTED}
    content = documents.storable(str(said.get("content") or "")).strip()
    return Answer(content, tokens, said.get("finish_reason") == "length")


def _slip(child: Ended) -> Slip:
    error = child.error or {}
    return Slip(error.get("code", child.state), error.get("message", f"the call for it was {child.state}"))
