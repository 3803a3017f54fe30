"""`noria webhooks` and `noria events`: who is told of the project's events, and what they are told.

The commands talk to the API.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import islice
from typing import Annotated, Any

import typer

from ops.cli import show, tables
from ops.cli.reach import Api, command

Which = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id.")]

events = typer.Typer()
webhooks = typer.Typer(help="Tell others of jobs and batches.", no_args_is_help=True)


@command(webhooks, "list")
def list_endpoints(*, api: Api) -> None:
    """List the endpoints, and which are disabled or fail."""
    with api.client() as client:
        found = show.plain_all(client.endpoints())
    api.answer(found, tables.endpoints(found), "No endpoints.")


@command(webhooks)
def create(
    *,
    address: Annotated[str, typer.Argument(metavar="URL", help="Is called.")],
    event: Annotated[
        list[str] | None, typer.Option(help="A type, or job.* for all of jobs; repeatable. Default: how things end.")
    ] = None,
    description: Annotated[str, typer.Option(help="Yours.")] = "",
    api: Api,
) -> None:
    """Register an endpoint, and print its secret, which is not shown again."""
    with api.client() as client:
        made = client.make_endpoint({"url": address, "events": event or None, "description": description}).as_json()
    _print_secret(api, made)


@command(webhooks)
def rotate(*, which: Which, api: Api) -> None:
    """Print a new secret; for 24 hours the one before signs too."""
    with api.client() as client:
        made = client.rotate_endpoint(which).as_json()
    _print_secret(api, made)


@command(webhooks)
def test(*, which: Which, api: Api) -> None:
    """Send a test.ping now, and print what came back; exit code 1 if it was not taken."""
    with api.client() as client:
        said = client.test_endpoint(which).as_json()
    words = f"HTTP {said['status']}" if said["status"] else said["error"]
    api.answer(said, f"{words} after {said['milliseconds']} ms")
    raise typer.Exit(0 if said["delivered"] else 1)


@command(webhooks)
def deliveries(
    *,
    which: Which,
    state: Annotated[str | None, typer.Option(help="waiting, delivered or exhausted.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest first.")] = 20,
    api: Api,
) -> None:
    """List what was sent there: tries, and what it said the last time."""
    with api.client() as client:
        found = show.plain_all(islice(client.deliveries(which, state), limit))
    api.answer(found, tables.deliveries(found), "No deliveries.")


@command(webhooks)
def redeliver(
    *,
    which: Which,
    ids: Annotated[list[str] | None, typer.Argument(metavar="DELIVERY…", help="Ids of deliveries.")] = None,
    since: Annotated[str | None, typer.Option(help="Of events since then, as RFC 3339.")] = None,
    status: Annotated[str | None, typer.Option(help="exhausted or delivered.")] = None,
    api: Api,
) -> None:
    """Send deliveries again: these, those of events since then, or those of a status."""
    said: dict[str, Any] = {"ids": ids or None, "since": since, "status": status}
    count, has_more = 0, True
    with api.client() as client:
        while has_more:
            done = client.redeliver(which, said)
            count, has_more, said["cursor"] = count + done.deliveries, done.has_more, done.as_json()["next_cursor"]
    api.answer({"deliveries": count}, f"{count} are due again.")


@command(webhooks)
def delete(*, which: Which, api: Api) -> None:
    """Delete an endpoint; nothing is sent there any more."""
    with api.client() as client:
        client.delete_endpoint(which)
    api.answer({"deleted": which}, "It is deleted.")


@command(events, "events")
def show_events(
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, each event as it comes, until Ctrl-C.")
    ] = False,
    after: Annotated[str, typer.Option(metavar="CURSOR", help="Only what came after it.")] = "0-0",
    types: Annotated[
        list[str] | None, typer.Option("--type", help="Only of this type, or job.* for all of jobs; repeatable.")
    ] = None,
    api: Api,
) -> None:
    """Show what webhooks said, each event once; --json prints one line for each, with its cursor."""
    with api.client() as client:
        for event in client.feed(after) if follow else client.feed_so_far(after):
            after = event.cursor
            if any(fnmatchcase(event.type, wanted) for wanted in types or ["*"]):
                said = event.as_json()
                show.line(said) if api.as_json else show.OUT.print(tables.event(said), soft_wrap=True)
    if not api.as_json:
        show.ERR.print(f"What comes from now on: noria events --after {after}", markup=False)


def _print_secret(api: Api, made: dict[str, Any]) -> None:
    api.answer(made, made["secret"])
    if not api.as_json:
        show.ERR.print(f"Endpoint {made['id']}. Keep the secret: it is not shown again.", markup=False)
