"""What became of a batch: pages of rows, and files that are streamed; read again as their readers read them."""

from __future__ import annotations

import csv
import io
import json
import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import batching
import httpx
import pytest
from serving import Served, served
from sqlalchemy import event
from stage import Stage

from worker import text
from worker.batches import exports, items
from worker.batches.items import Wanted
from worker.tables import Batch

FAULT = {
    "row": 4,
    "line": 5,
    "column": "尺寸",
    "pointer": "/input/size",
    "code": "not_allowed",
    "message": "must be one of 832*480",
}


@pytest.fixture
def api(environment: dict[str, str], play: Stage) -> Iterator[Served]:
    with served(environment) as made:
        yield made


@pytest.fixture
def http(api: Served, play: Stage) -> httpx.Client:
    return api.http(api.key(play.project.name))


@pytest.fixture
def batch(play: Stage) -> Batch:
    """A clip that was made, one that failed, one that waits, and a row with a fault."""
    rows: list[dict[str, Any]] = [
        {"custom_id": "春-1", "metadata": {"产品": "围巾", "sku": "A1"}},
        {"custom_id": "row-2", "metadata": {"sku": "A2"}},
        {"custom_id": "row-3"},
        {"custom_id": "row-4", "outcome": "skipped", "faults": [FAULT]},
    ]
    made = batching.committed(play, rows, bad=1)
    first, second, third = batching.jobs(play, made)
    play.sql("update jobs set state = 'held', held_for = 'batch', run_at = null where id = any(:ids)",
             ids=[second.id, third.id])  # fmt: skip
    play.until(first)
    play.sql(
        "update jobs set state = 'failed', held_for = null, finished_at = now(), billed = 'yes', cost = 3000000,"
        ' error = \'{"code": "blocked", "message": "=不行"}\' where id = :id',
        id=second.id,
    )
    return made


def reads(play: Stage) -> items.Read:
    def read(look: Any) -> Any:
        with play.ctx.engine.connect() as connection:
            return look(connection)

    return read


def rows(answer: httpx.Response) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_report_says_what_became_of_each_row(http: httpx.Client, play: Stage, batch: Batch) -> None:
    answer = http.get(f"/v1/batches/{batch.id}/report.csv")
    first, second, third, fourth = rows(answer)
    (output,) = play.document(batching.jobs(play, batch)[0])["outputs"]

    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert f'filename="{batch.id}-report.csv"' in answer.headers["content-disposition"]
    assert (first["custom_id"], first["metadata.产品"], first["metadata.sku"]) == ("春-1", "围巾", "A1")
    assert (first["state"], first["output"], first["outputs"], first["take"]) == ("succeeded", output["key"], "1", "1")
    assert (second["state"], second["cost"], second["error_code"]) == ("failed", "3.00", "blocked")
    assert (third["state"], third["finished_at"], third["metadata.sku"]) == ("held", "", "")
    assert (fourth["row"], fourth["line"], fourth["outcome"], fourth["state"]) == ("4", "5", "skipped", "")
    assert (fourth["error_code"], fourth["error_message"]) == ("not_allowed", "must be one of 832*480")


def test_the_report_begins_with_a_bom_and_has_crlf(http: httpx.Client, batch: Batch) -> None:
    written = http.get(f"/v1/batches/{batch.id}/report.csv").content

    assert written.startswith(b"\xef\xbb\xbfrow,line,custom_id,outcome,state,kind,model,metadata.")
    assert written.count(b"\r\n") == written.count(b"\n") == 5


def test_a_cell_of_many_lines_takes_no_more_than_its_length() -> None:
    cell = "\n" * 300_000  # ten minutes, if it took the square

    assert text.csv_of([[cell + "x"]]).endswith(b'\nx"\r\n')


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1"])
def test_what_a_spreadsheet_would_carry_out_is_text(play: Stage, http: httpx.Client, cell: str) -> None:
    batch = batching.committed(play, [{"metadata": {"note": cell}}])

    (row,) = rows(http.get(f"/v1/batches/{batch.id}/report.csv"))

    assert row["metadata.note"].startswith("'")
    assert row["metadata.note"].replace("'", "") == cell.replace("'", "")


@pytest.mark.parametrize("part", ["=1+1", '"=cmd|x!A0"', " @SUM(A1)", "＝1"])
@pytest.mark.parametrize("mark", [";", "\t", "\n", "\r\n"])
def test_a_part_of_a_cell_that_excel_takes_for_a_cell_is_text_too(
    play: Stage, http: httpx.Client, mark: str, part: str
) -> None:
    batch = batching.committed(play, [{"metadata": {"note": f"x{mark}{part}"}}])

    (row,) = rows(http.get(f"/v1/batches/{batch.id}/report.csv"))

    assert row["metadata.note"].replace("'", "") == f"x{mark}{part}"
    assert re.search("'[=@＝]", row["metadata.note"])


