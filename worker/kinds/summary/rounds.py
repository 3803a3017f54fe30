"""What a job makes next.

Each round is one pass over the documents: whatever a document needs next is made, whether that is its first reading, a
level of its tree, or an answer asked for again. When a pass makes nothing, the digest is made the same way, a level a
round; then the job is complete. Nothing is planned ahead, so a job that was killed, retried, or left incomplete by a
provider's batch goes on with what is missing, and only with that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from worker.errors import ErrorClass, Failure
from worker.kinds import text_batch
from worker.kinds.kind import Expansion, Parent, Store
from worker.kinds.summary import documents, prompts, results
from worker.kinds.summary.documents import Item, TooMany
from worker.kinds.summary.input import PARTS, Mode, Summary
from worker.kinds.summary.page import Page
from worker.kinds.summary.prompts import Prompt
from worker.kinds.summary.results import DIGEST, Answer, Done, Misfit, NoSummary, Place, Tree

_Joining = Callable[[Sequence[str]], Prompt]


def expand(parent: Parent, store: Store) -> Expansion:
    """The next children; none when all summaries are made. Fails only if no document has one."""
    try:
        page, why = _surveyed(parent, store)
    except TooMany as error:
        return Expansion(failure=Failure("too_many_documents", ErrorClass.VALIDATION, str(error)))
    if not page.note["digest_at"] and (passed := _pass(page, why)):
        return passed
    return _digest(page) or _complete(page, why)


def reopened(parent: Parent, store: Store) -> Page:
    """A page of a job whose documents are listed already."""
    items = documents.given(parent.input.documents) or documents.listed_before(store.chunks(parent.note["listed"]))
    return Page(parent, store, items, dict(parent.note))


def chosen_mode(parent: Parent, wanted: Summary, count: int) -> tuple[Mode, str]:
    """How so many documents go to the provider, and the reason in a few words."""
    if wanted.mode is not Mode.AUTO:
        return wanted.mode, "as asked"
    why_not = text_batch.why_none(parent, count, wanted.window, wanted.deadline_hours)
    if wanted.enable_thinking:
        why_not = why_not or "models think only in calls"
    return (Mode.CALLS, why_not) if why_not else (Mode.BATCH, text_batch.why(wanted.deadline_hours))


def _surveyed(parent: Parent, store: Store) -> tuple[Page, str]:
    """The page to make, and in the first step the reason for its mode."""
    if parent.note:
        return reopened(parent, store), ""
    wanted: Summary = parent.input
    items, listed = documents.given(wanted.documents), None
    if items is None:
        items = documents.listed(wanted.documents, store)
        listed = store.put(documents.LIST, documents.as_list(items), "application/jsonl").key
    mode, why = chosen_mode(parent, wanted, len(items))
    note: dict[str, Any] = {"mode": str(mode), "documents": len(items), "at": 0, "digest_at": 0}
    note |= {"errors": {}, "tries": {}, "cut": 0, "parts": []}
    if listed:
        note["listed"] = listed
    return Page(parent, store, items, note), f"{len(items):,} documents by {mode}: {why}"


def _pass(page: Page, why: str) -> Expansion | None:
    """A page of the pass over the documents; None: the whole pass made nothing."""
    first = page.note["at"]
    for document in range(first, len(page.items)):
        if document > first and page.is_full:
            page.put()
            return page.expansion(more=True, why=why, at=document)
        _continue(page, document)
        if page.note["cut"] > PARTS:
            return Expansion(failure=_too_much(page))
        if page.made and page.mode in (Mode.TASKS, Mode.CHAT) and not page.parent.ended:
            break  # one goes ahead, and shows whether the account may have them
    page.put()
    page.batches()
    if page.made or page.parent.made:
        return page.expansion(more=False, why=why, at=0, cut=0)
    after = page.wait()
    return page.expansion(more=True, why=why, after=after, at=0, cut=0) if after else None


def _continue(page: Page, document: int) -> None:
    """Makes what the document needs next, if anything."""
    stands = page.outcome(document)
    tree = page.trees.get(document, Tree())
    if isinstance(stands, Misfit):
        _ask_again(page, document, tree, stands)
    elif stands is None and (tree.top < 0 or (tree.top == 0 and tree.missing(0))):
        _read_parts(page, document, tree)
    elif stands is None:
        joined, merged = partial(prompts.joined, page.wanted), partial(prompts.merged, page.wanted)
        _join(page, document, tree, joined, merged)


def _read_parts(page: Page, document: int, tree: Tree) -> None:
    parts = page.parts(document)
    page.note["cut"] += len(parts)
    is_known = tree.sizes.get(0) == len(parts)
    for place in tree.missing(0) if is_known else range(len(parts)):
        alone = len(parts) == 1
        prompt = prompts.whole if alone else partial(prompts.part, place=place, of=len(parts))
        page.read(Place(document, 0, place, len(parts)), prompt(page.wanted, parts[place]))


def _join(page: Page, document: int, tree: Tree, final: _Joining, notes: _Joining, first: int = 0) -> int | None:
    """The next level of a tree, from the place `first` on; where to go on with it, None at its end."""
    level = tree.top if tree.top > 0 and tree.missing(tree.top) else tree.top + 1
    groups = prompts.grouped(tree.contents(level - 1), page.room(page.joining))
    wanting = tree.missing(level) if level in tree.sizes else range(len(groups))
    for place in wanting:
        if place < first:
            continue
        if page.made and document == DIGEST and page.is_full:
            return place
        prompt = final(groups[place]) if len(groups) == 1 else notes(groups[place])
        page.ask(page.joining, Place(document, level, place, len(groups)), prompt)
    return None


def _ask_again(page: Page, document: int, tree: Tree, misfit: Misfit) -> None:
    """The call that gave the answer, once more, with what is wrong with it."""
    place = Place(document, tree.top, 0, 1, again=True)
    if tree.top > 0:
        first, model = prompts.joined(page.wanted, tree.contents(tree.top - 1)), page.joining
    elif parts := page.parts(document):
        first, model = prompts.whole(page.wanted, parts[0]), page.reading
    else:
        return
    page.ask(model, place, prompts.again(first, misfit.answer, misfit.why))


def _digest(page: Page) -> Expansion | None:
    """A page of the digest's next level; None where it is made, failed, or not wanted."""
    wanted, tree = page.wanted.digest, page.trees[DIGEST]
    ends = zip(page.items, page.outcomes(), strict=True)
    summaries = [_headed(item, end) for item, end in ends if isinstance(end, Done)]
    if wanted is None or not summaries or tree.failure or tree.final or page.failed(DIGEST):
        return None
    for place, summary in enumerate(summaries):
        tree.add(0, place, len(summaries), Answer(summary, {}))
    final, notes = partial(prompts.digest, wanted), partial(prompts.gathered, wanted)
    on = _join(page, DIGEST, tree, final, notes, page.note["digest_at"])
    if not page.made:
        return None
    return page.expansion(more=on is not None, digest_at=on or 0)


