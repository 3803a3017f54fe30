"""Files of many jobs, as spreadsheets, people and programs write them: what their rows mean, and what is refused."""

from __future__ import annotations

import codecs
import csv
import io
import json
import tempfile
import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.batches import columns, files
from worker.batches.files import CellFault, Found, Row
from worker.batches.lines import ROW
from worker.errors import InvalidInput
from worker.jobs.submission import Submission
from worker.kinds import OFFERED, Kind

PROMPT = "清晨的厨房，阳光照在牛肉面上"


def read(content: str | bytes, name: str = "campaign.csv", content_type: str = "") -> tuple[Found, list[Row]]:
    data = content.encode() if isinstance(content, str) else content
    found, rows = files.read(io.BytesIO(data), name, content_type)
    return found, list(rows)


def bodies(content: str | bytes, name: str = "campaign.csv") -> list[dict[str, Any] | None]:
    _, rows = read(content, name)
    assert [row.faults for row in rows] == [()] * len(rows)
    return [row.body for row in rows]


def faults(content: str | bytes, name: str = "campaign.csv") -> list[tuple[int, CellFault]]:
    return [(row.line, fault) for row in read(content, name)[1] for fault in row.faults]


def refusal(content: str | bytes, name: str = "campaign.csv") -> dict[str, str]:
    """The codes and messages with which a file is refused."""
    with pytest.raises(InvalidInput) as refused:
        read(content, name)
    assert {fault.pointer for fault in refused.value.faults} == {"/file"}
    return {fault.code: fault.message for fault in refused.value.faults}


def clip(prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    return {"kind": "text-to-video", "input": {"prompt": prompt, **more}}


# Encodings, delimiters and line ends


@pytest.mark.parametrize(
    ("encoding", "mark", "named"),
    [
        ("utf-8", b"", "utf-8"),
        ("utf-8", codecs.BOM_UTF8, "utf-8"),  # Excel's 'CSV UTF-8'
        ("utf-16-le", codecs.BOM_UTF16_LE, "utf-16"),  # Excel's 'Unicode text'
        ("utf-16-be", codecs.BOM_UTF16_BE, "utf-16"),
        ("utf-16-le", b"", "utf-16"),
        ("utf-16-be", b"", "utf-16"),
        ("utf-32-le", codecs.BOM_UTF32_LE, "utf-32"),
        ("gb18030", b"", "gb18030"),  # Excel's 'CSV' in China
    ],
)
def test_the_encoding_is_found(encoding: str, mark: bytes, named: str) -> None:
    content = mark + f"kind,prompt\r\ntext-to-video,{PROMPT}\r\n".encode(encoding)

    found, rows = read(content)

    assert found == Found("csv", named, ",")
    assert [row.body for row in rows] == [clip()]


@pytest.mark.parametrize("prompt", ["夜市", "電視", "ice—cream", "“a”", "￥5", "朱镕基", "👍", "臺灣的夜市", "①"])
def test_few_characters_show_that_a_file_is_in_gb18030(prompt: str) -> None:
    assert bodies(f"prompt\n{prompt}\n".encode("gb18030")) == [{"input": {"prompt": prompt}}]


@pytest.mark.parametrize("ends", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_and_line_ends_are_found(delimiter: str, ends: str) -> None:
    table = [
        ["kind", "prompt", "metadata.note"],
        ["text-to-video", f"one{delimiter} two", 'a "b"\n\nc'],
        ["x", "y", "z"],
    ]
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter, lineterminator=ends).writerows(table)

    found, rows = read(written.getvalue())

    assert found.delimiter == delimiter
    assert [row.line for row in rows] == [2, 5]
    assert rows[0].body == {**clip(f"one{delimiter} two"), "metadata": {"note": 'a "b"\n\nc'}}


def test_a_quoted_delimiter_in_the_header_separates_nothing() -> None:
    found, rows = read('kind;prompt;"metadata.a,b,c,d"\nx;y;z\n')

    assert found.delimiter == ";"
    assert rows[0].body == {"kind": "x", "input": {"prompt": "y"}, "metadata": {"a,b,c,d": "z"}}


def test_excels_line_that_names_the_delimiter_is_no_header() -> None:
    found, rows = read("\ufeffsep=;\r\nkind;prompt\r\nx;a, b\r\n")

    assert (found.delimiter, rows[0].line, rows[0].body) == (";", 3, {"kind": "x", "input": {"prompt": "a, b"}})
    assert "unknown_delimiter" in refusal("sep=|\nkind|prompt\nx|y\n")


def test_a_column_needs_no_other_beside_it() -> None:
    assert bodies("prompt\na cat\n") == [{"input": {"prompt": "a cat"}}]


def test_empty_rows_cells_and_trailing_columns_say_nothing() -> None:
    content = "\n,,\nkind,prompt,duration,,\n\n,,,,\nx,a cat,,,\n \t,\u3000,,,\ny\n"

    _, rows = read(content)

    assert [(row.n, row.line, row.body) for row in rows] == [
        (1, 6, {"kind": "x", "input": {"prompt": "a cat"}}),
        (2, 8, {"kind": "y"}),
    ]


def test_blanks_around_a_cell_are_no_part_of_it_and_a_quote_may_follow_them() -> None:
    assert bodies('kind, prompt , duration\n x ,  "one, two", 5 \n') == [
        {"kind": "x", "input": {"prompt": "one, two", "duration": "5"}}
    ]


# Names of columns


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("custom_id", {"custom_id": "5"}),
        (" Custom ID ", {"custom_id": "5"}),
        ("custom-id", {"custom_id": "5"}),
        ("customId", {"custom_id": "5"}),
        ("ＣＵＳＴＯＭ＿ＩＤ", {"custom_id": "5"}),
        ("“custom_id”", {"custom_id": "5"}),
        ("＂custom_id＂", {"custom_id": "5"}),
        ("\ufeff\u200bcustom_id", {"custom_id": "5"}),
        ("Negative Prompt", {"input": {"negative_prompt": "5"}}),
        ("Input.Duration", {"input": {"duration": "5"}}),
        ("image_url", {"input": {"img_url": "5"}}),  # as its kind takes it too
        ("Metadata.SKU", {"metadata": {"SKU": "5"}}),
        ("metadata．My Shop", {"metadata": {"My Shop": "5"}}),
    ],
)
def test_a_column_is_known_however_its_name_is_written(header: str, body: dict[str, Any]) -> None:
    assert bodies(f"{header},Prompt\n5,\n") == [body]


