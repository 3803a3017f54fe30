"""Temporal: a workflow a clip, its steps as activities on threads, a timer between two looks."""

# mypy: disable-error-code="import-not-found,untyped-decorator,misc"

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from tests.bench.peers import parts

QUEUE = "clips"
_LIMIT = timedelta(seconds=60)


@activity.defn
def create(clip_id: int) -> str:
    """Makes the task."""
    return parts.create(clip_id)


@activity.defn
def look(task_id: str) -> str | None:
    """The link to the output, once there is one."""
    return parts.look(task_id)


@activity.defn
def store(clip_id: int, link: str) -> None:
    """Copies the output."""
    parts.store(clip_id, link)


@activity.defn
def tell(clip_id: int) -> None:
    """Calls the user back."""
    parts.tell(clip_id)


@workflow.defn
class Clip:
    """One clip from its prompt to its webhook."""

    @workflow.run
    async def run(self, clip_id: int) -> None:
        """All of it."""
        task_id = await workflow.execute_activity(create, clip_id, start_to_close_timeout=_LIMIT)
        link = None
        while link is None:
            await asyncio.sleep(parts.POLL_SECONDS)
            link = await workflow.execute_activity(look, task_id, start_to_close_timeout=_LIMIT)
        await workflow.execute_activity(store, args=[clip_id, link], start_to_close_timeout=_LIMIT)
        await workflow.execute_activity(tell, clip_id, start_to_close_timeout=_LIMIT)


def start(address: str, clip_ids: Iterable[int]) -> None:
    """Starts a workflow for each of them."""

    async def all_of_them() -> None:
        client = await Client.connect(address)
        for clip_id in clip_ids:
            with contextlib.suppress(WorkflowAlreadyStartedError):  # the client asks again after a lost answer
                await client.start_workflow(Clip.run, clip_id, id=f"clip-{clip_id}", task_queue=QUEUE)

    asyncio.run(all_of_them())


async def _work() -> None:
    client = await Client.connect(os.environ["BENCH_TEMPORAL"])
    with ThreadPoolExecutor(32) as pool:
        worker = Worker(
            client,
            task_queue=QUEUE,
            workflows=[Clip],
            activities=[create, look, store, tell],
            activity_executor=pool,
            max_concurrent_activities=32,
        )
        print("worker ready", flush=True)
        await worker.run()


if __name__ == "__main__":
    asyncio.run(_work())
