"""Several accounts in several regions: each job goes where its model is served and there is room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import answers, peer
from stage import CLIP, Stage, stage

from ops.cli.doctor import CHECKS
from ops.doctor import Exam, examine
from ops.sandbox.options import Limits, Options
from ops.sandbox.testing import Sandbox, running
from worker import keys
from worker.errors import InvalidInput
from worker.jobs import submission
from worker.lanes import account_stops, slots
from worker.settings import Account
from worker.states import State

BEIJING, SINGAPORE = "cn-beijing", "ap-southeast-1"
LANE = {"concurrency": 2, "rps": 100}


def options(region: str, **more: Any) -> Options:
    return Options(region=region, run_seconds=0.1, queue_seconds=0, limits={"*": Limits(rps=100)}, **more)


@pytest.fixture
def beijing() -> Iterator[Sandbox]:
    with running(options(BEIJING)) as made:
        yield made


@pytest.fixture
def singapore() -> Iterator[Sandbox]:
    with running(options(SINGAPORE)) as made:
        yield made


@pytest.fixture
def play(environment: dict[str, str], beijing: Sandbox, singapore: Sandbox) -> Iterator[Stage]:
    accounts = [
        {"name": "home", "owner": "company", "region": BEIJING, "url": beijing.url, "key": "sk-home"},
        {"name": "abroad", "owner": "branch", "region": SINGAPORE, "url": singapore.url, "key": "sk-abroad"},
    ]
    limits = dict.fromkeys(("wan2.5-t2v-preview", "wanx2.1-t2v-turbo", "wan2.2-kf2v-flash"), LANE)
    with stage(environment, beijing, accounts=accounts, limits=limits) as made:
        yield made


def models(sandbox: Sandbox) -> list[str]:
    return [task["model"] for task in sandbox.ledger()["tasks"]]


def test_a_job_goes_where_there_is_room(play: Stage, beijing: Sandbox, singapore: Sandbox) -> None:
    submitted = [play.submit() for _ in range(4)]

    play.drive(lambda: {play.job(job).state for job in submitted}, lambda found: found == {State.SUCCEEDED})

    assert Counter(play.job(job).region for job in submitted) == {BEIJING: 2, SINGAPORE: 2}
    assert (len(models(beijing)), len(models(singapore))) == (2, 2)


def test_an_estimate_is_the_dearest_that_it_may_be_and_the_cost_is_the_regions_own(play: Stage) -> None:
    submitted = [play.submit() for _ in range(4)]

    play.drive(lambda: {play.job(job).state for job in submitted}, lambda found: found == {State.SUCCEEDED})

    found = [play.job(job) for job in submitted]
    assert {job.estimate for job in found} == {1_834_805}
    assert {(job.region, job.cost) for job in found} == {(BEIJING, 1_500_000), (SINGAPORE, 1_834_805)}
    assert all(sum(micros for _, micros in play.ledger(job)) == job.cost for job in found)


def test_a_wrong_address_stops_the_account_and_leaves_no_job_in_doubt(
    environment: dict[str, str], beijing: Sandbox
) -> None:
    with peer(answers(404, b"<html>not found</html>")) as other:
        elsewhere = {"name": "home", "owner": "company", "region": BEIJING, "url": other.url, "key": "sk-home"}
        with stage(environment, beijing, accounts=[elsewhere]) as play:
            job = play.submit()
            play.drive(lambda: play.attempts(job), bool)
            (attempt,) = play.drive(lambda: play.attempts(job), lambda found: bool(found[0].outcome))
            (owner,) = play.sql("select stopped_until, stopped_why from owners")
            states = play.states(job)

    assert (attempt.outcome, attempt.billed) == ("refused", "no")
    assert State.UNCERTAIN not in states
    assert owner["stopped_until"]
    assert "NORIA_DASHSCOPE_URL" in owner["stopped_why"]


def test_an_id_is_spelled_as_its_region_does(play: Stage, beijing: Sandbox, singapore: Sandbox) -> None:
    submitted = [play.submit(model="wan2.1-t2v-turbo") for _ in range(4)]  # as only Singapore spells it

    play.drive(lambda: {play.job(job).state for job in submitted}, lambda found: found == {State.SUCCEEDED})

    assert {play.job(job).model for job in submitted} == {"wanx2.1-t2v-turbo"}
    assert set(models(beijing)) == {"wanx2.1-t2v-turbo"}
    assert set(models(singapore)) == {"wan2.1-t2v-turbo"}


def test_a_model_of_one_region_goes_to_an_account_there(play: Stage, singapore: Sandbox) -> None:
    wanted = {
        "img_url": "https://example.com/a.png",
        "last_frame_url": "https://example.com/b.png",
        "prompt": "it moves",
    }
    submitted = [play.submit("image-to-video", "wan2.2-kf2v-flash", input=wanted) for _ in range(3)]

    play.drive(lambda: {play.job(job).state for job in submitted}, lambda found: found == {State.SUCCEEDED})

    assert {play.job(job).account for job in submitted} == {"home"}
    assert models(singapore) == []


def test_a_model_that_no_account_can_call_is_refused_with_the_regions_that_have_it(
    environment: dict[str, str], singapore: Sandbox
) -> None:
    abroad = {"region": SINGAPORE, "url": singapore.url, "key": "sk-abroad"}
    with stage(environment, singapore, accounts=[abroad]) as play, pytest.raises(InvalidInput) as refused:
        play.submit("image-to-video", "wan2.2-kf2v-flash", input={"img_url": "https://example.com/a.png"})

    (fault,) = refused.value.faults
    assert fault.code == "model_not_in_region"
    assert BEIJING in fault.message
    assert SINGAPORE in fault.message


def test_a_model_that_does_not_exist_is_explained_with_the_regions_that_serve_it(
    environment: dict[str, str], singapore: Sandbox
) -> None:
    # the key and the address are Singapore's, and the setting says Beijing
    wrong = {"region": BEIJING, "url": singapore.url, "key": "sk-abroad"}
    with stage(environment, singapore, accounts=[wrong]) as play:
        job = play.until(play.submit(model="wanx2.1-t2v-turbo", input=CLIP))

    assert job.state == State.FAILED
    assert job.error is not None
    assert job.error["code"] == "model_not_served"
    assert "cn-beijing (wanx2.1-t2v-turbo)" in job.error["hint"]
    assert "ap-southeast-1 (wan2.1-t2v-turbo)" in job.error["hint"]


def test_trouble_of_one_account_leaves_the_other_alone(play: Stage, beijing: Sandbox) -> None:
    beijing.fault(where="create", what="error", code="Arrearage")

    submitted = [play.submit() for _ in range(6)]

    def hurry_queued() -> set[str]:
        play.sql("update jobs set run_at = now() where state = 'queued' and run_at > now()")
        return {play.job(job).state for job in submitted}

    play.drive(hurry_queued, lambda found: found == {State.SUCCEEDED})
    assert {play.job(job).account for job in submitted} == {"abroad"}


def test_a_key_is_changed_without_a_restart(environment: dict[str, str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-old")
    with running(options(BEIJING, owners={"sk-old": "company"}, any_key=False)) as sandbox:
        account = {"region": BEIJING, "url": sandbox.url, "key_file": str(key)}
        with stage(environment, sandbox, accounts=[account]) as play:
            assert play.until(play.submit()).state == State.SUCCEEDED
            sandbox.set(owners={"sk-new": "company"})
            key.write_text("sk-new")

            job = play.until(play.submit())

            assert job.state == State.SUCCEEDED
            assert [attempt.outcome for attempt in play.attempts(job)] == ["accepted"]
            assert play.sql("select stopped_until from owners")[0]["stopped_until"] is None


def test_each_account_has_a_query_budget_of_its_own(play: Stage) -> None:
    play.sql("update owners set next_query_at = now() + interval '1 hour' where name = 'company'")
    submitted = [play.submit() for _ in range(4)]

    play.drive(
        lambda: [job for job in map(play.job, submitted) if job.account == "abroad"],
        lambda found: bool(found) and {job.state for job in found} == {State.SUCCEEDED},
    )

    assert State.SUCCEEDED not in {job.state for job in map(play.job, submitted) if job.account == "home"}


WORKSPACES = ("dev", "prod")


@pytest.fixture
def shared(environment: dict[str, str]) -> Iterator[Stage]:
    """Two workspaces of one owner in one region, and an account abroad."""
    owners = {"sk-dev": "company", "sk-prod": "company"}
    with running(options(BEIJING, owners=owners)) as home, running(options(SINGAPORE)) as away:
        accounts = [
            *({"name": n, "owner": "company", "url": home.url, "key": f"sk-{n}", "workspace": n} for n in WORKSPACES),
            {"name": "abroad", "owner": "branch", "region": SINGAPORE, "url": away.url, "key": "sk-abroad"},
        ]
        with stage(environment, home, accounts=accounts, limits={"wanx2.1-t2v-turbo": LANE}) as made:
            yield made


def bind(play: Stage, account: str | None) -> None:
    with play.ctx.engine.begin() as connection:
        play.project = keys.set_project(connection, play.project.name, account=account)


def all_succeed(play: Stage, submitted: list[Any]) -> list[Any]:
    play.drive(lambda: {play.job(job).state for job in submitted}, lambda found: found == {State.SUCCEEDED})
    return [play.job(job) for job in submitted]


def test_two_workspaces_of_one_owner_both_carry_load(shared: Stage) -> None:
    submitted = [shared.submit(model="wanx2.1-t2v-turbo") for _ in range(8)]

    messages = shared.tick()

    admitted = Counter(shared.job(job).account for job in submitted)
    assert admitted == {"dev": 1, "prod": 1, "abroad": 2, None: 4}  # the owner's two slots, and the other owner's
    shared.play(messages)
    assert {"dev", "prod"} <= {job.account for job in all_succeed(shared, submitted)}


def test_a_slot_that_becomes_free_goes_to_the_workspace_with_the_fewest_jobs_in_flight(shared: Stage) -> None:
    bind(shared, "dev")
    shared.submit(model="wanx2.1-t2v-turbo")
    shared.tick()
    shared.sql("update projects set account = null")

    job = shared.submit(model="wanx2.1-t2v-turbo")
    shared.sql("update owners set paused_at = now() where name = 'branch'")
    shared.tick()

    assert shared.job(job).account == "prod"


@pytest.mark.parametrize("account", [*WORKSPACES, "abroad"])
def test_a_project_that_is_bound_to_an_account_uses_no_other(shared: Stage, account: str) -> None:
    bind(shared, account)

    submitted = [shared.submit(model="wanx2.1-t2v-turbo") for _ in range(5)]

    assert {job.account for job in all_succeed(shared, submitted)} == {account}
    assert {attempt.account for job in submitted for attempt in shared.attempts(job)} == {account}


def test_what_a_project_may_use_is_full_while_another_account_has_room(shared: Stage) -> None:
    bind(shared, "dev")
    submitted = [shared.submit(model="wanx2.1-t2v-turbo") for _ in range(3)]

    shared.tick()

    waiting = shared.document(submitted[2])["waiting_on"]
    assert waiting["code"] == "slot"
    assert "the account dev alone" in waiting["detail"]
    assert shared.job(submitted[2]).account is None


def test_a_model_that_is_not_in_the_region_of_the_projects_account_is_refused_and_the_account_named(
    shared: Stage,
) -> None:
    settings = shared.ctx.settings.bound_to("abroad")
    said = submission.Submission(
        "image-to-video", "wan2.2-kf2v-flash", {"img_url": "https://example.com/a.png", "prompt": "it moves"}
    )

    with pytest.raises(InvalidInput) as refused:
        submission.prepare(shared.ctx.catalog, settings, said, shared.now())

    fault = refused.value.faults[0]
    assert fault.code == "model_not_in_region"
    assert "ap-southeast-1 (abroad)" in fault.message


def test_an_account_that_is_gone_from_the_settings_is_told_and_breaks_nothing(shared: Stage) -> None:
    job, other = shared.submit(model="wanx2.1-t2v-turbo"), shared.submit(model="wanx2.1-t2v-turbo")
    bind(shared, "prod")
    left = shared.ctx.settings.model_copy(update={"all_accounts": shared.ctx.settings.all_accounts[::2]})
    with shared.ctx.engine.begin() as connection:
        slots.sync(connection, shared.ctx.catalog, left)

    shared.play(shared.tick())

    waiting = shared.document(job)["waiting_on"]
    assert (waiting["code"], shared.job(other).state) == ("account", State.QUEUED)
    assert "prod, which is not set up" in waiting["detail"]
    exam = Exam(left, shared.ctx.catalog, shared.ctx.engine, shared.ctx.bucket)
    accounts = [check for check in CHECKS if check.name in ("database", "accounts")]
    told = [diagnosis.found.what for diagnosis in examine(exam, accounts)]
    assert any("bound to the account prod, which is not set up" in what for what in told)
    clip = submission.Submission("text-to-video", "wanx2.1-t2v-turbo", CLIP)
    with pytest.raises(InvalidInput) as refused:
        submission.prepare(shared.ctx.catalog, left.bound_to("prod"), clip, shared.now())
    assert [fault.code for fault in refused.value.faults] == ["account_gone"]


def test_a_job_whose_account_is_gone_before_its_call_goes_back_to_the_line(shared: Stage) -> None:
    job = shared.submit(model="wanx2.1-t2v-turbo")
    taken = shared.take(job)
    taken.account = "sold"

    step, clock = shared.step(taken)
    back = shared.ctx.record(taken, next(step), clock)

    assert (back.state, back.account, shared.attempts(job)) == (State.QUEUED, None, [])


def test_a_task_is_looked_at_canceled_and_found_with_the_key_of_the_account_that_made_it(
    shared: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = Counter[tuple[str, str]]()
    for name, client in shared.ctx.clients.items():
        for method in ("create", "task", "tasks", "cancel"):
            real = getattr(client, method)

            def spied(*said: Any, _name: str = name, _method: str = method, _real: Any = real) -> Any:
                used[_name, _method] += 1
                return _real(*said)

            monkeypatch.setattr(client, method, spied)
    bind(shared, "prod")
    shared.sandbox.fault(where="create", what="lost_answer", times=1)
    found = shared.submit(model="wanx2.1-t2v-turbo")
    shared.until(found)
    shared.sandbox.set(run_seconds=60)
    canceled = shared.until(shared.submit(model="wanx2.1-t2v-turbo"), State.RUNNING)
    shared.cancel(canceled)
    shared.drive(lambda: used["prod", "cancel"], bool)

    assert {account for account, _ in used} == {"prod"}
    assert {method for _, method in used} == {"create", "task", "tasks", "cancel"}


def test_an_answer_in_words_may_come_from_the_other_workspace_of_its_region(shared: Stage) -> None:
    bind(shared, "dev")
    said = {"input": {"prompt": "Name three colours.", "max_tokens": 50}, "cache_days": 1}
    first = shared.until(shared.submit("text", "qwen-plus", **said))
    bind(shared, "prod")

    assert shared.until(shared.submit("text", "qwen-plus", **said)).cached_from == first.id
    bind(shared, "abroad")
    assert shared.until(shared.submit("text", "qwen-plus", **said)).cached_from is None


def refuse(play: Stage, *keys_left: str) -> None:
    """Lets the provider know these keys alone."""
    play.sandbox.set(any_key=False, owners=dict.fromkeys(keys_left, "company"))


def test_a_key_that_is_refused_stops_its_workspace_and_not_the_other_one(shared: Stage) -> None:
    refuse(shared, "sk-prod")
    shared.sql("update owners set paused_at = now() where name = 'branch'")

    found = all_succeed(shared, [shared.submit(model="wanx2.1-t2v-turbo") for _ in range(6)])

    assert {job.account for job in found} == {"prod"}
    assert [row["account"] for row in shared.sql("select account from stopped_accounts")] == ["dev"]
    assert shared.sql("select stopped_at from owners where name = 'company'")[0]["stopped_at"] is None
    assert {attempt.outcome for job in found for attempt in shared.attempts(job)} <= {"refused", "accepted"}


def test_what_only_a_refused_key_may_do_waits_and_says_so_and_a_person_may_resume_it(shared: Stage) -> None:
    bind(shared, "dev")
    refuse(shared, "sk-prod")
    job = shared.submit(model="wanx2.1-t2v-turbo")
    shared.drive(lambda: shared.sql("select 1 from stopped_accounts"), bool)

    waiting = shared.drive(lambda: shared.document(job)["waiting_on"], lambda found: found["code"] == "account")
    assert "the key of dev" in waiting["detail"]
    shared.tick()
    assert shared.job(job).account is None

    refuse(shared, "sk-prod", "sk-dev")
    with shared.ctx.engine.begin() as connection:
        account_stops.resume_accounts(connection, "dev")

    assert shared.until(job).account == "dev"


def test_a_refused_key_is_tried_again_by_itself_and_alarms_once_an_hour(shared: Stage) -> None:
    shared.sql("update owners set alert_url = 'https://example.com/alarms'")
    bind(shared, "dev")
    refuse(shared, "sk-prod")
    job = shared.submit(model="wanx2.1-t2v-turbo")
    for _ in range(2):
        shared.drive(lambda: shared.sql("select 1 from stopped_accounts where stopped_until > now()"), bool)
        shared.sql("update stopped_accounts set stopped_until = now() - interval '1 s'")

    assert len(shared.deliveries()) == 1
    refuse(shared, "sk-prod", "sk-dev")
    assert shared.until(job).account == "dev"


def test_arrears_stop_both_workspaces_since_they_are_the_owners(shared: Stage) -> None:
    shared.sandbox.fault(where="create", what="error", code="Arrearage")
    bind(shared, "dev")
    shared.submit(model="wanx2.1-t2v-turbo")

    shared.drive(lambda: shared.sql("select 1 from owners where stopped_at is not null"), bool)

    assert shared.sql("select account from stopped_accounts") == []


def test_nothing_is_admitted_where_no_account_is_set_up_any_more(shared: Stage) -> None:
    job = shared.submit(model="wanx2.1-t2v-turbo")
    left = shared.ctx.settings.model_copy(update={"all_accounts": shared.ctx.settings.all_accounts[2:]})
    with shared.ctx.engine.begin() as connection:
        slots.sync(connection, shared.ctx.catalog, left)
    shared.sql("update owners set paused_at = now() where name = 'branch'")

    shared.tick()

    assert shared.job(job).state == State.QUEUED
    with shared.ctx.engine.begin() as connection:
        slots.sync(connection, shared.ctx.catalog, shared.ctx.settings)
    shared.tick()
    assert shared.job(job).account == "dev"


@pytest.mark.parametrize(
    ("region", "url", "own", "host"),
    [
        ("cn-beijing", "https://dashscope.aliyuncs.com", None, "https://batch.dashscope.aliyuncs.com"),
        ("cn-beijing", "https://ws.cn-beijing.maas.aliyuncs.com", None, "https://batch.dashscope.aliyuncs.com"),
        ("ap-southeast-1", "https://dashscope-intl.aliyuncs.com", None, None),
        ("cn-beijing", "https://gateway.example.com", None, None),
        ("cn-beijing", "https://gateway.example.com", "https://half.example.com", "https://half.example.com"),
    ],
)
def test_batch_chat_has_a_host_of_its_own_in_beijing_alone(
    region: str, url: str, own: str | None, host: str | None
) -> None:
    assert Account(region=region, url=url, batch_chat_url=own).batch_chat == host
