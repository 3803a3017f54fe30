"""How a document ended: with its summary, with a reason why it has none, or with an answer to be asked for again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.kinds import text
from worker.kinds.json_answers import Unfitting
from worker.kinds.summary.form import Summary
from worker.kinds.summary.trees import Answer, Slip, Tree


@dataclass(frozen=True)
class Done:
    """The summary: text, or an object of the wanted shape."""

    value: Any
    is_cut: bool = False


@dataclass(frozen=True)
class Misfit:
    """An answer that is not what was wanted, and why, in words for the model that said it."""

    answer: str
    why: str


def of(tree: Tree, wanted: Summary) -> Done | Slip | Misfit | None:
    """How the document stands; None: its summary is not made yet."""
    if tree.slip is not None:
        return tree.slip
    if tree.final is None:
        return None
    first = _judged(tree.final, wanted)
    if isinstance(first, Done) or (wanted.schema_wanted is not None and tree.again is None):
        return first
    second = _judged(tree.again, wanted) if isinstance(tree.again, Answer) else tree.again or first
    if isinstance(second, Misfit):
        return Slip("answer_unfitting", f"the answer is not what was asked for, twice: {second.why[:500]}")
    return second


def _judged(answer: Answer, wanted: Summary) -> Done | Misfit | Slip:
    if wanted.schema_wanted is None:
        return Done(answer.content, answer.is_cut) if answer.content else Slip("empty_answer", "the answer was empty")
    if answer.is_cut:
        return Misfit(answer.content, "it was too long and cut off, so it has to be shorter")
    try:
        return Done(text.parsed({"content": answer.content}, wanted.schema_wanted))
    except Unfitting as error:
        return Misfit(answer.content, str(error))
