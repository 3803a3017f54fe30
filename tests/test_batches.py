"""Batches: a file is checked and priced as a draft, and committed whole or not at all."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import CLIP, Served, served
from sqlalchemy import create_engine
from sqlalchemy.event import listen, remove

from api import bodies
from api.limits import Gate
from worker import tick
from worker.batches import checking, draft, files
from worker.batches.checking import Options, Upload
from worker.catalog import load
from worker.egress import transports
from worker.errors import Fault, InvalidInput
from worker.moves import batch as batch_moves
from worker.webhooks import JOB_EVENTS

KILLER = Path(__file__).with_name("batch_killer.py")
HEADER = "kind,model,prompt,custom_id\n"
HOOK = "https://example.com/hook"
PICTURE = {"file": ("cat.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\2\0\0\0\2\0\10\2\0\0\0")}
STILL = {"kind": "image-to-video", "model": "wan2.5-i2v-preview"}


NOWHERE = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")


def rows(*custom_ids: str, prompt: str = "a heron") -> str:
    return HEADER + "".join(f"text-to-video,wan2.5-t2v-preview,{prompt} {name},{name}\n" for name in custom_ids)


def send(
    http: httpx.Client, content: str, query: str = "", key: str | None = None, name: str = "spring.csv", **options: Any
) -> httpx.Response:
    headers = {"idempotency-key": key} if key else {}
    said = {"options": json.dumps(options)} if options else {}
    return http.post(f"/v1/batches{query}", files={"file": (name, content)}, data=said, headers=headers)


def drafted(http: httpx.Client, content: str, **more: Any) -> dict[str, Any]:
    answer = send(http, content, **more)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def items(http: httpx.Client, *bodies: dict[str, Any], query: str = "", **options: Any) -> dict[str, Any]:
    """A batch of JSON items."""
    answer = http.post(f"/v1/batches{query}", json={"items": bodies, **options})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def commit(http: httpx.Client, batch: dict[str, Any], query: str = "") -> dict[str, Any]:
    answer = http.post(batch["urls"]["commit"] + query)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _refuse(_: Any) -> Any:
    raise InvalidInput([Fault("/kind", "required", "is required")])


def counts(batch: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in batch["rows"].items() if count}


def faults(batch: dict[str, Any]) -> list[tuple[int, str | None, str, str]]:
    return [(found["row"], found["column"], found["pointer"], found["code"]) for found in batch["report"]["faults"]]


def jobs(api: Served) -> int:
    return int(api.sql("select count(*) from jobs")[0]["count"])


class TestChecking:
    def test_a_draft_is_priced_and_makes_nothing(self, http: httpx.Client, api: Served) -> None:
        made = drafted(http, rows("a", "b"))

        assert (made["state"], made["name"], made["jobs"]) == ("draft", "spring.csv", None)
        assert counts(made) == {"total": 2, "good": 2}
        assert made["report"]["cost"] == "3.00"
        assert made["report"]["groups"][0] | {"seconds": None} == {
            "kind": "text-to-video",
            "model": "wan2.5-t2v-preview",
            "rows": 2,
            "cost": "3.00",
            "unpriced": 0,
            "seconds": None,
        }
        assert jobs(api) == 0

    def test_every_fault_of_every_row_is_named_by_line_and_column(self, http: httpx.Client) -> None:
        lines = ("kind,model,prompt,size", *(f"text-to-vide{o},wan2.5-t2v-preview,a,1*1" for o in ("", "o")))
        content = "".join(f"{line}\n" for line in lines)

        made = drafted(http, content)

        assert counts(made) == {"total": 2, "bad": 2}
        assert (1, "kind", "/kind", "unknown_kind") in faults(made)
        assert (2, "size", "/input/size", "not_allowed") in faults(made)
        assert made["report"]["faults_by_code"]["not_allowed"] >= 1
        assert made["report"]["faults"][-1]["line"] == 3

    def test_a_fault_inside_a_field_is_of_that_fields_column(self) -> None:
        row = files.Row(1, 2, {}, (), {"/input/messages": "messages"})

        assert checking._column(row, "/input/messages/0/role") == "messages"
        assert checking._column(row, "/input") is None

    def test_a_custom_id_stands_once_in_a_file_and_its_fault_names_the_first(self, http: httpx.Client) -> None:
        made = drafted(http, rows("a", "b", "a"))

        assert counts(made) == {"total": 3, "good": 2, "bad": 1}
        assert faults(made) == [(3, "custom_id", "/custom_id", "repeated_custom_id")]
        assert "line 2" in made["report"]["faults"][0]["message"]

    def test_the_report_shows_a_hundred_faults_and_counts_all(self, http: httpx.Client, api: Served) -> None:
        made = items(http, *({"kind": "text-to-video", "model": f"none-{n}", "input": {}} for n in range(150)))

        assert len(made["report"]["faults"]) == 100
        assert made["report"]["faults_by_code"]["unknown_model"] == 150
        assert made["report"]["faults_total"] == sum(made["report"]["faults_by_code"].values())
        assert api.sql("select count(*) from batch_rows where faults is not null") == [{"count": 150}]

    def test_a_report_stays_short_whatever_the_rows_hold(self, http: httpx.Client, api: Served) -> None:
        """60 rows with a name of 1 MiB each made an answer of 60 MB; 50,000 rows with 20 faults each were refused."""
        many = {**CLIP, "input": {f"no_field_{n}": 1 for n in range(30)}}

        made = items(http, many, {**CLIP, "x" * 50_000: 1})

        kept = [len(row["faults"]) for row in api.sql("select faults from batch_rows order by n")]
        assert (kept, made["report"]["faults_total"]) == ([10, 1], 32)
        assert len(json.dumps(made)) < 20_000

    def test_long_rows_are_in_memory_one_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """64 rows of empty lists, 64 MiB, took 1.6 GiB: more than a container has."""
        monkeypatch.setattr(checking, "_AT_ONCE", 20_000)
        upload = Upload(io.BytesIO((b'{"prompt": [' + b"[]," * 10_000 + b"[]]}\n") * 20), "a.jsonl", "")
        tracemalloc.start()
        try:
            with checking.checked(NOWHERE, uuid.uuid4(), upload, Options(), _refuse) as made:
                peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert made.bad == 20
        assert peak < 5 << 20

    def test_defaults_fill_what_a_row_leaves_out_field_by_field(self, http: httpx.Client, api: Served) -> None:
        defaults = CLIP | {"input": {"size": "832*480", "prompt": "x"}, "metadata": {"a": "1", "b": "2"}}

        made = items(http, {"input": {"prompt": "a heron"}, "metadata": {"b": "3"}}, defaults=defaults)

        assert counts(made) == {"total": 1, "good": 1}
        row = api.sql("select * from batch_rows")[0]
        assert (row["input"]["prompt"], row["input"]["size"]) == ("a heron", "832*480")
        assert row["labels"] == {"a": "1", "b": "3"}

    def test_faults_of_the_options_are_named(self, http: httpx.Client) -> None:
        answer = send(http, rows("a"), defaults={"modl": "x"}, webhook_url="http://127.0.0.1:1/x y", repeat=1)

        named = {fault["pointer"] for fault in answer.json()["errors"]}
        assert answer.status_code == 422
        assert {"/defaults/modl", "/repeat"} <= named

    def test_files_are_named_as_their_user_calls_them(self, http: httpx.Client, api: Served) -> None:
        key = http.post("/v1/files", files=PICTURE).json()["key"]
        given = {"files": {"cat.png": key, "a.txt": key}}

        made = items(
            http,
            STILL | {"input": {"img_url": "cat.png"}},
            STILL | {"input": {"img_url": "dog.png"}},
            {"kind": "summary", "input": {"documents": [{"key": "a.txt"}]}},
            **given,
        )

        assert faults(made) == [(2, None, "/input/img_url", "bad_link")]
        assert api.sql("select input from batch_rows where n = 1")[0]["input"]["img_url"] == key
        assert api.sql("select input from batch_rows where n = 3")[0]["input"]["documents"][0]["key"] == key

    def test_files_are_looked_up_in_one_query_however_many_rows_name_them(
        self, http: httpx.Client, api: Served
    ) -> None:
        key = http.post("/v1/files", files=PICTURE).json()["key"]
        gone = key.replace("files/", "files/0")
        looks: list[str] = []

        def note(_: Any, __: Any, statement: str, *___: Any) -> None:
            looks.append(statement)

        listen(api.engine, "before_cursor_execute", note)
        made = items(http, *(STILL | {"input": {"img_url": (key, gone)[n % 2]}} for n in range(60)))
        remove(api.engine, "before_cursor_execute", note)

        assert counts(made) == {"total": 60, "good": 30, "bad": 30}
        assert {fault[3] for fault in faults(made)} == {"no_such_file"}
        assert len([look for look in looks if "FROM files" in look]) == 1

    def test_what_only_reports_call_retired_is_a_warning_once(self, http: httpx.Client) -> None:
        model = load().model("wan2.5-t2v-preview")
        kept = {name: getattr(model, name) for name in ("retired", "retired_by", "successor")}
        model.__dict__.update(retired=date(2026, 1, 1), retired_by="reports")
        made = items(http, CLIP, CLIP)
        model.__dict__.update(kept)

        assert [warning["code"] for warning in made["report"]["warnings"]] == ["retired_model"]

    def test_the_report_says_how_long_it_takes_at_todays_limits(self, http: httpx.Client, api: Served) -> None:
        api.sql("insert into owners (name) values ('o')")
        api.sql(
            "insert into lanes (account, owner, region, model, concurrency, interval_us)"
            " values ('a', 'o', 'cn-beijing', 'wan2.5-t2v-preview', 1, 1)"
        )
        api.sql("insert into run_times (model, shape, early, median) values ('wan2.5-t2v-preview', '', 50, 100)")

        report = drafted(http, rows("a", "b", "c"))["report"]

        assert report["seconds"] == report["groups"][0]["seconds"] == 300

    def test_nul_and_halves_of_pairs_are_faults_and_can_be_shown(self, http: httpx.Client) -> None:
        body = b'{"items": [{"kind": "text-to-video", "custom_id": "a\\u0000", "input": {"p\\ud800": "x"}}]}'

        answer = http.post("/v1/batches", content=body, headers={"content-type": "application/json"})

        assert answer.status_code == 201
        assert counts(answer.json()) == {"total": 1, "bad": 1}

    @pytest.mark.parametrize(("size", "status"), [(0, 201), (1, 413)])
    def test_a_file_may_have_so_many_bytes_and_not_one_more(
        self, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, size: int, status: int
    ) -> None:
        content = rows("a")
        monkeypatch.setattr(bodies, "ROWS_LIMIT", len(content) - size)

        assert send(http, content).status_code == status

    def test_64_mib_and_one_byte_are_too_much(self, http: httpx.Client) -> None:
        assert bodies.ROWS_LIMIT == 64 << 20

        answer = send(http, rows("a") + "\n" * (bodies.ROWS_LIMIT - len(rows("a")) + 1))

        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")

    @pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
    @pytest.mark.parametrize("charset", ["punycode", "rot13", "utf-16"])
    def test_the_text_of_a_form_is_utf_8_alone(self, http: httpx.Client, path: str, charset: str) -> None:
        """Punycode is decoded in the square of its length: 400 kB held all requests up for a second, 1 MiB for ten."""
        form = b'--b\r\ncontent-disposition: form-data; name="a-"\r\n\r\n-aaaa\r\n--b--\r\n'
        head = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}

        answer = http.post(path, content=form, headers=head)

        assert (answer.status_code, answer.json()["code"]) == (415, "not_utf8")

    def test_rows_that_defaults_make_too_long_for_the_disk_are_refused(
        self, http: httpx.Client, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checking, "SPOOL", 10_000)

        answer = send(http, rows(*map(str, range(20))), defaults={"input": {"negative_prompt": "x" * 400}})

        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "too_long")
        assert api.sql("select count(*) from batches") == [{"count": 0}]

    def test_a_receiver_that_all_rows_name_is_looked_up_once(
        self, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        submit = transports._LOOKUPS.submit
        monkeypatch.setattr(transports._LOOKUPS, "submit", lambda *given: asked.append(given[1]) or submit(*given))
        transports._looked_up.cache_clear()

        made = items(http, *[CLIP] * 20, defaults={"webhook_url": "http://localhost:9/hook"})

        assert counts(made) == {"total": 20, "good": 20}
        assert asked == ["localhost"]

    def test_a_check_that_takes_too_long_is_broken_off(
        self, http: httpx.Client, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checking, "_SECONDS", 0)

        answer = send(http, rows("a"))

        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "too_slow")


def test_the_first_event_of_each_job_of_a_batch_is_one_look_into_an_index(api: Served) -> None:
    """Before statistics know of the batch: each job compared with each event took minutes for 50,000 rows."""
    bound = batch_moves._WANTED.params(the_batch=uuid.UUID(int=1), the_project=uuid.UUID(int=2))
    statement = str(bound.compile(api.engine, compile_kwargs={"literal_binds": True}))
    with api.engine.connect() as connection:
        connection.exec_driver_sql("set local enable_seqscan = off")
        plan = "\n".join(connection.exec_driver_sql(f"explain {statement}").scalars())

    looked = plan.partition("->  Limit")[2]
    assert "uq_events_job_id" in looked
    assert "Join Filter" not in plan


class TestCommitting:
    def test_each_row_becomes_a_job_in_the_files_order(self, http: httpx.Client, api: Served) -> None:
        made = commit(http, drafted(http, rows("a", "b", "c")))

        assert (made["state"], counts(made)) == ("running", {"total": 3, "made": 3})
        found = api.sql("select custom_id, batch_row from jobs order by rank_at, id")
        assert [tuple(job.values()) for job in found] == [("a", 1), ("b", 2), ("c", 3)]
        assert http.get(made["urls"]["self"]).json()["jobs"]["by_state"] == {"queued": 3}
        kept = api.sql("select kind, input, outcome, job_id is null as unmade from batch_rows limit 1")
        assert kept == [{"kind": None, "input": None, "outcome": "made", "unmade": False}]

    def test_it_makes_of_a_row_what_a_submission_makes_of_its_body(self, http: httpx.Client, api: Served) -> None:
        body = CLIP | {
            "metadata": {"sku": "A17"},
            "custom_id": "row-17",
            "priority": "high",
            "webhook_url": HOOK,
            "webhook_events": sorted(JOB_EVENTS),
            "review": "required",
            "not_after": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
        }
        answer = http.post("/v1/jobs", json=body)
        assert answer.status_code == 201, answer.text
        single = answer.json()["id"]
        commit(http, items(http, body))

        def of(table: str, job: str, *own: str) -> list[dict[str, Any]]:
            found = api.sql(f"select * from {table} order by {job} = cast(:single as uuid) desc", single=single)
            return [{name: value for name, value in row.items() if name not in (job, *own)} for row in found]

        for one, other in (
            of("jobs", "id", "batch_id", "batch_row", "created_at", "state_at", "run_at", "rank_at"),
            of("events", "job_id", "id", "at", "xid"),
            of("ledger", "job_id", "id", "at", "reserved_at"),
        ):
            assert one == other
        assert (
            len(api.sql("select distinct created_at - rank_at, state_at - created_at, run_at - created_at from jobs"))
            == 1
        )
        said = [json.loads(told["body"]) for told in api.sql("select body from deliveries order by created_at")]
        its = {"id", "batch_id", "batch_row", "created_at", "urls", "outputs"}
        one, other = ({name: value for name, value in told["data"].items() if name not in its} for told in said)
        assert one == other
        assert {(told["type"], told["sequence"]) for told in said} == {("job.queued", 1)}

    def test_the_second_time_answers_the_same(self, http: httpx.Client, api: Served) -> None:
        made = drafted(http, rows("a"))

        first, second = commit(http, made), commit(http, made)

        assert first == second
        assert jobs(api) == 1

    def test_one_bad_row_makes_nothing_unless_it_is_to_be_skipped(self, http: httpx.Client, api: Served) -> None:
        made = drafted(http, rows("a", "a", "b"))

        refused = http.post(made["urls"]["commit"])

        assert (refused.status_code, refused.json()["code"]) == (409, "has_bad_rows")
        assert "line 3" in refused.json()["detail"]
        assert jobs(api) == 0
        assert counts(commit(http, made, "?skip_bad=true")) == {"total": 3, "made": 2, "skipped": 1}
        assert jobs(api) == 2

    def test_at_once_it_makes_all_or_leaves_nothing(self, http: httpx.Client, api: Served) -> None:
        refused = send(http, rows("a", "a"), "?commit=true")

        assert refused.status_code == 422
        assert refused.json()["errors"][0] | {"message": ""} == {
            "row": 2,
            "line": 3,
            "column": "custom_id",
            "pointer": "/custom_id",
            "code": "repeated_custom_id",
            "message": "",
        }
        assert api.sql("select count(*) from batches") == [{"count": 0}]
        assert counts(send(http, rows("a", "a"), "?commit=true&skip_bad=true").json()) == {
            "total": 2,
            "made": 1,
            "skipped": 1,
        }

    def test_the_same_file_again_makes_nothing(self, http: httpx.Client, api: Served) -> None:
        commit(http, drafted(http, rows("a", "b")))

        again = drafted(http, rows("a", "b"))

        assert again["report"]["existing"] == 2
        assert (again["report"]["groups"], again["report"]["cost"], again["report"]["seconds"]) == ([], "0.00", 0)
        assert counts(commit(http, again)) == {"total": 2, "existing": 2}
        assert jobs(api) == 2
        linked = (
            "select count(*) from batch_rows join jobs on jobs.id = job_id where jobs.custom_id = batch_rows.custom_id"
        )
        assert api.sql(linked) == [{"count": 4}]

    def test_a_batch_that_makes_nothing_is_due_at_once(self, http: httpx.Client, api: Served) -> None:
        commit(http, drafted(http, rows("a")))

        commit(http, drafted(http, rows("a")))

        assert [row["due"] for row in api.sql("select run_at <= now() as due from batches order by id")] == [None, True]

    def test_a_corrected_file_makes_only_what_changed(self, http: httpx.Client, api: Served) -> None:
        commit(http, drafted(http, rows("a", "b")))

        corrected = commit(http, drafted(http, rows("a") + rows("b", prompt="an egret").removeprefix(HEADER)))

        assert counts(corrected) == {"total": 2, "made": 1, "existing": 1}
        assert jobs(api) == 3

    def test_rows_are_made_once_more_under_another_repeat(self, http: httpx.Client, api: Served) -> None:
        commit(http, drafted(http, rows("a")))

        again = commit(http, drafted(http, rows("a"), repeat="in red"))

        assert counts(again) == {"total": 1, "made": 1}

    def test_equal_rows_without_a_custom_id_are_as_many_jobs(self, http: httpx.Client, api: Served) -> None:
        commit(http, items(http, CLIP, CLIP, CLIP))

        more = items(http, CLIP, CLIP, CLIP, CLIP)

        assert more["report"]["existing"] == 3
        assert (more["report"]["groups"][0]["rows"], more["report"]["cost"]) == (1, "1.50"), "only what is new costs"
        assert counts(commit(http, more)) == {"total": 4, "made": 1, "existing": 3}

    def test_a_catalog_with_another_default_makes_no_row_again(self, http: httpx.Client) -> None:
        commit(http, items(http, CLIP))
        model = load().model(CLIP["model"])
        kept = model.default
        model.__dict__["default"] = {**kept, "duration": 10}
        again = commit(http, items(http, CLIP))
        model.__dict__["default"] = kept

        assert counts(again) == {"total": 1, "existing": 1}

    def test_a_row_whose_job_was_rolled_again_is_linked_to_the_newest_take(
        self, http: httpx.Client, api: Served
    ) -> None:
        commit(http, items(http, CLIP))
        columns = "project_id, kind, model, input"
        take = f"insert into jobs ({columns}, first_take, take) select {columns}, id, 2 from jobs returning id"
        newest = api.sql(take)[0]["id"]

        commit(http, items(http, CLIP))

        assert api.sql("select job_id from batch_rows where outcome = 'existing'") == [{"job_id": newest}]

    def test_no_header_reaches_a_rows_key(self, http: httpx.Client, api: Served) -> None:
        commit(http, items(http, CLIP))

        (kept,) = api.sql("select key from idempotency_keys")
        assert kept["key"].startswith("row\t")
        refused = http.post("/v1/jobs", json=CLIP, headers={"idempotency-key": kept["key"]})
        assert refused.status_code == 422

    def test_two_commits_at_once_of_one_draft_and_of_equal_ones_make_each_row_once(
        self, http: httpx.Client, api: Served
    ) -> None:
        names = [str(n) for n in range(200)]
        first, second = drafted(http, rows(*names)), drafted(http, rows(*reversed(names)))
        context = api.app.state.context
        api.app.state.context = replace(context, gates=replace(context.gates, commits=Gate("commits", 4, 4, 10)))
        wanted = [first, second, first, second]

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda batch: commit(http, batch), wanted))

        assert jobs(api) == 200
        assert made[0]["rows"] == made[2]["rows"]
        assert sum(batch["rows"]["made"] for batch in made[:2]) == 200
        assert sum(batch["rows"]["existing"] for batch in made[:2]) == 200

    def test_rows_that_were_just_written_are_not_compared_each_with_each(self, http: httpx.Client, api: Served) -> None:
        made = drafted(http, rows(*map(str, range(50))))
        plans: list[str] = []

        def note(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
            if "INSERT INTO jobs" in statement:
                with cursor.connection.cursor() as beside:
                    plans.extend(line for (line,) in beside.execute(f"explain {statement}", parameters))

        listen(api.engine, "before_cursor_execute", note)
        commit(http, made)
        remove(api.engine, "before_cursor_execute", note)

        assert "Hash Join" in "\n".join(plans)
        assert "Nested Loop" not in "\n".join(plans)

    def test_keys_are_taken_in_one_order_so_that_no_two_commits_wait_for_each_other(
        self, http: httpx.Client, api: Served
    ) -> None:
        commit(http, drafted(http, rows(*map(str, range(50)))))

        taken = [row["key"] for row in api.sql("select key from idempotency_keys order by ctid")]
        assert taken == [row["key"] for row in api.sql("select key from idempotency_keys order by key")]

    def test_a_file_that_went_since_makes_its_row_bad(self, http: httpx.Client, api: Served) -> None:
        file = http.post("/v1/files", files=PICTURE).json()
        made = items(http, STILL | {"input": {"img_url": file["key"]}}, CLIP)
        assert counts(made) == {"total": 2, "good": 2}
        assert http.delete(f"/v1/files/{file['id']}").status_code == 204

        refused = http.post(made["urls"]["commit"])

        assert (refused.status_code, refused.json()["code"]) == (409, "has_bad_rows")
        assert "neither a file nor an output" in refused.json()["detail"]
        assert http.get(made["urls"]["self"]).json() == made
        assert counts(commit(http, made, "?skip_bad=true")) == {"total": 2, "made": 1, "skipped": 1}
        assert api.sql("select faults from batch_rows where n = 1")[0]["faults"][0]["code"] == "no_such_file"

    def test_a_row_that_has_its_job_is_linked_whatever_became_of_its_file(
        self, http: httpx.Client, api: Served
    ) -> None:
        file = http.post("/v1/files", files=PICTURE).json()
        body = STILL | {"input": {"img_url": file["key"]}}
        commit(http, items(http, body))
        again = items(http, body)
        api.sql("update jobs set state = 'canceled', finished_at = now(), run_at = null")
        assert http.delete(f"/v1/files/{file['id']}").status_code == 204

        assert counts(commit(http, again)) == {"total": 1, "existing": 1}

    def test_a_project_without_room_is_refused_and_nothing_is_made(self, environment: dict[str, str]) -> None:
        with served(environment, max_waiting=3) as api, api.http(api.key("spring")) as http:
            made = drafted(http, rows("a", "b", "c", "d"))

            refused = http.post(made["urls"]["commit"])
            fits = send(http, rows("a", "b", "c"), "?commit=true")
            repeated = send(http, rows("a", "b", "c"), "?commit=true")
            single = http.post("/v1/jobs", json=CLIP)

            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_waiting")
            assert counts(fits.json()) == {"total": 3, "made": 3}
            assert counts(repeated.json()) == {"total": 3, "existing": 3}, "it needs no room"
            assert single.json()["code"] == "too_many_waiting", "its jobs were counted at once"

    def test_a_project_checks_and_commits_one_at_a_time(self, http: httpx.Client, api: Served) -> None:
        made = drafted(http, rows("a"))
        context = api.app.state.context
        full = {name: Gate(f"{name} of batches", 0, 1, 0) for name in ("drafts", "commits")}
        api.app.state.context = replace(context, gates=replace(context.gates, **full))

        refused = [send(http, rows("a")), http.post(made["urls"]["commit"])]

        assert [answer.status_code for answer in refused] == [429, 429]
        assert http.get(made["urls"]["self"]).status_code == 200, "who looks is not held up"
        assert (context.gates.drafts.each, context.gates.commits.each) == (1, 1)

    def test_flower_is_told_of_its_jobs_and_a_tick_is_asked_for(
        self, http: httpx.Client, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[Any] = []
        monkeypatch.setattr(api.app.state.context.sender, "tell", told.append)
        monkeypatch.setattr(api.app.state.context.sender, "hint", lambda: told.append("hint"))

        send(http, rows("a", "b"), "?commit=true")

        assert [event if event == "hint" else event["type"] for event in told] == ["task-received"] * 2 + ["hint"]


class TestRepeating:
    def test_the_same_file_under_the_same_key_is_the_first_batch(self, http: httpx.Client) -> None:
        first = send(http, rows("a"), key="k")

        second = send(http, rows("a"), key="k")

        assert (first.status_code, second.status_code) == (201, 200)
        assert second.headers["idempotency-replayed"] == "true"
        assert first.json() == second.json()

    @pytest.mark.parametrize(
        "other",
        [{"content": rows("b")}, {"repeat": "again"}, {"query": "?commit=true"}],
        ids=["another file", "other options", "a commit"],
    )
    def test_anything_else_under_that_key_is_a_conflict(self, http: httpx.Client, other: dict[str, Any]) -> None:
        send(http, rows("a"), key="k")

        refused = send(http, **{"content": rows("a"), "key": "k", **other})

        assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_key_reused")

    def test_a_key_is_kept_for_seven_days_as_that_of_a_job_is(self, http: httpx.Client, api: Served) -> None:
        first = send(http, rows("a"), "?commit=true", key="nightly").json()
        _, duty = tick._DUTIES["forget_keys"]
        for age, status in (("6 days", 409), ("8 days", 201)):
            api.sql(f"update batches set created_at = now() - interval '{age}'")
            with api.engine.begin() as connection:
                duty(connection, connection.exec_driver_sql("select now()").scalar_one())

            assert send(http, rows("b"), key="nightly").status_code == status
        assert http.get(first["urls"]["self"]).status_code == 200, "the batch stays"

    def test_two_at_once_under_one_key_are_one_batch(self, http: httpx.Client, api: Served) -> None:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: send(http, rows("a"), "?commit=true", key="k"), range(3)))

        assert sorted(answer.status_code for answer in answers) == [200, 200, 201]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert jobs(api) == 1


class TestDrafts:
    def test_a_draft_is_deleted_with_its_rows_and_a_batch_is_not(self, http: httpx.Client, api: Served) -> None:
        gone, stays = drafted(http, rows("a")), commit(http, drafted(http, rows("b")))

        assert http.delete(gone["urls"]["self"]).status_code == 204
        refused = http.delete(stays["urls"]["self"])

        assert (refused.status_code, refused.json()["code"]) == (409, "not_a_draft")
        assert http.get(gone["urls"]["self"]).status_code == 404
        assert api.sql("select count(*) from batch_rows") == [{"count": 1}]

    def test_drafts_are_forgotten_after_a_day_some_rows_at_a_time(
        self, http: httpx.Client, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(draft, "_FORGOTTEN", 3)
        old = [drafted(http, rows("a", "b"))["id"] for _ in range(3)]
        drafted(http, rows("a"))
        for n, batch_id in enumerate(old):
            ages = "update batches set created_at = now() - :hours * interval '1 h' where id = :id"
            api.sql(ages, hours=30 - n, id=batch_id)
        commit(http, {"urls": {"commit": f"/v1/batches/{old[0]}/commit"}})

        def forget() -> int:
            _, duty = tick._DUTIES["forget_drafts"]
            with api.engine.begin() as connection:
                duty(connection, connection.exec_driver_sql("select now()").scalar_one())
            return len(api.sql("select id from batches"))

        assert [forget(), forget()] == [2, 2], "what was committed, and what is young, stays"

    def test_a_project_keeps_its_newest_drafts_and_others_keep_theirs(
        self, http: httpx.Client, api: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that checked files all day, and committed none, filled the database: 50,000 rows every ten seconds."""
        monkeypatch.setattr(draft, "MOST", 2)
        with api.http(api.key("summer")) as others:
            theirs = drafted(others, rows("a"))["id"]
            stays = commit(http, drafted(http, rows("a")))["id"]
            mine = [drafted(http, rows("b"))["id"] for _ in range(4)]

        assert {str(row["id"]) for row in api.sql("select id from batches")} == {theirs, stays, *mine[2:]}

    def test_a_draft_that_is_being_committed_is_not_waited_for(self, http: httpx.Client, api: Served) -> None:
        drafted(http, rows("a"))
        api.sql("update batches set created_at = now() - interval '2 days'")
        with api.engine.begin() as committing, api.engine.begin() as connection:
            committing.exec_driver_sql("select id from batches for update")
            connection.exec_driver_sql("set local lock_timeout = '1s'")

            draft.forget(connection, connection.exec_driver_sql("select now()").scalar_one())

        assert len(api.sql("select id from batches")) == 1

    def test_lists_are_by_state_the_newest_first_without_reports(self, http: httpx.Client) -> None:
        names = [drafted(http, rows("a"), name=f"{n}.csv") for n in range(3)]
        commit(http, names[0])

        drafts = http.get("/v1/batches?state=draft&limit=1").json()
        more = http.get(f"/v1/batches?state=draft&limit=1&cursor={drafts['next_cursor']}").json()

        assert [batch["name"] for batch in (*drafts["data"], *more["data"])] == ["2.csv", "1.csv"]
        assert drafts["data"][0]["report"] is None
        assert not more["has_more"]
        assert [batch["state"] for batch in http.get("/v1/batches?state=running").json()["data"]] == ["running"]

    def test_states_to_list_are_named_as_in_other_lists_and_what_is_no_filter_is_refused(
        self, http: httpx.Client
    ) -> None:
        commit(http, drafted(http, rows("a")))
        drafted(http, rows("b"))

        both = http.get("/v1/batches?state=draft,running").json()["data"]
        refused = http.get("/v1/batches?states=draft")

        assert [batch["state"] for batch in both] == ["draft", "running"]
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/query/states")

    def test_an_unknown_batch_is_not_found(self, http: httpx.Client) -> None:
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/commit")):
            assert http.request(method, f"/v1/batches/{uuid.uuid4()}{path}").status_code == 404


