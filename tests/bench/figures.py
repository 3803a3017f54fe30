"""Figures: what a scenario found, as rows of a table, as JSON, and as bars of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

BAR = 40  # characters of the longest bar


@dataclass(frozen=True)
class Figure:
    """One number of a scenario; `value` is None where it could not be measured."""

    scenario: str
    name: str
    unit: str
    value: float | None


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed (nearest rank); `values` must not be empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def shown(value: float | None) -> str:
    """Three digits that matter: 0.123, 12.3, 123, 1,234; a dash for None."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def markdown(figures: Sequence[Figure]) -> str:
    """A table for each scenario."""
    return "\n\n".join(_table(name, list(rows)) for name, rows in groupby(figures, key=lambda figure: figure.scenario))


def bars(figures: Sequence[Figure]) -> str:
    """A bar for each figure, to one scale; figures without a value are left out."""
    known = [(figure.name, figure.value) for figure in figures if figure.value is not None]
    if not known:
        return ""
    width = max(len(name) for name, _ in known)
    longest = max(value for _, value in known) or 1.0
    return "\n".join(
        f"{name:<{width}}  {'█' * max(1, round(value / longest * BAR)):<{BAR}}  {shown(value)}" for name, value in known
    )


def _table(scenario: str, rows: Sequence[Figure]) -> str:
    lines = [f"| {row.name} | {shown(row.value)} | {row.unit} |" for row in rows]
    return "\n".join([f"### {scenario}", "", "| what | figure | unit |", "|---|---:|---|", *lines])
