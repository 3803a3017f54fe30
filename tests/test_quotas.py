"""What the provider tells of models and limits: read, kept on the lanes, and held against the catalog."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import batching
import dashscope
import peers
import pytest
from peers import peer
from pydantic import SecretStr
from stage import CLIP, Stage
from test_doctor import examined, settings_of

from ops.doctor import Verdict
from worker import catalog, tick
from worker.dashscope.client import Client
from worker.dashscope.offers import Offer, Offers, Quota
from worker.dashscope.responses import Refused
from worker.egress import transports
from worker.lanes import quotas, slots
from worker.schedules import plan
from worker.schedules.plan import Plan
from worker.settings import Account
from worker.states import State

MODEL, PLACE = "wan2.5-t2v-preview", ("default", "cn-beijing")
ENDED = "2026-10-10 00:00:00"


def offers_of(url: str) -> Offers:
    account = Account(url=url, key=SecretStr("sk-test"))
    return Client(account, transports.keeping(), transports.single()).offers


@contextmanager
def told(name: str, *rows: dict[str, Any]) -> Iterator[Offers]:
    """A provider whose list has these rows."""
    body = {"request_id": "r", "output": {"total": len(rows), "page_no": 1, "page_size": 100, name: rows}}
    with peer(peers.answers(200, json.dumps(body).encode())) as made:
        yield offers_of(made.url)


def lane(play: Stage, model: str = MODEL) -> tuple[int, float, int | None]:
    """A lane's tasks at once, creates a second, and tokens a minute."""
    (row,) = play.sql(f"select * from lanes where model = '{model}'")
    return row["concurrency"], round(1e6 / row["interval_us"] / 0.9, 3), row["tpm"]


def keep(play: Stage, *rows: Quota, **changes: Any) -> int:
    with play.ctx.engine.begin() as connection:
        return quotas.keep(connection, (play.ctx.catalog, settings_of(play, **changes)), PLACE, None, rows)


def schedule(play: Stage, name: str, **template: Any) -> None:
    with play.ctx.engine.begin() as connection:
        plan.make(connection, play.project, Plan(name, "0 * * * *", "UTC", template), 100, play.now())


# What comes on the wire


def test_every_page_of_the_list_is_read(play: Stage) -> None:
    play.sandbox.set(max_page_size=20)

    offered = offers_of(play.sandbox.url).models()

    assert not isinstance(offered, Refused)
    assert len(offered) > 80
    assert {offer.model for offer in offered} >= {
        there.id for model in catalog.load().models() if (there := model.region("cn-beijing"))
    }


@pytest.mark.parametrize("where", ["quotas", "models/limits"])
def test_quotas_are_found_at_either_address(play: Stage, where: str) -> None:
    play.sandbox.set(quotas_at=where)

    found = offers_of(play.sandbox.url).quotas()

    assert not isinstance(found, Refused)
    assert {Quota(MODEL, rps=5, concurrency=5), Quota("qwen-plus", rps=500, tpm=5_000_000)} <= set(found)


def test_a_host_without_quotas_refuses_both_addresses(play: Stage) -> None:
    play.sandbox.set(quotas_at="nowhere")

    found = offers_of(play.sandbox.url).quotas()

    assert isinstance(found, Refused)
    assert (found.http_status, found.code) == (404, "NotFound")


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({"request_limit": 3000, "request_limit_period": 6}, Quota("m", rps=500)),
        ({"request_limit": 120}, Quota("m", rps=2)),
        ({"request_limit": None, "usage_limit": None}, Quota("m")),
        (
            {"usage_limit": 500_000, "usage_limit_period": 6, "usage_limit_field": "total_tokens"},
            Quota("m", tpm=5_000_000),
        ),
        ({"usage_limit": 10, "usage_limit_period": 60, "usage_limit_field": "seconds"}, Quota("m")),
        ({"async_user_concurrency_limit": 2, "async_user_queue_limit": 500}, Quota("m", concurrency=2)),
        ({"async_user_concurrency_limit": 0, "request_limit": -1}, Quota("m")),
        ({"async_user_concurrency_limit": "many", "request_limit": [1]}, Quota("m")),
    ],
)
def test_a_quota_is_read_by_its_periods(limits: dict[str, Any], quota: Quota) -> None:
    with told("quotas", {"model": "m", "model_limit": limits, "workspace_limit": None}) as provider:
        assert provider.quotas() == (quota,)


def test_of_the_accounts_limit_and_the_workspaces_the_lower_counts() -> None:
    account = {"request_limit": 5, "request_limit_period": 1, "async_user_concurrency_limit": 5}
    workspace = {"request_limit": 60, "request_limit_period": 60, "async_user_concurrency_limit": None}

    with told("quotas", {"model": "m", "model_limit": account, "workspace_limit": workspace}) as provider:
        assert provider.quotas() == (Quota("m", rps=1, concurrency=5),)


