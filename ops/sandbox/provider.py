"""What the provider does, HTTP apart: whom it lets in, what it makes, what it tells.

A create is first considered (is it allowed, and what does it ask for), then made; the faults strike in between
and after, so that what was made never depends on what was answered.
"""

import hashlib
import random
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.sandbox import clock, limits, links, models, orders
from ops.sandbox.faults import Faults, Rule, What
from ops.sandbox.journal import Journal
from ops.sandbox.ledger import Create, Ledger
from ops.sandbox.models import Call, Model
from ops.sandbox.options import Limits, Options, OverConcurrency, QueryLimit
from ops.sandbox.orders import Order, Refusal
from ops.sandbox.tasks import Status, Task, Tasks

LONGEST_RUN_SECONDS = 10_800.0  # a task gives a result within 3 h or fails (Alibaba docs, "Error messages")
QUEUE_SECONDS = (0.03, 10.5)  # from submission to start, as seen in samples of the documentation
RUN_SPREAD = (0.7, 1.3)  # about a model's median
TIMEOUT = ("InternalError.Timeout", "An internal timeout error has occured during execution.")
THROTTLED = (429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later.")


@dataclass(frozen=True)
class Proposal:
    """A create that may go ahead: what it asks for, of which model, and its line in the ledger."""

    model: Model
    call: Call
    order: Order
    entry: Create
    failure: tuple[str, str] | None  # why the task will fail: a bad parameter that is found late


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

    def now(self) -> float:
        """Return the sandbox's instant."""
        return clock.now(self.options.clock_offset_seconds)

    def configure(self, changes: dict[str, object]) -> None:
        """Change switches; tasks already made keep the times they were given."""
        self.options = self.options.changed(changes)
        self.models = models.read(self.options.region)
        self._rates = limits.Rates()

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

    def consider(
        self, owner: str, path: str, body: bytes, *, is_async: bool, resolves_oss: bool, request_id: str
    ) -> Proposal:
        """Return what a create proposes, noted in the ledger, or raise the Refusal it earns."""
        document = orders.read(body)
        model_id, prompt = document["model"], orders.prompt_of(document)
        digest = hashlib.sha256(body).hexdigest()
        entry = Create(self.now(), owner, model_id, prompt, digest, request_id)
        self.ledger.creates.append(entry)
        self.ledger.peaks.add(owner, "create", f"create {model_id}")
        try:
            model, call = orders.route(self.models.get(model_id), path, is_async)
            self._throttle(self._rates.spend((owner, model.id), *self._limit(model)), "create")
            order, failure = self._check(document, model, call, resolves_oss)
            self._make_room(owner, model, call)
        except Refusal as refusal:
            entry.refusal = refusal.code
            raise
        return Proposal(model, call, order, entry, failure)

    def make(self, proposal: Proposal, rule: Rule | None) -> Task:
        """Make the task that was proposed, as `rule` would have it, and enter it in the books."""
        now = self.now()
        task = self._task(proposal, now)
        if rule is not None:
            _bend(task, rule)
        if task.run_seconds > LONGEST_RUN_SECONDS:
            task.run_seconds, task.failure = LONGEST_RUN_SECONDS, TIMEOUT
        task.price_micros = _price(proposal.model, task)
        concurrency = self.concurrency(proposal.model)
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

    def statement(self) -> dict[str, Any]:
        """Return the ledger as JSON."""
        return self.ledger.statement(self.tasks, self.faults.struck, self.now())

    def _open_books(self) -> None:
        self.ledger = Ledger()
        self.faults = Faults(self.options.seed)
        self._random = random.Random(self.options.seed)
        self.configure({})

    def _own_limits(self, model: Model) -> Limits:
        given = self.options.limits
        return given.get(model.id) or given.get("*") or Limits()

    def _limit(self, model: Model) -> tuple[int, float]:
        rps = self._own_limits(model).rps
        return _rate(rps) if rps else model.limit

    def _throttle(self, is_allowed: bool, interface: str) -> None:
        if not is_allowed:
            self.ledger.throttled[interface] += 1
            raise Refusal(*THROTTLED)

    def _make_room(self, owner: str, model: Model, call: Call) -> None:
        limit = self.concurrency(model)
        if self.options.over_concurrency is OverConcurrency.QUEUE or limit is None or not call.is_async:
            return
        self._throttle(self.tasks.in_flight(owner, model.id, self.now()) < limit, "create")

    def _check(
        self, document: dict[str, Any], model: Model, call: Call, resolves_oss: bool
    ) -> tuple[Order, tuple[str, str] | None]:
        try:
            return orders.check(document, model, call, resolves_oss), None
        except Refusal as refusal:
            if not self.options.late_checks or not call.is_async or refusal.code != "InvalidParameter":
                raise
            failure = (refusal.code, refusal.message)
            return orders.check(document | {"parameters": {}}, model, call, resolves_oss), failure

    def _task(self, proposal: Proposal, now: float) -> Task:
        entry, is_async = proposal.entry, proposal.call.is_async
        return Task(
            id=str(uuid.uuid4()),
            owner=entry.owner,
            order=proposal.order,
            request_id=entry.request_id,
            body_sha256=entry.body_sha256,
            received_at=now,
            submitted_at=now,
            queue_seconds=self._queue_seconds(),
            run_seconds=self._run_seconds(proposal.model, proposal.order),
            failure=proposal.failure,
            failed_pictures=0,
            price_micros=0,
            is_async=is_async,
        )

    def _queue_seconds(self) -> float:
        drawn = self._random.uniform(*QUEUE_SECONDS) * self.options.time_scale
        fixed = self.options.queue_seconds
        return drawn if fixed is None else fixed

    def _run_seconds(self, model: Model, order: Order) -> float:
        length = order.seconds / 5 if order.seconds else 1.0
        drawn = model.run_seconds * length * self._random.uniform(*RUN_SPREAD) * self.options.time_scale
        fixed = self.options.run_seconds
        return drawn if fixed is None else fixed


def _bend(task: Task, rule: Rule) -> None:
    if rule.what is What.TASK_FAILS:
        _, code, message = rule.error
        task.failure = (code, message)
    elif rule.what is What.TASK_PARTIAL and task.order.pictures > 1:
        task.failed_pictures = 1
    elif rule.what is What.TASK_RUNS:
        task.run_seconds = rule.after_ms / 1000
    elif rule.what is What.EXECUTED_LATE:
        task.submitted_at += rule.after_ms / 1000


def _price(model: Model, task: Task) -> int:
    order = task.order
    if model.makes == "image":
        return model.prices["each"] * (order.pictures - task.failed_pictures)
    prices = model.prices if order.has_audio or not model.silent_prices else model.silent_prices
    return prices.get(order.tier, 0) * (order.seconds + order.input_seconds)


def _rate(per_second: float) -> tuple[int, float]:
    """Return a rate as a whole count and the seconds it is counted over."""
    count = max(1, round(per_second))
    return count, count / per_second