def test_metadata_with_very_many_names_are_one_column(play: Stage, http: httpx.Client) -> None:
    """A batch of 50,000 rows, each with names of its own, had 800,000 columns: 40 GB."""
    many = [{"metadata": {f"n{row}_{n}": "x" for n in range(16)}} for row in range(13)]
    batch = batching.committed(play, many)

    found = rows(http.get(f"/v1/batches/{batch.id}/report.csv"))

    assert [name for name in found[0] if name.startswith("metadata")] == ["metadata"]
    assert json.loads(found[12]["metadata"]) == many[12]["metadata"]


@pytest.mark.parametrize("cell", ["-5", "+3.5", "12", "a=b", "围巾 -5", "'"])
def test_numbers_and_other_words_stay_as_they_are(play: Stage, http: httpx.Client, cell: str) -> None:
    batch = batching.committed(play, [{"metadata": {"note": cell}}])

    (row,) = rows(http.get(f"/v1/batches/{batch.id}/report.csv"))

    assert row["metadata.note"] == cell


def test_what_an_error_says_is_made_harmless_too(http: httpx.Client, batch: Batch) -> None:
    assert rows(http.get(f"/v1/batches/{batch.id}/report.csv"))[1]["error_message"] == "'=不行"


def test_results_are_what_succeeded_without_the_providers_links(http: httpx.Client, play: Stage, batch: Batch) -> None:
    answer = http.get(f"/v1/batches/{batch.id}/results.jsonl")
    (line,) = lines(answer)
    job = batching.jobs(play, batch)[0]
    (output,) = play.document(job)["outputs"]

    assert (line["row"], line["line"], line["custom_id"], line["job_id"]) == (1, 2, "春-1", str(job.id))
    assert (line["kind"], line["metadata"], line["result"]) == ("text-to-video", {"产品": "围巾", "sku": "A1"}, None)
    names = ("n", "role", "key", "sha256", "bytes", "content_type", "duration")
    assert line["outputs"] == [{name: output[name] for name in names}]
    assert "http" not in answer.text


def test_errors_are_faults_of_rows_and_jobs_that_came_to_nothing(http: httpx.Client, batch: Batch) -> None:
    failed, skipped = lines(http.get(f"/v1/batches/{batch.id}/errors.jsonl"))

    assert (failed["row"], failed["state"], failed["error"]["code"]) == (2, "failed", "blocked")
    assert (failed["cost"], failed["billed"]) == ("3.00", "yes")
    assert (skipped["row"], skipped["job_id"], skipped["faults"]) == (4, None, [FAULT])


@pytest.mark.parametrize("state", ["rejected", "expired", "canceled"])
def test_errors_are_also_what_was_rejected_expired_or_canceled(
    http: httpx.Client, play: Stage, batch: Batch, state: str
) -> None:
    play.sql("update jobs set state = :s where state = 'failed'", s=state)

    assert lines(http.get(f"/v1/batches/{batch.id}/errors.jsonl"))[0]["state"] == state


def test_items_are_pages_of_rows_with_their_jobs(http: httpx.Client, batch: Batch) -> None:
    first = http.get(f"/v1/batches/{batch.id}/items", params={"limit": 3}).json()
    rest = http.get(f"/v1/batches/{batch.id}/items", params={"cursor": first["next_cursor"]}).json()

    assert [item["row"] for item in first["data"]] == [1, 2, 3]
    assert [item["job"]["state"] for item in first["data"]] == ["succeeded", "failed", "held"]
    assert (rest["has_more"], [item["faults"] for item in rest["data"]]) == (False, [[FAULT]])
    assert rest["data"][0]["job"] is None


@pytest.mark.parametrize(
    ("filters", "found"),
    [({"outcome": "skipped"}, [4]), ({"state": "failed,held"}, [2, 3]), ({"outcome": "made", "state": "held"}, [3])],
)
def test_items_are_narrowed_by_outcome_and_state(
    http: httpx.Client, batch: Batch, filters: dict[str, str], found: list[int]
) -> None:
    answer = http.get(f"/v1/batches/{batch.id}/items", params=filters)

    assert [item["row"] for item in answer.json()["data"]] == found


@pytest.mark.parametrize("filters", [{"outcome": "gone"}, {"state": "gone"}, {"statte": "held"}, {"cursor": "-1"}])
def test_a_filter_that_is_none_is_refused(http: httpx.Client, batch: Batch, filters: dict[str, str]) -> None:
    assert http.get(f"/v1/batches/{batch.id}/items", params=filters).status_code == 422


