"""What the provider lets through: rates by the second, quotas by the minute, slots; and a count of what it does not.

Limits are kept by main account and model (Alibaba docs, "Rate limits"), as the table has them or the options.
"""

from collections import defaultdict

from ops.sandbox.ledger import Ledger
from ops.sandbox.limits import Quota, Rates
from ops.sandbox.models import Model
from ops.sandbox.options import Limits, Options, OverConcurrency, QueryLimit
from ops.sandbox.refusals import Refusal

THROTTLED = (429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later.")
SPENT = (429, "Throttling.AllocationQuota", "Allocated quota exceeded, please increase your quota limit.")


class Gate:
    """The limits of one sandbox, as its options are; new options begin with empty windows."""

    def __init__(self, options: Options, ledger: Ledger) -> None:
        self._options = options
        self._ledger = ledger
        self._rates = Rates()
        self._quotas: defaultdict[tuple[str, str, str], Quota] = defaultdict(Quota)

    def query(self, owner: str, interface: str) -> None:
        """Count a task query, or raise the Refusal of one over the account's limit a second."""
        self._ledger.peaks.add(owner, interface, "queries")
        is_shared = self._options.query_limit is QueryLimit.SHARED
        key = (owner, "queries" if is_shared else interface)
        self._throttle(self._rates.spend(key, *_rate(self._options.queries_per_second)), interface)

    def policy(self, owner: str, model_id: str) -> None:
        """Count a policy for a temporary upload, or raise the Refusal of one over the account and model's limit."""
        self._ledger.peaks.add(owner, "policy")
        rate = _rate(self._options.policies_per_second)
        self._throttle(self._rates.spend((owner, f"policy {model_id}"), *rate), "policy")

    def create(self, owner: str, model: Model) -> None:
        """Count a create, or raise the Refusal of one over the model's limit a second."""
        rps = self._own(model).rps
        limit = _rate(rps) if rps else model.limit
        self._throttle(limit is None or self._rates.spend((owner, model.id), *limit))

    def call(self, owner: str, model: Model, tokens: int) -> None:
        """Count a speech or text call against its minute; its tokens as if they were known when it comes."""
        own = self._own(model)
        requests, spent = self._quotas[owner, model.id, "requests"], self._quotas[owner, model.id, "tokens"]
        self._ledger.minutes.add(owner, f"requests {model.id}")
        self._throttle(requests.has_room(own.rpm or model.rpm))
        self._throttle(spent.has_room(own.tpm or model.tpm), refusal=SPENT)
        requests.add(1)
        spent.add(tokens)
        self._ledger.minutes.add(owner, f"tokens {model.id}", weight=tokens)

    def room(self, model: Model, in_flight: int) -> None:
        """Raise the Refusal of a task more than the model runs at once, where those do not queue."""
        limit = self.concurrency(model)
        queues = self._options.over_concurrency is OverConcurrency.QUEUE
        self._throttle(queues or limit is None or in_flight < limit)

    def concurrency(self, model: Model) -> int | None:
        """Return how many of a model's tasks run at once, None for no limit."""
        return self._own(model).concurrency or model.concurrency

    def published(self, model: Model) -> tuple[int | None, float, int | None]:
        """Return the creates of a model in so many seconds, and its tokens a minute; None for no limit."""
        own = self._own(model)
        rpm, tpm = own.rpm or model.rpm, own.tpm or model.tpm
        if own.rps:
            return max(1, round(own.rps * 60)), 60, tpm
        return (*model.limit, tpm) if model.limit and not own.rpm else (rpm, 60, tpm)

    def _own(self, model: Model) -> Limits:
        given = self._options.limits
        return given.get(model.id) or given.get("*") or Limits()

    def _throttle(self, is_allowed: bool, interface: str = "create", refusal: tuple[int, str, str] = THROTTLED) -> None:
        if not is_allowed:
            self._ledger.throttled[interface] += 1
            raise Refusal(*refusal)


def _rate(per_second: float) -> tuple[int, float]:
    """Return a rate as a whole count and the seconds it is counted over."""
    count = max(1, round(per_second))
    return count, count / per_second