@pytest.mark.parametrize("kind", OFFERED.values(), ids=OFFERED)
def test_every_field_of_every_kind_is_a_column(kind: Kind) -> None:
    of_input = list(kind.input.model_fields)
    of_job = [each.name for each in fields(Submission) if each.name not in ("input", "metadata")]

    _, rows = read(",".join(of_job + of_input) + "\n" + ",".join(["auto"] * len(of_job + of_input)))

    assert list(rows[0].columns) == [f"/{name}" for name in of_job] + [f"/input/{name}" for name in of_input]


def test_each_field_is_told_the_name_that_its_column_has_in_the_file() -> None:
    _, rows = read("Kind, Custom ID,Metadata.SKU,Prompt\nx,1,2,3\n")

    assert rows[0].columns == {
        "/kind": "Kind",
        "/custom_id": "Custom ID",
        "/metadata/SKU": "Metadata.SKU",
        "/input/prompt": "Prompt",
    }


def test_a_column_that_is_no_field_is_refused_once_with_what_was_probably_meant() -> None:
    found = refusal("kind,promt\n" + "x,y\n" * 1000)

    assert found == {
        "unknown_column": "column B, promt, is no field of a job: did you mean prompt or priority? Else call it "
        "metadata.promt, or take it out"
    }
    assert "metadata.sku" in refusal("kind,metadata\nx,y\n")["unknown_column"]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("kind,Prompt,prompt\nx,y,z\n", "duplicate_column", "columns B and C are both prompt"),
        ("img_url,image_url\nx,y\n", "duplicate_column", "columns A and B are both img_url"),
        ("kind,metadata." + "k" * 100 + "\nx,y\n", "unknown_column", "over 100 characters"),
        (
            "kind,,prompt\nx,,z\nx,y,z\n",
            "unnamed_column",
            "column B has no name in the first row, and a cell in line 3",
        ),
        ("a,b,5\nc,d,7\n", "no_header", "names no column"),
        ("kind，prompt\nx，y\n", "no_header", "full-width commas"),
        ("kind；prompt\nx；y\n", "no_header", "full-width semicolons"),
        ("kind|prompt\nx|y\n", "no_header", "bars"),
        ("prompt," + ",".join(f"metadata.k{n}" for n in range(200)) + "\nx\n", "too_many_columns", "201 columns"),
        ("kind" * 20_000, "no_header", "65536 characters"),
    ],
)
def test_a_header_that_cannot_be_meant_is_refused(content: str, code: str, message: str) -> None:
    assert message in refusal(content)[code]


