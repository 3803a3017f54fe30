"""What the next calls are: ten texts each, page by page, until each text has a vector or a reason for none.

The first round asks for all; in a batch, it is a file a page. What a batch left undone is asked for by calls. A call
that was refused for what is in it is asked for again text by text, so that one text costs the others nothing. When a
pass over the pages makes nothing, the job is complete. Nothing is planned ahead: what was asked is read from the
children, so that a job that was killed or retried goes on with what is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from worker.catalog import Model, Variant
from worker.errors import ErrorClass, Failure, NotFound
from worker.kinds import text, text_batch
from worker.kinds.embedding import embedding_call, texts, vectors
from worker.kinds.embedding.input import Embedding, Mode
from worker.kinds.embedding.texts import Page, Row, TooMuch
from worker.kinds.kind import Child, Ended, Expansion, Parent, Store

_MOST = 200  # calls that one step makes
_JSONL = "application/jsonl"
_REFUSED = frozenset({ErrorClass.VALIDATION, ErrorClass.CONTENT})  # for what is in it: without that it may go


@dataclass
class Work:
    """What the step makes; `note` is a copy, which is stored only with what was made."""

    parent: Parent
    store: Store
    note: dict[str, Any]
    made: list[Child] = field(default_factory=list)

    @property
    def wanted(self) -> Embedding:
        """The job's input."""
        wanted: Embedding = self.parent.input
        return wanted

    @cached_property
    def model(self) -> Model:
        """The model that embeds."""
        return self.parent.catalog.model(self.parent.model)

    @cached_property
    def pages(self) -> list[Page]:
        """All texts, a page each."""
        return [Page(*page) for page in self.note["pages"]]

    @cached_property
    def children(self) -> dict[int, list[Ended]]:
        """The calls and batches of each page that have ended."""
        found: defaultdict[int, list[Ended]] = defaultdict(list)
        for child in self.parent.ended:
            found[child.note["page"]].append(child)
        return found

    def groups(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The texts of a page, a call each."""
        return texts.groups(rows, self.model.texts)


def expand(parent: Parent, store: Store) -> Expansion:
    """The next calls; none when there is nothing left to ask. Fails only if no text has a vector."""
    try:
        work, why = _opened(parent, store)
    except (TooMuch, NotFound) as error:
        code = "no_such_file" if isinstance(error, NotFound) else "too_many_texts"
        return Expansion(failure=Failure(code, ErrorClass.VALIDATION, str(error)))
    first = work.note["at"]
    for number in range(first, len(work.pages)):
        if number > first and (len(work.made) >= _MOST or store.is_late()):
            return Expansion(tuple(work.made), {**work.note, "at": number}, more=True, why=why)
        _ask(work, number)
    if work.made or parent.made:
        return Expansion(tuple(work.made), {**work.note, "at": 0}, why=why)
    return _complete(work, why)


def reopened(parent: Parent, store: Store) -> Work:
    """The work of a job whose texts are stored already."""
    return Work(parent, store, dict(parent.note))


def chosen_mode(parent: Parent, wanted: Embedding, calls: int) -> tuple[Mode, str]:
    """How so many calls are made, and the reason in a few words."""
    if wanted.mode is not Mode.AUTO:
        return wanted.mode, "as asked"
    if not wanted.is_plain:
        return Mode.CALLS, "batches give dense vectors of documents only"
    why_not = text_batch.why_none(parent, calls, wanted.window, wanted.deadline_hours)
    return (Mode.CALLS, why_not) if why_not else (Mode.BATCH, text_batch.why(wanted.deadline_hours))


def _opened(parent: Parent, store: Store) -> tuple[Work, str]:
    """The work, and in the first step the reason for its mode."""
    if parent.note:
        return reopened(parent, store), ""
    model, wanted = parent.catalog.model(parent.model), parent.input
    pages = texts.stored(wanted, model, store)
    count, sent = sum(page.rows for page in pages), sum(page.sent for page in pages)
    mode, why = chosen_mode(parent, wanted, -(-sent // model.texts))
    note = {"mode": str(mode), "pages": [[page.key, page.rows, page.sent] for page in pages], "at": 0, "left": {}}
    return Work(parent, store, note), f"{count:,} texts by {mode}: {why}"


def _ask(work: Work, number: int) -> None:
    """Makes the calls that a page needs next, if any."""
    page = work.pages[number]
    if not page.sent:
        return
    groups = work.groups(texts.read(page, work.store))
    batches = [child for child in work.children[number] if "texts" not in child.note]
    if work.note["mode"] == Mode.BATCH and not batches:
        work.made.append(_batch(work, number, groups))
        return
    asked = {tuple(child.note["texts"]): child for child in work.children[number] if "texts" in child.note}
    for rows in _left(work, number, groups, batches):
        first = asked.get(tuple(row.index for row in rows))
        if first is None:
            work.made.append(_call(work, number, rows))
        elif _is_refused(first) and len(rows) > 1:
            work.made += [_call(work, number, [row]) for row in rows if (row.index,) not in asked]


def _left(work: Work, number: int, groups: list[list[Row]], batches: Sequence[Ended]) -> Iterator[list[Row]]:
    """What a page's batch did not answer; that is read once, and noted."""
    if batches and str(number) not in work.note["left"]:
        answered = set().union(*(vectors.answered(child, work.store) for child in batches))
        left = [place for place in range(len(groups)) if place not in answered]
        work.note["left"] = {**work.note["left"], str(number): left}
    places = work.note["left"].get(str(number), range(len(groups)))
    return (groups[place] for place in places)


def _is_refused(child: Ended) -> bool:
    return (child.error or {}).get("class") in _REFUSED and child.state != "succeeded"


def _call(work: Work, number: int, rows: Sequence[Row]) -> Child:
    wanted = work.wanted
    asked = {
        "texts": [row.text for row in rows],
        "dimension": wanted.dimension,
        "output_type": wanted.output_type,
        "text_type": wanted.text_type,
        "instruct": wanted.instruct,
    }
    return Child(embedding_call.NAME, work.model.id, asked, {"page": number, "texts": [row.index for row in rows]})


def _batch(work: Work, number: int, groups: Sequence[Sequence[Row]]) -> Child:
    """A file with a line a call, spelled as the compatible surface has them."""
    region = text_batch.region(work.model, [account.region for account in work.parent.settings.all_accounts])
    here = work.model.region(region)
    assert here is not None, "the region was chosen among the model's"
    common = {"model": here.id, "dimensions": work.wanted.dimension, "encoding_format": "float"}
    lines = (
        text_batch.spelled(str(place), text_batch.EMBEDDINGS, {**common, "input": [row.text for row in rows]})
        for place, rows in enumerate(groups)
    )
    asked = {
        "key": work.store.put(f"batch-{number}.jsonl", lines, _JSONL).key,
        "lines": len(groups),
        "endpoint": text_batch.EMBEDDINGS,
        "window": work.wanted.window,
        "input_tokens": sum(text.tokens(row.text) for rows in groups for row in rows),
    }
    return Child(text_batch.NAME, f"{work.model.id}@{Variant.BATCH}", asked, {"page": number})


def _complete(work: Work, why: str) -> Expansion:
    """Nothing is left to ask; the job fails if it has nothing to show."""
    if any(child.outputs for child in work.parent.ended):
        return Expansion(note=work.note, why=why)
    count = sum(page.rows for page in work.pages)
    was_sent = bool(work.parent.ended)
    cls = ErrorClass.PROVIDER if was_sent else ErrorClass.VALIDATION
    reason = vectors.lost(work.parent.ended[0]) if was_sent else _first_fault(work)
    none = f"none of {count:,} texts could be embedded" if count > 1 else "the text could not be embedded"
    message = f"{none}; the first {reason.message}"
    return Expansion(note=work.note, failure=Failure("no_vectors", cls, message, retryable=was_sent))


def _first_fault(work: Work) -> texts.Lost:
    faults = (row.lost for page in work.pages for row in texts.read(page, work.store) if row.lost)
    return next(faults, texts.Lost("empty", "is missing"))