class TestKilled:
    """A process that is killed leaves nothing, or all."""

    @pytest.mark.parametrize(
        ("point", "left"),
        [
            ("checking", (0, 0, 0)),
            ("copying", (0, 0, 0)),
            ("kept", (0, 0, 0)),
            ("drafted", (1, 5, 0)),
            ("made", (1, 5, 0)),
            ("told", (1, 5, 0)),
            ("committed", (1, 5, 5)),
        ],
    )
    def test_at_any_point_and_the_same_again_makes_each_row_once(
        self, api: Served, http: httpx.Client, environment: dict[str, str], point: str, left: tuple[int, int, int]
    ) -> None:
        settings = {**os.environ, **environment, "PYTHONPATH": str(KILLER.parent.parent)}
        done = subprocess.run(
            [sys.executable, str(KILLER), "spring", point], env=settings, capture_output=True, text=True, timeout=60
        )

        assert done.returncode == -signal.SIGKILL, done.stderr
        there = [api.sql(f"select count(*) from {name}")[0]["count"] for name in ("batches", "batch_rows", "jobs")]
        assert tuple(there) == left
        again = send(http, rows(*"abcde"), "?commit=true")
        assert counts(again.json()) in ({"total": 5, "made": 5}, {"total": 5, "existing": 5})
        assert jobs(api) == 5
        assert api.sql("select count(*) from ledger") == [{"count": 5}]