def test_too_many_columns_are_refused_before_their_names_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns.difflib, "get_close_matches", None)
    names = ",".join(f"negative_promp{n}" for n in range(201))

    assert "202 columns" in refusal(f"kind,{names}\na\n")["too_many_columns"]


# What cells mean


def test_free_text_ids_and_links_are_kept_as_they_are_written() -> None:
    prompt = "“１２３”，Ａ ﬁsh②"

    assert bodies(f"prompt,img_url,custom_id,metadata.sku\n{prompt},https://example.com/１,Ａ１,②\n") == [
        {
            "input": {"prompt": prompt, "img_url": "https://example.com/１"},
            "custom_id": "Ａ１",
            "metadata": {"sku": "②"},
        }
    ]


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [
        ("duration", "５", "5"),
        ("seed", "“１２３”", "123"),
        ("temperature", "０．７", "0.7"),
        ("temperature", "1.5E-01", "1.5E-01"),
        ("temperature", "1E+00", "1E+00"),
        ("ratio", "１６：９", "16:9"),
        ("size", "１２８０＊７２０", "1280*720"),
        ("watermark", "ＴＲＵＥ", "TRUE"),
        ("shot_type", "＂multi＂", "multi"),
    ],
)
def test_numbers_switches_and_words_to_choose_from_are_read_in_half_width(column: str, cell: str, value: str) -> None:
    assert bodies(f"prompt,{column}\nx,{cell}\n") == [{"input": {"prompt": "x", column: value}}]


def test_quotes_in_full_width_are_quotes_where_the_names_of_all_columns_have_them() -> None:
    assert bodies("“kind”,“prompt”\n“x”,“a “big” cat”\n") == [{"kind": "x", "input": {"prompt": "a “big” cat"}}]
    assert bodies("kind,prompt,duration,stop\nx,“a cat”,“”,”\n") == [
        {"kind": "x", "input": {"prompt": "“a cat”", "stop": "”"}}
    ]


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [
        ("tools", '[{"type": "function"}]', [{"type": "function"}]),
        ("documents", '[{"text": "１"}]', [{"text": "１"}]),
        ("style", '{"schema": {}}', {"schema": {}}),
        ("style", "bullets", "bullets"),
        ("stop", '["a", "b"]', ["a", "b"]),
        ("stop", "[END]", "[END]"),
        ("formats", "wav, mp3", "wav, mp3"),  # which its kind divides
        ("prompt", "[a cat]", "[a cat]"),
        ("prompt", '{"a": 1}', '{"a": 1}'),
    ],
)
def test_json_is_read_where_a_field_takes_a_list_or_an_object(column: str, cell: str, value: Any) -> None:
    quoted = cell.replace('"', '""')

    assert bodies(f'kind,{column}\nx,"{quoted}"\n') == [{"kind": "x", "input": {column: value}}]


def test_events_are_listed_in_a_cell() -> None:
    content = 'kind;webhook_events\nx;job.succeeded, job.failed\ny;"[""job.failed""]"\n'

    assert [row and row["webhook_events"] for row in bodies(content)] == [
        ["job.succeeded", "job.failed"],
        ["job.failed"],
    ]


@pytest.mark.parametrize("column", ["custom_id", "metadata.order", "seed", "prompt", "ratio"])
@pytest.mark.parametrize("cell", ["2.02603E+11", "1E+12", "-1.2e+16", "2,02603E+11"])
def test_a_number_that_a_spreadsheet_shortened_is_refused_by_name(column: str, cell: str) -> None:
    [(line, fault)] = faults(f"kind;{column}\nx;{cell}\n")

    assert (line, fault.code, fault.column) == (2, "lost_digits", column)
    assert cell in fault.message
    assert "format the column as text" in fault.message


@pytest.mark.parametrize(
    "cell", ["5E10", "1e10", "E+11", "5E-10", "2.02603E+11 seconds", "2026030112345678", "+8613800138000"]
)
def test_what_only_resembles_a_shortened_number_is_taken(cell: str) -> None:
    assert bodies(f"custom_id,prompt\n{cell},{cell}\n") == [{"custom_id": cell, "input": {"prompt": cell}}]


