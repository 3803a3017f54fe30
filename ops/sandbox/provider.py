"""What the provider does, HTTP apart: whom it lets in, what it makes, what it tells.

A create is first considered (is it allowed, and what does it ask for), then made; the faults strike in between
and after, so that what was made never depends on what was answered.
"""

import hashlib
import random
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.sandbox import bills, clock, generation, limits, links, models, orders, runs, speech, text, uploads
from ops.sandbox.backlog import Backlog
from ops.sandbox.faults import Faults, Rule
from ops.sandbox.journal import Journal
from ops.sandbox.ledger import Create, Ledger
from ops.sandbox.limits import Quota
from ops.sandbox.models import Call, Model
from ops.sandbox.options import Limits, Options, OverConcurrency, QueryLimit
from ops.sandbox.orders import Order, Refusal
from ops.sandbox.tasks import Status, Task, Tasks
from ops.sandbox.text import Answer
from ops.sandbox.uploads import Uploads

THROTTLED = (429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later.")
SPENT = (429, "Throttling.AllocationQuota", "Allocated quota exceeded, please increase your quota limit.")


@dataclass(frozen=True)
class Arrival:
    """A create call as it came, in the native form whatever interface it came by."""

    owner: str
    path: str  # under /api/v1/services/
    document: dict[str, Any]
    body_sha256: str
    request_id: str
    is_async: bool = False
    resolves_oss: bool = False
    streams: bool = False


@dataclass(frozen=True)
class Proposal:
    """A create that may go ahead: what it asks for, of which model, and its line in the ledger."""

    model: Model
    call: Call
    order: Order
    entry: Create
    failure: tuple[str, str] | None  # why the task will fail: a bad parameter that is found late
    answer: Answer | None  # of a text call


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
        self._rates = limits.Rates()
        self._quotas: defaultdict[tuple[str, str, str], Quota] = defaultdict(Quota)

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

    def spend_query(self, owner: str, interface: str) -> None:
        """Count a task query, or raise the Refusal of one over the account's limit a second."""
        self.ledger.peaks.add(owner, interface, "queries")
        is_shared = self.options.query_limit is QueryLimit.SHARED
        key = (owner, "queries" if is_shared else interface)
        self._throttle(self._rates.spend(key, *_rate(self.options.queries_per_second)), interface)

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
        task = _task(proposal, now)
        runs.plan(task, model, self.options, self._random)
        if rule is not None:
            runs.bend(task, rule)
        runs.end(task)
        task.usage, task.price_micros = bills.usage(model, task), bills.price(model, task)
        concurrency = self.concurrency(model)
        self.tasks.add(task, concurrency)
        self.journal.made(task, concurrency)
        proposal.entry.task_id = task.id
        in_flight = self.tasks.in_flight(task.owner, task.order.model, now)
        self.ledger.note_in_flight(task.owner, task.order.model, in_flight)
        return task

    def find(self, owner: str, task_id: str) -> Task | None:
        """Return an owner's task, None where the provider would say UNKNOWN."""
        return self.tasks.find(task_id, owner, self.options.retention_seconds, self.now())

    def cancel(self, owner: str, task_id: str) -> None:
        """Cancel a pending task, or raise the Refusal that any other gets."""
        task, now = self.find(owner, task_id), self.now()
        if task is None or task.status(now) is not Status.PENDING:
            message = "Failed to cancel the task, please confirm if the task is in PENDING status."
            raise Refusal(400, "UnsupportedOperation", message)
        concurrency = self.concurrency(self.models[task.order.model])
        self.tasks.cancel(task, concurrency, now)
        self.journal.canceled(task, concurrency)

    def links(self, task: Task, base: str) -> list[str]:
        """Return the links of a succeeded task's outputs, on the host `base`."""
        days = 1 if task.is_async else self.models[task.order.model].keeps_days
        count = task.order.pictures - task.failed_pictures
        return [links.url(base, task, number + 1, self.options.link_seconds, days) for number in range(count)]

    def concurrency(self, model: Model) -> int | None:
        """Return how many of a model's tasks run at once, None for no limit."""
        own = self._own_limits(model)
        return own.concurrency or model.concurrency

    def advance(self) -> None:
        """Let the batches come to where the clock has them."""
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

    def _own_limits(self, model: Model) -> Limits:
        given = self.options.limits
        return given.get(model.id) or given.get("*") or Limits()

    def _limit(self, model: Model) -> tuple[int, float] | None:
        rps = self._own_limits(model).rps
        return _rate(rps) if rps else model.limit

    def _throttle(self, is_allowed: bool, interface: str, refusal: tuple[int, str, str] = THROTTLED) -> None:
        if not is_allowed:
            self.ledger.throttled[interface] += 1
            raise Refusal(*refusal)

    def _considered(self, arrival: Arrival, entry: Create) -> Proposal:
        owner, document = arrival.owner, arrival.document
        found = self.models.get(document["model"])
        model, call = orders.route(found, arrival.path, arrival.is_async, self.options.async_text)
        limit = self._limit(model)
        self._throttle(limit is None or self._rates.spend((owner, model.id), *limit), "create")
        order, failure = self._check(arrival, model, call)
        for link in orders.links(document["input"]):
            if link.startswith(uploads.SCHEME):
                self.uploads.require(link, owner, model.id, self.now())
        answer = self._answer(arrival, model) if model.makes == "text" else None
        if model.makes in ("speech", "text"):
            self._spend(owner, model, bills.tokens_of(model, order, answer))
        self._make_room(owner, model, call)
        return Proposal(model, call, order, entry, failure, answer)

    def _spend(self, owner: str, model: Model, tokens: int) -> None:
        """Count a call against the limits a minute; its tokens as if they were known when it comes."""
        own = self._own_limits(model)
        requests, spent = self._quotas[owner, model.id, "requests"], self._quotas[owner, model.id, "tokens"]
        self.ledger.minutes.add(owner, f"requests {model.id}")
        self._throttle(requests.has_room(own.rpm or model.rpm), "create")
        self._throttle(spent.has_room(own.tpm or model.tpm), "create", SPENT)
        requests.add(1)
        spent.add(tokens)
        self.ledger.minutes.add(owner, f"tokens {model.id}", weight=tokens)

    def _make_room(self, owner: str, model: Model, call: Call) -> None:
        limit = self.concurrency(model)
        if self.options.over_concurrency is OverConcurrency.QUEUE or limit is None or not call.is_async:
            return
        self._throttle(self.tasks.in_flight(owner, model.id, self.now()) < limit, "create")

    def _check(self, arrival: Arrival, model: Model, call: Call) -> tuple[Order, tuple[str, str] | None]:
        if model.makes == "speech":
            return speech.check(arrival.document, model, self.options.speech_unit), None
        if model.makes == "text":
            return generation.check(arrival.document, model, call, arrival.streams), None
        try:
            return orders.check(arrival.document, model, call, arrival.resolves_oss), None
        except Refusal as refusal:
            if not self.options.late_checks or not call.is_async or refusal.code != "InvalidParameter":
                raise
            failure = (refusal.code, refusal.message)
            unasked = arrival.document | {"parameters": {}}
            return orders.check(unasked, model, call, arrival.resolves_oss), failure

    def _answer(self, arrival: Arrival, model: Model) -> Answer:
        messages = generation.messages(arrival.document)
        asked = generation.asked(arrival.document, arrival.streams)
        cached_tokens = self._cache.hit(arrival.owner, model, messages)
        return text.answer(model, messages, asked, self.options.seed, cached_tokens)


def _task(proposal: Proposal, now: float) -> Task:
    entry = proposal.entry
    return Task(
        id=str(uuid.uuid4()),
        owner=entry.owner,
        order=proposal.order,
        request_id=entry.request_id,
        body_sha256=entry.body_sha256,
        received_at=now,
        submitted_at=now,
        queue_seconds=0.0,
        run_seconds=0.0,
        failure=proposal.failure,
        failed_pictures=0,
        price_micros=0,
        is_async=proposal.call.is_async,
        answer=proposal.answer,
    )


def _rate(per_second: float) -> tuple[int, float]:
    """Return a rate as a whole count and the seconds it is counted over."""
    count = max(1, round(per_second))
    return count, count / per_second