def test_a_row_shows_its_newest_take_and_all_takes(http: httpx.Client, play: Stage, batch: Batch) -> None:
    first = batching.jobs(play, batch)[1]
    later = play.submit()
    play.sql(
        "update jobs set first_take = :f, take = 2, batch_id = :b, batch_row = 2 where id = :id",
        f=first.id, b=batch.id, id=later.id,
    )  # fmt: skip
    play.sql("update batch_rows set job_id = :id where n = 2", id=later.id)

    one, two, *_ = http.get(f"/v1/batches/{batch.id}/items").json()["data"]

    assert (one["takes"], two["takes"]) == ([], [str(first.id), str(later.id)])
    assert (two["job"]["id"], two["job"]["take"]) == (str(later.id), 2)


def test_a_good_row_of_a_draft_says_what_it_asks_for(http: httpx.Client, play: Stage) -> None:
    asked = {"kind": "text-to-video", "model": "m", "input": {"prompt": "x" * 10_000}, "labels": {"sku": "1"}}
    draft = batching.committed(play, [{"outcome": "good", "estimate": 3_000_000, **asked}], state="draft")

    (item,) = http.get(f"/v1/batches/{draft.id}/items").json()["data"]
    (row,) = rows(http.get(f"/v1/batches/{draft.id}/report.csv"))

    assert (item["asked"]["kind"], item["asked"]["model"], item["asked"]["cost"]) == ("text-to-video", "m", "3.00")
    assert item["asked"]["input"]["prompt"].endswith("…")
    assert (row["kind"], row["metadata.sku"], row["state"]) == ("text-to-video", "1", "")


@pytest.mark.parametrize("what", ["items", "report.csv", "results.jsonl", "errors.jsonl"])
def test_anothers_batch_is_not_found(api: Served, batch: Batch, what: str) -> None:
    answer = api.http(api.key("summer")).get(f"/v1/batches/{batch.id}/{what}")

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def long(play: Stage, count: int) -> Batch:
    """A batch of many rows with a job each."""
    batch = batching.committed(play, [])
    play.sql(
        "with made as (insert into jobs (project_id, kind, model, input, labels, state, finished_at, run_at, batch_id,"
        " batch_row, result) select :p, 'text', 'qwen-plus', cast(:input as jsonb), '{\"sku\": \"A\"}', 'succeeded',"
        " now(), null, :b, n, cast(:result as jsonb) from generate_series(1, :count) as n returning id, batch_row)"
        " insert into batch_rows (batch_id, n, line, outcome, job_id)"
        " select :b, batch_row, batch_row + 1, 'made', id from made",
        p=play.project.id,
        b=batch.id,
        count=count,
        input=json.dumps({"prompt": "x" * 20_000}),
        result=json.dumps({"text": "水" * 2_000}),
    )
    return batch


def test_a_page_asks_once_for_each_kind_of_fact_however_long_it_is(play: Stage) -> None:
    batch = long(play, 100)
    asked: list[int] = []
    for limit in (2, 100):
        statements: list[str] = []
        with play.ctx.engine.connect() as connection:
            event.listen(connection, "before_cursor_execute", lambda *given, said=statements: said.append(given[2]))
            page = items.page(connection, batch, Wanted(), limit)
            items.documents(connection, "spring", page, play.now())
        assert len(page) == limit
        asked.append(len(statements))

    assert asked[0] == asked[1] < 8


@pytest.mark.parametrize("export", [exports.report, exports.results, exports.errors])
def test_a_long_batch_is_never_whole_in_memory(play: Stage, export: Any) -> None:
    batch = long(play, 3000)  # 60 MB of inputs, 18 MB of results

    tracemalloc.start()
    written = sum(len(chunk) for chunk in export(reads(play), batch))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 12 << 20
    assert written > 100_000 or export is exports.errors


def test_a_slow_reader_holds_no_connection(api: Served, http: httpx.Client, play: Stage) -> None:
    batch = long(play, 3000)  # more than the sockets' buffers hold
    reader = api.app.state.context.reader

    with http.stream("GET", f"/v1/batches/{batch.id}/results.jsonl") as answer:
        first = next(answer.iter_bytes(1000))
        play.drive(lambda: reader.pool.checkedout(), lambda out: out == 0)

    assert first.startswith(b'{"row":1,')


def test_a_project_streams_four_at_once_and_more_are_told_to_wait(http: httpx.Client, play: Stage) -> None:
    batch = long(play, 3000)
    path = f"/v1/batches/{batch.id}/results.jsonl"

    with http.stream("GET", path), http.stream("GET", path), http.stream("GET", path), http.stream("GET", path):
        refused = http.get(path)
        other = http.get(f"/v1/batches/{batch.id}/items")

    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_exports")
    assert other.status_code == 200
