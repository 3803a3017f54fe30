"""What one tree needs next: its document read, a level joined to the next, or an answer asked for again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from worker.errors import CallFailed
from worker.kinds.summary import chunks, intake, prompts
from worker.kinds.summary.documents import Unreadable
from worker.kinds.summary.endings import Misfit
from worker.kinds.summary.form import Summary
from worker.kinds.summary.portion import Place, Portion
from worker.kinds.summary.prompts import Call
from worker.kinds.summary.trees import DIGEST, Slip, Tree

# Before a link that did not answer is asked again, each time in another pass; after the last it is given up.
_WAITS = (timedelta(seconds=30), timedelta(minutes=3))
_TRIES = len(_WAITS) + 1

Joining = Callable[[Sequence[str]], Call]


def grow(portion: Portion, document: int) -> None:
    """Makes what the document needs next, if anything."""
    stands = portion.outcome(document)
    tree = portion.trees.get(document, Tree())
    if isinstance(stands, Misfit):
        _ask_again(portion, document, tree, stands)
    elif stands is None and (tree.top < 0 or (tree.top == 0 and tree.missing(0))):
        _read_parts(portion, document, tree)
    elif stands is None:
        joined, merged = partial(prompts.joined, portion.wanted), partial(prompts.merged, portion.wanted)
        join(portion, document, tree, joined, merged)


def join(portion: Portion, document: int, tree: Tree, final: Joining, notes: Joining, first: int = 0) -> int | None:
    """The next level of a tree, from the place `first` on; where to go on with it, None at its end."""
    level = tree.top if tree.top > 0 and tree.missing(tree.top) else tree.top + 1
    groups = chunks.grouped(tree.said(level - 1), portion.room(portion.reducing))
    wanting = tree.missing(level) if level in tree.sizes else range(len(groups))
    for place in wanting:
        if place < first:
            continue
        if portion.made and document == DIGEST and portion.is_full:
            return place
        call = final(groups[place]) if len(groups) == 1 else notes(groups[place])
        portion.ask(portion.reducing, Place(document, level, place, len(groups)), call)
    return None


def rest(portion: Portion) -> timedelta | None:
    """How long to leave the links in peace that did not answer; None: there are none."""
    tries = portion.note["tries"].values()
    return _WAITS[max(tries) - 1] if tries else None


def _read_parts(portion: Portion, document: int, tree: Tree) -> None:
    parts = _cut(portion, document)
    portion.note["cut"] += len(parts)
    known = tree.sizes.get(0) == len(parts)
    for place in tree.missing(0) if known else range(len(parts)):
        at = Place(document, 0, place, len(parts))
        portion.read(at, _first_call(portion.wanted, parts, place))


def _first_call(wanted: Summary, parts: Sequence[str], place: int) -> Call:
    if len(parts) == 1:
        return prompts.whole(wanted, parts[0])
    return prompts.part(wanted, parts[place], place, len(parts))


def _cut(portion: Portion, document: int) -> list[str]:
    """The document in parts that fit a call each; none where it cannot be had, now or ever."""
    try:
        reading = intake.read(portion.items[document], portion.store)
    except Unreadable as error:
        portion.slip(document, Slip(error.code, str(error)))
        return []
    except CallFailed as error:
        _try_later(portion, document, error)
        return []
    portion.note["tries"] = {name: n for name, n in portion.note["tries"].items() if name != str(document)}
    portion.warn(document, reading.warning)
    return chunks.cut(reading.text, portion.room(portion.mapping))


def _try_later(portion: Portion, document: int, error: CallFailed) -> None:
    tries = dict(portion.note["tries"])
    tries[str(document)] = tries.get(str(document), 0) + 1
    if tries[str(document)] >= _TRIES:
        del tries[str(document)]
        portion.slip(document, Slip("not_fetched", f"could not be fetched, {_TRIES} times: {error}"))
    portion.note["tries"] = tries


def _ask_again(portion: Portion, document: int, tree: Tree, misfit: Misfit) -> None:
    """The call that gave the answer, once more, with what is wrong with it."""
    place = Place(document, tree.top, 0, 1, again=True)
    if tree.top > 0:
        first, model = prompts.joined(portion.wanted, tree.said(tree.top - 1)), portion.reducing
    elif parts := _cut(portion, document):
        first, model = prompts.whole(portion.wanted, parts[0]), portion.mapping
    else:
        return
    portion.ask(model, place, prompts.again(first, misfit.answer, misfit.why))