@pytest.mark.parametrize(
    "info",
    [
        {"offline_time": ENDED},
        {"inference": {"offline_time": ENDED}},
        {"announceUrl": "https://example.com", "offlineTime": ENDED},
    ],
)
def test_an_end_is_read_in_each_spelling_by_the_providers_clock(info: dict[str, Any]) -> None:
    with told("models", {"model": "m", "inference_offline_info": info}) as provider:
        assert provider.models() == (Offer("m", datetime(2026, 10, 9, 16, tzinfo=UTC)),)


@pytest.mark.parametrize("info", [None, {}, {"offline_time": ""}, {"offline_time": "soon"}, "never"])
def test_an_end_that_nobody_can_read_is_none(info: Any) -> None:
    with told("models", {"model": "m", "inference_offline_info": info}) as provider:
        assert provider.models() == (Offer("m", None),)


def test_an_answer_that_is_no_list_is_a_refusal() -> None:
    with peer(peers.answers(200, b'{"output": {"models": "none"}}')) as made:
        assert isinstance(offers_of(made.url).models(), Refused)


# What lanes keep


def test_a_told_limit_counts_before_the_catalogs_and_after_the_settings(play: Stage) -> None:
    assert keep(play, Quota(MODEL, rps=2, concurrency=3)) == 1
    assert lane(play) == (3, 2, None)

    keep(play, Quota(MODEL, rps=2, concurrency=4), limits={MODEL: {"concurrency": 1}})
    assert lane(play) == (1, 2, None)


def test_what_was_told_outlasts_a_restart_and_a_provider_that_is_silent(play: Stage) -> None:
    keep(play, Quota("qwen-plus", rps=1, tpm=500))

    with play.ctx.engine.begin() as connection:
        slots.sync(connection, play.ctx.catalog, play.ctx.settings)
        quotas.keep(connection, (play.ctx.catalog, play.ctx.settings), PLACE, None, None)

    assert lane(play, "qwen-plus") == (8, 1, 500)


def test_a_limit_that_is_told_no_more_is_the_catalogs_again(play: Stage) -> None:
    keep(play, Quota(MODEL, rps=2, concurrency=3))

    assert keep(play) == 1
    assert lane(play) == (5, 5, None)


def test_the_batch_api_has_no_part_in_the_quota_of_calls(play: Stage) -> None:
    keep(play, Quota("qwen-plus", rps=1, tpm=500))

    assert lane(play, "qwen-plus@batch")[0] == 8
    assert lane(play, "qwen-plus@batch")[2] is None
    assert lane(play, "qwen-plus@tasks")[1:] == (1, 500)


def test_equal_limits_are_not_written_again(play: Stage) -> None:
    keep(play, Quota(MODEL, rps=2, concurrency=3))
    play.sql(f"update lanes set parked_until = now() + interval '1 hour' where model = '{MODEL}'")

    assert keep(play, Quota(MODEL, rps=2, concurrency=3)) == 0
    assert play.sql(f"select parked_until from lanes where model = '{MODEL}'")[0]["parked_until"] is not None


def test_limits_and_ends_are_imported_by_a_workers_message_each_hour(play: Stage) -> None:
    play.sandbox.set(limits={MODEL: {"concurrency": 2, "rps": 1}}, ends={"qwen-plus": ENDED})
    play.tick()
    play.sql("update duties set due_at = now() where name = 'quotas'")

    messages = [message for message in play.tick() if message.task == "noria.quotas"]
    play.play(messages)

    assert messages == [tick.Message("noria.quotas", "provider", ())]
    assert lane(play) == (2, 1, None)
    assert [message.task for message in play.tick()] == []


def test_an_end_that_is_told_stands_on_the_lane(play: Stage) -> None:
    play.sandbox.set(ends={"qwen-plus": "2099-01-01 00:00:00"})

    play.runner.import_quotas()

    ends = {
        row["model"]: row["ends_at"] for row in play.sql("select model, ends_at from lanes where ends_at is not null")
    }
    assert ends["qwen-plus"] == datetime(2098, 12, 31, 16, tzinfo=UTC)
    assert {name.partition("@")[0] for name in ends} == {"qwen-plus"}


def test_a_provider_that_is_away_changes_nothing(play: Stage) -> None:
    keep(play, Quota(MODEL, rps=2, concurrency=3))
    play.sandbox.fault(where="any", what="reset")

    play.runner.import_quotas()

    assert lane(play) == (3, 2, None)


# A model that is gone


