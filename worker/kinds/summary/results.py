"""What each document has so far: a tree of answers, from its parts up to its summary, and how it ended.

Level 0 of a tree are the answers about the document's parts. Each level above joins the one below in fewer answers, and
a level with one place is the summary. The digest is such a tree too, whose level 0 are the summaries. Trees are read
from the children that have ended, so a job that another worker takes up, or that is retried, goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from worker.catalog import Variant
from worker.kinds import answers, text, text_batch
from worker.kinds.answers import Unfitting
from worker.kinds.kind import Ended, Parent, Store
from worker.kinds.summary import documents
from worker.kinds.summary.input import Summary

DIGEST = -1  # in place of a document's number

COUNTED = ("input_tokens", "output_tokens", "cached_tokens")


@dataclass(frozen=True)
class Answer:
    """What a call answered, the tokens it took, and whether the answer was cut off at its longest."""

    content: str
    usage: dict[str, int]
    is_cut: bool = False


@dataclass(frozen=True)
class NoSummary:
    """Why a document has no summary: a stable code, and a message for a person."""

    code: str
    message: str

    def as_json(self) -> dict[str, str]:
        """As results and notes have it."""
        return asdict(self)


@dataclass(frozen=True)
class Done:
    """The summary: text, or an object of the wanted shape."""

    value: Any
    is_cut: bool = False


@dataclass(frozen=True)
class Misfit:
    """An answer that is not what was asked for, and why, in words for the model that gave it."""

    answer: str
    why: str


@dataclass(frozen=True)
class Place:
    """Where in which tree an answer belongs; `again`: it replaces one that did not fit."""

    document: int
    level: int
    place: int
    of: int
    again: bool = False

    def as_note(self) -> dict[str, Any]:
        """As a child's note has it."""
        note = asdict(self)
        return note if self.again else {name: value for name, value in note.items() if name != "again"}

    def as_line(self) -> str:
        """The name of its line in a batch; only answers about parts of documents are in batches."""
        return f"{self.document}.{self.place}.{self.of}"


@dataclass
class Tree:
    """The answers by level and place. `floor`: the lowest level whose only answer is the summary."""

    floor: int = 0
    sizes: dict[int, int] = field(default_factory=dict)  # places of each level that was begun
    parts: dict[tuple[int, int], Answer | NoSummary] = field(default_factory=dict)
    again: Answer | NoSummary | None = None  # to the question whose first answer did not fit
    spent: list[dict[str, int]] = field(default_factory=list)  # the tokens of each call
    cached: int = 0  # answers that the result cache gave

    @property
    def top(self) -> int:
        """The highest level that was begun; -1 where none was."""
        return max(self.sizes, default=-1)

    @property
    def failure(self) -> NoSummary | None:
        """The first failure of a part; no summary is made of the other parts alone."""
        failed = ((place, part) for (_, place), part in sorted(self.parts.items()) if isinstance(part, NoSummary))
        place, failure = next(failed, (0, None))
        if failure is None or self.sizes.get(0, 1) == 1:
            return failure
        return NoSummary(failure.code, f"part {place + 1}: {failure.message}")

    @property
    def final(self) -> Answer | None:
        """The first answer that is the summary; None: it is not made yet."""
        part = self.parts.get((self.top, 0)) if self.sizes.get(self.top) == 1 and self.top >= self.floor else None
        return part if isinstance(part, Answer) else None

    def missing(self, level: int) -> list[int]:
        """The places of a level that have nothing yet."""
        return [place for place in range(self.sizes.get(level, 0)) if (level, place) not in self.parts]

    def contents(self, level: int) -> list[str]:
        """The contents of the level's answers, in their order."""
        places = sorted(place for at, place in self.parts if at == level)
        found = (self.parts[level, place] for place in places)
        return [part.content for part in found if isinstance(part, Answer)]

    def add(self, level: int, place: int, of: int, part: Answer | NoSummary) -> None:
        """One more answer. A document that changed since it was first cut is not mixed with what it was."""
        if self.sizes.setdefault(level, of) != of:
            self.parts = {key: kept for key, kept in self.parts.items() if key[0] != level}
            self.sizes[level] = of
        if not isinstance(self.parts.get((level, place)), Answer):
            self.parts[level, place] = part


