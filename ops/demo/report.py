"""What the demo tells a person: what was made, where it lies, what it would cost, and how long each step took."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.markup import escape

from ops.cli import show
from ops.cli.following import STEPS

_WIDE = 100  # columns, where the kind has room too


@dataclass(frozen=True)
class Kept:
    """An output: its key in the bucket, and its file on this disk."""

    key: str
    file: str
    bytes: int


@dataclass(frozen=True)
class Made:
    """What became of one job; `fault` says what is wrong with it, None: nothing."""

    name: str
    kind: str
    model: str
    steps: Mapping[str, float]  # seconds in each of `STEPS`
    cost: Decimal  # CNY
    outputs: Sequence[Kept]
    holds: str  # what was found in them
    fault: str | None


@dataclass
class Findings:
    """A line for each thing that holds, and for each that does not."""

    good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def note(self, holds: bool, words: str) -> None:
        """Put a finding where it belongs."""
        (self.good if holds else self.bad).append(words)

    def shown(self) -> RenderableType:
        """One finding a line."""
        good = [f"[green]✓[/] {escape(words)}" for words in self.good]
        return Group(*good, *(f"[red]✗ {escape(words)}[/]" for words in self.bad))


def table(made: Sequence[Made]) -> RenderableType:
    """How long each step of each job took, in seconds, and what it cost."""
    rows = show.table("job", "model", *STEPS, "holds", "CNY", right=[*STEPS, "CNY"], wide=["job", "model"])
    for one in made:
        model = f"{one.kind} · {one.model}" if show.OUT.width >= _WIDE else one.model
        steps = (f"{one.steps[step]:.1f}" for step in STEPS)
        show.row(rows, escape(one.name), model, *steps, escape(one.holds), f"{one.cost:.3f}")
    rows.add_section()
    longest = (f"{max(one.steps[step] for one in made):.1f}" for step in STEPS)
    show.row(rows, "", "longest; in all", *longest, "", f"{sum(one.cost for one in made):.3f}", style="bold")
    return rows


def places(made: Sequence[Made], bucket: str, folder: str) -> RenderableType:
    """Where each output lies, in the bucket and on this disk."""
    found = [output for one in made for output in one.outputs]
    if not found:
        return ""
    common = posixpath.commonpath([posixpath.dirname(posixpath.dirname(output.key)) for output in found])
    rows = show.table("file", "size", "key", right=["size"], wide=["file", "key"])
    for output in found:
        show.row(rows, escape(output.file), show.size(output.bytes), output.key.removeprefix(common + "/"))
    return Group(f"\nFiles:  {escape(folder)}", f"Bucket: {bucket}, under {common}/", rows)
