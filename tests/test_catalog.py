"""The catalog: names, regions, limits, prices, and the file's own rules."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from worker import catalog
from worker.catalog import Catalog, CatalogError, Model, Surface, Thinking, UnknownModel, Usage, Variant

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
      usage: short
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
      two: {retired: 2026-05-01, aliases: [deux]}
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
        ("wan2.6-t2i", SINGAPORE, {"images": 4}, None),
        ("wan2.6-t2v", "eu-central-1", {"seconds": 5, "tier": "720P"}, None),
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
    assert each.sync or all(there.concurrency for there in each.regions.values())
    assert all(row.since <= TODAY for there in each.regions.values() for row in there.prices)


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
        ("usage: short", "", "one: : Value error, usage: nothing is said of it"),
        ("one: {}", "one: {durationss: [5]}", "one: durationss: Extra inputs"),
        ("default: {duration: 5}", "default: {duration: 6}", "one: : Value error, default duration: 6"),
        ("default: {duration: 5}", "default: {}", "no default for duration"),
        ("default: {duration: 5}", "default: {duration: 5, ratio: 1}", "default ratio: 1"),
        ("aliases: [deux]", "aliases: [ONE]", "two: ONE is a name of one already"),
        ("one: {}", "one: {}\n      one: {}", "line 26: one is written twice"),
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
