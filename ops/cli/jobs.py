"""The commands about jobs that were submitted, and about models. They talk to the API."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from ops.cli import following, show, tables
from ops.cli.reach import Api, command, pairs

_UNFINISHED = ("queued", "held", "admitted", "submitting", "uncertain", "running", "gathering", "copying")
_FAILED_SHOWN = 5  # children of a parent
_OUTCOMES = {
    "canceled": "nothing was sent, nothing is billed",
    "requested": "what has not started is dropped, what runs is billed",
    "too_late": "it runs on and is billed",
    "already_finished": "it had ended before",
}

app = typer.Typer()

Job = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Jobs = Annotated[list[str], typer.Argument(metavar="ID...", help="The jobs' ids.")]
States = Annotated[list[str] | None, typer.Option(help="Only those in this state; may be repeated.")]


@command(app)
def watch(
    *,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Default: all unfinished jobs.")] = None,
    api: Api,
) -> None:
    """Follow jobs until all have ended.

    The exit code is 1 if one did not succeed. --json prints one line for each change of state.
    """
    with api.client() as client:
        wanted = ids or [str(job.id) for job in client.jobs(state=",".join(_UNFINISHED), limit=100)]
        if not wanted:
            show.ERR.print("No job is unfinished.")
            return
        rounds = following.follow(client, wanted)
        jobs = following.told(rounds, show.line) if api.as_json else following.watched(rounds, show.OUT)
    if not following.succeeded(jobs):
        raise typer.Exit(1)


@command(app)
def console(*, api: Api) -> None:
    """Print an address of the console that signs in as your key, once, within a day."""
    with api.client() as client:
        url = client.console_link()
    if api.as_json:
        show.document({"url": url})
    else:
        show.OUT.print(url, markup=False, soft_wrap=True)


@command(app, "show")
def show_job(*, job_id: Job, api: Api) -> None:
    """Show one job: its state, outputs, cost and history.

    Also what it waits for, how long each step took, its create calls, and the first of its parts that failed.
    """
    with api.client() as client:
        job, events = client.job(job_id).as_json(), show.plain_all(client.events(job_id))
        attempts = show.plain_all(client.attempts(job_id))
        parts = client.children(job_id, "failed,expired") if job["children"] else ()
        missed = show.plain_all(islice(parts, _FAILED_SHOWN))
    api.answer({"job": job, "events": events, "attempts": attempts}, tables.job(job, events, attempts, missed))


@command(app, "list")
def list_jobs(
    *,
    state: States = None,
    kind: Annotated[str | None, typer.Option(help="Only those of this kind.")] = None,
    model: Annotated[str | None, typer.Option(help="Only those of this model, by its name or an alias.")] = None,
    custom_id: Annotated[str | None, typer.Option(help="Only those with this id of your own.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only those with this label; may be repeated.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="A part of the prompt or of your own id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest first.")] = 20,
    api: Api,
) -> None:
    """List jobs, the newest first."""
    with api.client() as client:
        found = client.jobs(
            state=",".join(state) if state else None,
            kind=kind,
            model=model,
            custom_id=custom_id,
            metadata=pairs(metadata, "--metadata"),
            q=text,
            limit=min(limit, 100),
        )
        jobs = show.plain_all(islice(found, limit))
    api.answer(jobs, tables.jobs(jobs), "No such jobs.")


@command(app)
def children(
    *,
    job_id: Job,
    state: States = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    api: Api,
) -> None:
    """List the parts of a narration, a summary or an embedding."""
    with api.client() as client:
        found = show.plain_all(islice(client.children(job_id, ",".join(state) if state else None), limit))
    api.answer(found, tables.children(found), "No such parts.")


@command(app)
def cancel(*, ids: Jobs, api: Api) -> None:
    """Cancel jobs.

    What already runs at the provider runs on and is billed; the outcome of each is printed.
    """
    with api.client() as client:
        outcomes = [(job_id, client.cancel(job_id).as_json()) for job_id in ids]
    words = [f"{job_id}  {answer['outcome']}: {_OUTCOMES.get(answer['outcome'], '')}" for job_id, answer in outcomes]
    api.answer([answer for _, answer in outcomes], "\n".join(words))


@command(app)
def retry(*, ids: Jobs, api: Api) -> None:
    """Make failed, expired or canceled jobs again.

    Of a job that is made in parts, only the parts that did not succeed.
    """
    with api.client() as client:
        jobs = [client.retry(job_id).as_json() for job_id in ids]
    api.answer(jobs, "\n".join(f"{job['id']}  {job['state']}, {show.cost(job)} CNY" for job in jobs))


@command(app)
def resolve(
    *,
    job_id: Job,
    adopt: Annotated[str | None, typer.Option(metavar="TASK", help="This task of the provider's is the job's.")] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Its call made nothing: make it again. If it did, it is paid twice.")
    ] = False,
    give_up: Annotated[bool, typer.Option("--give-up", help="The job has failed.")] = False,
    billed: Annotated[str | None, typer.Option(help="With --give-up: whether the call cost money, yes or no.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; nothing is changed.")] = False,
    api: Api,
) -> None:
    """Decide what became of a held or uncertain job.

    Without a decision it lists the tasks at the provider that may be the job's. It takes an operator's key:
    `noria keys operator` makes one.
    """
    actions = {"adopt": adopt is not None, "requeue": requeue, "give_up": give_up}
    chosen = [action for action, is_chosen in actions.items() if is_chosen]
    if len(chosen) > 1:
        raise typer.BadParameter("one decision at a time: --adopt, --requeue or --give-up")
    with api.client() as client:
        if not chosen:
            found = client.candidates(job_id).as_json()
            api.answer(found, tables.candidates(found))
            return
        decision = {"action": chosen[0], "task_id": adopt, "billed": billed}
        decision = {name: value for name, value in decision.items() if value is not None}
        found = client.resolve(job_id, decision, dry_run).as_json()
    done = "" if found["done"] else "would be "
    api.answer(found, f"{found['job']['id']} {done}{found['to']}: {found['why']}")


@command(app)
def models(
    *, kind: Annotated[str | None, typer.Argument(help="Only the models for this kind of job.")] = None, api: Api
) -> None:
    """List the models with their prices.

    --json has everything that the catalog knows of them.
    """
    with api.client() as client:
        found = show.plain_all(client.models(kind))
    api.answer(found, tables.models(found))
