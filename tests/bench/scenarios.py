"""Every scenario by its name: those that share one running stack, and the older programs, which bring their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.bench import (
    bills,
    campaigns,
    copies,
    cost,
    costs,
    feed,
    growth,
    outage,
    polling,
    pruning,
    slots,
    submissions,
    tables,
    webhooks,
)
from tests.bench.figures import Figure
from tests.bench.rig import Rig

SCENARIOS: dict[str, Callable[[Rig, bool], list[Figure]]] = {
    "cost": cost.measure,
    "throughput": growth.throughput,
    "webhooks": webhooks.measure,
    "api": submissions.measure,
    "campaigns": campaigns.measure,
    "costs": costs.measure,
    "copies": copies.measure,
    "in_flight": polling.measure,
    "growth": growth.growth,
    "tables": tables.measure,
}

# Not run with --quick unless they are named: each takes minutes, however few its jobs are.
LONG = frozenset({"costs", "in_flight", "tables"})


def _slots(quick: bool) -> list[Figure]:
    seconds = 60.0 if quick else 240.0
    return _flat("slots", slots.measure(slots.Run(5, 5.0 if quick else 20.0, 5.0, seconds, spread=False, halve=None)))


def _outage(quick: bool) -> list[Figure]:
    return _flat("outage", outage.measure(50 if quick else 500, 20))


def _bills(quick: bool) -> list[Figure]:
    return _flat("bills", bills.measure(500 if quick else 10_000))


def _prune(quick: bool) -> list[Figure]:
    return pruning.measure(20_000 if quick else 1_000_000)


# Not run unless they are named.
ALONE: dict[str, Callable[[bool], list[Figure]]] = {
    "slots": _slots,
    "outage": _outage,
    "bills": _bills,
    "prune": _prune,
    "feed": feed.measure,
}


def _flat(scenario: str, found: Mapping[str, Any], before: str = "") -> list[Figure]:
    """What a program found, as rows."""
    figures: list[Figure] = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            figures += _flat(scenario, value, f"{before}{name}: ")
        else:
            figures.append(Figure(scenario, f"{before}{name}", "", float(value)))
    return figures
