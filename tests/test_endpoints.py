"""Addresses as operators write them: what is meant is taken, what cannot be read is refused at the start."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from worker.inputs import why_uploaded
from worker.settings import Account, Settings, addresses
from worker.storage import Bucket

BEIJING = "https://dashscope.aliyuncs.com"


def settings(**said: Any) -> Settings:
    return Settings.model_validate({"database_url": "", "broker_url": "", **said})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (BEIJING, BEIJING),
        (f"{BEIJING}/", BEIJING),
        (f" {BEIJING}/api/v1/ ", BEIJING),
        (f"{BEIJING}/compatible-mode/v1", BEIJING),
        (f"{BEIJING}/compatible-mode/v1/chat/completions", BEIJING),
        (f"{BEIJING}/api/v1/services/aigc/text-generation/generation", BEIJING),
        ("dashscope-intl.aliyuncs.com", "https://dashscope-intl.aliyuncs.com"),
        ("dashscope-intl.aliyuncs.com/api/v1", "https://dashscope-intl.aliyuncs.com"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("https://gateway.example.com/dashscope/api/v1", "https://gateway.example.com/dashscope"),
    ],
)
def test_the_providers_address_is_taken_as_meant(written: str, meant: str) -> None:
    assert settings(dashscope_url=written).dashscope_url == meant
    assert Account(url=written).url == meant


@pytest.mark.parametrize(
    "written",
    ["", "ftp://dashscope.aliyuncs.com", "https://", "127.0.0.1:9000", "sandbox:9000", f"{BEIJING}?key=1",
     "https://sk-1@dashscope.aliyuncs.com", "https://[::1", "https://dashscope.aliyuncs.com:99999"],
)  # fmt: skip
def test_an_address_that_cannot_be_read_is_refused_at_the_start(written: str) -> None:
    with pytest.raises(ValidationError) as raised:
        settings(dashscope_url=written)
    with pytest.raises(ValidationError):
        Account(url=written)

    assert raised.value.errors()[0]["loc"] == ("dashscope_url",)


@pytest.mark.parametrize(
    "written",
    ["oss-cn-beijing.aliyuncs.com", "https://oss-cn-beijing.aliyuncs.com/", "noria.oss-cn-beijing.aliyuncs.com",
     "https://noria.oss-cn-beijing.aliyuncs.com", "https://oss-cn-beijing.aliyuncs.com/noria"],
)  # fmt: skip
@pytest.mark.parametrize("style", ["auto", "path", "virtual"])
def test_an_oss_endpoint_is_taken_as_its_console_shows_it(written: str, style: str) -> None:
    made = settings(s3_endpoint_url=written, s3_addressing_style=style, s3_access_key_id="a", s3_secret_access_key="b")

    link = Bucket(made).presign("k.mp4", timedelta(minutes=5), None)

    assert link.startswith("https://noria.oss-cn-beijing.aliyuncs.com/k.mp4?")


def test_a_store_whose_own_name_is_the_buckets_keeps_it() -> None:
    assert addresses.store_root("https://noria.example.com", "noria") == "https://noria.example.com"
    assert addresses.store_root("https://other.oss-cn-beijing.aliyuncs.com", "noria").startswith("https://other.")


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:8333", "https://127.0.0.1:8333", "http://s3:8333", "https://s3", "https://10.0.0.7",
     "https://[fd00::1]", "https://minio.localhost", "https://minio.internal", "http://media.example.com",
     "https://oss-cn-beijing-internal.aliyuncs.com"],
)  # fmt: skip
def test_what_only_neighbours_reach_is_uploaded_to_a_provider_that_is_none(endpoint: str) -> None:
    made = settings(s3_endpoint_url="https://s3.example.com", s3_public_endpoint_url=endpoint)

    assert endpoint in str(why_uploaded(made, BEIJING))
    assert why_uploaded(made, "http://127.0.0.1:9000") is None, "the sandbox is a neighbour"


@pytest.mark.parametrize("endpoint", [None, "https://media.example.com", "https://oss-cn-beijing.aliyuncs.com"])
def test_what_the_provider_reaches_is_handed_over_as_a_link_unless_uploads_are_wanted(endpoint: str | None) -> None:
    assert why_uploaded(settings(s3_endpoint_url=endpoint), BEIJING) is None
    assert why_uploaded(settings(s3_endpoint_url=endpoint, input_handover="upload"), BEIJING)
