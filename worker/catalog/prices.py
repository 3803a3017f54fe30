"""What the provider's use costs: rows of the price list, and how a use of a model meets them.

A price is data with a date. Usage carries no money: it is what the provider counts (seconds, pictures, tokens,
characters), and beside it what moves the price: a tier, sound or none, whether the model thought.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MICRO = 1_000_000  # money is counted in millionths of the currency's unit


@dataclass(frozen=True)
class Usage:
    """What is billed, in the model's own units: `{"seconds": 5, "tier": "720P"}`, `{"images": 2}`.

    What else the provider reported is kept beside them.
    """

    units: dict[str, Any] = field(default_factory=dict)


class Price(BaseModel):
    """What `per` of a unit cost from a day on: one amount, or one a tier; `when` narrows it to some usage.

    `cached`: the share of it that input tokens cost which the provider had in its cache; none: all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: date = Field(alias="from")
    unit: str
    per: int = Field(1, ge=1)
    when: dict[str, Any] = {}
    cached: Decimal | None = Field(None, ge=0, le=1)
    cny: Decimal | dict[str, Decimal]

    def applies(self, usage: Usage, on: date) -> bool:
        """Whether this row speaks of such usage, on that day."""
        return self.since <= on and all(usage.units.get(key) == value for key, value in self.when.items())

    def micro(self, usage: Usage) -> Fraction | None:
        """What this usage costs in millionths, unrounded; None when the row has no amount for its tier."""
        amount = self.cny.get(str(usage.units.get("tier"))) if isinstance(self.cny, dict) else self.cny
        quantity = usage.units.get(self.unit)
        if amount is None or not isinstance(quantity, int | float):
            return None
        return Fraction(amount) * MICRO * (Fraction(str(quantity)) - self._spared(usage, quantity)) / self.per

    def _spared(self, usage: Usage, quantity: float) -> Fraction:
        """How much of the quantity the cache made free."""
        known = usage.units.get("cached_tokens")
        if self.cached is None or not isinstance(known, int | float):
            return Fraction(0)
        return Fraction(str(min(known, quantity))) * (1 - Fraction(self.cached))

    def at(self, share: Decimal) -> Price:
        """The row at a share of its amounts, and without the cache's discount: the two do not add up."""
        if isinstance(self.cny, dict):
            less: Decimal | dict[str, Decimal] = {tier: amount * share for tier, amount in self.cny.items()}
        else:
            less = self.cny * share
        return self.model_copy(update={"cny": less, "cached": None})


def total(rows: Iterable[Price], usage: Usage, on: date) -> int | None:
    """What the usage costs on that day by these rows, in millionths, rounded half up; None when that is unknown.

    Of the rows for a unit the most specific one counts, then the newest. A model with several units (tokens in and
    out) costs their sum. Exact until the last step, so that nothing is rounded twice.
    """
    speaking = sorted((row for row in rows if row.applies(usage, on)), key=lambda row: (len(row.when), row.since))
    amounts = [row.micro(usage) for row in {row.unit: row for row in speaking}.values()]
    known = [amount for amount in amounts if amount is not None]
    return int(sum(known) + Fraction(1, 2)) if known and len(known) == len(amounts) else None
