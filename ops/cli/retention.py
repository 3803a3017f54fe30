"""`noria prune`, which lets go what projects no longer keep, and `noria holds`, which keep it all the same."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer
from sqlalchemy import select

from ops.cli import doctor, show
from ops.cli.reach import Database, command
from worker import claims, keys, retention
from worker.retention import holds as legal_holds
from worker.storage import Bucket

_SECONDS = 3600.0  # of one command; the next goes on

app = typer.Typer()
holds = typer.Typer(help="Keep what pruning would let go: legal holds.", no_args_is_help=True)


@command(app)
def prune(
    *,
    project: Annotated[str | None, typer.Option(help="Of this project alone.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    database: Database,
) -> None:
    """Let go what projects no longer keep: outputs, deliveries, events and rows older than their days.

    `noria projects set` says how many days. What is unfinished, held or still needed stays. Rows are counted as jobs,
    batches and runs of schedules; a batch goes once all of its jobs have gone.
    """
    with database.connection() as connection:
        now = connection.execute(select(claims.NOW)).scalar_one()
        engine = connection.engine
        if project:
            keys.project(connection, project)
        found = list(retention.due(connection, project, now)) if dry_run else None
    if found is None:
        found = retention.prune(engine, Bucket(doctor.settings_of(database.home)[0]), project, now, _SECONDS)
    rows = ((one.project, one.what, str(one.rows), show.size(one.bytes) if one.bytes else "") for one in found)
    table = show.filled(rows, "project", "what", "rows", "size", right=["rows", "size"], wide=["project"])
    database.answer([one.as_json() for one in found], table)


@command(holds, "list")
def list_holds(*, database: Database) -> None:
    """List the holds that are not released."""
    with database.connection() as connection:
        found = legal_holds.listed(connection)
    shown = [{name: value if value is None else str(value) for name, value in hold.items()} for hold in found]
    rows = ((one["id"], one["project"], one["job_id"] or one["batch_id"] or "all of it", one["why"]) for one in shown)
    database.answer(shown, show.filled(rows, "id", "project", "what", "why", wide=["project", "why"]))


@command(holds, "add")
def add_hold(
    *,
    project: Annotated[str, typer.Argument(metavar="PROJECT")],
    why: Annotated[str, typer.Option(help="For whoever looks at it later.")],
    job: Annotated[uuid.UUID | None, typer.Option(help="This job and its parts alone.")] = None,
    batch: Annotated[uuid.UUID | None, typer.Option(help="This batch alone.")] = None,
    database: Database,
) -> None:
    """Hold a project, or one job or batch of it: nothing of it is pruned."""
    if job and batch:
        raise typer.BadParameter("a hold is on a job or on a batch", param_hint="--batch")
    if not why.strip():
        raise typer.BadParameter("must say why", param_hint="--why")
    with database.connection() as connection:
        made = legal_holds.add(connection, keys.project(connection, project).id, job, batch, why)
    database.answer({"id": str(made)}, str(made))


@command(holds, "release")
def release_hold(*, hold: Annotated[uuid.UUID, typer.Argument(metavar="ID")], database: Database) -> None:
    """Release a hold."""
    with database.connection() as connection:
        legal_holds.release(connection, hold)
    database.answer({"released": str(hold)}, f"The hold {hold} is released.")
