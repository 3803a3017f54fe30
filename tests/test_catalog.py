"""The catalog: names, regions, limits, prices, and the file's own rules."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from ops.sandbox import models as sandbox
from worker import catalog
from worker.catalog import Catalog, CatalogError, Model, Surface, Thinking, UnknownModel, Usage, Variant
from worker.states import Mode

TODAY = date(2026, 11, 21)
BEIJING, SINGAPORE, VIRGINIA = "cn-beijing", "ap-southeast-1", "us-east-1"

SMALL = """
as_of: 2026-01-01
currency: CNY
tiers: {480P: [832*480]}
families:
  - family: Test
    source: the test
    shared:
      kinds: [text-to-video]
      protocol: prompt
      path: /services/x
      prompt_limit: 10
      durations: [5]
      default: {duration: 5}
      run_seconds: {early: 1, median: 2, late: 3}
      regions:
        here:
          prices:
            - {from: 2026-01-01, unit: seconds, cny: 0.0000005}
            - {from: 2026-06-01, unit: seconds, cny: 2}
            - {from: 2026-06-01, unit: seconds, when: {audio: false}, cny: 1}
            - {from: 2026-06-01, unit: tokens, per: 1000, cny: 3}
    models:
      one: {}
      two: {retired: 2026-05-01, retired_by: notice, successor: one, aliases: [deux]}
