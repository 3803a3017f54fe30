"""What a job makes next.

Each round is one pass over the documents: whatever a document needs next is made, whether that is its first reading,
a level of its tree, or an answer asked for again. When a pass makes nothing, the digest is grown the same way, a level
a round; then the job is complete. Nothing is planned ahead, so a job that was killed, made again, or left alone by a
provider's batch goes on with what is missing, and only with that.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from worker.errors import ErrorClass, Failure
from worker.kinds.kind import Expansion, Parent, Store
from worker.kinds.summary import growth, intake, modes, prompts, trees
from worker.kinds.summary.endings import Done
from worker.kinds.summary.form import PARTS, Mode, Summary
from worker.kinds.summary.intake import Item, TooMany
from worker.kinds.summary.portion import Portion
from worker.kinds.summary.trees import DIGEST, Answer, Slip


def expand(parent: Parent, store: Store) -> Expansion:
    """The next children; none when all summaries are made. Fails only if no document has one."""
    wanted = read(parent)
    try:
        items, note, why = _survey(parent, wanted, store)
    except TooMany as error:
        return Expansion(failure=Failure("too_many_documents", ErrorClass.VALIDATION, str(error)))
    portion = Portion(parent, store, wanted, items, note)
    if not note["digest_at"] and (passed := _pass(portion, why)):
        return passed
    return _digest(portion) or _complete(portion, why)


def read(parent: Parent) -> Summary:
    """The input."""
    assert isinstance(parent.input, Summary)
    return parent.input


def documents(parent: Parent, store: Store) -> list[Item]:
    """The documents of a job that was surveyed."""
    return intake.given(read(parent).documents) or intake.found_again(store.chunks(parent.note["listed"]))


def _survey(parent: Parent, wanted: Summary, store: Store) -> tuple[list[Item], dict[str, Any], str]:
    """The documents, the note, and at first the reason for the way they go."""
    if parent.note:
        return documents(parent, store), dict(parent.note), ""
    items, listed = intake.given(wanted.documents), None
    if items is None:
        items = intake.listed(wanted.documents, store)
        listed = store.put(intake.LIST, intake.kept(items), "application/jsonl").key
    regions = {account.region for account in parent.settings.all_accounts}
    mode, why = modes.chosen(parent.model, wanted, len(items), regions)
    note: dict[str, Any] = {"mode": str(mode), "documents": len(items), "at": 0, "digest_at": 0}
    note |= {"errors": {}, "tries": {}, "cut": 0, "parts": []}
    if listed:
        note["listed"] = listed
    return items, note, f"{len(items):,} documents by {mode}: {why}"


def _pass(portion: Portion, why: str) -> Expansion | None:
    """A portion of the pass over the documents; None: the whole pass made nothing."""
    first = portion.note["at"]
    for document in range(first, len(portion.items)):
        if document > first and portion.is_full:
            portion.put()
            return portion.expansion(more=True, why=why, at=document)
        growth.grow(portion, document)
        if portion.note["cut"] > PARTS:
            return Expansion(failure=_too_much(portion))
        if portion.made and portion.way is Mode.TASKS and not portion.parent.ended:
            break  # one goes ahead, and shows whether the account is served so
    portion.put()
    portion.batches()
    if portion.made or portion.parent.made:
        return portion.expansion(more=False, why=why, at=0, cut=0)
    after = growth.rest(portion)
    return portion.expansion(more=True, why=why, after=after, at=0, cut=0) if after else None


def _digest(portion: Portion) -> Expansion | None:
    """A portion of the digest's next level; None where it is made, failed, or not wanted."""
    wanted, tree = portion.wanted.digest, portion.trees[DIGEST]
    told = [
        _told(item, end) for item, end in zip(portion.items, portion.outcomes(), strict=True) if isinstance(end, Done)
    ]
    if wanted is None or not told or tree.slip or tree.final or portion.slipped(DIGEST):
        return None
    for place, summary in enumerate(told):
        tree.add(0, place, len(told), Answer(summary, {}))
    at = portion.note["digest_at"]
    final, notes = partial(prompts.digest, wanted), partial(prompts.gathered, wanted)
    on = growth.join(portion, DIGEST, tree, final, notes, at)
    if not portion.made:
        return None
    return portion.expansion(more=on is not None, digest_at=on or 0)


def _told(item: Item, end: Done) -> str:
    value = end.value if isinstance(end.value, str) else json.dumps(end.value, ensure_ascii=False)
    return f"Document {item.id}:\n{value}"


def _complete(portion: Portion, why: str) -> Expansion:
    """Nothing is left to make: the counts for the job's usage; or its failure, if no document has a summary."""
    ends = portion.outcomes()
    slips = [end for end in ends if isinstance(end, Slip)]
    if ends and len(slips) == len(ends):
        # what could not be read is tried afresh if a person makes the job again
        return Expansion(note={**portion.note, "errors": {}}, failure=_failure(portion, slips))
    lost = portion.slipped(DIGEST) or portion.trees[DIGEST].slip
    why = f"the digest could not be made: {lost.message}" if lost else why or _in_part(portion)
    counts = {"documents": len(ends), "failed": len(slips), **trees.spent(portion.trees)}
    return portion.expansion(more=False, why=why, counts=counts)


def _in_part(portion: Portion) -> str:
    count = len(portion.note.get("warnings", {}))
    return f"documents that were read in part, as their lines say: {count:,}" if count else ""


def _too_much(portion: Portion) -> Failure:
    billed = "yes" if portion.parent.made or portion.parent.ended else "no"
    message = f"the documents are more than {PARTS:,} parts that fit a call each: give fewer or shorter ones to a job"
    return Failure("too_many_parts", ErrorClass.VALIDATION, message, billed=billed)


def _failure(portion: Portion, slips: list[Slip]) -> Failure:
    unread = len(portion.note["errors"]) == len(slips)
    cls, billed = (ErrorClass.VALIDATION, "no") if unread else (ErrorClass.PROVIDER, "yes")
    none = f"none of {len(slips):,} documents could be summarized" if len(slips) > 1 else "the document has no summary"
    message = f"{none}: {portion.items[0].id} {slips[0].message}"
    return Failure("no_summaries", cls, message, retryable=True, billed=billed)
