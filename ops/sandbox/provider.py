"""What the provider does, HTTP apart: whom it lets in, what it makes, what it tells.

A create is first considered (is it allowed, and what does it ask for), then made; the faults strike in between
and after, so that what was made never depends on what was answered.
"""

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.sandbox import bills, clock, links, models, orders, proposals, runs, text, uploads
from ops.sandbox.backlog import Backlog
from ops.sandbox.faults import Faults, Rule
from ops.sandbox.gates import Gate
from ops.sandbox.journal import Journal
from ops.sandbox.ledger import Create, Ledger
from ops.sandbox.models import Model
from ops.sandbox.options import Options
from ops.sandbox.proposals import Arrival, Proposal
from ops.sandbox.refusals import Refusal
from ops.sandbox.tasks import Status, Task, Tasks
from ops.sandbox.uploads import Uploads


@dataclass
class Provider:
    """One sandbox: its switches, its tasks and its books."""

    options: Options
    state: Path | None = None
    journal: Journal = field(init=False)
    tasks: Tasks = field(init=False)

    def __post_init__(self) -> None:
        self._initial = self.options
        self.journal = Journal(self.state)
        self.tasks = self.journal.replay()
        self._open_books()
        self._recall()

    def now(self) -> float:
        """Return the sandbox's instant."""
        return clock.now(self.options.clock_offset_seconds)

    def configure(self, changes: dict[str, object]) -> None:
        """Change switches; tasks already made keep the times they were given."""
        self.options = self.options.changed(changes)
        self.models = models.read(self.options.region)
        self.gate = Gate(self.options, self.ledger)

    def reset(self) -> None:
        """Forget every task, rule and count, and set the switches back to those of the start."""
        self.options = self._initial
        self.journal.forget()
        self.tasks = Tasks()
        self._open_books()

    def authenticate(self, authorization: str) -> str:
        """Return the main account a key belongs to, or raise the Refusal of a bad key."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refusal(401, "InvalidApiKey", "No API-key provided.")
        key = key.strip()
        if key in self.options.owners:
            return self.options.owners[key]
        if not self.options.any_key or not key.startswith("sk-"):
            raise Refusal(401, "InvalidApiKey", "Invalid API-key provided.")
        return "account-" + hashlib.sha256(key.encode()).hexdigest()[:8]

    def consider(self, arrival: Arrival) -> Proposal:
        """Return what a create proposes, noted in the ledger, or raise the Refusal it earns."""
        document, owner = arrival.document, arrival.owner
        model_id, prompt = document["model"], orders.prompt_of(document)
        entry = Create(self.now(), owner, model_id, prompt, arrival.body_sha256, arrival.request_id)
        self.ledger.creates.append(entry)
        self.ledger.peaks.add(owner, "create", f"create {model_id}")
        try:
            return self._considered(arrival, entry)
        except Refusal as refusal:
            entry.refusal = refusal.code
            raise

    def make(self, proposal: Proposal, rule: Rule | None) -> Task:
        """Make the task that was proposed, as `rule` would have it, and enter it in the books."""
        now, model = self.now(), proposal.model
        task = proposal.task(now)
        runs.plan(task, model, self.options, self._random)
        if rule is not None:
            runs.bend(task, rule)
        runs.end(task)
        task.usage, task.price_micros = bills.usage(model, task), bills.price(model, task)
        concurrency = self.gate.concurrency(model)
        self.tasks.add(task, concurrency)
        self.journal.made(task, concurrency)
        proposal.entry.task_id = task.id
        in_flight = self.tasks.in_flight(task.owner, task.order.model, now)
        self.ledger.note_in_flight(task.owner, task.order.model, in_flight)
        return task

    def find(self, owner: str, task_id: str) -> Task | None:
        """Return an owner's task, None where the provider would say UNKNOWN."""
        return self.tasks.find(task_id, owner, self.options.retention_seconds, self.now())

    def offered(self) -> list[Model]:
        """Return the models that have not ended."""
        return [model for model in self.models.values() if not self._has_ended(model.id)]

    def cancel(self, owner: str, task_id: str) -> None:
        """Cancel a pending task, or raise the Refusal that any other gets."""
        task, now = self.find(owner, task_id), self.now()
        if task is None or task.status(now) is not Status.PENDING:
            message = "Failed to cancel the task, please confirm if the task is in PENDING status."
            raise Refusal(400, "UnsupportedOperation", message)
        concurrency = self.gate.concurrency(self.models[task.order.model])
        self.tasks.cancel(task, concurrency, now)
        self.journal.canceled(task, concurrency)

    def links(self, task: Task, base: str) -> list[str]:
        """Return the links of a succeeded task's outputs, on the host `base`."""
        days = 1 if task.is_async else self.models[task.order.model].keeps_days
        count = task.order.pictures - task.failed_pictures
        return [links.url(base, task, number + 1, self.options.link_seconds, days) for number in range(count)]

    def advance(self) -> None:
        """Carry the batches on to the present."""
        self.backlog.advance(self.models, self.faults, self.options.seed, self.now())

    def statement(self) -> dict[str, Any]:
        """Return the ledger as JSON."""
        totals, now = self.totals(), self.now()
        kept = {"batches": self.backlog.statement(self.models, now), "uploads": self.uploads.statement()}
        return self.ledger.statement(self.tasks, self.faults.struck, now) | {"totals": totals} | kept

    def totals(self) -> dict[str, Any]:
        """Return the ledger's counts and the bill, batches included."""
        self.advance()
        made = self.backlog.statement(self.models, self.now())
        totals = self.ledger.totals(self.tasks, self.now())
        paid = {name: sum(batch[name] for batch in made) for name in ("paid_lines", "billed_micros")}
        return totals | {
            "batches": len(made),
            "paid_lines": paid["paid_lines"],
            "billed_micros": totals["billed_micros"] + paid["billed_micros"],
        }

    def _open_books(self) -> None:
        self.ledger = Ledger()
        self.faults = Faults(self.options.seed)
        self._random = random.Random(self.options.seed)
        self._cache = text.Cache()
        self.backlog, self.uploads = Backlog(self.options.seed), Uploads()
        self.configure({})

    def _recall(self) -> None:
        for kind, row in self.journal.notes():
            if kind == "upload":
                self.uploads.recall(row)
            else:
                self.backlog.recall(kind, row, self.models, self.options.batch_lines)

    def _has_ended(self, model_id: str) -> bool:
        ends = self.options.ends.get(model_id)
        return ends is not None and clock.from_stamp(ends) <= self.now()

    def _considered(self, arrival: Arrival, entry: Create) -> Proposal:
        owner, document = arrival.owner, arrival.document
        found = None if self._has_ended(document["model"]) else self.models.get(document["model"])
        model, call = orders.route(found, arrival.path, arrival.is_async, self.options.async_text)
        is_outside = arrival.path == proposals.BATCH_CHAT  # of the limits of calls
        if not is_outside:
            self.gate.create(owner, model)
        order, failure = proposals.order(arrival, model, call, self.options)
        for link in orders.links(document["input"]):
            if link.startswith(uploads.SCHEME):
                self.uploads.require(link, owner, model.id, self.now())
        answer = proposals.answer(arrival, model, self._cache, self.options.seed)
        if model.makes in ("speech", "text", "embedding") and not is_outside:
            self.gate.call(owner, model, bills.tokens_of(model, order, answer))
        if call.is_async:
            self.gate.room(model, self.tasks.in_flight(owner, model.id, self.now()))
        return Proposal(model, call, order, entry, failure, answer)
