"""`python -m tests.chaos`: torment a whole stack, and audit what is left."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ops.cli import show
from ops.cli.doctor import tell
from ops.cli.reach import Json
from ops.local import up
from tests.chaos import chaos
from tests.chaos.torments import TORMENTS

app = typer.Typer(add_completion=False)


@app.command()
def main(
    seconds: Annotated[float, typer.Option(min=1, max=400, help="How long things go wrong.")] = 180.0,
    seed: Annotated[int, typer.Option(help="Of the dice.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="How many, submitted in the first third.")] = 1000,
    faults: Annotated[str, typer.Option(help="Torments, with commas; all where none is named.")] = "",
    home: Annotated[Path, typer.Option(help="Where it works; what an earlier run left there is removed.")] = Path(
        ".noria/chaos"
    ),
    as_json: Json = False,
) -> None:
    """Torment a whole stack of its own, in the sandbox, and audit what is left. Exit code 1 where a promise broke."""
    chosen = tuple(filter(None, faults.split(","))) or tuple(TORMENTS)
    if unknown := sorted(set(chosen) - set(TORMENTS)):
        raise typer.BadParameter(f"no {', '.join(unknown)}; there are {', '.join(TORMENTS)}", param_hint="--faults")

    with up.interruptible():
        report = chaos.run(chaos.Options(seconds, seed, jobs, chosen, home), show.sayer(show.ERR))
    if as_json:
        show.document({"numbers": report.numbers, "findings": [asdict(finding) for finding in report.findings]})
    else:
        show.OUT.print(chaos.shown(report))
        tell(report.findings, as_json)
    raise typer.Exit(1 if report.findings else 0)


if __name__ == "__main__":
    app()
