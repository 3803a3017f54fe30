"""The console in a real browser: by keyboard, by phone, without scripts, and for people who do not see it."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import Served, eventually, served
from stage import Stage

from tests.chaos import lines
from worker.states import State

CHROMIUM = shutil.which("chromium")
QUIETLY = (
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 20_000  # milliseconds
PAGES = ("batches", "upload", "gallery", "review", "schedules", "webhooks", "money", "lanes?every=1")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: tests/debian.sh gets it"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    boxed = [] if os.geteuid() else ["--no-sandbox"]  # Chromium's own sandbox is not for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIETLY, *boxed])
        yield browser
        browser.close()


@pytest.fixture
def api(environment: dict[str, str], play: Stage) -> Iterator[Served]:
    with served(environment) as made:
        yield made


@pytest.fixture
def faults() -> list[str]:
    """What the browser complains of: a refused script, a missing file, an error in a script of ours."""
    return []


@pytest.fixture
def opened(chromium: Browser, api: Served, play: Stage, faults: list[str]) -> Iterator[Opened]:
    made = Opened(chromium, api, api.key(play.project.name), faults)
    yield made
    made.close()
    assert faults == []


class Opened:
    """Opens pages of the console, signed in."""

    def __init__(self, chromium: Browser, api: Served, key: str, faults: list[str]) -> None:
        self._chromium, self._api, self._key, self._faults = chromium, api, key, faults
        self._contexts = []

    def page(self, path: str, **options: object) -> Page:
        context = self._chromium.new_context(**{"base_url": self._api.url, **options})
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda said: self._faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self._faults.append(str(error)))
        page.goto("/console/sign-in")
        page.get_by_role("textbox").first.fill(self._key)
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/batches")
        page.goto(path)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()


def spring(rows: int, **defaults: str) -> dict[str, object]:
    written = io.StringIO()
    named = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "size": "832*480", "review": "required"} | defaults
    lines = [["custom_id", "prompt", *named], *([f"row-{n}", f"a heron, {n}", *named.values()] for n in range(rows))]
    csv.writer(written).writerows(lines)
    return {"name": "spring.csv", "mimeType": "text/csv", "buffer": written.getvalue().encode()}


def drive(play: Stage, rows: int) -> None:
    """Drives everything until so many jobs wait for a person."""
    waiting = "select id from jobs where state = 'awaiting_review'"
    play.drive(lambda: play.sql(waiting), lambda found: len(found) == rows)


def test_a_file_becomes_clips_that_are_kept_rejected_and_made_again_by_keyboard_alone(
    opened: Opened, play: Stage, tmp_path: Path
) -> None:
    page = opened.page("/console/batches")
    expect(page.get_by_text("Nothing yet")).to_be_visible()
    page.get_by_role("link", name="Upload a file").press("Enter")

    # upload, price, commit
    page.get_by_label("File", exact=True).set_input_files(spring(3))
    page.get_by_role("button", name="Check and price it").press("Enter")
    expect(page.locator(".amount")).to_have_text("¥4.50")
    assert play.sql("select * from jobs") == []
    page.get_by_role("button", name="Make the jobs: 3").press("Enter")

    # watch: the page moves by itself
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    page.evaluate("window.untouched = true")
    drive(play, 3)
    expect(page.get_by_role("link", name="3 to review")).to_be_visible(timeout=2 * PATIENCE)
    assert page.evaluate("window.untouched"), "the page was not loaded anew"
    page.get_by_role("link", name="3 to review").press("Enter")

    # review
    expect(page.get_by_role("heading", level=2)).to_have_text("row-2")
    eventually(lambda: page.evaluate("document.querySelector('.take.now video').readyState > 1"))
    page.keyboard.press("Space")
    eventually(lambda: page.evaluate("!document.querySelector('.take.now video').paused"))
    page.keyboard.press("n")
    expect(page.get_by_role("heading", level=2)).to_have_text("row-1")
    page.wait_for_load_state()  # the heading is there before the script that hears keys
    page.keyboard.press("a")
    page.wait_for_url("**done=approve**")
    page.goto(page.url.replace("after=", "seen="))
    expect(page.get_by_role("heading", level=2)).to_have_text("row-2")
    page.keyboard.press("r")
    page.keyboard.type("five legs, a n e r")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=2)).to_have_text("row-0")
    page.wait_for_load_state()
    page.keyboard.press("e")
    page.keyboard.type("a crane")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Nothing waits for a review")).to_be_visible()
    made_again = play.sql("select * from jobs where take = 2")[0]
    assert made_again["input"]["prompt"] == "a crane"

    # takes side by side, and the report
    drive(play, 1)
    page.get_by_role("link", name="To the batch").press("Enter")
    page.get_by_role("link", name="1 to review").press("Enter")
    expect(page.locator("figure.take")).to_have_count(2)
    page.wait_for_load_state()
    page.keyboard.press("a")
    expect(page.get_by_text("Nothing waits for a review")).to_be_visible()
    page.get_by_role("link", name="To the batch").press("Enter")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Report (CSV)").press("Enter")
    saved.value.save_as(tmp_path / "report.csv")
    report = list(csv.DictReader((tmp_path / "report.csv").read_text("utf-8-sig").splitlines()))
    assert sorted(row["state"] for row in report) == ["rejected", "succeeded", "succeeded"]


def test_a_clip_plays_in_the_gallery(opened: Opened, play: Stage) -> None:
    play.until(play.submit(custom_id="heron"))
    page = opened.page("/console/gallery")

    page.get_by_role("link", name="Play heron").click()

    eventually(lambda: page.evaluate("document.querySelector('.gallery video').readyState > 1"))
    assert page.url.endswith("/console/gallery")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone_and_passes_axe_in_both_languages(opened: Opened, play: Stage, scheme: str) -> None:
    job = play.until(play.submit(review="required"), State.AWAITING_REVIEW)
    failed = play.submit(input={"prompt": "a cat [[fail:DataInspectionFailed]]", "size": "832*480"})
    locale = {"light": "en-GB", "dark": "zh-CN"}[scheme]
    page = opened.page("/console/upload", viewport={"width": 390, "height": 844}, color_scheme=scheme, locale=locale)
    page.locator("input[type=file]").set_input_files(spring(3, size="1*1"))
    page.locator("main button").last.press("Enter")
    page.wait_for_url("**/console/batches/*-*")
    draft = page.url

    for name in (*PAGES, f"jobs/{job.id}", f"jobs/{failed.id}", draft.partition("/console/")[2]):
        page.goto(path := f"/console/{name}")
        found = Axe().run(page, options={"resultTypes": ["violations"]})
        assert found.violations_count == 0, f"{path} {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_without_scripts_a_person_reads_and_decides(opened: Opened, play: Stage, chromium: Browser) -> None:
    play.until(play.submit(review="required"), State.AWAITING_REVIEW)
    page = opened.page("/console/review", java_script_enabled=False)

    page.get_by_role("button", name="Keep").click()

    expect(page.get_by_text("Nothing waits for a review")).to_be_visible()
    (job,) = play.sql("select * from jobs")
    assert job["state"] == State.SUCCEEDED


def test_a_page_that_cannot_move_says_so_until_it_can(opened: Opened, api: Served, faults: list[str]) -> None:
    line = lines.Line(httpx.URL(api.url).port or 0, lambda _data, _from_server: line.is_down)
    with lines.running(line):
        page = opened.page("/console/upload", base_url=f"http://127.0.0.1:{line.port}")
        page.get_by_label("File", exact=True).set_input_files(spring(1))
        page.get_by_role("button", name="Check and price it").click()
        page.get_by_role("button", name="Make the jobs: 1").click()
        away = page.get_by_text("Noria does not answer now")
        expect(page.get_by_role("heading", level=1)).to_contain_text("running")
        expect(away).to_be_hidden()

        line.is_down = True
        expect(away).to_be_visible(timeout=2 * PATIENCE)
        line.is_down = False
        expect(away).to_be_hidden(timeout=2 * PATIENCE)
        page.close()
    assert any("ERR_" in fault for fault in faults)
    faults.clear()  # which are of the cut line


def test_a_key_that_is_held_decides_once(opened: Opened, play: Stage) -> None:
    for n in range(3):
        play.until(play.submit(review="required", custom_id=f"c{n}"), State.AWAITING_REVIEW)
    page = opened.page("/console/review")
    heading = page.get_by_role("heading", level=2)

    page.keyboard.down("a")
    expect(heading).to_have_text("c1")
    for _ in range(5):
        page.keyboard.down("a")  # what a key sends that is held
    page.keyboard.up("a")
    page.keyboard.press("a")
    expect(heading).to_have_text("c0")

    assert len(play.sql("select id from jobs where state = 'succeeded'")) == 2


def test_escape_that_ends_a_composition_leaves_nobodys_field(opened: Opened, play: Stage) -> None:
    """Else the next letter of a Chinese note, an a, keeps the output."""
    play.until(play.submit(review="required"), State.AWAITING_REVIEW)
    page = opened.page("/console/review")
    page.locator("textarea").focus()

    page.evaluate(
        "document.activeElement.dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Escape', isComposing: true, bubbles: true}))"
    )

    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"


def test_a_page_that_moves_takes_nothing_from_under_a_persons_hand(opened: Opened, play: Stage) -> None:
    page = opened.page("/console/upload")
    page.get_by_label("File", exact=True).set_input_files(spring(3))
    page.get_by_role("button", name="Check and price it").press("Enter")
    page.get_by_role("button", name="Make the jobs: 3").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("running")
    page.locator("details.ask summary").click()  # it asks whether to cancel
    page.evaluate("window.was = document.querySelector('.counts').textContent")

    play.play(play.tick())
    eventually(lambda: page.evaluate("document.querySelector('.counts').textContent !== window.was"))

    assert page.evaluate("document.querySelector('details.ask').open"), "it was closed before the answer"
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY", "who uses a keyboard is at the page's top"


def test_a_tab_that_nobody_looks_at_leaves_its_connection_to_others(opened: Opened, play: Stage, api: Served) -> None:
    """A browser has six to a host; headless, no tab is ever hidden, so that is told to the page."""
    page = opened.page("/console/upload")
    page.get_by_label("File", exact=True).set_input_files(spring(1))
    page.get_by_role("button", name="Check and price it").press("Enter")
    page.get_by_role("button", name="Make the jobs: 1").press("Enter")
    gate = api.app.state.context.gates.streams

    def streams() -> int:
        return sum(gate.each - places._value for places in gate._own.values())

    def show(state: str) -> None:
        hidden = "true" if state == "hidden" else "false"
        page.evaluate(f"Object.defineProperty(document, 'hidden', {{value: {hidden}, configurable: true}})")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    eventually(lambda: streams() == 1)
    show("hidden")
    eventually(lambda: streams() == 0)
    show("visible")
    eventually(lambda: streams() == 1)
    drive(play, 1)
    expect(page.get_by_role("link", name="1 to review")).to_be_visible(timeout=2 * PATIENCE)


def test_without_scripts_no_button_does_nothing(opened: Opened, play: Stage) -> None:
    job = play.submit()
    page = opened.page(f"/console/jobs/{job.id}", java_script_enabled=False)
    page.locator("summary", has_text="curl").click()

    assert page.locator("button[data-copy]:visible").count() == 0


def test_to_copy_works_or_says_so_where_there_is_no_https(opened: Opened, play: Stage, faults: list[str]) -> None:
    job = play.submit()
    page = opened.page(f"/console/jobs/{job.id}")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # so it is over plain HTTP
    page.locator("summary", has_text="curl").click()
    page.locator("button[data-copy]").click()

    assert "curl -sS" in page.evaluate("getSelection().toString()")


def test_a_clip_that_cannot_be_loaded_says_so_on_its_page(opened: Opened, play: Stage, faults: list[str]) -> None:
    job = play.until(play.submit())
    page = opened.page(f"/console/jobs/{job.id}")
    page.evaluate("document.querySelector('.outputs video').src = '/console/static/none.mp4'")  # its link has ended

    expect(page.locator(".outputs .missing")).to_have_count(1)
    faults.clear()  # which are of the file that is not there
