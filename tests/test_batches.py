"""Batches: a file is checked and priced as a draft, and committed whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Served, served

ROW = {"kind": "text-to-video", "model": "wan2.5-t2v-preview"}
CSV = "kind,model,prompt,custom_id\n"


@pytest.fixture
def api(environment: dict[str, str]) -> Iterator[Served]:
    with served(environment) as made:
        yield made


@pytest.fixture
def http(api: Served) -> Iterator[httpx.Client]:
    with api.http(api.key("spring")) as client:
        yield client


def rows(*custom_ids: str, prompt: str = "a heron") -> str:
    return CSV + "".join(f"text-to-video,wan2.5-t2v-preview,{prompt} {name},{name}\n" for name in custom_ids)


def send(http: httpx.Client, content: str, query: str = "", key: str | None = None, **options: Any) -> httpx.Response:
    headers = {"idempotency-key": key} if key else {}
    said = {"options": json.dumps(options)} if options else {}
    return http.post(f"/v1/batches{query}", files={"file": ("spring.csv", content)}, data=said, headers=headers)


def drafted(http: httpx.Client, content: str, **options: Any) -> dict[str, Any]:
    answer = send(http, content, **options)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def committed(http: httpx.Client, content: str, **options: Any) -> dict[str, Any]:
    draft = drafted(http, content, **options)
    answer = http.post(draft["urls"]["commit"])
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def counts(batch: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in batch["rows"].items() if count}


def test_a_draft_is_checked_and_priced_and_makes_nothing(http: httpx.Client, api: Served) -> None:
    made = drafted(http, rows("a", "b"))

    assert made["state"] == "draft"
    assert counts(made) == {"total": 2, "good": 2}
    assert made["report"]["cost"] == "3.00"
    assert api.sql("select count(*) from jobs") == [{"count": 0}]


def test_a_commit_makes_a_job_of_each_row(http: httpx.Client, api: Served) -> None:
    made = committed(http, rows("a", "b"))

    assert made["state"] == "running"
    assert counts(made) == {"total": 2, "made": 2}
    assert [job["custom_id"] for job in api.sql("select custom_id from jobs order by id")] == ["a", "b"]
    assert http.get(made["urls"]["self"]).json()["jobs"]["by_state"] == {"queued": 2}