"""


def model(name: str) -> Model:
    return catalog.load().model(name)


def price(name: str, region: str, **units: Any) -> int | None:
    return model(name).price(Usage(units), region, TODAY)


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("wan2.5-t2v-preview", "wan2.5-t2v-preview"),
        ("wan2.5-t2v-plus", "wan2.5-t2v-preview"),
        ("wan2.5-i2v-plus", "wan2.5-i2v-preview"),
        ("wan2.1-t2v-turbo", "wanx2.1-t2v-turbo"),
        ("wan2.1-kf2v-plus", "wanx2.1-kf2v-plus"),
        ("wan2.1-t2i-plus", "wanx2.1-t2i-plus"),
        ("  WAN2.7-I2V ", "wan2.7-i2v"),
    ],
)
def test_ids_spellings_and_aliases_lead_to_one_model(name: str, real: str) -> None:
    assert model(name).id == real


def test_an_unknown_model_is_a_fault_that_lists_near_ones() -> None:
    with pytest.raises(UnknownModel) as raised:
        model("wan2.6-t2v-plus")

    [fault] = raised.value.faults
    assert (fault.pointer, fault.code) == ("/model", "unknown_model")
    assert "wan2.2-t2v-plus" in fault.message


def test_a_name_like_no_other_is_sent_to_the_list() -> None:
    with pytest.raises(UnknownModel, match="GET /v1/models"):
        model("zzz\0\ud800" * 1000)


def test_models_are_found_by_what_they_make() -> None:
    ids = {m.id for m in catalog.load().models("image-to-video")}

    assert {"wan2.6-i2v-flash", "wan2.7-i2v", "wan2.2-kf2v-flash"} <= ids
    assert "wan2.6-t2v" not in ids
    assert catalog.load().models("opera") == ()
    assert len(catalog.load().models()) == len({m.id for m in catalog.load().models()})


def test_a_region_has_its_own_spelling_and_limits() -> None:
    beijing, singapore = model("wanx2.1-kf2v-plus").region(BEIJING), model("wanx2.1-kf2v-plus").region(SINGAPORE)

    assert beijing is not None
    assert singapore is not None
    assert (beijing.id, beijing.rps, beijing.concurrency) == ("wanx2.1-kf2v-plus", 2, 2)
    assert (singapore.id, singapore.rps, singapore.concurrency) == ("wan2.1-kf2v-plus", 1, 2)
    assert model("wan2.2-kf2v-flash").region(SINGAPORE) is None


@pytest.mark.parametrize(
    ("name", "region", "rps", "concurrency"),
    [
        ("wan2.7-t2v", BEIJING, 5, 5),
        ("wan2.5-i2v-preview", SINGAPORE, 5, 5),
        ("wan2.2-t2v-plus", BEIJING, 2, 2),
        ("wan2.6-t2v-us", VIRGINIA, 5, 5),
        ("wan2.6-t2v", "eu-central-1", 5, 5),
        ("wan2.6-t2i", BEIJING, 1, 5),
        ("wan2.6-t2i", SINGAPORE, 5, 5),
        ("qwen-image", BEIJING, 2, 2),
        ("qwen-image-2.0", BEIJING, 2, None),
    ],
)
def test_limits_are_the_published_ones(name: str, region: str, rps: float, concurrency: int | None) -> None:
    there = model(name).region(region)

    assert there is not None
    assert (there.rps, there.concurrency) == (rps, concurrency)


@pytest.mark.parametrize(
    ("name", "region", "units", "micro"),
    [
        ("wan2.5-t2v-preview", BEIJING, {"seconds": 10, "tier": "720P"}, 6_000_000),
        ("wan2.5-t2v-preview", SINGAPORE, {"seconds": 5, "tier": "480P"}, 1_834_805),
        ("wan2.6-t2v", BEIJING, {"seconds": 15, "tier": "1080P"}, 15_000_000),
        ("wan2.6-t2v", SINGAPORE, {"seconds": 5, "tier": "1080P"}, 5_504_430),
        ("wan2.6-t2v-us", VIRGINIA, {"seconds": 5, "tier": "720P"}, 3_669_620),
        ("wan2.7-i2v", SINGAPORE, {"seconds": 2, "tier": "720P"}, 1_467_848),
        ("happyhorse-1.0-t2v", BEIJING, {"seconds": 5, "tier": "1080P"}, 8_000_000),
        ("happyhorse-1.0-i2v", SINGAPORE, {"seconds": 3, "tier": "720P"}, 3_147_564),
        ("wan2.6-i2v-flash", BEIJING, {"seconds": 10, "tier": "720P", "audio": True}, 3_000_000),
        ("wan2.6-i2v-flash", BEIJING, {"seconds": 10, "tier": "720P", "audio": False}, 1_500_000),
        ("wan2.6-i2v-flash", SINGAPORE, {"seconds": 5, "tier": "720P", "audio": False}, 917_405),
        ("wan2.2-i2v-flash", BEIJING, {"seconds": 5, "tier": "1080P"}, 2_400_000),
        ("wan2.2-i2v-flash", SINGAPORE, {"seconds": 5, "tier": "1080P"}, None),
        ("wanx2.1-t2v-turbo", SINGAPORE, {"seconds": 5, "tier": "480P"}, 1_321_065),
        ("wanx2.1-kf2v-plus", BEIJING, {"seconds": 5, "tier": "720P"}, 3_500_000),
        ("wan2.5-t2v-preview", SINGAPORE, {"seconds": 5.04, "tier": "480P"}, 1_849_483),
        ("wan2.6-t2i", BEIJING, {"images": 4}, 800_000),
        ("wan2.2-t2i-flash", BEIJING, {"images": 3}, 420_000),
        ("qwen-image", SINGAPORE, {"images": 1}, 256_873),
        ("z-image-turbo", SINGAPORE, {"images": 1, "prompt_extend": False}, 110_089),
        ("z-image-turbo", SINGAPORE, {"images": 1, "prompt_extend": True}, 220_177),
        ("wan2.6-t2i", SINGAPORE, {"images": 4}, 880_708),
        ("wan2.5-t2i-preview", SINGAPORE, {"images": 1}, 220_177),
        ("wan2.1-t2i-plus", SINGAPORE, {"images": 1}, 366_962),
        ("wan2.1-t2i-turbo", SINGAPORE, {"images": 1}, 183_481),
        ("wan2.7-image", SINGAPORE, {"images": 1}, 220_177),
        ("wan2.7-image-pro", SINGAPORE, {"images": 1}, 562_065),
        ("qwen-image-2.0", BEIJING, {"images": 1}, 200_000),
        ("qwen-image-2.0", SINGAPORE, {"images": 1}, 256_873),
        ("qwen-image-2.0-pro", BEIJING, {"images": 2}, 1_000_000),
        ("qwen-image-2.0-pro", SINGAPORE, {"images": 1}, 550_443),
        ("qwen-image-max", BEIJING, {"images": 1}, 500_000),
        ("z-image-turbo", BEIJING, {"images": 1, "prompt_extend": False}, 100_000),
        ("z-image-turbo", BEIJING, {"images": 1, "prompt_extend": True}, 200_000),
        ("wan2.6-t2v", "eu-central-1", {"seconds": 5, "tier": "720P"}, 3_000_000),
        ("wan2.6-i2v-flash", "eu-central-1", {"seconds": 5, "tier": "720P"}, None),
        ("wan2.6-t2v", "mars", {"seconds": 5, "tier": "720P"}, None),
        ("wan2.6-t2v", BEIJING, {"seconds": 5}, None),
        ("wan2.6-t2v", BEIJING, {"tier": "720P"}, None),
    ],
)
def test_a_price_is_the_lists_times_what_was_used(name: str, region: str, units: Any, micro: int | None) -> None:
    assert price(name, region, **units) == micro


@pytest.mark.parametrize(
    ("on", "units", "micro"),
    [
        (date(2025, 12, 31), {"seconds": 5}, None),
        (date(2026, 5, 31), {"seconds": 1}, 1),  # half a millionth is rounded up, once
        (date(2026, 5, 31), {"seconds": 3}, 2),
        (date(2026, 6, 1), {"seconds": 5, "tokens": 0}, 10_000_000),
        (date(2026, 6, 1), {"seconds": 5, "tokens": 500}, 11_500_000),
        (date(2026, 6, 1), {"seconds": 5, "tokens": 0, "audio": False}, 5_000_000),
        (date(2026, 6, 1), {"seconds": 5}, None),  # a part of the price is not the price
    ],
)
def test_the_day_and_the_most_specific_row_decide(on: date, units: dict[str, Any], micro: int | None) -> None:
    assert catalog.parse(SMALL).model("one").price(Usage(units), "here", on) == micro


MILLION = 1_000_000


@pytest.mark.parametrize(
    ("name", "region", "units", "micro"),
    [
        ("qwen-plus", BEIJING, {"input_tokens": 128_000, "output_tokens": 1000}, 102_400 + 2_000),
        ("qwen-plus", BEIJING, {"input_tokens": 128_001, "output_tokens": 1000}, 307_202 + 20_000),
        ("qwen-plus", BEIJING, {"input_tokens": 1000, "output_tokens": 1000, "thinking": True}, 800 + 8_000),
        ("qwen-plus", BEIJING, {"input_tokens": 1000, "cached_tokens": 500, "output_tokens": 0}, 400 + 80),
        ("qwen-plus", BEIJING, {"input_tokens": 10, "cached_tokens": 500, "output_tokens": 0}, 2),
        ("qwen-plus", SINGAPORE, {"input_tokens": 1000, "output_tokens": 1000}, 2_936 + 8_807),
        ("qwen-plus", SINGAPORE, {"input_tokens": 300_000, "output_tokens": 1000}, 2_642_100 + 26_421),
        (
            "qwen-plus",
            SINGAPORE,
            {"input_tokens": 300_000, "output_tokens": 1000, "thinking": True},
            2_642_100 + 88_071,
        ),
        ("qwen-plus", SINGAPORE, {"input_tokens": 1_000_001, "output_tokens": 1}, None),
        ("qwen-flash", SINGAPORE, {"input_tokens": 300_000, "output_tokens": 1000}, 550_500 + 14_678),
        ("qwen3-max", SINGAPORE, {"input_tokens": 100_000, "output_tokens": 1000}, 1_761_400 + 88_071),
        ("qwen3-max", SINGAPORE, {"input_tokens": 200_000, "output_tokens": 1000}, 4_403_600 + 110_089),
        ("qwen3-32b", SINGAPORE, {"input_tokens": 1000, "output_tokens": 1000}, 1_174 + 4_697),
        ("qwen3.5-plus", BEIJING, {"input_tokens": 300_000, "output_tokens": 1000}, 1_200_000 + 24_000),
        ("qwen3.5-plus", SINGAPORE, {"input_tokens": 300_000, "output_tokens": 1000}, 1_101_000 + 22_018),
        ("qwen3.5-flash", BEIJING, {"input_tokens": 200_000, "output_tokens": 1000}, 160_000 + 8_000),
        ("qwen3.5-flash", BEIJING, {"input_tokens": 300_000, "output_tokens": 1000}, 360_000 + 12_000),
        ("qwen3.5-flash", SINGAPORE, {"input_tokens": 300_000, "output_tokens": 1000}, 220_200 + 2_936),
        ("qwen3.6-plus", BEIJING, {"input_tokens": 300_000, "output_tokens": 1000}, 2_400_000 + 48_000),
        ("qwen3.6-plus", SINGAPORE, {"input_tokens": 300_000, "output_tokens": 1000}, 4_496_520 + 44_965),
        ("qwen3.6-flash", BEIJING, {"input_tokens": 1000, "output_tokens": 1000}, 1_200 + 7_200),
        ("qwen3.6-flash", SINGAPORE, {"input_tokens": 300_000, "output_tokens": 1000}, 2_248_260 + 29_976),
        # no price is listed for what the cache of these had
        ("qwen3.5-plus", BEIJING, {"input_tokens": 1000, "cached_tokens": 1000, "output_tokens": 0}, 800),
        ("qwen3.5-flash", BEIJING, {"input_tokens": 1000, "cached_tokens": 1000, "output_tokens": 0}, 200),
        ("qwen3.6-plus", BEIJING, {"input_tokens": 1000, "cached_tokens": 1000, "output_tokens": 0}, 2_000),
        ("qwen-plus-2025-09-11", BEIJING, {"input_tokens": 1000, "output_tokens": 1000}, 800 + 2_000),
        ("qwen-plus-2025-09-11", BEIJING, {"input_tokens": 1000, "cached_tokens": 1000, "output_tokens": 0}, 800),
        ("qwen-plus-us", VIRGINIA, {"input_tokens": 1000, "cached_tokens": 1000, "output_tokens": 1000}, 587 + 8_807),
        ("qwen-plus", "eu-central-1", {"input_tokens": 1000, "output_tokens": 1000, "thinking": True}, 2_998 + 29_977),
        ("qwen3.7-max", BEIJING, {"input_tokens": MILLION, "output_tokens": 1000}, 12_000_000 + 36_000),
        ("qwen3.7-max", SINGAPORE, {"input_tokens": 1000, "output_tokens": 1000}, 18_736 + 56_207),
        ("qwen3.7-plus", BEIJING, {"input_tokens": 256_000, "output_tokens": 1000}, 512_000 + 8_000),
        ("qwen3.7-plus", BEIJING, {"input_tokens": 256_001, "output_tokens": 1000}, None),
        ("qwen3.8-max", BEIJING, {"input_tokens": 1000, "output_tokens": 1000}, 12_000 + 36_000),
        ("qwen-plus", BEIJING, {"input_tokens": 1000}, None),
        ("qwen-plus", BEIJING, {"output_tokens": 1000}, None),
        ("qwen-flash", BEIJING, {"input_tokens": MILLION, "output_tokens": 1000}, 1_200_000 + 12_000),
        ("qwen3-max", BEIJING, {"input_tokens": 32_001, "output_tokens": 1000}, 128_004 + 16_000),
        ("qwen-max", SINGAPORE, {"input_tokens": MILLION, "output_tokens": 0}, 11_743_000),
        ("qwen-plus@batch", BEIJING, {"input_tokens": 1000, "output_tokens": 1000}, 400 + 1_000),
        ("qwen-plus@batch", BEIJING, {"input_tokens": 1000, "cached_tokens": 500, "output_tokens": 0}, 400),
        ("qwen-plus@tasks", BEIJING, {"input_tokens": 1000, "output_tokens": 1000}, 800 + 2_000),
        ("qwen3-tts-flash", BEIJING, {"characters": 100_000}, 8_000_000),
        ("qwen3-tts-flash", SINGAPORE, {"characters": 10_000}, 733_924),
        ("qwen3-tts-instruct-flash", SINGAPORE, {"characters": 10_000}, 800_000),
        ("qwen3-tts-vd-2026-01-26", SINGAPORE, {"characters": 10_000}, 800_000),
        ("qwen3-tts-vc-2026-01-22", BEIJING, {"characters": 10_000}, 800_000),
        ("qwen-tts", BEIJING, {"input_tokens": 1000, "output_tokens": 5000}, 1_600 + 50_000),
    ],
)
def test_tokens_cost_by_the_tier_of_the_input(name: str, region: str, units: Any, micro: int | None) -> None:
    assert price(name, region, **units) == micro


@pytest.mark.parametrize(
    ("name", "region", "rps", "tpm"),
    [
        ("qwen3-tts-flash", BEIJING, 3, None),
        ("qwen-tts", BEIJING, 1 / 6, 100_000),
        ("qwen-plus", BEIJING, 500, 5_000_000),
        ("qwen-plus", SINGAPORE, 10, 1_000_000),
        ("qwen-plus@batch", BEIJING, None, None),
        ("qwen-plus-latest", BEIJING, 250, 1_200_000),
        ("qwen-plus-2025-09-11", BEIJING, 1, 1_000_000),
        ("qwen-plus-2025-07-28", SINGAPORE, 1, 100_000),
        ("qwen3.6-plus", SINGAPORE, 250, 5_000_000),
    ],
)
def test_limits_by_the_minute_are_kept_in_seconds(name: str, region: str, rps: float | None, tpm: int | None) -> None:
    there = model(name).region(region)

    assert there is not None
    assert (there.rps, there.tpm) == (rps, tpm)


def test_the_other_ways_to_a_model_are_models_that_no_user_sees() -> None:
    offered, catalogue = {m.id for m in catalog.load().models()}, catalog.load()
    batch, tasks = catalogue.variant("qwen-plus", Variant.BATCH), catalogue.variant("qwen-plus", Variant.TASKS)

    assert batch is not None
    assert tasks is not None
    assert {"qwen-plus@batch", "qwen-plus@tasks"} <= {m.id for m in catalogue.every} - offered
    assert not any("@" in name for name in offered)
    assert (batch.kinds, batch.regions[BEIJING].id, batch.regions[BEIJING].concurrency) == (
        ("text-batch",),
        "qwen-plus",
        8,
    )
    assert (tasks.kinds, tasks.mode, tasks.repeatable) == (("text",), Mode.TASK, False)
    assert "enable_thinking" not in tasks.fields
    assert catalogue.model("qwen-plus@batch") is batch
    with pytest.raises(UnknownModel, match=r"near it: .*qwen-plus") as raised:
        catalogue.offered("qwen-plus@batch")
    assert "@" not in raised.value.faults[0].message.partition("near it")[2]


@pytest.mark.parametrize(
    ("name", "regions"),
    [
        ("qwen-plus", {BEIJING, SINGAPORE}),
        ("qwen-flash", {BEIJING}),
        ("qwen3.6-plus", {BEIJING}),
        ("qwen-max", {SINGAPORE}),
        ("qwen-turbo", {SINGAPORE}),
    ],
)
def test_batches_are_had_where_the_provider_lists_them(name: str, regions: set[str]) -> None:
    batch = catalog.load().variant(name, Variant.BATCH)

    assert batch is not None
    assert set(batch.regions) == regions


@pytest.mark.parametrize("each", [m for m in catalog.load().models() if m.retired], ids=lambda m: m.id)
def test_a_retired_model_names_one_to_take_instead(each: Model) -> None:
    successor = model(each.successor or "")

    assert successor.retired is None
    assert set(each.kinds) <= set(successor.kinds)
    assert each.end
    assert each.end.endswith(f"take {successor.id}")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("qwen-turbo", "notice"),
        ("qwen-tts", "notice"),
        *((name, "reports") for name in ("qwen3-max", "qwen3-32b", "qwen-image", "qwen-image-plus", "qwen-image-max")),
        *((name, "reports") for name in ("qwen-tts-latest", "qwen-tts-2025-05-22", "qwen-tts-2025-04-10")),
        *((name, None) for name in ("qwen-max", "qwen-plus", "qwen3-tts-flash", "qwen-image-2.0")),
    ],
)
def test_who_says_that_a_model_has_ended_is_on_record(name: str, by: str | None) -> None:
    assert model(name).retired_by == by


def test_no_default_is_a_model_that_has_ended() -> None:
    works = ("speech", "text", "summary", "reduce")

    assert [work for work in works if model(catalog.load().default(work) or "").retired] == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("retired: 2026-05-01", "go together"),
        ("successor: one", "go together"),
        ("retired: 2026-05-01, retired_by: reports, successor: three", "its successor three is not offered"),
        ("retired: 2026-05-01, retired_by: reports, successor: two", "its successor two is not offered"),
    ],
)
def test_a_retirement_that_leads_nowhere_is_a_slip_of_the_files(entry: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        catalog.parse(SMALL.replace("retired: 2026-05-01, retired_by: notice, successor: one", entry))


@pytest.mark.parametrize(
    ("name", "variant"), [("qwen3-32b", Variant.BATCH), ("qwen3.5-plus", Variant.TASKS), ("wan2.6-t2v", Variant.BATCH)]
)
def test_not_every_model_has_every_variant(name: str, variant: Variant) -> None:
    assert catalog.load().variant(name, variant) is None


@pytest.mark.parametrize(
    ("work", "name"),
    [("speech", "qwen3-tts-flash"), ("text", "qwen-plus"), ("summary", "qwen-flash"), ("text-to-video", None)],
)
def test_work_has_a_model_where_nobody_names_one(work: str, name: str | None) -> None:
    assert catalog.load().default(work) == name


def test_a_default_that_is_no_model_is_a_slip_of_the_files() -> None:
    with pytest.raises(CatalogError, match="no model three"):
        catalog.parse(SMALL + "defaults: {text-to-video: three}\n")


@pytest.mark.parametrize("each", catalog.load().models("text"), ids=lambda m: m.id)
def test_every_text_model_says_what_it_reads_writes_and_thinks(each: Model) -> None:
    assert each.context
    assert each.max_output
    assert each.default["max_tokens"] <= each.max_output < each.context
    assert each.repeatable
    assert ("enable_thinking" in each.fields) is (each.thinking is Thinking.HYBRID)
    assert each.default.get("enable_thinking", False) is False
    assert list(each.token_tiers.values()) == sorted(each.token_tiers.values())


@pytest.mark.parametrize("each", catalog.load().models("speech"), ids=lambda m: m.id)
def test_every_voice_can_be_asked_for(each: Model) -> None:
    assert (each.text_limit, each.repeatable, each.default["language"]) == (600, True, "Auto")
    assert not each.voices or each.default["voice"] in each.voices
    assert each.choices.keys() == ({"voice", "language"} if each.voices else {"language"})


def test_a_size_has_the_tier_it_is_billed_in() -> None:
    assert catalog.load().tier("1088*832") == "720P"
    assert catalog.load().tier("1632*1248") == "1080P"
    assert catalog.load().tier("1024*1024") is None


@pytest.mark.parametrize(
    ("name", "size", "is_taken"),
    [
        ("wan2.5-t2v-preview", "624*624", True),
        ("wan2.6-t2v", "624*624", False),
        ("wan2.5-t2i-preview", "768*2700", True),
        ("wan2.5-t2i-preview", "512*2700", False),
        ("wan2.5-t2i-preview", "1280*1280", True),
        ("wan2.5-t2i-preview", "1440*1440", True),
        ("wan2.5-t2i-preview", "1279*1280", False),
        ("wan2.5-t2i-preview", "1024*1024", False),
        ("wan2.5-t2i-preview", "1441*1440", False),
        ("qwen-image-2.0", "2688*1536", True),
        ("qwen-image-2.0-pro", "1536*2688", True),
        ("qwen-image-2.0", "2048*2049", False),
        ("wan2.2-t2i-plus", "512*1440", True),
        ("wan2.2-t2i-plus", "768*2700", False),
        ("wan2.7-image", "2K", True),
        ("wan2.7-image", "4K", False),
        ("wan2.7-image-pro", "4K", True),
        ("qwen-image", "1024*1024", False),
        ("wan2.2-t2i-plus", "1024x1024", False),
        ("wan2.2-t2i-plus", "0*0", False),
        ("wan2.2-t2i-plus", "１０２４*１０２４", False),
    ],
)
def test_a_model_knows_its_sizes(name: str, size: str, is_taken: bool) -> None:
    sizes = model(name).sizes

    assert sizes is not None
    assert (size in sizes) is is_taken


@pytest.mark.parametrize("each", catalog.load().models(), ids=lambda m: m.id)
def test_every_model_is_complete(each: Model) -> None:
    waits = each.run_seconds

    assert each.path.startswith("/services/" if each.surface is Surface.NATIVE else "/chat/")
    assert each.regions
    assert each.source
    assert 0 < waits.early <= waits.median <= waits.late <= 3 * 3600
    assert all(there.rps for there in each.regions.values())
    assert each.mode is Mode.CALL or all(there.concurrency for there in each.regions.values())
    assert all(row.since <= TODAY for there in each.regions.values() for row in there.prices)


@pytest.mark.parametrize("each", catalog.load().models(), ids=lambda m: m.id)
def test_every_region_of_a_model_has_a_price_or_says_why_not(each: Model) -> None:
    assert [place for place, there in each.regions.items() if bool(there.prices) is bool(there.unpriced)] == []


VERSIONS = """
    snapshots:
        latest: {regions: {here: {rpm: 60}}}
        2026-03-03: {regions: {here: {rpm: 6}, there: {rps: 1, prices: [{from: 2026-03-03, unit: seconds, cny: 9}]}}}
