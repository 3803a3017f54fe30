"""A job as others see it: the same bytes for the same rows, whatever builds them."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from worker import document
from worker.document import Waiting
from worker.tables import Job, Output

AT = datetime(2026, 3, 1, 2, 30, 5, 123456, tzinfo=timezone(timedelta(hours=8)))
SAID = "2026-02-28T18:30:05.123Z"
PATH = "/v1/jobs/00000000-0000-0000-0000-000000000007"


def job(**more: Any) -> Job:
    columns: dict[str, Any] = {
        "id": uuid.UUID(int=7),
        "kind": "text-to-video",
        "model": "wan2.5-t2v-preview",
        "mode": "task",
        "state": "running",
        "held_for": None,
        "cancel_requested": False,
        "priority": 1,
        "custom_id": "row-17",
        "input": {"prompt": '一只猫 "x"', "duration": 5, "f": 0.1},
        "labels": {"sku": "A17"},
        "parent_id": None,
        "round": 0,
        "place": None,
        "created_at": AT,
        "submitted_at": AT,
        "started_at": None,
        "finished_at": None,
        "deadline_at": AT,
        "estimate": 3_000_000,
        "cost": None,
        "billed": "unknown",
        "usage": None,
        "error": None,
        "account": "default",
        "region": "cn-beijing",
        "task_id": "t",
        "task_status": "RUNNING",
        "result": None,
        "cached_from": None,
        "links_expire_at": None,
        "take": 1,
    }
    return Job(**columns | more)


def output(n: int, role: str, duration: str | None) -> Output:
    length = Decimal(duration) if duration else None
    columns = {"n": n, "role": role, "content_type": f"{role}/x", "bytes": 9, "sha256": "ab", "duration": length}
    return Output(job_id=uuid.UUID(int=7), key=f"k/{n}", **columns)


RUNNING = (
    '{"id":"00000000-0000-0000-0000-000000000007","object":"job","kind":"text-to-video","model":"wan2.5-t2v-preview",'
    '"project":"spring","state":"running","is_terminal":false,"held_for":null,"cancel_requested":false,'
    f'"waiting_on":{{"code":"provider","detail":"it runs","until":"{SAID}","position":null}},"priority":"high",'
    '"input":{"prompt":"一只猫 \\"x\\"","duration":5,"f":0.1},"metadata":{"sku":"A17"},"custom_id":"row-17",'
    '"batch_id":null,"batch_row":null,"take":1,"first_take":null,"review":null,'
    '"parent_id":null,"round":null,"place":null,"children":null,'
    f'"created_at":"{SAID}","submitted_at":"{SAID}","started_at":null,"finished_at":null,"deadline_at":"{SAID}","not_after":null,'
    '"cost":{"currency":"CNY","estimated":"3.00","actual":null,"billed":"unknown"},"usage":null,"cached_from":null,'
    '"provider":{"account":"default","region":"cn-beijing","task_id":"t","request_id":"req-1","status":"RUNNING",'
    '"links_expire_at":null},"outputs":['
    f'{{"n":0,"role":"video","content_type":"video/x","bytes":9,"sha256":"ab","duration":5.04,"key":"k/0",'
    f'"url":"{PATH}/outputs/0","poster":null,"pruned_at":null}},'
    f'{{"n":1,"role":"image","content_type":"image/x","bytes":9,"sha256":"ab","duration":null,"key":"k/1",'
    f'"url":"{PATH}/outputs/1","poster":null,"pruned_at":null}}],"result":null,"error":null,'
    f'"urls":{{"self":"{PATH}","events":"{PATH}/events","attempts":"{PATH}/attempts","cancel":"{PATH}/cancel",'
    f'"retry":"{PATH}/retry"}}}}'
)


def test_a_jobs_document_is_these_bytes() -> None:
    stored = [output(0, "video", "5.04"), output(1, "image", None)]

    shown = document.shown("spring", job(), stored, "req-1", Waiting("provider", "it runs", AT))

    assert shown.model_dump_json() == RUNNING
    assert json.dumps(shown.as_json(), ensure_ascii=False, separators=(",", ":")) == RUNNING


def test_a_parent_says_how_its_parts_stand() -> None:
    gathering = job(mode="parent", state="gathering", round=2, priority=0, estimate=1_234_500, cost=10)

    shown = document.shown("spring", gathering, [], None, None, Counter(succeeded=1, failed=1, running=1)).as_json()

    ended = {"succeeded": 1, "failed": 1, "canceled": 0, "expired": 0}
    assert shown["children"] == {"total": 3, "unfinished": 1, **ended}
    assert (shown["round"], shown["place"], shown["priority"]) == (2, None, "normal")
    assert shown["cost"] == {"currency": "CNY", "estimated": "1.2345", "actual": "0.00001", "billed": "unknown"}
    assert list(shown["urls"]) == ["self", "events", "attempts", "children", "cancel", "retry"]


def test_a_child_names_its_parent_and_its_place() -> None:
    held = job(state="held", held_for="uncertain", parent_id=uuid.UUID(int=9), round=1, place=3, priority=-1)

    shown = document.shown("spring", held, [], None, None).as_json()

    assert (shown["parent_id"], shown["round"], shown["place"]) == (str(uuid.UUID(int=9)), 1, 3)
    assert (shown["held_for"], shown["priority"], shown["children"]) == ("uncertain", "low", None)


@pytest.mark.parametrize("micros", [0, 1, 10, 999_999, 1_000_000, -1_500_000, 9_000_000_000_000])
def test_every_amount_of_money_can_be_shown(micros: int) -> None:
    shown = document.shown("spring", job(estimate=micros), [], None, None)

    assert Decimal(str(shown.cost.estimated)) * 1_000_000 == micros
