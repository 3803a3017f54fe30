"""An operator's own catalog file: what it may say, and what is told where it is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from worker import catalog
from worker.catalog import CatalogError, UnknownModel, Usage

SHIPPED = (Path(catalog.__file__).with_name("models.yaml")).read_text()
BEIJING, SINGAPORE = "cn-beijing", "ap-southeast-1"
NEW = "wan2.7-t2v-2030-01-01"
OWN = f"""
models:
  {NEW}: {{like: wan2.7-t2v, regions: {{{BEIJING}: {{rps: 2}}}}, aliases: [our-clips]}}
  wan2.7-t2v:
    default: {{resolution: 1080P, watermark: null}}
    regions:
      {BEIJING}:
        concurrency: 20
        prices: [{{from: 2026-12-01, unit: seconds, cny: {{720P: 0.5, 1080P: 0.9}}}}]
  qwen-plus: {{retired: 2026-12-01, retired_by: notice, successor: qwen3.6-flash, aliases: [house-model]}}
defaults: {{text: qwen3.6-plus}}
"""
ROW = "{from: 2024-01-01, unit: seconds, cny: 1}"


def test_a_new_model_is_as_another_but_for_what_is_told_of_it() -> None:
    laid = catalog.parse(SHIPPED, OWN)

    new, other = laid.model("our-clips"), laid.model("wan2.7-t2v")
    assert (new.id, new.family, new.durations) == (NEW, other.family, other.durations)
    assert list(new.regions) == [BEIJING]
    here = new.regions[BEIJING]
    assert (here.id, here.rps, here.concurrency, len(here.prices)) == (NEW, 2, 5, 1)


def test_a_price_laid_over_counts_from_its_day_and_changes_no_bill_before_it() -> None:
    model = catalog.parse(SHIPPED, OWN).model("wan2.7-t2v")
    usage = Usage({"seconds": 1, "tier": "720P"})

    assert model.price(usage, BEIJING, date(2026, 11, 30)) == 600_000
    assert model.price(usage, BEIJING, date(2026, 12, 1)) == 500_000
    assert model.price(usage, SINGAPORE, date(2026, 12, 1)) == 733_924


def test_what_is_told_of_a_known_model_takes_the_place_of_what_it_has() -> None:
    laid, shipped = catalog.parse(SHIPPED, OWN), catalog.parse(SHIPPED)

    model, before = laid.model("wan2.7-t2v"), shipped.model("wan2.7-t2v")
    assert model.regions[BEIJING].concurrency == 20
    assert model.regions[SINGAPORE] == before.regions[SINGAPORE]
    assert model.default == {**{k: v for k, v in before.default.items() if k != "watermark"}, "resolution": "1080P"}
    assert laid.end("qwen-plus") == "qwen-plus was retired by the provider on 2026-12-01: take qwen3.6-flash"
    assert laid.model("house-model").names > shipped.model("qwen-plus").names
    assert laid.default("text") == "qwen3.6-plus"
    assert laid.default("speech") == shipped.default("speech")
    assert shipped.model("qwen-plus").end is None


def test_an_empty_file_changes_nothing_and_any_other_changes_the_digest() -> None:
    shipped = catalog.parse(SHIPPED)

    assert catalog.parse(SHIPPED, "").every == shipped.every
    assert catalog.parse(SHIPPED, "").digest == shipped.digest != catalog.parse(SHIPPED, OWN).digest
    with pytest.raises(UnknownModel):
        shipped.model(NEW)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("modles: {}", "modles: Extra inputs are not permitted"),
        ("models: [", "line 1"),
        ("models:\n  a: {like: qwen-plus}\n  a: {}\n", "line 3: a is written twice"),
        ("models: {wan2.7-t2v: }", "models.wan2.7-t2v: Input should be a valid dictionary"),
        ("\nmodels:\n  mine: {}\n", "line 3: mine: the catalog has no such model; for a new one say `like: `"),
        ("models: {mine: {like: none}}", "line 1: mine: like: the catalog has no model 'none'"),
        ("models: {mine: {like: [a]}}", "line 1: mine: like: "),
        ("models: {a b: {like: qwen-plus}}", "line 1: a b: an id has up to 100 letters"),
        ("models: {wan2.7-t2v: {like: qwen-plus}}", "the catalog has this model already"),
        ("models: {wan2.7-t2v: {colour: 1}}", "line 1: wan2.7-t2v: colour: Extra inputs"),
        ("models: {wan2.7-t2v: {regions: 1}}", "wan2.7-t2v: regions: must be a mapping"),
        ("models: {wan2.7-t2v: {regions: {cn-beijing: {rsp: 1}}}}", "wan2.7-t2v: regions.cn-beijing.rsp: Extra"),
        ("models: {wan2.7-t2v: {regions: {cn-beijing: {prices: 1}}}}", "regions.cn-beijing.prices: must be a list"),
        ("models: {wan2.7-t2v: {regions: {cn-beijing: {prices: [{}]}}}}", "cn-beijing.prices.0: from: Field required"),
        (
            f"models: {{wan2.7-t2v: {{regions: {{cn-beijing: {{prices: [{ROW}]}}}}}}}}",
            "prices.0: from 2024-01-01 is not",
        ),
        ("models: {wan2.7-t2v: {default: {duration: 99}}}", "default duration: 99 is not one that the model takes"),
        ("models: {wan2.7-t2v: {aliases: [qwen-plus]}}", "qwen-plus"),
        ("models: {wan2.7-t2v: {retired: 2026-12-01}}", "retired, retired_by and successor go together"),
        ("models: {wan2.7-t2v: {retired: 2026-13-41}}", "month must be in"),
        ("defaults: {text: none}", "defaults: there is no model none"),
        ("? [a]\n: b\n", "unhashable"),
        ("models: " + "[" * 5000, ""),
        ("#" * (1 << 20) + "\n", "has more than 1048576 bytes"),
    ],
)
def test_a_slip_in_an_operators_file_says_where_it_is(own: str, message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        catalog.parse(SHIPPED, own)

    assert message in str(caught.value)


def started(path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """That a process with this file ended, and what it said."""
    known = {"NORIA_DATABASE_URL": "postgresql://noria@127.0.0.1:1/noria", "NORIA_BROKER_URL": "redis://127.0.0.1:1"}
    environment = {**os.environ, **known, "NORIA_CATALOG": str(path)}
    return subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("command", "exists"),
    [
        (("uvicorn", "api.app:app", "--port", "0"), True),
        (("celery", "-A", "worker.tasks", "worker", "-P", "threads", "-c", "1", "-Q", "tick"), True),
        (("ops.cli", "doctor"), True),
        (("ops.cli", "doctor"), False),
    ],
    ids=["API", "worker", "doctor", "absent"],
)
def test_no_process_starts_with_a_wrong_file_and_each_says_why(
    command: tuple[str, ...], exists: bool, tmp_path: Path
) -> None:
    path = tmp_path / "catalog.yaml"
    if exists:
        path.write_text("models:\n  mine: {}\n")

    ended = started(path, *command)

    said = ended.stdout + ended.stderr
    assert ended.returncode != 0
    assert f"NORIA_CATALOG: {path}: {'line 2: mine: ' if exists else 'No such file'}" in said
    assert "Traceback" not in said