def test_a_job_of_a_model_that_has_ended_says_what_to_take_and_the_account_goes_on(play: Stage) -> None:
    play.sandbox.set(ends={"qwen-image": ENDED})

    gone = play.until(play.submit("text-to-image", "qwen-image", input={"prompt": "a heron"}))
    other = play.until(play.submit(input=CLIP))

    assert gone.state == State.FAILED
    assert gone.error is not None
    assert gone.error["code"] == "model_not_served"
    assert gone.error["hint"].endswith("take qwen-image-2.0")
    assert other.state == State.SUCCEEDED
    assert play.sql("select stopped_until from owners where stopped_until is not null") == []


def test_a_job_of_a_model_whose_end_was_told_says_so(play: Stage) -> None:
    play.sandbox.set(ends={MODEL: "2099-01-01 00:00:00"})
    play.runner.import_quotas()
    play.sandbox.fault(where="create", what="error", code="Model.NotExist")

    gone = play.until(play.submit(input=CLIP))

    assert gone.error is not None
    assert gone.error["hint"].startswith("the provider ends it at 2098-12-31T16:00:00")


def test_the_official_sdk_reads_the_list_of_models(play: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{play.sandbox.url}/api/v1")
    play.sandbox.set(ends={"qwen-plus": "2099-01-01 00:00:00"})

    first, second = (dashscope.Models.list(page=n, page_size=100, api_key="sk-test") for n in (1, 2))  # type: ignore[attr-defined]
    one = dashscope.Models.get("qwen-plus", api_key="sk-test")  # type: ignore[attr-defined]

    assert first.status_code == 200
    assert first.output["total"] == len(first.output["models"]) + len(second.output["models"])
    assert one.output["inference_offline_info"] == {"offline_time": "2099-01-01 00:00:00"}


# The doctor


def test_an_account_that_is_told_what_the_catalog_says_is_well(play: Stage) -> None:
    said = examined(play, "database", "models")

    assert said.keys() == {Verdict.WELL}
    assert any("imported each hour" in what for what in said[Verdict.WELL])


def test_who_may_not_ask_is_told_that_the_catalog_holds(play: Stage) -> None:
    play.sandbox.set(quotas_at="nowhere")

    (what,) = examined(play, "database", "models")[Verdict.SKIPPED]

    assert what == "default: its quotas cannot be had (HTTP 404 NotFound): the catalog's holds"


def test_an_end_within_thirty_days_is_told_with_the_schedules_that_it_breaks(play: Stage) -> None:
    soon = datetime.now(UTC) + timedelta(days=29)
    late = datetime.now(UTC) + timedelta(days=32)
    play.sandbox.set(ends={MODEL: f"{soon:%Y-%m-%d} 00:00:00", "wan2.6-t2v": f"{late:%Y-%m-%d} 00:00:00"})
    schedule(play, "nightly", kind="text-to-video", model="wan2.5-t2v-plus", input=CLIP)
    schedule(play, "weekly", kind="text-to-video", model="wan2.6-t2v", input=CLIP)

    (what,) = examined(play, "database", "models")[Verdict.WARNING]

    assert what.startswith(f"{MODEL} ends on {soon:%Y-%m-%d}")
    assert what.endswith("; it is used by the schedule nightly (spring-campaign)")


def test_a_schedule_without_a_model_is_one_of_the_default_model(play: Stage) -> None:
    play.sandbox.set(ends={"qwen-flash": ENDED})
    schedule(play, "summaries", kind="summary", input={"documents": ["https://example.com/a.txt"]})

    warnings = examined(play, "database", "models")[Verdict.WARNING]

    used = "qwen-flash is not offered to default; it is used by the schedule summaries (spring-campaign)"
    assert warnings == ["default: it is not offered qwen-flash", used]


def test_a_schedule_of_a_model_that_has_ended_is_named(play: Stage) -> None:
    schedule(play, "posters", kind="text-to-image", model="qwen-image", input={"prompt": "a heron"})

    (what,) = examined(play, "database", "models")[Verdict.WARNING]

    assert what == "qwen-image ended on 2026-10-10; it is used by the schedule posters (spring-campaign)"


def test_a_draft_of_a_model_that_has_ended_is_named_until_it_is_committed(play: Stage) -> None:
    row = {"outcome": "good", "kind": "text-to-image", "model": "qwen-image", "input": {"prompt": "a heron"}}
    batching.committed(play, [row, row], state="draft", name="spring posters")

    (what,) = examined(play, "database", "models")[Verdict.WARNING]
    play.sql("update batches set state = 'running'")

    assert what == "qwen-image ended on 2026-10-10; it is used by the draft spring posters (spring-campaign)"
    assert Verdict.WARNING not in examined(play, "database", "models")


def test_limits_other_than_the_catalogs_are_named(play: Stage) -> None:
    play.sandbox.set(limits={MODEL: {"concurrency": 2}})

    assert (
        f"default: its own limits are told, and imported each hour; others than the catalog's for {MODEL}"
        in (examined(play, "database", "models")[Verdict.WELL])
    )
