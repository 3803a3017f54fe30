"""What a provider batch cost: read from the lines of its results as they pass into the bucket.

Memory is bounded and time is linear, whatever the file is: a line is kept up to a length that no answer has, and what
is cut there is no JSON and counts as nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from worker.catalog import Model, Usage
from worker.dashscope import responses
from worker.kinds import answers

_LONGEST = 4 << 20  # bytes of a line


@dataclass
class Bill:
    """What the lines of a results file used, counted as they pass, by the tier of prices of each."""

    model: Model
    by_tier: dict[str | None, Counter[str]] = field(default_factory=dict)

    def read(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, unchanged."""
        line = bytearray()
        for chunk in chunks:
            rest, *others = chunk.split(b"\n")
            line += rest[: _LONGEST - len(line)]
            for other in others:
                self._count(line)
                line = bytearray(other[:_LONGEST])
            yield chunk
        self._count(line)

    @property
    def units(self) -> dict[str, int]:
        """What all of them used."""
        return dict(sum(self.by_tier.values(), Counter()))

    def cost(self, region: str, now: datetime) -> int | None:
        """What they cost, micro-CNY: rounded once a tier; None where a tier has no price."""
        used = [Usage({**units, "tier": tier}) for tier, units in self.by_tier.items()]
        micros = [self.model.price(usage, region, now.date()) for usage in used]
        known = [amount for amount in micros if amount is not None]
        return sum(known) if len(known) == len(micros) else None

    def _count(self, line: bytearray) -> None:
        body = responses.field(responses.field(responses.read(bytes(line)), "response"), "body")
        used = answers.tokens(responses.field(body, "usage"))
        if used:
            tier = self.model.token_tier(used.get("input_tokens"))
            self.by_tier.setdefault(tier, Counter()).update(used)