def trees(parent: Parent, store: Store) -> dict[int, Tree]:
    """The trees by the number of their document, and the digest's, from all children that have ended."""
    found: dict[int, Tree] = {DIGEST: Tree(floor=1)}
    for child in parent.ended:
        if child.kind == text.NAME:
            _add_call(found, child)
        else:
            _add_batch(found, child, store)
    return found


def spent(trees: Mapping[int, Tree]) -> dict[str, int]:
    """The number of calls that were answered for all of them, and their tokens; and of cached answers, if any."""
    usages = [usage for tree in trees.values() for usage in tree.spent]
    counted = {"calls": len(usages), **{name: sum(usage[name] for usage in usages) for name in COUNTED}}
    cached = sum(tree.cached for tree in trees.values())
    return counted | ({"cached": cached} if cached else {})


def outcome(tree: Tree, wanted: Summary) -> Done | NoSummary | Misfit | None:
    """How the document stands; None: its summary is not made yet."""
    if tree.failure is not None:
        return tree.failure
    if tree.final is None:
        return None
    first = _judged(tree.final, wanted)
    if isinstance(first, Done) or (wanted.schema_wanted is not None and tree.again is None):
        return first
    second = _judged(tree.again, wanted) if isinstance(tree.again, Answer) else tree.again or first
    if isinstance(second, Misfit):
        return NoSummary("answer_unfitting", f"the answer is not what was asked for, twice: {second.why[:500]}")
    return second


def is_refused(child: Ended) -> bool:
    """Whether the provider refuses the account calls as tasks: they are made as plain calls then.

    Alibaba docs, 'Error messages': AccessDenied, "current user api does not support asynchronous calls".
    """
    told = answers.mapping((child.error or {}).get("provider"))
    return told.get("code") == "AccessDenied" and "asynchronous" in str(told.get("message")).lower()


def is_left_by_chat(child: Ended) -> bool:
    """Whether Batch Chat gave no answer: the call is made as a plain one then."""
    return child.state != "succeeded" and child.model.endswith(f"@{Variant.CHAT}")


def _judged(answer: Answer, wanted: Summary) -> Done | Misfit | NoSummary:
    if wanted.schema_wanted is None:
        empty = NoSummary("empty_answer", "the answer was empty")
        return Done(answer.content, answer.is_cut) if answer.content else empty
    if answer.is_cut:
        return Misfit(answer.content, "it was too long and cut off, so it has to be shorter")
    try:
        return Done(answers.parsed_json(answer.content, wanted.schema_wanted))
    except Unfitting as error:
        return Misfit(answer.content, str(error))


def _add_call(trees: dict[int, Tree], child: Ended) -> None:
    if is_refused(child) or is_left_by_chat(child):
        return
    note = child.note
    tree = trees.setdefault(note["document"], Tree())
    part = _answer(child.result, child.usage) if child.state == "succeeded" else _failure(child)
    if isinstance(part, Answer) and child.usage:
        tree.spent.append(part.usage)
    elif isinstance(part, Answer):
        tree.cached += 1
    if note.get("again"):
        tree.again = part
    else:
        tree.add(note["level"], note["place"], note["of"], part)


def _add_batch(trees: dict[int, Tree], child: Ended, store: Store) -> None:
    """The lines of a batch that were answered; the others are made by calls, as if they had never been in it."""
    for name, body in _lines(child, store):
        numbers = name.split(".")
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            continue
        document, place, of = map(int, numbers)
        tree = trees.setdefault(document, Tree())
        part = _answer(text.result(body), answers.tokens(answers.mapping(body.get("usage"))))
        tree.spent.append(part.usage)
        tree.add(0, place, of, part)


def _lines(child: Ended, store: Store) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for output in child.outputs:
        if output.role == "results":
            yield from text_batch.answered(store.chunks(output.key))


def _answer(result: Mapping[str, Any] | None, usage: Mapping[str, Any] | None) -> Answer:
    answer = result or {}
    tokens = {name: int(answers.number((usage or {}).get(name)) or 0) for name in COUNTED}
    content = documents.printable(str(answer.get("content") or "")).strip()
    return Answer(content, tokens, answer.get("finish_reason") == "length")


def _failure(child: Ended) -> NoSummary:
    error = child.error or {}
    return NoSummary(error.get("code", child.state), error.get("message", f"the call for it was {child.state}"))