@pytest.mark.parametrize("cell", ["16:09", "1:01", "9:16:00", "１６：０９"])
def test_a_ratio_that_a_spreadsheet_took_for_a_time_is_refused_by_name(cell: str) -> None:
    [(line, fault)] = faults(f"prompt,ratio,metadata.at\n{cell},{cell},{cell}\nx,9:16,\n")

    assert (line, fault.pointer, fault.code) == (2, "/input/ratio", "became_a_time")
    assert "format the column as text" in fault.message


@pytest.mark.parametrize("cell", ["#REF!", "#N/A", "#NAME?", "#DIV/0!", "#VALUE!", "########"])
def test_an_error_of_a_spreadsheet_is_refused_by_name(cell: str) -> None:
    [(line, fault)] = faults(f"kind,prompt\nx,# 1 cat\nx,{cell}\n")

    assert (line, fault.pointer, fault.code) == (3, "/input/prompt", "spreadsheet_error")
    assert cell in fault.message


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("[1", "invalid_json"),
        ('[{"a": 1, "a": 2}]', "invalid_json"),
        ("[" * 30, "invalid_json"),
        ("[" * 200_000, "too_deep"),
        ("[" * 40 + "]" * 40, "too_deep"),
        ("[" + "9" * 5000 + "]", "bad_number"),
        (r'["\ud800"]', "bad_text"),
    ],
)
def test_a_cell_of_json_that_cannot_be_taken_is_a_fault(cell: str, code: str) -> None:
    quoted = cell.replace('"', '""')

    [(_, fault)] = faults(f'kind,tools\nx,"{quoted}"\n')

    assert (fault.pointer, fault.code) == ("/input/tools", code)


def test_a_nul_is_a_fault_of_its_cell() -> None:
    [(line, fault)] = faults("kind,prompt\nx," + "a cat " * 20 + "\0\n")

    assert (line, fault.pointer, fault.code) == (2, "/input/prompt", "bad_text")


def test_a_row_with_a_fault_keeps_what_is_right_of_it() -> None:
    _, rows = read("kind,custom_id,prompt\nx,1E+12,a cat\n")

    assert rows[0].body == {"kind": "x", "input": {"prompt": "a cat"}}


# Rows that cannot be read, and files


def test_a_row_with_more_cells_than_columns_is_a_fault_of_that_row() -> None:
    _, rows = read("kind,prompt\nx,a cat, running\ny,a dog\n")

    assert [(row.line, row.body is None, [fault.code for fault in row.faults]) for row in rows] == [
        (2, True, ["too_many_cells"]),
        (3, False, []),
    ]


def test_a_quote_at_a_wrong_place_is_a_fault_of_its_row() -> None:
    _, rows = read('kind,prompt\nx,"a "big" cat"\ny,a 5" dog\n')

    assert [(row.line, [fault.code for fault in row.faults]) for row in rows] == [(2, ["bad_quotes"]), (3, [])]
    assert rows[1].body == {"kind": "y", "input": {"prompt": 'a 5" dog'}}


def test_no_row_is_lost_to_a_quote_that_was_opened_by_mistake() -> None:
    content = 'kind,prompt\nx,"a cat\n' + "y,a dog\n" * 50 + 'z,"a bird"\n'

    _, rows = read(content)

    assert [row.line for row in rows] == list(range(2, 54))
    assert [row.line for row in rows if row.faults] == [2]
    assert "line 53" in rows[0].faults[0].message
    assert rows[-1].body == {"kind": "z", "input": {"prompt": "a bird"}}


@pytest.mark.parametrize("rows", [3, 200_000])
def test_a_quote_that_is_never_closed_is_refused_with_its_line(rows: int) -> None:
    content = 'kind,prompt\nx,"two\nlines"\nx,"a cat\n' + "y,a dog\n" * rows

    assert "line 4" in refusal(content)["unclosed_quote"]
    assert "line 1" in refusal('kind,"prompt\nx,y\n')["unclosed_quote"]


def test_a_row_of_over_a_mebibyte_is_refused() -> None:
    assert "line 2" in refusal("kind,prompt\nx," + "a" * ROW)["row_too_long"]