"""


def test_a_dated_version_is_a_model_of_its_own_that_its_family_describes() -> None:
    text = SMALL.replace("one: {}", f"one:\n        aliases: [uno]{VERSIONS.replace(chr(10), chr(10) + '    ')}")

    one, dated = catalog.parse(text).model("one"), catalog.parse(text).model("ONE-2026-03-03")

    assert (dated.kinds, dated.prompt_limit, dated.default) == (one.kinds, one.prompt_limit, one.default)
    assert {place: (there.id, there.rps) for place, there in dated.regions.items()} == {
        "here": ("one-2026-03-03", 0.1),
        "there": ("one-2026-03-03", 1),
    }
    assert dated.regions["here"].prices == one.regions["here"].prices
    assert [row.cny for row in dated.regions["there"].prices] == [9]
    assert dated.aliases == ()
    assert [m.id for m in catalog.parse(text).models()] == ["one", "one-latest", "one-2026-03-03", "two"]


def test_a_date_that_the_family_does_not_know_is_no_model() -> None:
    with pytest.raises(UnknownModel, match="near it: qwen-plus-2025"):
        model("qwen-plus-2025-09-12")


@pytest.mark.parametrize("each", catalog.load().models(), ids=lambda m: m.id)
def test_every_model_can_be_shown_as_json(each: Model) -> None:
    shown = json.loads(json.dumps(each.as_json()))

    assert shown["id"] == each.id
    assert (shown["object"], shown["currency"]) == ("model", "CNY")
    assert set(shown["fields"]) == each.fields
    assert shown["regions"].keys() == each.regions.keys()


def test_shown_prices_are_decimal_strings() -> None:
    [row] = model("wan2.5-t2v-preview").as_json()["regions"][SINGAPORE]["prices"]

    assert row == {
        "from": "2025-01-01",
        "unit": "seconds",
        "per": 1,
        "when": {},
        "cached": None,
        "cny": {"480P": "0.366961", "720P": "0.733923", "1080P": "1.100885"},
    }


def test_the_default_is_the_cheapest_tier() -> None:
    for each in catalog.load().models():
        for there in each.regions.values():
            for row in there.prices:
                if isinstance(row.cny, dict) and not each.token_tiers:
                    size, resolution = each.default.get("size", ""), each.default.get("resolution")
                    tier = resolution or catalog.load().tier(size)
                    assert row.cny[str(tier)] == min(row.cny.values()), each.id


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("prompt_limit: 10", "promt_limit: 10", "one: promt_limit: Extra inputs"),
        ("prompt_limit: 10", "path: /services/y", "path is written twice"),
        ("prompt_limit: 10", "", "one: : Value error, prompt_limit: is missing"),
        ("one: {}", "one: {durationss: [5]}", "one: durationss: Extra inputs"),
        ("default: {duration: 5}", "default: {duration: 6}", "one: : Value error, default duration: 6"),
        ("default: {duration: 5}", "default: {}", "no default for duration"),
        ("default: {duration: 5}", "default: {duration: 5, ratio: 1}", "default ratio: 1"),
        ("aliases: [deux]", "aliases: [ONE]", "two: ONE is a name of one already"),
        ("one: {}", "one: {}\n      one: {}", "line 25: one is written twice"),
        ("unit: tokens", "unit: 5", "prices.3.unit"),
        ("as_of: 2026-01-01", "as_of: yesterday", "as_of"),
        ("tiers:", "tears:", "tears"),
        ("families:", "families: [", "expected"),
    ],
)
def test_a_slip_in_the_file_is_an_error_that_says_where(old: str, new: str, told: str) -> None:
    assert old in SMALL

    with pytest.raises(CatalogError) as raised:
        catalog.parse(SMALL.replace(old, new))

    assert told in str(raised.value)


def test_a_models_own_default_is_laid_over_its_familys() -> None:
    text = SMALL.replace("one: {}", "one: {takes: [seed], default: {seed: 7}}")
    text = text.replace("two: {", "two: {takes: [seed], durations: [], default: {duration: null}, ")

    laid: Catalog = catalog.parse(text)

    assert laid.model("one").default == {"duration": 5, "seed": 7}
    assert laid.model("two").default == {}


def test_the_catalog_is_read_once() -> None:
    assert catalog.load() is catalog.load()


def test_a_slip_that_each_row_of_a_file_has_is_compared_with_all_names_once() -> None:
    catalog._near.cache_clear()

    for _ in range(3):
        with pytest.raises(catalog.UnknownModel, match=r"wan2\.5-t2v-preview"):
            catalog.load().model("wan2.5-t2v-previw")

    assert catalog._near.cache_info().misses == 1


@pytest.mark.parametrize("name", ["qwen3.5-plus", "qwen3.5-flash", "qwen3.6-plus"])
def test_what_a_search_costs_in_singapore_is_unknown_and_not_nothing(name: str) -> None:
    """No page of the provider's has it: 'Model pricing' (May 2026) has no word of searches."""
    tokens = {"input_tokens": 1000, "output_tokens": 1000}

    assert price(name, SINGAPORE, **tokens)
    assert price(name, SINGAPORE, **tokens, searching=True, searches=1) is None
    assert price(name, BEIJING, **tokens, searching=True, searches=1)


@pytest.mark.parametrize("region", ["cn-beijing", "ap-southeast-1"])
def test_the_sandbox_has_each_model_with_the_same_limits(region: str) -> None:
    played, differ = sandbox.read(region), {}
    for model in catalog.load().models():
        if (here := model.region(region)) is None:
            continue
        theirs = played[here.id]
        creates = theirs.limit[0] / theirs.limit[1] if theirs.limit else (theirs.rpm or 0) / 60
        ours = here.rps or (here.rpm or 0) / 60
        if (round(creates, 6), theirs.concurrency) != (round(ours, 6), here.concurrency):
            differ[model.id] = (creates, ours, theirs.concurrency, here.concurrency)

    assert differ == {}


def test_each_model_that_takes_several_files_says_how_many() -> None:
    several = {"pictures", "references", "clips", "sounds"}

    assert [model.id for model in catalog.load().models() if several & set(model.fields) and not model.references] == []
