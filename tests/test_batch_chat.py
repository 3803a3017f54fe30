"""Batch Chat where it is refused, away, slow or wanted by many: it harms no other call, and nothing waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from stage import PATIENCE, Stage, stage
from test_crash import KILLER
from test_doctor import closed_port, examined
from test_summary_jobs import children, lines, paid, texts

from ops.doctor import Verdict
from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import tick, work
from worker.catalog import Surface
from worker.dashscope.client import Client
from worker.dashscope.offers import Quota
from worker.dashscope.responses import Refused
from worker.egress import transports
from worker.errors import NotSent
from worker.kinds import Request
from worker.lanes import quotas, slots
from worker.settings import Account
from worker.tables import Job

MODEL = "qwen-flash"
TRANSPORTS = (transports.keeping(), transports.single())
WAITING = f"{MODEL}@chat"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(Options(call_seconds=0, limits={"*": Limits(rpm=1_000_000, tpm=100_000_000)})) as made:
        yield made


def submit(play: Stage, count: int = 5, **said: Any) -> Job:
    return play.submit("summary", MODEL, input={"mode": "chat", "documents": texts(count), **said})


def models(play: Stage, job: Job) -> Counter[str]:
    return Counter(child["model"] for child in children(play, job))


def billed(play: Stage) -> int:
    return sum(call["billed_micros"] for call in paid(play))


def calls(play: Stage) -> list[tick.Message]:
    return [message for message in play.tick() if message.queue == "calls"]


def asked(sandbox: Sandbox, what: str) -> None:
    """Waits until the provider has counted such a call."""
    ends = time.monotonic() + PATIENCE
    while not any(what in counted for counted in sandbox.ledger()["calls"].values()):
        assert time.monotonic() < ends, f"there was no {what}"
        time.sleep(0.02)


def now_due(play: Stage) -> None:
    """Nothing waits for the next try of a call."""
    play.sql(
        "update jobs set run_at = now() where state in ('queued', 'submitting', 'uncertain') and run_at is not null"
    )


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "InvalidApiKey"), (403, "AccessDenied"), (403, "Model.AccessDenied"), (404, "ModelNotFound")],
)
def test_a_refusal_of_batch_chat_stops_no_account_and_is_remembered(play: Stage, status: int, code: str) -> None:
    play.sandbox.fault(where="create", what="error", times=1, status=status, code=code, message="Access denied.")

    job = play.until(submit(play))

    assert models(play, job) == {WAITING: 1, MODEL: 5}
    assert [line["error"] for line in lines(play, job)] == [None] * 5
    assert job.cost == billed(play)
    assert play.sql("select stopped_at from owners") == [{"stopped_at": None}]
    assert play.sql("select * from stopped_accounts") == []
    assert models(play, play.until(submit(play, 2))) == {MODEL: 2}


def test_an_account_that_is_in_arrears_waits_as_everywhere(play: Stage) -> None:
    play.sandbox.fault(where="create", what="error", status=400, code="Arrearage", message="Access denied.")

    job = submit(play, 1)
    play.drive(lambda: play.sql("select stopped_at from owners"), lambda owners: owners[0]["stopped_at"] is not None)

    assert [child["state"] for child in children(play, job)] == ["queued"]


def test_a_host_that_is_not_reached_is_left_for_plain_calls(environment: dict[str, str], sandbox: Sandbox) -> None:
    sandbox.reset()
    with stage(environment, sandbox, dashscope_batch_chat_url=f"http://127.0.0.1:{closed_port()}") as play:
        job = submit(play, 2)
        play.drive(lambda: now_due(play) or play.job(job), lambda found: found.state == "succeeded")

        assert models(play, job) == {WAITING: 1, MODEL: 2}
        assert children(play, job)[0]["billed"] == "no"
        assert play.job(job).cost == billed(play)


def test_a_worker_killed_while_its_call_waits_leaves_it_to_a_plain_call(
    play: Stage, environment: dict[str, str], sandbox: Sandbox
) -> None:
    sandbox.set(batch_chat_seconds=60)
    play.sql("update lanes set concurrency = 0 where model = :model", model=WAITING)
    job = submit(play)
    (first,) = play.drive(lambda: children(play, job), bool)
    play.sql("update lanes set concurrency = 8 where model = :model", model=WAITING)
    addresses = {"NORIA_DASHSCOPE_URL": sandbox.url, "NORIA_DASHSCOPE_BATCH_CHAT_URL": f"{sandbox.url}/batch-chat"}
    settings = {**os.environ, **environment, **addresses, "PYTHONPATH": str(KILLER.parent.parent)}
    with subprocess.Popen([sys.executable, str(KILLER), str(first["id"]), "never"], env=settings) as worker:
        asked(sandbox, "batch_chat")
        worker.kill()
    asked(sandbox, "batch_chat_left")
    assert children(play, job)[0]["state"] == "submitting"
    play.sql("update jobs set run_at = now() - interval '1 s' where id = :id", id=first["id"])

    ended = play.until(job)

    assert [line["error"] for line in lines(play, ended)] == [None] * 5
    assert models(play, job) == {WAITING: 1, MODEL: 5}
    assert len(paid(play)) == 5
    # nobody here can know that the provider does not bill who hung up, so what the call may have cost is counted
    assert ended.cost == billed(play) + first["estimate"]


def test_sixteen_calls_wait_at_once_and_plain_calls_go_on_beside_them(play: Stage) -> None:
    play.sql("update lanes set concurrency = 100")
    jobs = [play.submit("text", MODEL, input={"prompt": "Hello."}) for _ in range(40)]
    play.sql("update jobs set model = :model where id = any(:ids)", model=WAITING, ids=[job.id for job in jobs])
    plain = play.submit("text", MODEL, input={"prompt": "Hello."})

    sent = {claim.id for message in play.tick() for claim in message.claims}

    assert plain.id in sent
    assert len(sent - {plain.id}) == work.CHATS.on_their_way == 16
    assert calls(play) == []
    first = next(job for job in jobs if job.id in sent)
    play.spend(first.id, play.job(first).claim)
    assert calls(play) == [], "one in a worker's hands counts too"
    play.sql("update jobs set state = 'failed', run_at = null, finished_at = now() where id = :id", id=first.id)
    assert len(calls(play)) == 1


def test_an_account_without_its_host_sends_nothing(sandbox: Sandbox) -> None:
    client = Client(Account(name="abroad", url=sandbox.url, key="sk-1", region="ap-southeast-1"), *TRANSPORTS)

    with pytest.raises(NotSent, match="account abroad has no host"):
        client.create(Request("/chat/completions", {}, {"model": MODEL}, Surface.BATCH_CHAT), 5)


def test_its_lane_has_limits_of_its_own_whatever_the_account_is_told_of_calls(play: Stage) -> None:
    model = play.ctx.catalog.model(WAITING)

    limits = slots.limits(play.ctx.settings, model, "cn-beijing", None)

    assert (limits["concurrency"], limits["interval_us"], limits["tpm"]) == (8, 1111, None)
    assert quotas._of(model, Quota(MODEL, rps=1.0, tpm=5)) is None


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        ("qwen-plus", {}, None),
        ("qwen-plus", {"batch_chat": False}, "access_denied"),
        ("qwen-plus", {"region": "ap-southeast-1"}, "invalid_api_key"),
        ("qwen-max", {}, "model_not_found"),
        ("qwen-plus-latest", {}, "model_not_found"),  # the page names no versions
    ],
)
def test_the_sandbox_has_it_for_the_pages_models_in_beijing_and_for_who_is_let_in(
    sandbox: Sandbox, model: str, options: dict[str, Any], told: str | None
) -> None:
    sandbox.reset()
    sandbox.set(**options)
    client = Client(Account(url=sandbox.url, batch_chat_url=f"{sandbox.url}/batch-chat", key="sk-1"), *TRANSPORTS)
    turns = [{"role": "user", "content": "Hello."}]

    said = client.create(Request("/chat/completions", {}, {"model": model, "messages": turns}, Surface.BATCH_CHAT), 5)

    assert (said.code if isinstance(said, Refused) else None) == told


@pytest.mark.parametrize(
    ("options", "verdict", "told"),
    [
        ({}, Verdict.WELL, "takes its key"),
        ({"batch_chat": False}, Verdict.WARNING, "HTTP 403 access_denied"),
    ],
)
def test_the_doctor_tells_without_paying_whether_it_is_reached(
    play: Stage, sandbox: Sandbox, options: dict[str, Any], verdict: Verdict, told: str
) -> None:
    sandbox.set(**options)

    found = examined(play, "batch chat")

    assert told in found[verdict][0]
    assert paid(play) == []


def test_the_doctor_tells_of_a_host_that_is_away_and_of_one_that_is_not_known(play: Stage) -> None:
    away = examined(play, "batch chat", dashscope_batch_chat_url=f"http://127.0.0.1:{closed_port()}")
    unknown = examined(play, "batch chat", dashscope_batch_chat_url=None)

    assert "gave no answer" in away[Verdict.WARNING][0]
    assert "not known" in unknown[Verdict.SKIPPED][0]