def _headed(item: Item, end: Done) -> str:
    value = end.value if isinstance(end.value, str) else json.dumps(end.value, ensure_ascii=False)
    return f"Document {item.id}:\n{value}"


def _complete(page: Page, why: str) -> Expansion:
    """Nothing is left to make: the counts for the job's usage; or its failure, if no document has a summary."""
    ends = page.outcomes()
    failures = [end for end in ends if isinstance(end, NoSummary)]
    if ends and len(failures) == len(ends):
        # without the errors, so that a retry reads the documents anew
        return Expansion(note={**page.note, "errors": {}}, failure=_failure(page, failures))
    lost = page.failed(DIGEST) or page.trees[DIGEST].failure
    why = f"the digest could not be made: {lost.message}" if lost else why or _read_in_part(page)
    counts = {"documents": len(ends), "failed": len(failures), **results.spent(page.trees)}
    return page.expansion(more=False, why=why, counts=counts)


def _read_in_part(page: Page) -> str:
    count = len(page.note.get("warnings", {}))
    return f"documents that were read in part, as their lines say: {count:,}" if count else ""


def _too_much(page: Page) -> Failure:
    billed = "yes" if page.parent.made or page.parent.ended else "no"
    message = f"the documents are more than {PARTS:,} parts that fit a call each: give fewer or shorter ones to a job"
    return Failure("too_many_parts", ErrorClass.VALIDATION, message, billed=billed)


def _failure(page: Page, failures: list[NoSummary]) -> Failure:
    unread = len(page.note["errors"]) == len(failures)
    cls, billed = (ErrorClass.VALIDATION, "no") if unread else (ErrorClass.PROVIDER, "yes")
    count = len(failures)
    none = f"none of {count:,} documents could be summarized" if count > 1 else "the document has no summary"
    message = f"{none}: {page.items[0].id} {failures[0].message}"
    return Failure("no_summaries", cls, message, retryable=True, billed=billed)
