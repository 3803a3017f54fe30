"""`noria review`: a person looks at outputs, and keeps, rejects or re-rolls each. The commands talk to the API."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from api.client import ApiError, Client
from ops.cli import show
from ops.cli.reach import Api, command, spread

review = typer.Typer(invoke_without_command=True)

Jobs = Annotated[list[str], typer.Argument(metavar="ID...", help="The jobs' ids.")]
Comment = Annotated[str | None, typer.Option(help="Why; it is kept with the job.")]
_KEYS = "(k)eep  (r)eject  (e) re-roll  (n)ext  (q)uit"
_OF_THE_JOB = (404, 409, 410, 422)  # statuses: the next job may be looked at
_WORDS = ("k", "r", "e", "n", "q")


@spread
def look(
    *,
    context: typer.Context,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch.")] = None,
    api: Api,
) -> None:
    """Look at outputs that wait for a person, one after the other: keep, reject, or re-roll with another prompt.

    Each comes with links to its outputs and those of the takes before it. Without a terminal, or with --json, they are
    listed.
    """
    if context.invoked_subcommand is not None:
        return
    with api.client() as client:
        waiting = client.jobs(state="awaiting_review", batch=batch, limit=100)
        if api.as_json or not sys.stdin.isatty():
            found = show.plain_all(waiting)
            api.answer(found, _listed(found), "Nothing waits for a review.")
            return
        # before the first answer: a re-roll comes back into the list
        for n, job in enumerate(found := show.plain_all(waiting), 1):
            show.OUT.print(f"\n[dim]{n} of {len(found)}[/]")
            try:
                if not _decide(client, job):
                    return
            except typer.Abort:  # Ctrl-C or Ctrl-D
                return
            except ApiError as refused:  # e.g. somebody else has decided meanwhile
                if refused.status not in _OF_THE_JOB:
                    raise
                show.ERR.print("\n".join(refused.faults), style="red", markup=False, soft_wrap=True)
    show.ERR.print("Nothing more waits for a review." if found else "Nothing waits for a review.")


review.callback()(look)


@command(review)
def approve(*, ids: Jobs, comment: Comment = None, api: Api) -> None:
    """Keep the outputs of jobs."""
    with api.client() as client:
        jobs = [client.approve(job_id, comment).as_json() for job_id in ids]
    api.answer(jobs, "\n".join(f"{job['id']}  {job['state']}" for job in jobs))


@command(review)
def reject(*, ids: Jobs, comment: Annotated[str, typer.Option(help="Why; it is kept with the job.")], api: Api) -> None:
    """Refuse the outputs of jobs; what they cost stays paid."""
    with api.client() as client:
        jobs = [client.reject(job_id, comment).job.as_json() for job_id in ids]
    api.answer(jobs, "\n".join(f"{job['id']}  {job['state']}" for job in jobs))


@command(review)
def reroll(
    *,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    comment: Annotated[str, typer.Option(help="Why; it is kept with the job.")],
    prompt: Annotated[str | None, typer.Option(help="Another prompt. Default: the same.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed. Default: any other.")] = None,
    api: Api,
) -> None:
    """Reject a job and make another take of it, which is paid for again."""
    with api.client() as client:
        answer = client.reject(job_id, comment, _changes(prompt, seed)).as_json()
    made = answer["next_take"]
    api.answer(answer, f"{made['id']}  take {made['take']}, {show.cost(made)} CNY")


def _decide(client: Client, job: Mapping[str, Any]) -> bool:
    """Shows a job, asks, and does what was said; False: no further one."""
    takes = show.plain_all(client.takes(job["id"])) if job["take"] > 1 else [job]
    show.OUT.print(f"[bold]{escape(show.name(job))}[/]  {job['model']}  take {job['take']}  {show.cost(job)} CNY")
    if prompt := job["input"].get("prompt"):
        show.OUT.print(prompt, markup=False, soft_wrap=True)
    for take in takes:
        for output in take["outputs"]:
            link = client.link(take["id"], output["n"])
            show.OUT.print(f"take {take['take']}: {link}", markup=False, soft_wrap=True)
    said = ""
    while said not in _WORDS:
        show.OUT.print(_KEYS)
        said = str(typer.prompt("", prompt_suffix="> ", default="n", show_default=False)).strip().lower()[:1]
    if said == "k":
        client.approve(job["id"])
    elif said in ("r", "e"):
        _reject(client, job, again=said == "e")
    return said != "q"


def _reject(client: Client, job: Mapping[str, Any], again: bool) -> None:
    comment = typer.prompt("Why")
    if not again:
        client.reject(job["id"], comment)
        return
    prompt = typer.prompt("Prompt (Enter: the same, another seed)", default="", show_default=False)
    following = client.reject(job["id"], comment, _changes(prompt or None, None)).as_json()["next_take"]
    show.OUT.print(f"take {following['take']}: {show.cost(following)} CNY")


def _changes(prompt: str | None, seed: int | None) -> dict[str, Any]:
    return {name: value for name, value in {"prompt": prompt, "seed": seed}.items() if value is not None}


def _listed(found: list[Any]) -> Any:
    rows = (
        (job["id"], escape(job["custom_id"] or ""), job["model"], str(job["take"]), show.cost(job)) for job in found
    )
    return show.filled(rows, "id", "custom", "model", "take", "CNY", right=["take", "CNY"], wide=["custom", "model"])
