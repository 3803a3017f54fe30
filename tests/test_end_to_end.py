"""All of it at once, as `noria up` runs it: real Celery workers, clock, Flower, API, sandbox, and what kills them."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import create_engine, text

from ops.cli import demo_key
from ops.local.up import Stack, UpOptions, stack

PATIENCE = 60.0  # seconds

pytestmark = pytest.mark.xdist_group("stack")  # one stack for all of them
CLIP = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": {"prompt": "a cat", "size": "832*480"}}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="noria-stack-") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL may run as somebody else
        yield Path(folder)


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Stack]:
    said: list[str] = []

    def prepare(environment: Mapping[str, str]) -> Mapping[str, str]:
        return {"NORIA_KEY": demo_key(home, environment), "NORIA_SETTLE_SECONDS": "5"}

    with stack(UpOptions(home=home, time_scale=0.01), prepare, said.append) as made:
        yield made


@pytest.fixture
def api(running: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {running.prepared['NORIA_KEY']}"}
    with httpx.Client(base_url=running.environment["NORIA_PUBLIC_URL"], headers=headers, trust_env=False) as client:
        yield client


def eventually(look: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found = look()
        except httpx.TransportError as error:
            found = error
        if not isinstance(found, Exception) and enough(found):
            return found
        assert time.monotonic() < deadline, f"it is still {found!r}"
        time.sleep(0.1)


def submit(api: httpx.Client, **more: Any) -> str:
    answer = api.post("/v1/jobs", json={**CLIP, **more})
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def succeeded(api: httpx.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = eventually(
        lambda: api.get(f"/v1/jobs/{job_id}").json(), lambda job: job.get("is_terminal", False)
    )
    assert job["state"] == "succeeded", job
    return job


def lapse(running: Stack) -> None:
    """Lets the leases of the killed lapse, which would take a minute and a half."""
    engine = create_engine(running.environment["NORIA_DATABASE_URL"])
    with engine.begin() as connection:
        connection.execute(text("update jobs set run_at = now() where claimed is not null"))
    engine.dispose()


def bill(running: Stack) -> Mapping[str, Any]:
    totals: Mapping[str, Any] = httpx.get(f"{sandbox(running)}/_sandbox/ledger", trust_env=False).json()["totals"]
    return totals


def sandbox(running: Stack) -> str:
    return running.environment["NORIA_DASHSCOPE_URL"]


def flower(running: Stack) -> Mapping[str, Any]:
    login = base64.b64encode(running.environment["FLOWER_BASIC_AUTH"].encode()).decode()
    answer = httpx.get(
        f"{address(running, 'flower')}/api/tasks", headers={"Authorization": f"Basic {login}"}, trust_env=False
    )
    rows: Mapping[str, Any] = answer.json()
    return rows


def address(running: Stack, name: str) -> str:
    found = next(value for key, value in running.addresses.items() if key.lower() == name)
    return found.split()[0].rstrip("/")


def test_a_clip_is_made_stored_and_shown_in_flower_as_one_row(running: Stack, api: httpx.Client) -> None:
    job_id = submit(api, custom_id="row-1")

    job = succeeded(api, job_id)

    link = api.get(job["outputs"][0]["url"], follow_redirects=False)
    assert link.status_code == 302
    body = httpx.get(link.headers["location"], trust_env=False).content
    assert len(body) == job["outputs"][0]["bytes"]
    assert body[4:8] == b"ftyp"
    row = eventually(lambda: flower(running).get(job_id, {}), lambda row: row.get("state") == "SUCCESS")
    assert row["name"] == "text-to-video · wan2.5-t2v-preview"
    assert "a cat" not in str(flower(running))
    assert all(row["name"].startswith("text-to") for row in flower(running).values()), "plumbing is not shown"


def test_flower_shows_a_review_that_is_due_and_how_it_ended(running: Stack, api: httpx.Client) -> None:
    kept, thrown = submit(api, review="required"), submit(api, review="required")

    for job_id in (kept, thrown):
        row = eventually(lambda: flower(running).get(job_id, {}), lambda row: row.get("state") == "AWAITING_REVIEW")  # noqa: B023
        assert row["result"].endswith("0-video.mp4")
    api.post(f"/v1/jobs/{kept}/approve")
    api.post(f"/v1/jobs/{thrown}/reject", json={"comment": "five legs"})

    eventually(lambda: flower(running)[kept], lambda row: row["state"] == "SUCCESS")
    row = eventually(lambda: flower(running)[thrown], lambda row: row["state"] == "REJECTED_IN_REVIEW")
    assert row["exception"] == "rejected: five legs"


def test_flower_asks_who_is_there_and_lets_nobody_change_anything(running: Stack) -> None:
    url = address(running, "flower")
    login = tuple(running.environment["FLOWER_BASIC_AUTH"].split(":", 1))

    assert httpx.get(f"{url}/api/tasks", trust_env=False).status_code == 401
    changed = httpx.post(f"{url}/api/worker/shutdown/control@x", auth=login, trust_env=False)  # type: ignore[arg-type]

    assert changed.status_code in (401, 403, 405)


def test_workers_killed_under_load_lose_nothing_and_pay_nothing_twice(running: Stack, api: httpx.Client) -> None:
    before = bill(running)["tasks"]
    submitted = [submit(api, input={"prompt": f"clip {n}", "size": "832*480"}) for n in range(12)]
    for name in ("worker-control", "worker-rest", "clock"):
        old = running.processes[name]
        os.kill(old, signal.SIGKILL)
        eventually(lambda name=name, old=old: running.processes.get(name), lambda new, old=old: new not in (None, old))
    lapse(running)

    jobs = [succeeded(api, job_id) for job_id in submitted]

    assert bill(running)["tasks"] - before == len(jobs)
    assert len({job["provider"]["task_id"] for job in jobs}) == len(jobs)


def test_redis_hung_or_emptied_is_not_missed(running: Stack, api: httpx.Client) -> None:
    valkey = psutil.Process(running.processes["valkey"])
    valkey.suspend()
    try:
        began = time.monotonic()
        while_hung = submit(api)
        took = time.monotonic() - began
    finally:
        valkey.resume()
    os.kill(running.processes["valkey"], signal.SIGKILL)

    assert took < 1.0
    succeeded(api, while_hung)
    succeeded(api, submit(api))


def test_the_database_restarting_is_waited_for(running: Stack, api: httpx.Client) -> None:
    job_id = submit(api)
    os.kill(running.processes["postgres"], signal.SIGKILL)
    eventually(lambda: api.get("/readyz"), lambda answer: answer.status_code == 200)
    lapse(running)

    succeeded(api, job_id)


def test_no_secret_reaches_a_log(running: Stack, home: Path) -> None:
    logs = (home / "logs").glob("*.log")
    written = "".join(log.read_text(errors="replace") for log in logs if log.stem != "sandbox")
    secrets = [running.prepared["NORIA_KEY"], running.environment["NORIA_S3_SECRET_ACCESS_KEY"], "sk-sandbox"]

    assert written
    assert not [word for word in (*secrets, "Signature=", "X-Amz-Signature", "a cat", "clip 7") if word in written]