@pytest.mark.parametrize(
    ("content", "name", "code", "message"),
    [
        (b"", "a.csv", "empty_file", "is empty"),
        (codecs.BOM_UTF8 + b"\r\n \r\n", "a.csv", "empty_file", "is empty"),
        (b",,\n,,\n", "a.csv", "empty_file", "is empty"),
        (b"kind,prompt\r\n,,\r\n", "a.csv", "no_rows", "its first row names the columns"),
        (b"[]", "a.json", "no_rows", "has no rows"),
        (b"PK\x03\x04\x14\0" + b"\0" * 20, "a.xlsx", "binary", "an Excel workbook"),
        (b"PK\x03\x04\x14\0\6\0[Content_Types].xml xl/workbook.xml", "a.csv", "binary", "an Excel workbook"),
        (b"PK\x03\x04\x14\0" + b"\0" * 20, "a.zip", "binary", "a ZIP archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 20, "a.csv", "binary", "an Excel workbook"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "a.csv", "binary", "image/png"),
        (b"%PDF-1.7\n", "a.csv", "binary", "a PDF"),
        (b"\x1f\x8b\x08\0\0", "a.csv.gz", "binary", "gzip"),
        (b"\x7fELF\2\1\1" + b"\0" * 200, "a.csv", "binary", "no text"),
        (b"<html><table><tr><td>kind</td></tr></table>", "a.xls", "binary", "a web page"),
        (f"kind,prompt\nx,{PROMPT}\ny,caf\xe9 a\n".encode("cp1252", "ignore"), "a.csv", "unknown_encoding", "line 3"),
        ("kind,prompt\nx,Müller fährt\n".encode("cp1252"), "a.csv", "unknown_encoding", "CSV UTF-8"),
        ("kind,prompt\nx,水庫在夏天要放水，鎮上的人都知道\n".encode("big5"), "a.csv", "unknown_encoding", "CSV UTF-8"),
        (("prompt\n" + "少女\n" * 18).encode() + b"a\xb2\xe2b\n", "a.csv", "unknown_encoding", "line 20"),
        (("prompt\n" + "Café\n" * 18).encode() + b"a\xb2\xe2b\n", "a.csv", "unknown_encoding", "line 20"),
        (codecs.BOM_UTF8 + b"kind,prompt\nx,y\nx,\xff\n", "a.csv", "unknown_encoding", "line 3"),
        (f"kind,prompt\nx,{PROMPT}".encode()[:-1], "a.csv", "unknown_encoding", "line 2"),
        (b"kind,prompt\nx,y\n" * 2 + b"\n" * 2_000_001, "a.csv", "too_many_lines", "2,000,000"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_by_what_it_is(content: bytes, name: str, code: str, message: str) -> None:
    assert message in refusal(content, name)[code]


def test_a_row_over_the_limit_is_refused_when_it_is_reached() -> None:
    content = io.BytesIO(b"prompt\n" + b"a cat\n" * 4)

    _, rows = files.read(content, "a.csv", "", limit=3)

    assert [next(rows).n for _ in range(3)] == [1, 2, 3]
    with pytest.raises(InvalidInput) as refused:
        next(rows)
    assert refused.value.faults[0].code == "too_many_rows"


def test_the_file_stays_open_and_may_lie_on_the_disk() -> None:
    with tempfile.SpooledTemporaryFile(max_size=10) as file:
        file.write(b"prompt\na cat\n")
        _, rows = files.read(file, "a.csv", "text/csv")  # type: ignore[arg-type]
        del rows

        assert not file.closed


# JSON lines and JSON


def test_json_lines_are_bodies_of_jobs() -> None:
    content = "\ufeff" + json.dumps(clip()) + "\r\n\r\n" + json.dumps({**clip(), "priority": "low"}, ensure_ascii=False)

    found, rows = read(content, "jobs.jsonl")

    assert found == Found("jsonl", "utf-8", None)
    assert [(row.n, row.line, row.body) for row in rows] == [(1, 1, clip()), (2, 3, {**clip(), "priority": "low"})]


@pytest.mark.parametrize(
    ("line", "pointer", "code"),
    [
        ("[1]", "", "not_an_object"),
        ("nothing", "", "invalid_json"),
        ('{"a": 1', "", "invalid_json"),
        ('{"a": {"b": 1, "b": 2}}', "", "invalid_json"),
        ("[" * 200_000, "", "too_deep"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "/a" + "/0" * 32, "too_deep"),
        ('{"a": ' + "9" * 5000 + "}", "/a", "bad_number"),
        ('{"a": NaN}', "/a", "bad_number"),
        ('{"a": "\\u0000"}', "/a", "bad_text"),
        ('{"a": "\\ud800"}', "/a", "bad_text"),
        ('{"a": "' + "b" * ROW + '"}', "", "too_long"),
        ('{"a": "' + "清" * (ROW // 3) + '"}', "", "too_long"),
    ],
)
def test_a_line_that_is_no_job_is_a_fault_of_that_line(line: str, pointer: str, code: str) -> None:
    _, rows = read(f"{json.dumps(clip())}\n{line}\n{json.dumps(clip())}\n", "jobs.jsonl")

    assert [(row.line, [(each.pointer, each.code) for each in row.faults]) for row in rows] == [
        (1, []),
        (2, [(pointer, code)]),
        (3, []),
    ]


def test_the_line_after_one_that_is_too_long_is_read() -> None:
    _, rows = read('{"a": "' + "b" * 3 * ROW + '"}\r\n{"kind": "x"}\n', "jobs.jsonl")

    assert [(row.line, row.body) for row in rows] == [(1, None), (2, {"kind": "x"})]


def test_the_faults_of_a_row_are_bounded() -> None:
    _, rows = read('{"' + "k" * 100_000 + '": [' + "NaN," * 1000 + "NaN]}\n", "jobs.jsonl")

    assert len(rows[0].faults) == 20
    assert all(len(fault.pointer) <= 1000 for fault in rows[0].faults)


@pytest.mark.parametrize(
    "content", ['[{"kind": "x"},\n\n{"kind": "y"}]', '{"items": [{"kind": "x"},\r\n\r\n{"kind": "y"}\n]}']
)
def test_json_is_a_list_or_an_object_with_items(content: str) -> None:
    found, rows = read(content, "jobs.json")

    assert found == Found("json", "utf-8", None)
    assert [(row.line, row.body) for row in rows] == [(1, {"kind": "x"}), (3, {"kind": "y"})]


@pytest.mark.parametrize(
    ("content", "name", "found"),
    [
        ('{"kind": "x"}', "a", "jsonl"),
        ('{"kind": "x"}\n{"kind": "x"}', "a.csv", "jsonl"),
        ('{"kind": "x"}\n{"kind": "x"}', "a.json", "jsonl"),
        ('[{"kind": "x"}]', "a.jsonl", "json"),
        ("kind\nx", "a", "csv"),
        ("kind\nx", "a.txt", "csv"),
    ],
)
def test_the_bytes_say_what_a_file_is_whatever_its_name(content: str, name: str, found: str) -> None:
    assert read(content, name)[0].format == found


def test_the_content_type_says_what_the_bytes_do_not() -> None:
    found, _ = read("nothing\n", "a", "application/x-ndjson; charset=utf-8")

    assert found.format == "jsonl"


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ('[{"a": 1},\n{"b" 2}]', "invalid_json", "line 2"),
        ("[1,]", "invalid_json", "character 4"),
        ("[1] [2]", "invalid_json", "end of the list"),
        ("[1]}", "invalid_json", "end of the list"),
        ('{"items": [1]', "invalid_json", "end of the list"),
        ('[{"a": 1, "a": 2}]', "invalid_json", "the name a stands twice"),
        ('{\n"kind": "x"}', "not_a_list", "a list of jobs"),
        ('{"name": "x", "items": [1]}', "not_a_list", "nothing beside it"),
        ("[" * 200_000, "too_deep", "32 levels"),
        ("[" + "1," * (2 << 20) + "1]", "too_large", "JSON lines"),
    ],
)
def test_json_in_one_piece_that_is_wrong_is_refused(content: str, code: str, message: str) -> None:
    assert message in refusal(content, "jobs.json")[code]


def test_requests_of_openais_batch_api_are_refused_by_name() -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}

    assert "OpenAI" in refusal(json.dumps(line), "requests.jsonl")["openai_batch"]


# Any table, any bytes

CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
CHINESE = st.text('的一是不了在人有我他，。a1 ;,\t"\n', max_size=20)


def is_plain(cell: str) -> bool:
    """Whether a cell is not one that a spreadsheet is known to have spoilt."""
    return not cell.strip().startswith("#") and "E+" not in cell.upper()


@settings(deadline=None)
@given(
    table=st.lists(st.lists(CELLS.filter(is_plain), min_size=3, max_size=3), min_size=1, max_size=5),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    delimiter=st.sampled_from(",;\t"),
    ends=st.sampled_from(["\r\n", "\n", "\r"]),
)
@example(table=[["a\rb", "a\nb", 'a\r\n"']], encoding="utf-16", delimiter="\t", ends="\r")
def test_any_table_reads_as_it_was_written(table: list[list[str]], encoding: str, delimiter: str, ends: str) -> None:
    written = io.StringIO(newline="")
    header = ["prompt", "negative_prompt", "metadata.note"]
    # Python 3.11 quotes no line end but the one that it writes itself
    quoting = csv.QUOTE_MINIMAL if ends == "\r\n" else csv.QUOTE_ALL
    csv.writer(written, delimiter=delimiter, lineterminator=ends, quoting=quoting).writerows([header, *table])
    wanted = [[cell.strip() for cell in row] for row in table if any(cell.strip() for cell in row)]

    rows = outcome(written.getvalue().encode(encoding))

    assert [in_order(row.body or {}) for row in rows] == wanted


@settings(deadline=None)
@given(table=st.lists(st.lists(CHINESE, min_size=2, max_size=2), max_size=5))
def test_any_chinese_table_reads_as_it_was_written_in_gb18030(table: list[list[str]]) -> None:
    written = io.StringIO(newline="")
    rows_written = [["prompt", "metadata.note"], [PROMPT, ""], *table]
    csv.writer(written).writerows(rows_written)

    found, rows = read(written.getvalue().encode("gb18030"))

    assert found.encoding == "gb18030"
    wanted = [[cell.strip() for cell in row] for row in rows_written[1:] if any(cell.strip() for cell in row)]
    assert [[row[0], row[2]] for row in (in_order(each.body or {}) for each in rows)] == wanted


def outcome(content: bytes, name: str = "a.csv") -> list[Row]:
    """The rows; none of a file that is refused."""
    try:
        return read(content, name)[1]
    except InvalidInput:
        return []


def in_order(body: Mapping[str, Any]) -> list[str]:
    asked, metadata = body.get("input", {}), body.get("metadata", {})
    return [asked.get("prompt", ""), asked.get("negative_prompt", ""), metadata.get("note", "")]


BEGINNINGS = [
    b"seed,ratio,style,stop,webhook_events\n",
    b"",
    b"kind,prompt\n",
    b"{",
    b'{"items": [',
    b"[",
    b'kind,tools\nx,"[',
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF8,
    b"sep=",
]
PIECES = [b'"', b",", b";", b"\n", b"\r", b"\0", b"{", b"]", b":", b"\\u", b"sep=", b"1E+5", b"'"]
PIECES += [piece.encode() for piece in ("清，", "“", "”", "１")]


@settings(deadline=2000)
@given(
    begins=st.sampled_from(BEGINNINGS),
    rest=st.binary(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join),
    name=st.sampled_from(["a.csv", "a.jsonl", "a.json", ""]),
)
def test_any_bytes_are_rows_or_a_refusal(begins: bytes, rest: bytes, name: str) -> None:
    rows = outcome(begins + rest, name)

    assert [row.n for row in rows] == list(range(1, len(rows) + 1))
    assert all(row.faults or row.body is not None for row in rows)
    json.dumps([row.body for row in rows], allow_nan=False).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"\n" * (8 << 20),
        b"kind,prompt\n" + b"," * (8 << 20),
        b"kind,prompt\n" + b'"\n' * (4 << 20),
        b"kind\n" + b'"a"b\n' * 40_000,
        b'{"a":{' + b",".join(b'"%d":1' % n for n in range(90_000)) + b',"89999":2}}',
        b'"' * (8 << 20),
        b" " * (8 << 20),
        b"[1" + b" " * (4 << 20 >> 1) + b"x",
    ],
)
def test_no_file_takes_long(content: bytes) -> None:
    began = time.process_time()

    outcome(content)

    assert time.process_time() - began < 10  # seconds; what takes quadratic time takes minutes


def test_a_large_file_is_never_whole_in_memory() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"kind,prompt,metadata.n\n")
        file.writelines(f"x,{PROMPT * 20},{n}\n".encode() for n in range(20_000))
        size = file.tell()
        _, rows = files.read(file, "a.csv", "")
        tracemalloc.start()

        count = sum(1 for row in rows if not row.faults)

        assert (count, size > 16 << 20) == (20_000, True)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()
