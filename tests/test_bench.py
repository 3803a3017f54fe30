"""The bench's own arithmetic, and that every scenario can be run."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.bench import page, usage
from tests.bench.figures import Figure, bars, markdown, percentile, shown
from tests.bench.receivers import receiving
from tests.bench.scenarios import ALONE, SCENARIOS

BURNS = "import time\nwhile time.process_time() < {seconds}: pass\n"


def test_a_process_is_counted_with_its_children_those_that_ended_too() -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURNS.format(seconds=0.2)!r}])"
    parent = f"{child}\nimport sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        used = usage.cpu_seconds({"it": process.pid})

        process.communicate()
    assert 0.2 - 0.05 <= used["it"] < 2  # ticks are of a hundredth


def test_what_a_living_child_uses_is_its_parents() -> None:
    child = f"{BURNS.format(seconds=0.1)}print(flush=True)\nimport time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = time.process_time()

        used = usage.cpu_seconds({"us": os.getpid()})

        process.kill()
    assert used["us"] >= before + 0.1 - 0.05  # ticks are of a hundredth


def test_a_process_that_is_gone_used_nothing() -> None:
    assert usage.cpu_seconds({"nobody": 2**22 + 1}) == {"nobody": 0.0}


def test_a_difference_is_of_what_both_have() -> None:
    assert usage.difference({"a": 1.0, "gone": 2.0}, {"a": 1.5, "new": 3.0}) == {"a": 0.5}


def test_statements_are_counted_by_their_words_without_their_values() -> None:
    log = (
        "2026-11-26 21:00:00.000 UTC [7] LOG:  execute _pg3_1: UPDATE jobs\n\tSET claim = $1 WHERE id = 7\n"
        "2026-11-26 21:00:00.001 UTC [7] LOG:  statement: COMMIT\n"
        "2026-11-26 21:00:00.002 UTC [7] LOG:  execute <unnamed>: UPDATE jobs SET claim = $2 WHERE id = 8\n"
        "2026-11-26 21:00:00.003 UTC [7] LOG:  checkpoint starting: time\n"
    )

    assert usage.statements(log) == {"UPDATE jobs SET claim = ? WHERE id = ?": 2, "COMMIT": 1}


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_a_value_that_was_seen(share: float, value: int) -> None:
    assert percentile([*range(100, 0, -1)], share) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")],
)
def test_figures_are_shown_with_the_digits_that_matter(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_a_table_has_a_row_for_each_figure_under_its_scenario() -> None:
    figures = [Figure("one", "a", "ms", 1.0), Figure("one", "b", "s", None), Figure("two", "c", "", 2.0)]

    lines = markdown(figures).splitlines()

    assert lines[0] == "### one"
    assert "| a | 1.00 | ms |" in lines
    assert "| b | – | s |" in lines
    assert "### two" in lines


def test_bars_are_of_one_scale_and_leave_out_what_has_no_value() -> None:
    drawn = bars([Figure("x", "long", "", 40.0), Figure("x", "half", "", 20.0), Figure("x", "none", "", None)])

    assert [line.count("█") for line in drawn.splitlines()] == [40, 20]


def test_the_picture_compares_noria_with_its_peers() -> None:
    figures = [
        Figure("cost of a job", "Noria: workers and clock", "ms CPU a job", 20.0),
        Figure("cost of a job", "Noria: API", "ms CPU a job", 9.0),
        Figure("cost of a job", "Celery chain: all its processes", "ms CPU a job", 25.0),
    ]

    assert [(each.name, each.value) for each in page.compared(figures)] == [("Noria", 20.0), ("Celery chain", 25.0)]


def test_the_page_has_the_marks_between_which_results_are_written() -> None:
    page_text = page.PAGE.read_text()

    assert page_text.count("<!-- results -->") == 1
    assert page_text.index("<!-- results -->") < page_text.index("<!-- end of results -->")


def test_receivers_note_each_message_once_and_a_dead_one_notes_none() -> None:
    with receiving(count=2, dead=1) as mail:
        for url, message in ((mail.urls[0], "a"), (mail.urls[1], "b"), (mail.urls[0], "a")):
            request = urllib.request.Request(url, b"{}", {"webhook-id": message}, method="POST")
            assert urllib.request.urlopen(request, timeout=5).status == 204
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(urllib.request.Request(mail.urls[2], b"{}"), timeout=0.2)

        assert set(mail.came) == {"a", "b"}
        assert mail.wait_for(2, 1)
        assert all(math.isfinite(came) for came in mail.came.values())


def test_every_scenario_and_every_older_program_can_be_imported() -> None:
    modules = [path.stem for path in Path(page.__file__).parent.glob("*.py") if path.stem != "__init__"]

    for name in modules:
        importlib.import_module(f"tests.bench.{name}")

    assert all(map(callable, (*SCENARIOS.values(), *ALONE.values())))
