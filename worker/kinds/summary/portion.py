"""A portion of a round: what one step makes of it, so that no step takes long.

The note that goes on record with it says how far the round is. `at` is the document to go on with, `errors` are those
that cannot be read, `warnings` those that could in part, `tries` those whose link did not answer, `cut` in how many
parts the documents of this pass were cut, `parts` the lines of a batch that were written so far.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

from worker import catalog
from worker.catalog import Model, Variant
from worker.errors import InvalidInput
from worker.kinds import text, text_batch
from worker.kinds.kind import Child, Expansion, Parent, Store
from worker.kinds.summary import chunks, endings, lines, prompts, trees
from worker.kinds.summary.endings import Done, Misfit
from worker.kinds.summary.form import Mode, Summary
from worker.kinds.summary.intake import Item
from worker.kinds.summary.lines import Part
from worker.kinds.summary.prompts import Call
from worker.kinds.summary.trees import Slip, Tree

_MOST = 200  # calls
_SIZE = 4_000_000  # characters of material
_MESSAGE = 200  # characters of a slip, since each note holds those of all documents
_JSONL = "application/jsonl"


@dataclass(frozen=True)
class Place:
    """Where in which tree an answer belongs; `again`: it takes the place of one that did not fit."""

    document: int
    level: int
    place: int
    of: int
    again: bool = False

    def as_note(self) -> dict[str, Any]:
        """As a child's note has it."""
        note = {"document": self.document, "level": self.level, "place": self.place, "of": self.of}
        return {**note, "again": True} if self.again else note


@dataclass
class Portion:
    """What is made, as it grows; `note` is a copy, which is kept only with what was made."""

    parent: Parent
    store: Store
    wanted: Summary
    items: list[Item]
    note: dict[str, Any]
    made: list[Child] = field(default_factory=list)
    written: list[bytes] = field(default_factory=list)
    tokens: tuple[int, int] = (0, 0)  # in and out, of the lines that were written
    size: int = 0  # characters of material

    @cached_property
    def trees(self) -> dict[int, Tree]:
        """What the documents have so far."""
        return trees.grown(self.parent, self.store)

    @cached_property
    def mapping(self) -> Model:
        """The model that reads documents."""
        return catalog.load().model(self.parent.model)

    @cached_property
    def reducing(self) -> Model:
        """The model that joins what was read."""
        return catalog.load().model(self.wanted.reduce_model or self.parent.model)

    @cached_property
    def way(self) -> Mode:
        """How documents go to the provider in this round: what a batch left goes by calls, so does a refused task."""
        mode = Mode(self.note["mode"])
        if mode is Mode.BATCH and self.parent.round:
            return Mode.CALLS
        if mode is Mode.TASKS and (
            self.store.unserved(self.asking.id) or any(map(trees.is_refused, self.parent.ended))
        ):
            return Mode.CALLS
        return mode

    @property
    def asking(self) -> Model:
        """The model as tasks have it."""
        found = catalog.load().variant(self.mapping.id, Variant.TASKS)
        assert found is not None, "the input was held against the catalog"
        return found

    @property
    def is_full(self) -> bool:
        """Whether the rest is another step's."""
        full = len(self.made) + len(self.written) >= _MOST or self.size >= _SIZE
        return full or self.store.is_late()

    def room(self, model: Model) -> int:
        """The tokens of material in one call to the model."""
        return chunks.room(model, max(prompts.whole(self.wanted, "").max_tokens, prompts.NOTES_TOKENS))

    def slip(self, document: int, slip: Slip) -> None:
        """Notes that a document cannot be had."""
        short = replace(slip, message=slip.message[:_MESSAGE])
        self.note["errors"] = {**self.note["errors"], str(document): short.as_json()}

    def slipped(self, document: int) -> Slip | None:
        """Why the document cannot be had, if that was noted."""
        noted = self.note["errors"].get(str(document))
        return Slip(**noted) if noted else None

    def warn(self, document: int, warning: str | None) -> None:
        """Notes what of a document was not read."""
        if warning:
            self.note["warnings"] = {**self.note.get("warnings", {}), str(document): warning[:_MESSAGE]}

    def warned(self, document: int) -> str | None:
        """What of the document was not read, if that was noted."""
        noted: str | None = self.note.get("warnings", {}).get(str(document))
        return noted

    def outcome(self, document: int) -> Done | Slip | Misfit | None:
        """How a document stands."""
        return self.slipped(document) or endings.of(self.trees.get(document, Tree()), self.wanted)

    def outcomes(self) -> list[Done | Slip]:
        """How every document ended, when nothing is left to make."""
        ends = (self.outcome(document) for document in range(len(self.items)))
        return [end if isinstance(end, Done | Slip) else Slip("missing", "has no summary") for end in ends]

    def read(self, place: Place, call: Call) -> None:
        """One more call for a part of a document: a child, or a line of the batch."""
        if self.way is Mode.BATCH:
            self._write(place, call)
        else:
            self.ask(self.asking if self.way is Mode.TASKS else self.mapping, place, call)

    def ask(self, model: Model, place: Place, call: Call) -> None:
        """One more call, as a child."""
        if checked := self._checked(model, place, call):
            said = checked.model_dump(mode="json", exclude_none=True)
            self.made.append(Child(text.NAME, model.id, said, place.as_note()))

    def put(self) -> None:
        """Keeps the lines written so far, as working material."""
        if self.written:
            stored = self.store.put(f"lines-{len(self.note['parts'])}.jsonl", self.written, _JSONL)
            part = Part(stored.key, len(self.written), stored.bytes, *self.tokens)
            self.note["parts"] = [*self.note["parts"], asdict(part)]

    def batches(self) -> None:
        """A child for each file of lines; there is one, unless the lines are more than a file takes."""
        parts = [Part(**part) for part in self.note["parts"]]
        self.note["parts"] = []
        self.made += [self._batch(number, group) for number, group in enumerate(lines.files(parts))]

    def expansion(self, *, more: bool, why: str = "", after: timedelta | None = None, **noted: Any) -> Expansion:
        """What was made, with the note of how far the round is."""
        return Expansion(tuple(self.made), {**self.note, **noted}, more, why=why, again_after=after)

    def _batch(self, number: int, group: list[Part]) -> Child:
        joined = (chunk for part in group for chunk in self.store.chunks(part.key))
        said = {
            "key": self.store.put(f"batch-{number}.jsonl", joined, _JSONL).key,
            "lines": sum(part.lines for part in group),
            "window": self.wanted.window,
            "input_tokens": sum(part.input_tokens for part in group),
            "output_tokens": sum(part.output_tokens for part in group),
        }
        return Child(text_batch.NAME, f"{self.mapping.id}@{Variant.BATCH}", said, {"batch": number})

    def _write(self, place: Place, call: Call) -> None:
        if checked := self._checked(self.mapping, place, call):
            regions = [account.region for account in self.parent.settings.all_accounts]
            self.written.append(lines.line(self.mapping, regions, place.document, place.place, place.of, checked))
            units = text.KIND.estimate(self.mapping, checked).units
            self.tokens = (self.tokens[0] + units["input_tokens"], self.tokens[1] + units["output_tokens"])

    def _checked(self, model: Model, place: Place, call: Call) -> text.Conversation | None:
        self.size += sum(len(turn["content"]) for turn in call.messages)
        try:
            return prompts.asked(model, call, self.wanted)
        except InvalidInput as error:
            self.slip(
                place.document, Slip(error.faults[0].code, f"makes a call that {model.id} does not take: {error}")
            )
            return None
