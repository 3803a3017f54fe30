"""A page of a round: what one step makes of it, so that no step takes long.

The note that is stored with it says how far the round is. `at` is the document to go on with, `errors` are those that
cannot be read, `warnings` those that were read in part, `tries` those whose link did not answer, `cut` is the number of
parts in this pass over the documents, `parts` are the lines of a batch that were written so far.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

from worker.catalog import Model, Variant
from worker.errors import CallFailed, InvalidInput
from worker.kinds import text, text_batch
from worker.kinds.kind import Child, Expansion, Parent, Store
from worker.kinds.summary import documents, prompts, results
from worker.kinds.summary.documents import Item, Unreadable
from worker.kinds.summary.input import Mode, Summary
from worker.kinds.summary.prompts import Prompt
from worker.kinds.summary.results import Done, Misfit, NoSummary, Place, Tree
from worker.kinds.text_batch import Part

_MOST = 200  # calls
_SIZE = 4_000_000  # characters of material
_MESSAGE = 200  # characters of a reason, since each note holds those of all documents
_JSONL = "application/jsonl"

# Before a link that did not answer is tried again, each time in another pass; after the last wait it is given up.
_WAITS = (timedelta(seconds=30), timedelta(minutes=3))
_TRIES = len(_WAITS) + 1


@dataclass
class Page:
    """What the step makes; `note` is a copy, which is stored only with what was made."""

    parent: Parent
    store: Store
    items: list[Item]
    note: dict[str, Any]
    made: list[Child] = field(default_factory=list)
    written: list[bytes] = field(default_factory=list)
    tokens: tuple[int, int] = (0, 0)  # in and out, of the lines that were written
    size: int = 0  # characters of material

    @cached_property
    def trees(self) -> dict[int, Tree]:
        """What the documents have so far."""
        return results.trees(self.parent, self.store)

    @property
    def wanted(self) -> Summary:
        """The job's input."""
        wanted: Summary = self.parent.input
        return wanted

    @cached_property
    def reading(self) -> Model:
        """The model that reads documents."""
        return self.parent.catalog.model(self.parent.model)

    @cached_property
    def joining(self) -> Model:
        """The model that joins what was read."""
        return self.parent.catalog.model(self.wanted.reduce_model or self.parent.model)

    @cached_property
    def mode(self) -> Mode:
        """How documents go to the provider in this round: what a batch or refused tasks left goes by calls."""
        mode = Mode(self.note["mode"])
        if mode is Mode.BATCH:
            return Mode.CALLS if self.parent.round else mode
        if mode is Mode.CHAT:
            is_closed = self.store.unserved(self._reading_by(Variant.CHAT).id) is not None
            return Mode.CALLS if is_closed or any(map(results.is_left_by_chat, self.parent.ended)) else mode
        if mode is Mode.TASKS and self.store.unserved(self.reading_as_task.id):
            return Mode.CALLS
        return Mode.CALLS if any(map(results.is_refused, self.parent.ended)) else mode

    @property
    def reading_as_task(self) -> Model:
        """The same model as asynchronous tasks have it."""
        return self._reading_by(Variant.TASKS)

    def _reading_by(self, way: Variant) -> Model:
        found = self.parent.catalog.variant(self.reading.id, way)
        assert found is not None, "the input was checked against the catalog"
        return found

    @property
    def is_full(self) -> bool:
        """Whether the rest is left to another step."""
        full = len(self.made) + len(self.written) >= _MOST or self.size >= _SIZE
        return full or self.store.is_late()

    def room(self, model: Model) -> int:
        """The tokens of material in one call to the model."""
        return prompts.room(model, max(prompts.whole(self.wanted, "").max_tokens, prompts.NOTES_TOKENS))

    def fail(self, document: int, failure: NoSummary) -> None:
        """Notes that a document cannot be read."""
        short = replace(failure, message=failure.message[:_MESSAGE])
        self.note["errors"] = {**self.note["errors"], str(document): short.as_json()}

    def failed(self, document: int) -> NoSummary | None:
        """Why the document cannot be read, if that was noted."""
        noted = self.note["errors"].get(str(document))
        return NoSummary(**noted) if noted else None

    def warn(self, document: int, warning: str | None) -> None:
        """Notes what of a document was not read."""
        if warning:
            self.note["warnings"] = {**self.note.get("warnings", {}), str(document): warning[:_MESSAGE]}

    def warned(self, document: int) -> str | None:
        """What of the document was not read, as noted; None: nothing."""
        noted: str | None = self.note.get("warnings", {}).get(str(document))
        return noted

    def outcome(self, document: int) -> Done | NoSummary | Misfit | None:
        """How a document stands."""
        return self.failed(document) or results.outcome(self.trees.get(document, Tree()), self.wanted)

    def outcomes(self) -> list[Done | NoSummary]:
        """How each document ended, when nothing is left to make."""
        ends = (self.outcome(document) for document in range(len(self.items)))
        return [end if isinstance(end, Done | NoSummary) else NoSummary("missing", "has no summary") for end in ends]

    def parts(self, document: int) -> list[str]:
        """The document in parts that fit a call each; none where it cannot be read, now or ever."""
        try:
            found = documents.fetch(self.items[document], self.store)
        except Unreadable as error:
            self.fail(document, NoSummary(error.code, str(error)))
            return []
        except CallFailed as error:
            self._try_later(document, error)
            return []
        self.note["tries"] = {name: n for name, n in self.note["tries"].items() if name != str(document)}
        self.warn(document, found.warning)
        return prompts.cut(found.text, self.room(self.reading))

    def read(self, place: Place, prompt: Prompt) -> None:
        """One more call for a part of a document: a child, or a line of the batch."""
        if self.mode is Mode.BATCH:
            self._write(place, prompt)
        else:
            way = {Mode.TASKS: Variant.TASKS, Mode.CHAT: Variant.CHAT}.get(self.mode)
            self.ask(self._reading_by(way) if way else self.reading, place, prompt)

    def ask(self, model: Model, place: Place, prompt: Prompt) -> None:
        """One more call, as a child."""
        if checked := self._checked(model, place, prompt):
            asked = checked.model_dump(mode="json", exclude_none=True)
            self.made.append(Child(text.NAME, model.id, asked, place.as_note()))

    def wait(self) -> timedelta | None:
        """How long to wait before the links that did not answer are tried again; None: there are none."""
        tries = self.note["tries"].values()
        return _WAITS[max(tries) - 1] if tries else None

    def put(self) -> None:
        """Stores the lines written so far as working material."""
        if self.written:
            stored = self.store.put(f"lines-{len(self.note['parts'])}.jsonl", self.written, _JSONL)
            part = Part(stored.key, len(self.written), stored.bytes, *self.tokens)
            self.note["parts"] = [*self.note["parts"], asdict(part)]

    def batches(self) -> None:
        """A child for each file of lines: one, unless the lines are more than a file takes."""
        parts = [Part(**part) for part in self.note["parts"]]
        self.note["parts"] = []
        self.made += [self._batch(number, group) for number, group in enumerate(text_batch.files(parts))]

    def expansion(self, *, more: bool, why: str = "", after: timedelta | None = None, **noted: Any) -> Expansion:
        """What was made, with the note of how far the round is."""
        return Expansion(tuple(self.made), {**self.note, **noted}, more, why=why, again_after=after)

    def _batch(self, number: int, group: list[Part]) -> Child:
        joined = (chunk for part in group for chunk in self.store.chunks(part.key))
        asked = {
            "key": self.store.put(f"batch-{number}.jsonl", joined, _JSONL).key,
            "lines": sum(part.lines for part in group),
            "window": self.wanted.window,
            "input_tokens": sum(part.input_tokens for part in group),
            "output_tokens": sum(part.output_tokens for part in group),
        }
        return Child(text_batch.NAME, f"{self.reading.id}@{Variant.BATCH}", asked, {"batch": number})

    def _write(self, place: Place, prompt: Prompt) -> None:
        if checked := self._checked(self.reading, place, prompt):
            regions = [account.region for account in self.parent.settings.all_accounts]
            self.written.append(text_batch.line(self.reading, regions, place.as_line(), checked))
            units = text.estimate(self.reading, checked).units
            self.tokens = (self.tokens[0] + units["input_tokens"], self.tokens[1] + units["output_tokens"])

    def _checked(self, model: Model, place: Place, prompt: Prompt) -> text.Conversation | None:
        self.size += sum(len(turn["content"]) for turn in prompt.messages)
        try:
            return prompts.asked(self.parent.catalog, model, prompt, self.wanted)
        except InvalidInput as error:
            why = f"makes a call that {model.id} does not take: {error}"
            self.fail(place.document, NoSummary(error.faults[0].code, why))
            return None

    def _try_later(self, document: int, error: CallFailed) -> None:
        tries = dict(self.note["tries"])
        tries[str(document)] = tries.get(str(document), 0) + 1
        if tries[str(document)] >= _TRIES:
            del tries[str(document)]
            self.fail(document, NoSummary("not_fetched", f"could not be fetched, {_TRIES} times: {error}"))
        self.note["tries"] = tries
