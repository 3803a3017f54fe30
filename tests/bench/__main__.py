"""`python -m tests.bench [names] [--quick] [--json FILE]`: measure, show, and write the page anew."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ops.cli import show
from ops.local import up
from tests.bench import page, rig
from tests.bench.figures import Figure, shown
from tests.bench.scenarios import ALONE, LONG, SCENARIOS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join((*SCENARIOS, *ALONE))}.")] = None,
    quick: Annotated[bool, typer.Option(help="Fewer jobs: all of it in under two minutes.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go as JSON.")] = None,
    write: Annotated[bool, typer.Option(help="Write the results into the page, too.")] = False,
) -> None:
    """Measure what jobs cost on a whole stack of its own, beside peers in the same run."""
    chosen = names or [name for name in SCENARIOS if not (quick and name in LONG)]
    if unknown := sorted(set(chosen) - SCENARIOS.keys() - ALONE.keys()):
        raise typer.BadParameter(f"no {', '.join(unknown)}; there are {', '.join((*SCENARIOS, *ALONE))}")
    figures: list[Figure] = []
    began = time.monotonic()
    with up.interruptible():
        for found in _measured(chosen, quick):
            _show(found)
            figures += found  # kept after each scenario, so that a run that is broken off leaves what it has
            if json_file:
                rows = [asdict(figure) for figure in figures]
                json_file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
            if write:
                page.write(figures, quick)
    show.ERR.print(f"It took {time.monotonic() - began:.0f} s; load {os.getloadavg()[0]:.1f}.")


def _measured(names: list[str], quick: bool) -> Iterator[list[Figure]]:
    """The figures of each scenario, those first that share a running stack."""
    together = [name for name in names if name in SCENARIOS]
    if together:
        with tempfile.TemporaryDirectory(prefix="noria-bench-") as folder:
            Path(folder).chmod(0o711)  # PostgreSQL may have to run as another user, and passes through
            with rig.running(Path(folder) / "home", show.sayer(show.ERR)) as made:
                for name in together:
                    began = time.monotonic()
                    yield SCENARIOS[name](made, quick)
                    show.ERR.print(f"{name}: {time.monotonic() - began:.0f} s")
    yield from (ALONE[name](quick) for name in names if name in ALONE)


def _show(figures: list[Figure]) -> None:
    rows = show.table(figures[0].scenario, "figure", "unit", right=["figure"], wide=[figures[0].scenario])
    for figure in figures:
        show.row(rows, figure.name, shown(figure.value), figure.unit)
    show.OUT.print(rows)


if __name__ == "__main__":
    app()
