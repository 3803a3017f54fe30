"""The sandbox keeps files and runs batches as the provider does: by its clock, at half the price, each line alone."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from ops.sandbox.batches import Batch
from ops.sandbox.lines import Line
from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running

KEY = "sk-one"
CHAT = "/v1/chat/completions"
STORY = "A wheel lifts water. It is old.\n\nThe river is fast. Nobody swims."
SUMMARY = "A wheel lifts water. The river is fast."
HOUR = 3600
AT_ONCE = Options(
    run_seconds=0,
    queue_seconds=0,
    batch_validating_seconds=0,
    batch_run_seconds=0,
    batch_finalizing_seconds=0,
)
STAGED = {"batch_validating_seconds": 100, "batch_run_seconds": 1000, "batch_finalizing_seconds": 100}
OFFERED_ABROAD = {
    **dict.fromkeys(("qwen-plus", "qwen-max", "qwen-turbo"), "completed"),
    **dict.fromkeys(("qwen-flash", "qwen3.5-plus", "qwen3.6-flash"), "failed"),
}
RECORDED = [
    "id", "object", "endpoint", "errors", "input_file_id", "completion_window", "status", "output_file_id",
    "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at",
    "expired_at", "cancelling_at", "cancelled_at", "request_counts", "metadata",
]  # fmt: skip


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with running(AT_ONCE) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(served: Sandbox) -> Sandbox:
    served.reset()
    return served


@pytest.fixture
def wire(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with client(sandbox) as opened:
        yield opened


def client(sandbox: Sandbox, key: str = KEY) -> httpx.Client:
    base = f"{sandbox.url}/compatible-mode/v1"
    return httpx.Client(base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=10, verify=False)


def line(custom_id: str, content: str = STORY, model: str = "qwen-plus", **parameters: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": content}]} | parameters
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def jsonl(lines: list[Any]) -> bytes:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines).encode()


def upload(wire: httpx.Client, content: bytes, name: str = "night.jsonl") -> httpx.Response:
    return wire.post("/files", data={"purpose": "batch"}, files={"file": (name, content)})


def submit(wire: httpx.Client, file_id: str, **fields: Any) -> httpx.Response:
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"} | fields
    return wire.post("/batches", json=body)


def create(wire: httpx.Client, lines: list[Any], **fields: Any) -> str:
    answer = submit(wire, upload(wire, jsonl(lines)).json()["id"], **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def get(wire: httpx.Client, batch_id: str) -> dict[str, Any]:
    answer = wire.get(f"/batches/{batch_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def rows(wire: httpx.Client, file_id: str) -> dict[str, Any]:
    answer = wire.get(f"/files/{file_id}/content")
    assert answer.status_code == 200, answer.text
    return {row["custom_id"]: row for row in map(json.loads, answer.text.splitlines())}


def beijing(at: datetime) -> str:
    return (at.astimezone(UTC) + timedelta(hours=8)).strftime("%Y%m%d%H%M%S")


def test_the_openai_sdk_uploads_creates_waits_and_reads(sandbox: Sandbox) -> None:
    with OpenAI(api_key=KEY, base_url=f"{sandbox.url}/compatible-mode/v1", max_retries=0) as sdk:
        file = sdk.files.create(file=io.BytesIO(jsonl([line("1"), line("2")])), purpose="batch")
        made = sdk.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"ds_name": "night"},
        )
        done = sdk.batches.retrieve(made.id)
        assert done.output_file_id is not None
        content = sdk.files.content(done.output_file_id).text

        assert (done.status, done.request_counts and done.request_counts.completed) == ("completed", 2)
        assert [json.loads(row)["custom_id"] for row in content.splitlines()] == ["1", "2"]
        assert [batch.id for batch in sdk.batches.list(limit=1)] == [made.id]
        assert {listed.id for listed in sdk.files.list(purpose="batch")} == {file.id}
        assert sdk.files.delete(file.id).deleted


class TestFiles:
    def test_a_file_is_described_as_recorded(self, wire: httpx.Client) -> None:
        made = upload(wire, jsonl([line("1")])).json()

        assert list(made) == ["id", "object", "bytes", "filename", "purpose", "status", "created_at"]
        assert made["id"].startswith("file-batch-")
        assert (made["bytes"], made["filename"]) == (len(jsonl([line("1")])), "night.jsonl")
        assert wire.get(f"/files/{made['id']}").json() == made

    def test_the_bytes_come_back_as_they_were_given(self, wire: httpx.Client) -> None:
        content = bytes(range(256))

        made = upload(wire, content).json()

        assert wire.get(f"/files/{made['id']}/content").content == content

    def test_another_account_sees_nothing(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        made = upload(wire, b"{}").json()

        with client(sandbox, "sk-two") as other:
            answers = [other.get(f"/files/{made['id']}"), other.get(f"/files/{made['id']}/content")]
            answers += [other.delete(f"/files/{made['id']}"), submit(other, made["id"])]
            assert other.get("/files").json()["data"] == []

        assert [answer.status_code for answer in answers] == [404] * 4
        assert answers[0].json().keys() == {"error", "request_id"}

    def test_a_deleted_file_is_gone(self, wire: httpx.Client) -> None:
        made = upload(wire, b"{}").json()

        deleted = wire.delete(f"/files/{made['id']}").json()

        assert deleted == {"id": made["id"], "object": "file", "deleted": True}
        assert wire.get(f"/files/{made['id']}").status_code == 404
        assert wire.get("/files").json()["data"] == []

    def test_pages_of_files_follow_one_another(self, wire: httpx.Client) -> None:
        made = [upload(wire, b"{}").json()["id"] for _ in range(3)]

        first = wire.get("/files", params={"limit": 2}).json()
        second = wire.get("/files", params={"limit": 2, "after": first["data"][-1]["id"]}).json()

        assert [file["id"] for file in first["data"] + second["data"]] == made[::-1]
        assert (first["has_more"], second["has_more"]) == (True, False)

    def test_a_file_over_the_limit_is_refused(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(batch_bytes=1000)

        assert [upload(wire, bytes([32]) * size).status_code for size in (1000, 1001)] == [200, 400]

    @pytest.mark.parametrize(
        "form",
        [
            {"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"{}")}},
            {"data": {}, "files": {"file": ("a", b"{}")}},
            {"data": {"purpose": "batch"}, "files": {"other": ("a", b"{}")}},
            {"data": {"purpose": "batch"}},
            {"json": {"purpose": "batch"}},
        ],
    )
    def test_a_form_that_lacks_something_is_refused(self, wire: httpx.Client, form: dict[str, Any]) -> None:
        answer = wire.post("/files", **form)

        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_parameter_error")


class TestLife:
    def test_a_batch_goes_by_the_clock(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(**STAGED)
        batch_id = create(wire, [line(str(number)) for number in range(10)])

        seen = []
        for offset in (0, 150, 605, 1150, 1201):
            sandbox.set(clock_offset_seconds=offset)
            batch = get(wire, batch_id)
            seen.append((batch["status"], batch["request_counts"]["completed"], batch["output_file_id"] is not None))

        assert seen == [
            ("validating", 0, False),
            ("in_progress", 0, False),
            ("in_progress", 5, False),
            ("finalizing", 10, False),
            ("completed", 10, True),
        ]

    def test_a_completed_batch_looks_as_recorded(self, wire: httpx.Client) -> None:
        batch = get(wire, create(wire, [line("1")], metadata={"ds_name": "night"}))

        assert sorted(batch) == sorted(RECORDED)
        assert [batch[name] for name in ("errors", "error_file_id", "expires_at", "failed_at")] == [None] * 4
        assert batch["created_at"] == batch["in_progress_at"] == batch["completed_at"]
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
        assert batch["output_file_id"].startswith("file-batch_output-")
        assert batch["metadata"] == {"ds_name": "night"}

    def test_a_new_batch_counts_nothing_yet(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(**STAGED)

        made = submit(wire, upload(wire, jsonl([line("1")])).json()["id"]).json()

        assert (made["status"], made["in_progress_at"]) == ("validating", None)
        assert made["request_counts"] == {"total": 0, "completed": 0, "failed": 0}

    @given(
        created_at=st.floats(1.7e9, 1.9e9),
        spans=st.tuples(*[st.floats(0, 5_000)] * 3),
        line_seconds=st.floats(0, 60),
        count=st.integers(1, 50),
    )
    def test_a_batch_that_is_completed_has_answered_every_line(
        self, created_at: float, spans: tuple[float, float, float], line_seconds: float, count: int
    ) -> None:
        validating, running, finalizing = spans
        batch = Batch(
            "b", "o", "r", "f", "out", "err", CHAT, "24h", {}, created_at, validating, running, line_seconds,
            finalizing, 86_400, False, lines=[Line(str(n), {}) for n in range(count)],
        )  # fmt: skip

        assert batch.end == "completed"
        assert batch.due(batch.settled_at) == count
        assert batch.due(batch.stopped_at) == count
        assert batch.due(batch.started_at - 1) == 0
        assert 0 <= batch.due((batch.started_at + batch.stopped_at) / 2) <= count

    def test_every_line_is_answered_under_its_own_id(self, wire: httpx.Client) -> None:
        batch = get(wire, create(wire, [line("one"), line("二", "河很快。没人游泳。")]))

        told = rows(wire, batch["output_file_id"])

        assert told.keys() == {"one", "二"}
        response = told["one"]["response"]
        assert (told["one"]["error"], response["status_code"]) == (None, 200)
        assert response["body"]["choices"][0]["message"]["content"] == SUMMARY
        assert response["body"]["id"] == f"chatcmpl-{response['request_id']}"
        assert told["二"]["response"]["body"]["choices"][0]["message"]["content"] == "河很快。"

    def test_a_batch_may_think_though_nothing_is_streamed(self, wire: httpx.Client) -> None:
        batch = get(wire, create(wire, [line("1", enable_thinking=True)]))

        told = rows(wire, batch["output_file_id"])["1"]["response"]["body"]

        assert told["choices"][0]["message"]["reasoning_content"]

    def test_a_line_that_is_refused_fails_alone(self, wire: httpx.Client) -> None:
        batch = get(wire, create(wire, [line("1"), line("2", temperature=9), line("3", max_tokens=0)]))

        refused = rows(wire, batch["error_file_id"])
        assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
        assert refused.keys() == {"2", "3"}
        assert refused["2"]["response"]["status_code"] == 400
        assert refused["2"]["response"]["body"]["error"]["code"] == "invalid_parameter_error"
        assert rows(wire, batch["output_file_id"]).keys() == {"1"}

    def test_a_line_of_more_input_than_its_family_takes_fails_alone(self, wire: httpx.Client) -> None:
        long = "水" * 256_001
        batch = get(wire, create(wire, [line("1", "x", model="qwen3.6-plus"), line("2", long, model="qwen3.6-plus")]))

        assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        assert get(wire, create(wire, [line("1", long, model="qwen-plus")]))["request_counts"]["failed"] == 0

    def test_singapore_offers_other_models_in_batches(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(region="ap-southeast-1")

        ends = {name: get(wire, create(wire, [line("1", model=name)]))["status"] for name in OFFERED_ABROAD}

        assert ends == OFFERED_ABROAD

    def test_a_line_may_be_refused_by_a_fault(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="line", what="error", code="DataInspectionFailed", prompt_contains="naughty")
        sandbox.fault(where="any", what="error", model="qwen-plus")

        batch = get(wire, create(wire, [line("1"), line("2", "A naughty text.")]))

        error = rows(wire, batch["error_file_id"])["2"]["response"]["body"]["error"]
        assert error["code"] == "data_inspection_failed"
        assert rows(wire, batch["output_file_id"]).keys() == {"1"}

    def test_failed_lines_may_stand_in_the_output_file(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(failed_lines="output-file")

        batch = get(wire, create(wire, [line("1"), line("2", temperature=9)]))

        told = rows(wire, batch["output_file_id"])
        assert [told[each]["response"]["status_code"] for each in ("1", "2")] == [200, 400]
        assert (batch["error_file_id"], batch["request_counts"]["failed"]) == (None, 0)

    def test_hostile_text_comes_back_in_files_that_can_be_read(self, wire: httpx.Client) -> None:
        half = json.dumps(line("half \ud83d", "Half \ud83d a pair\u2028 and no more."))
        file_id = upload(wire, f"{half}\r\n".encode()).json()["id"]

        batch = get(wire, submit(wire, file_id).json()["id"])

        [row] = wire.get(f"/files/{batch['output_file_id']}/content").content.decode().split("\n")[:-1]
        assert json.loads(row)["custom_id"] == "half ?"

    def test_the_test_model_answers_for_nothing(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        tested = line("1", model="batch-test-model") | {"url": "/v1/chat/ds-test"}

        batch = get(wire, create(wire, [tested], endpoint="/v1/chat/ds-test"))

        assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 1)
        assert sandbox.ledger()["totals"]["billed_micros"] == 0


class TestFlaws:
    @pytest.mark.parametrize(
        ("content", "code", "number"),
        [
            (b"\xff\xfe", "invalid_json_line", 1),
            (jsonl([line("1")]) + b"\n" + jsonl([line("2")]), "invalid_json_line", 2),
            (b"[" * 100_000, "invalid_json_line", 1),
            (jsonl([line("1"), line("1")]), "duplicate_custom_id", 2),
            (jsonl([line("1"), line("2", model="qwen-flash")]), "mismatched_model", 2),
            (jsonl([line("1"), line("2", enable_thinking=True)]), "mismatched_thinking_mode", 2),
            (jsonl([line("1", model="qwen-max")]), "model_not_found", 1),
            (jsonl([line("1", model="qwen-turbo")]), "model_not_found", 1),
            (jsonl([line("1", "x" * 6_000_000)]), "invalid_json_line", 1),
            (jsonl([line("1", model="nothing")]), "model_not_found", 1),
            (jsonl([line("1") | {"url": "/v1/chat/completion"}]), "url_not_found", 1),
            (jsonl([line("1", model="batch-test-model")]), "mismatched_test_url", 1),
            (jsonl([line("1") | {"method": "GET"}]), "invalid_method", 1),
            (
                jsonl([{key: value for key, value in line("1").items() if key != "custom_id"}]),
                "missing_required_parameter",
                1,
            ),
            (jsonl([line("1") | {"body": "text"}]), "missing_required_parameter", 1),
        ],
    )
    def test_a_bad_file_fails_its_batch_and_says_where(
        self, sandbox: Sandbox, wire: httpx.Client, content: bytes, code: str, number: int
    ) -> None:
        answer = submit(wire, upload(wire, content).json()["id"])

        batch = get(wire, answer.json()["id"])

        assert (answer.status_code, batch["status"]) == (200, "failed")
        [flaw] = batch["errors"]["data"]
        assert (flaw["code"], flaw["line"]) == (code, number)
        assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
        assert (batch["in_progress_at"], batch["failed_at"]) == (None, batch["created_at"])
        assert sandbox.ledger()["totals"]["billed_micros"] == 0

    def test_flaws_show_after_the_file_was_validated(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(**STAGED)
        batch_id = create(wire, [line("1"), line("1")])

        before = get(wire, batch_id)
        sandbox.set(clock_offset_seconds=101)

        assert (before["status"], before["errors"]) == ("validating", None)
        assert get(wire, batch_id)["status"] == "failed"

    def test_a_file_of_too_many_lines_fails(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(batch_lines=2)

        ends = [get(wire, create(wire, [line(str(number)) for number in range(count)]))["status"] for count in (2, 3)]

        assert ends == ["completed", "failed"]

    @pytest.mark.parametrize(
        "change",
        [
            {"completion_window": "23h"},
            {"completion_window": "337h"},
            {"completion_window": "15d"},
            {"completion_window": "1.5d"},
            {"completion_window": ""},
            {"endpoint": "/v1/images/generations"},
            {"input_file_id": None},
            {"metadata": {"ds_name": "n" * 101}},
            {"metadata": {"ds_description": "n" * 201}},
            {"metadata": {"ds_name": 1}},
            {"metadata": "night"},
        ],
    )
    def test_a_create_that_asks_too_much_is_refused(
        self, sandbox: Sandbox, wire: httpx.Client, change: dict[str, Any]
    ) -> None:
        answer = submit(wire, upload(wire, jsonl([line("1")])).json()["id"], **change)

        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_parameter_error")
        assert sandbox.ledger()["batches"] == []
        assert sandbox.ledger()["batch_creates"][0]["refusal"] == "InvalidParameter"

    @pytest.mark.parametrize("window", ["24h", "336h", "1d", "14d"])
    def test_windows_are_a_day_to_a_fortnight(self, wire: httpx.Client, window: str) -> None:
        assert create(wire, [line("1")], completion_window=window)


class TestEnds:
    def test_a_canceled_batch_pays_for_what_it_had_answered(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(**STAGED)
        batch_id = create(wire, [line(str(number)) for number in range(10)])
        sandbox.set(clock_offset_seconds=405)

        answer = wire.post(f"/batches/{batch_id}/cancel").json()
        sandbox.set(clock_offset_seconds=2000)
        batch = get(wire, batch_id)

        assert (answer["status"], answer["cancelling_at"], batch["status"]) == ("cancelling", None, "cancelled")
        assert batch["request_counts"] == {"total": 10, "completed": 3, "failed": 7}
        assert len(rows(wire, batch["output_file_id"])) == 3
        assert {row["error"]["code"] for row in rows(wire, batch["error_file_id"]).values()} == {"batch_cancelled"}
        assert sandbox.ledger()["totals"]["paid_lines"] == 3

    def test_a_batch_canceled_before_it_ran_costs_nothing(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(**STAGED)
        batch_id = create(wire, [line("1")])

        wire.post(f"/batches/{batch_id}/cancel")
        sandbox.set(clock_offset_seconds=2000)

        assert (get(wire, batch_id)["status"], get(wire, batch_id)["output_file_id"]) == ("cancelled", None)
        assert sandbox.ledger()["totals"]["billed_micros"] == 0

    def test_a_batch_that_has_ended_cannot_be_canceled(self, wire: httpx.Client) -> None:
        batch_id = create(wire, [line("1")])

        answer = wire.post(f"/batches/{batch_id}/cancel")

        assert (answer.status_code, get(wire, batch_id)["status"]) == (400, "completed")
        assert wire.post("/batches/batch_nothing/cancel").status_code == 404

    def test_a_window_that_closes_leaves_what_was_answered(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(batch_run_seconds=48 * HOUR)
        batch_id = create(wire, [line(str(number)) for number in range(4)])

        sandbox.set(clock_offset_seconds=23 * HOUR)
        before = get(wire, batch_id)
        sandbox.set(clock_offset_seconds=25 * HOUR)
        batch = get(wire, batch_id)

        assert (before["status"], batch["status"]) == ("in_progress", "expired")
        assert batch["expired_at"] == batch["created_at"] + 24 * HOUR
        assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
        assert rows(wire, batch["output_file_id"]).keys() == {"0", "1"}
        assert {row["error"]["code"] for row in rows(wire, batch["error_file_id"]).values()} == {"batch_expired"}

    def test_a_longer_window_lets_it_finish(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(batch_run_seconds=48 * HOUR)
        batch_id = create(wire, [line("1")], completion_window="3d")

        sandbox.set(clock_offset_seconds=49 * HOUR)

        assert get(wire, batch_id)["status"] == "completed"


class TestList:
    def test_pages_are_newest_first_and_follow_one_another(self, wire: httpx.Client) -> None:
        made = [create(wire, [line("1")]) for _ in range(3)]

        first = wire.get("/batches", params={"limit": 2}).json()
        second = wire.get("/batches", params={"limit": 2, "after": first["last_id"]}).json()

        assert [batch["id"] for batch in first["data"] + second["data"]] == made[::-1]
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert (first["first_id"], first["last_id"]) == (made[2], made[1])

    def test_an_empty_list_is_null_as_recorded(self, wire: httpx.Client) -> None:
        empty = {"object": "list", "data": None, "first_id": None, "last_id": None, "has_more": False}

        assert wire.get("/batches").json() == empty

    def test_filters_narrow_by_a_part_of_the_name_the_file_and_the_status(
        self, sandbox: Sandbox, wire: httpx.Client
    ) -> None:
        done = create(wire, [line("1")], metadata={"ds_name": "测试任务"})
        sandbox.set(**STAGED)
        waits = create(wire, [line("1")], metadata={"ds_name": "other"})

        def listed(**query: str) -> list[str]:
            return [batch["id"] for batch in wire.get("/batches", params=query).json()["data"] or []]

        assert listed(ds_name="任务") == [done]
        assert listed(input_file_ids=f"file-none,{get(wire, waits)['input_file_id']}") == [waits]
        assert listed(status="completed,failed") == [done]
        assert listed(status="validating,completed") == [waits, done]
        assert listed(status="cancelled") == []

    def test_times_count_in_beijing_and_thirty_days_back(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        create(wire, [line("1")])
        now, hour = datetime.now(UTC), timedelta(hours=1)

        def count(**query: str) -> int:
            return len(wire.get("/batches", params=query).json()["data"] or [])

        around = count(create_after=beijing(now - hour), create_before=beijing(now + hour))
        before = count(create_before=beijing(now - hour))
        sandbox.set(clock_offset_seconds=31 * 24 * HOUR)

        assert (around, before, count()) == (1, 0, 0)

    @pytest.mark.parametrize(
        "query",
        [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"create_after": "yesterday"}, {"after": "batch_no"}],
    )
    def test_a_list_that_asks_nonsense_is_refused(self, wire: httpx.Client, query: dict[str, str]) -> None:
        assert wire.get("/batches", params=query).status_code == 400

    def test_other_accounts_see_none_of_it(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        batch_id = create(wire, [line("1")])

        with client(sandbox, "sk-two") as other:
            assert other.get("/batches").json()["data"] is None
            assert other.get(f"/batches/{batch_id}").status_code == 404


class TestFaults:
    @pytest.mark.parametrize(
        ("rule", "made"),
        [
            ({"what": "lost_answer"}, 1),
            ({"what": "lost_body"}, 1),
            ({"what": "truncated"}, 1),
            ({"what": "reset"}, 0),
        ],
    )
    def test_a_lost_create_is_found_by_its_name(
        self, sandbox: Sandbox, wire: httpx.Client, rule: dict[str, Any], made: int
    ) -> None:
        file_id = upload(wire, jsonl([line("1")])).json()["id"]
        sandbox.fault(where="batch_create", times=1, **rule)

        with pytest.raises(httpx.TransportError):
            submit(wire, file_id, metadata={"ds_name": "attempt-7"})

        found = wire.get("/batches", params={"ds_name": "attempt-7"}).json()["data"] or []
        assert [batch["metadata"]["ds_name"] for batch in found] == ["attempt-7"] * made
        assert sandbox.ledger()["totals"]["batches"] == made

    @pytest.mark.parametrize(("code", "status"), [("InternalError", 500), ("Throttling.RateQuota", 429)])
    @pytest.mark.parametrize("is_done", [False, True])
    def test_a_create_may_be_refused_and_made_all_the_same(
        self, sandbox: Sandbox, wire: httpx.Client, code: str, status: int, is_done: bool
    ) -> None:
        file_id = upload(wire, jsonl([line("1")])).json()["id"]
        sandbox.fault(where="batch_create", what="error", code=code, is_done=is_done)

        assert submit(wire, file_id).status_code == status
        assert sandbox.ledger()["totals"]["batches"] == int(is_done)

    def test_a_create_may_be_executed_late_and_the_list_may_lag(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        file_id = upload(wire, jsonl([line("1")])).json()["id"]
        sandbox.fault(where="batch_create", what="executed_late", after_ms=30_000, times=1)
        with pytest.raises(httpx.TransportError):
            submit(wire, file_id)

        def count() -> int:
            return len(wire.get("/batches").json()["data"] or [])

        early = count()
        sandbox.set(clock_offset_seconds=31)
        sandbox.fault(where="batch_list", what="lag", after_ms=60_000, times=1)

        assert (early, count(), count()) == (0, 0, 1)

    def test_a_batch_may_fail_as_a_whole(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.fault(where="batch_create", what="task_fails", code="InternalError")

        batch = get(wire, create(wire, [line("1")]))

        assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "InternalError")

    @pytest.mark.parametrize("where", ["file", "content", "batch_get", "batch_list", "batch_cancel"])
    def test_each_interface_meets_faults_of_its_own(self, sandbox: Sandbox, wire: httpx.Client, where: str) -> None:
        batch = get(wire, create(wire, [line("1")]))
        sandbox.fault(where=where, what="html", status=503)

        answers = {
            "file": wire.get("/files"),
            "content": wire.get(f"/files/{batch['output_file_id']}/content"),
            "batch_get": wire.get(f"/batches/{batch['id']}"),
            "batch_list": wire.get("/batches"),
            "batch_cancel": wire.post(f"/batches/{batch['id']}/cancel"),
        }

        assert [name for name, answer in answers.items() if answer.status_code == 503] == [where]


class TestBooks:
    def test_a_line_costs_half_of_what_a_call_does(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        long = "A wheel lifts water. " * 2000
        wire.post("/chat/completions", json=line("1", long)["body"])
        create(wire, [line("1", long)])

        ledger = sandbox.ledger()

        [task], [batch] = ledger["tasks"], ledger["batches"]
        assert batch["input_tokens"] == task["usage"]["input_tokens"]
        assert batch["billed_micros"] == task["billed_micros"] // 2 > 0
        assert ledger["totals"]["billed_micros"] == batch["billed_micros"] + task["billed_micros"]

    def test_uploads_creates_fetches_and_lines_are_counted(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        batch = get(wire, create(wire, [line(str(number)) for number in range(200)], metadata={"ds_name": "night"}))
        rows(wire, batch["output_file_id"])

        ledger = sandbox.ledger()

        [calls] = ledger["calls"].values()
        assert calls == {"file_upload": 1, "batch_create": 1, "batch_get": 1, "content": 1}
        assert ledger["totals"]["paid_lines"] == 200
        assert [create["batch_id"] for create in ledger["batch_creates"]] == [batch["id"]]
        assert [entry["ds_name"] for entry in ledger["batches"]] == ["night"]

    def test_lines_are_not_counted_by_the_minute(self, sandbox: Sandbox, wire: httpx.Client) -> None:
        sandbox.set(limits={"qwen-plus": {"rpm": 1, "tpm": 1}})

        batch = get(wire, create(wire, [line(str(number)) for number in range(20)]))

        assert batch["request_counts"]["completed"] == 20
        assert sandbox.ledger()["throttled"] == {}

    def test_nothing_is_found_in_a_cache_of_a_batch(self, wire: httpx.Client) -> None:
        system = {"role": "system", "content": "rule " * 2000}
        lines = [line(str(number)) for number in range(2)]
        for each in lines:
            each["body"]["messages"].insert(0, system)

        told = rows(wire, get(wire, create(wire, lines))["output_file_id"])

        details = [row["response"]["body"]["usage"]["prompt_tokens_details"] for row in told.values()]
        assert details == [{"cached_tokens": 0}] * 2


def test_a_restarted_sandbox_knows_its_files_and_batches(tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    slow = Options(batch_validating_seconds=100, batch_run_seconds=1000, batch_finalizing_seconds=100)
    with running(slow, state=state) as before, client(before) as wire:
        kept = create(wire, [line(str(number)) for number in range(10)], metadata={"ds_name": "night"})
        canceled, flawed = create(wire, [line("1")]), create(wire, [line("1"), line("1")])
        wire.post(f"/batches/{canceled}/cancel")
        wire.delete(f"/files/{get(wire, kept)['input_file_id']}")
        before.set(clock_offset_seconds=605)
        told = get(wire, kept)

    with running(slow, state=state) as after, client(after) as wire:
        after.set(clock_offset_seconds=605)
        told_again = get(wire, kept)
        after.set(clock_offset_seconds=2000)

        assert told_again == told
        assert [get(wire, batch_id)["status"] for batch_id in (kept, canceled, flawed)] == [
            "completed",
            "cancelled",
            "failed",
        ]
        assert len(rows(wire, get(wire, kept)["output_file_id"])) == 10
        assert len(wire.get("/files", params={"purpose": "batch"}).json()["data"]) == 2
