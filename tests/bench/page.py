"""The newest results in README.md: tables between two marks, and a picture as bars of text and as a PNG."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.figures import Figure, bars, markdown

PAGE = Path(__file__).with_name("README.md")
PICTURE = Path(__file__).with_name("cost.png")
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"


def write(figures: Sequence[Figure], quick: bool) -> None:
    """Puts the figures between the marks of the page, and draws the picture where matplotlib is installed."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    PAGE.write_text(f"{before}{_BEGIN}\n{results(figures, quick)}\n{_END}{after}")
    if compared(figures) and importlib.util.find_spec("matplotlib") is not None:
        draw(compared(figures), PICTURE)


def results(figures: Sequence[Figure], quick: bool) -> str:
    """The block between the marks."""
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Python {platform.python_version()}"
    said = f"Measured on {when}{', with --quick' if quick else ''}; load at the end {os.getloadavg()[0]:.1f}."
    picture = bars(compared(figures))
    drawn = f"CPU a job in milliseconds ([as a picture]({PICTURE.name})), shared servers and the API left out:\n\n"
    drawn = f"{drawn}```text\n{picture}\n```\n\n" if picture else ""
    return f"{said}\n\n{drawn}{markdown(figures)}"


def compared(figures: Sequence[Figure]) -> list[Figure]:
    """The CPU a job of Noria and of its peers."""
    ends = (": workers and clock", ": all its processes")
    return [
        Figure(figure.scenario, figure.name.partition(":")[0], figure.unit, figure.value)
        for figure in figures
        if figure.scenario == "cost of a job" and figure.name.endswith(ends)
    ]


def draw(figures: Sequence[Figure], path: Path) -> None:
    """The same bars as a PNG."""
    from matplotlib.figure import Figure as Drawing  # an installation without it has bars of text

    drawing = Drawing(figsize=(7, 0.6 + 0.5 * len(figures)), layout="constrained")
    axes = drawing.subplots()
    drawn = axes.barh([figure.name for figure in figures], [figure.value or 0 for figure in figures], color="#3b6ea5")
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("ms of CPU a job, shared servers and API left out")
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=110)
