"""The console without a browser: who may see and do what, and what pages say."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from babel.messages.extract import extract_from_dir
from serving import Served, eventually, served
from stage import CLIP, Stage

from api.console import live, shown
from api.sessions import COOKIE
from worker.states import State

EVIL = "<script>alert('x')</script>"
BODY = {"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": CLIP}
PAGES = ("batches", "upload", "gallery", "review", "schedules", "webhooks", "money", "lanes")


@pytest.fixture
def api(environment: dict[str, str], play: Stage) -> Iterator[Served]:
    with served(environment) as made:
        yield made


@pytest.fixture
def key(api: Served, play: Stage) -> str:
    return api.key(play.project.name)


class Browser:
    """A person at the console: keeps cookies, and sends the forms of the page that was last opened."""

    def __init__(self, api: Served, language: str = "en") -> None:
        self.http = httpx.Client(base_url=api.url, trust_env=False, timeout=20, headers={"accept-language": language})
        self.page = ""

    def open(self, path: str, status: int = 200) -> str:
        answer = self.http.get(path, follow_redirects=True)
        assert answer.status_code == status, answer.text[:2000]
        self.page = answer.text
        return self.page

    def sign_in(self, key: str, **more: str) -> httpx.Response:
        return self.http.post("/console/sign-in", data={"key": key, **more})

    def send(self, path: str, files: Any = None, **fields: str) -> httpx.Response:
        csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', self.page)
        assert csrf is not None
        return self.http.post(path, data={"csrf": csrf[1], **fields}, files=files)


@pytest.fixture
def browser(api: Served, key: str) -> Iterator[Browser]:
    made = Browser(api)
    assert made.sign_in(key).status_code == 303
    yield made
    made.http.close()


def rows(*prompts: str, **more: str) -> dict[str, Any]:
    written = io.StringIO()
    csv.writer(written).writerows(
        [["custom_id", "kind", "model", "prompt", "size"]]
        + [[f"r{n}", "text-to-video", "wan2.5-t2v-preview", prompt, "832*480"] for n, prompt in enumerate(prompts, 1)]
    )
    return {"file": ("spring.csv", written.getvalue().encode(), "text/csv")}


# Who is signed in


def test_nobody_sees_a_page_without_signing_in(api: Served) -> None:
    with httpx.Client(base_url=api.url, trust_env=False) as http:
        for name in PAGES:
            answer = http.get(f"/console/{name}")
            assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in"), name


def test_the_cookie_holds_no_key_and_no_script_reads_it(api: Served, key: str) -> None:
    cookie = Browser(api).sign_in(key).headers["set-cookie"]

    assert key not in cookie
    assert cookie.startswith(f"{COOKIE}=")
    assert {"httponly", "samesite=lax"} <= {part.strip().lower() for part in cookie.split(";")}


def test_a_wrong_key_is_told_and_signs_nobody_in(api: Served) -> None:
    answer = Browser(api).sign_in("noria_" + "A" * 43)

    assert answer.status_code == 401
    assert "This key is not known" in answer.text
    assert "set-cookie" not in answer.headers


def test_an_operators_key_names_a_project(api: Served, play: Stage) -> None:
    operator = Browser(api)

    assert "name a project too" in operator.sign_in(api.key(None)).text
    assert operator.sign_in(api.key(None), project=play.project.name).status_code == 303
    assert play.project.name in operator.open("/console/batches")


def test_an_operator_sees_what_each_project_spent_and_others_their_own(
    api: Served, play: Stage, browser: Browser
) -> None:
    play.until(play.submit())
    operator = Browser(api)
    operator.sign_in(api.key(None), project=play.project.name)

    assert "By project" in operator.open("/console/money")
    assert "By project" not in browser.open("/console/money")


def test_a_session_ends_with_its_key_and_says_so(browser: Browser, play: Stage) -> None:
    play.sql("update api_keys set revoked_at = now() - interval '1 hour'")

    # a key that was just seen is taken for a second longer
    assert eventually(lambda: "Your session has ended" in browser.open("/console/money"))


@pytest.mark.parametrize("token", ["x", "WyIwMCIsbnVsbF0.aaaaaa.bbbbbbbbbbb", "é"])
def test_a_token_that_is_not_ours_is_nobodys(api: Served, token: str) -> None:
    for headers in ({"cookie": f"{COOKIE}={token}"}, {"authorization": f"Session {token}"}):
        sent = {name: value.encode() for name, value in headers.items()}
        assert httpx.get(f"{api.url}/v1/project", headers=sent, trust_env=False).status_code == 401


def test_a_link_signs_in_once(api: Served, key: str) -> None:
    made = httpx.post(f"{api.url}/console/link", headers={"authorization": f"Bearer {key}"}, trust_env=False)
    path = made.json()["url"].partition("/console/")[2]
    first, second = Browser(api), Browser(api)

    assert "Batches" in first.open(f"/console/{path}")
    assert "used before" in second.open(f"/console/{path}", 403)
    assert COOKIE not in second.http.cookies


def test_a_link_is_made_for_a_key_alone(api: Served, browser: Browser) -> None:
    assert browser.http.post("/console/link").status_code == 401
    assert "used before" in Browser(api).open("/console/enter?link=abc", 403)


def test_the_cookie_is_enough_to_look_and_not_to_change(browser: Browser) -> None:
    assert browser.http.get("/v1/jobs").status_code == 200
    assert browser.http.post("/v1/jobs", json=BODY).status_code == 401


def test_a_form_of_another_site_or_session_is_refused(browser: Browser, api: Served, key: str) -> None:
    job = browser.http.post("/v1/jobs", json=BODY, headers={"authorization": f"Bearer {key}"}).json()
    other = Browser(api)
    other.sign_in(key)
    browser.open(f"/console/jobs/{job['id']}")
    theirs = other.open("/console/batches")
    path = f"/console/jobs/{job['id']}/cancel"

    assert browser.http.post(path, data={}).status_code == 403
    assert browser.http.post(path, data={"csrf": re.findall(r'csrf" value="(\w+)', theirs)[0]}).status_code == 403
    csrf = re.findall(r'csrf" value="(\w+)', browser.page)[0]
    for site in ("cross-site", "same-site"):
        answer = browser.http.post(path, data={"csrf": csrf}, headers={"sec-fetch-site": site})
        assert answer.status_code == 403
    assert browser.send(path).status_code == 303


def test_a_key_that_may_only_read_changes_nothing(api: Served, play: Stage) -> None:
    reader = Browser(api)
    reader.sign_in(api.key(play.project.name, scope="read"))
    reader.open("/console/upload")

    answer = reader.send("/console/upload", files=rows("a cat"))

    assert answer.status_code == 403
    assert "scope" in answer.text
    assert play.sql("select * from batches") == []


def test_others_jobs_and_batches_are_not_there(api: Served, browser: Browser, key: str) -> None:
    job = browser.http.post("/v1/jobs", json=BODY, headers={"authorization": f"Bearer {key}"}).json()
    other = Browser(api)
    other.sign_in(api.key("summer"))

    assert "Not done" in other.open(f"/console/jobs/{job['id']}", 404)
    assert job["id"] not in other.open("/console/gallery?state=")


@pytest.mark.parametrize("to", ["https://evil.example", "//evil.example", "/v1/jobs", "/console/..//evil", "\\\\evil"])
def test_nobody_is_sent_elsewhere(api: Served, key: str, to: str) -> None:
    answer = Browser(api).sign_in(key, back=to)

    assert answer.headers["location"] == "/console/batches"


# What pages load and show


def test_a_page_loads_nothing_but_ours_and_the_buckets(browser: Browser, environment: dict[str, str]) -> None:
    answer = browser.http.get("/console/batches")
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))

    assert rules["default-src"] == "'none'"
    assert (rules["script-src"], rules["style-src"], rules["connect-src"]) == ("'self'", "'self'", "'self'")
    assert rules["media-src"] == f"'self' {environment['NORIA_S3_ENDPOINT_URL']}"
    assert rules["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_no_page_has_a_script_or_a_style_within(browser: Browser, play: Stage, key: str) -> None:
    job = play.until(play.submit())
    for path in (*PAGES, f"jobs/{job.id}"):
        page = browser.open(f"/console/{path}")
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|javascript:", page), path


def test_what_users_wrote_is_shown_as_text(browser: Browser, key: str, play: Stage) -> None:
    asked = {**BODY, "custom_id": EVIL, "input": {**CLIP, "prompt": EVIL}, "metadata": {"sku": EVIL}}
    made = browser.http.post("/v1/jobs", json=asked, headers={"authorization": f"Bearer {key}"}).json()
    browser.open("/console/upload")
    batch = browser.send("/console/upload", files=rows(EVIL), name=EVIL).headers["location"]

    for path in (f"/console/jobs/{made['id']}", "/console/gallery?state=", batch, "/console/batches"):
        page = browser.open(path)
        assert "<script>alert" not in page, path
        assert "&lt;script&gt;alert" in page, path
    assert "<script>alert" not in browser.open(f"/console/gallery?q={EVIL}&label={EVIL}&state=")


def test_a_link_to_an_output_is_short_lived_and_of_our_bucket(browser: Browser, play: Stage) -> None:
    play.until(play.submit())

    (link,) = re.findall(r'data-clip="([^"]+)"', browser.open("/console/gallery"))

    link = link.replace("&amp;", "&")
    assert httpx.get(link, trust_env=False).status_code == 200
    assert "X-Amz-Expires=600" in link


@pytest.mark.parametrize(
    "path", ["batches/x", "jobs/x", "gallery?most=0", "gallery?most=x", "money?days=x", "batches?cursor=" + "x" * 99]
)
def test_an_address_that_is_none_is_a_page_too(browser: Browser, path: str) -> None:
    assert "there is no such page" in browser.open(f"/console/{path}", 404)


# What people do


def test_a_file_is_priced_before_the_button_and_made_by_it(browser: Browser, play: Stage) -> None:
    browser.open("/console/upload")
    draft = browser.send("/console/upload", files=rows("a cat", ""), name="Spring", review="1").headers["location"]

    page = browser.open(draft)
    assert ("¥1.50" in page, "Make the jobs: 1" in page, "prompt</strong> is required" in page) == (True, True, True)
    assert play.sql("select * from jobs") == []
    assert browser.send(f"{draft}/commit").status_code == 409
    assert browser.send(f"{draft}/commit", skip_bad="1").status_code == 303

    (job,) = play.sql("select * from jobs")
    assert (job["custom_id"], job["review"]) == ("r1", "required")
    assert "Spring" in browser.open(draft)


def test_a_file_that_cannot_be_read_says_why_beside_the_form(browser: Browser) -> None:
    browser.open("/console/upload")

    answer = browser.send("/console/upload", files={"file": ("x.csv", b"\x00\x01", "text/csv")})

    assert answer.status_code == 422
    assert "<form" in answer.text
    assert 'role="alert"' in answer.text


def test_a_file_without_a_name_or_of_another_form_is_refused(browser: Browser) -> None:
    browser.open("/console/upload")

    assert browser.send("/console/upload").status_code == 415
    assert browser.send("/console/upload", files={"other": ("x.csv", b"a", "text/csv")}).status_code == 422


def test_outputs_are_kept_rejected_and_made_again(browser: Browser, play: Stage, key: str) -> None:
    jobs = [play.submit(review="required", custom_id=f"c{n}") for n in range(3)]
    for job in jobs:
        play.until(job, State.AWAITING_REVIEW)
    asked = {"before": "a cat"}

    assert "c2" in browser.open("/console/review")
    browser.send(f"/console/review/{jobs[2].id}/approve")
    browser.send(f"/console/review/{jobs[1].id}/reject", comment="five legs")
    again = browser.send(f"/console/review/{jobs[0].id}/reroll", prompt="a dog", **asked)

    states = {
        row["custom_id"]: (row["state"], row["review_note"]) for row in play.sql("select * from jobs where take = 1")
    }
    assert states["c2"] == ("succeeded", None)
    assert states["c1"] == ("rejected", "five legs")
    assert states["c0"][0] == "rejected"
    (take,) = play.sql("select * from jobs where take = 2")
    assert take["input"]["prompt"] == "a dog"
    assert again.headers["location"] == "/console/review?done=reroll"
    assert "Nothing waits for a review" in browser.open("/console/review")


def test_a_job_is_run_again_once_however_often_the_form_is_sent(browser: Browser, play: Stage) -> None:
    job = play.submit()
    page = browser.open(f"/console/jobs/{job.id}")
    once = re.findall(r'name="once" value="(\w+)"', page)[0]
    body = '{"kind": "text-to-video", "model": "wan2.5-t2v-preview", "input": {"prompt": "a dog", "size": "832*480"}}'

    answers = [browser.send(f"/console/jobs/{job.id}/again", once=once, body=body) for _ in range(2)]
    wrong = browser.send(f"/console/jobs/{job.id}/again", once="x", body='{"kind": "text-to-video", "input": {}}')

    assert len({answer.headers["location"] for answer in answers}) == 1
    assert len(play.sql("select * from jobs")) == 2
    assert wrong.status_code == 422
    assert "&#34;input&#34;: {}" in wrong.text, "what was typed is kept"


@pytest.mark.parametrize("what", ["pause", "resume", "cancel", "retry-failed"])
def test_a_batch_is_stopped_and_goes_on(browser: Browser, what: str) -> None:
    browser.open("/console/upload")
    draft = browser.send("/console/upload", files=rows("a cat")).headers["location"]
    browser.open(draft)
    browser.send(f"{draft}/commit")

    assert browser.send(f"{draft}/{what}").headers["location"] == f"{draft}?done={what}"
    assert browser.send(f"{draft}/explode").status_code == 404
    browser.open(f"{draft}?done={what}")


def test_a_draft_is_discarded(browser: Browser, play: Stage) -> None:
    browser.open("/console/upload")
    draft = browser.send("/console/upload", files=rows("a cat")).headers["location"]
    browser.open(draft)

    assert browser.send(f"{draft}/discard").status_code == 303
    assert play.sql("select * from batches") == []


def test_a_page_that_moves_is_sent_anew_when_something_has_and_ends_with_the_session(
    browser: Browser, play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SHARE", 0)  # a busy machine would wait long
    browser.open("/console/upload")
    draft = browser.send("/console/upload", files=rows("a cat")).headers["location"]
    browser.open(draft)
    browser.send(f"{draft}/commit")

    events = []
    with browser.http.stream("GET", f"{draft}/live", timeout=30) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                events.append(line)
                if events == ["event: part"]:
                    play.sql("update batches set paused_at = now(), state = 'paused'")
                elif events == ["event: part", "event: part"]:
                    play.sql("update api_keys set revoked_at = now() - interval '1 hour'")

    assert events == ["event: part", "event: part", "event: over"]


def test_a_project_holds_so_many_streams_open_and_no_more(browser: Browser, api: Served) -> None:
    api.app.state.context.gates.streams._own.default_factory = lambda: asyncio.Semaphore(0)

    answer = browser.http.get("/console/batches/live")

    assert answer.status_code == 429


# Languages


def test_the_browsers_language_is_taken_and_a_switch_keeps_another(api: Served, key: str) -> None:
    chinese = Browser(api, "zh-CN,zh;q=0.9,en;q=0.8")
    chinese.sign_in(key)

    assert "批次" in chinese.open("/console/batches")
    chinese.send("/console/language", language="en", back="/console/money")
    assert "Batches" in chinese.open("/console/batches")


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("zh", "zh"), ("zh-TW", "zh"), ("fr, zh-Hans;q=0.5", "zh"), ("en-GB,zh;q=0.5", "en"), ("fr", "en"), ("", "en")],
)
def test_a_language_is_one_that_we_have(accepted: str, language: str) -> None:
    assert shown.language(None, accepted) == language


def test_every_text_of_a_page_is_there_in_chinese() -> None:
    methods = [("templates/**.html", "jinja2"), ("**.py", "python")]
    found = extract_from_dir("api/console", method_map=methods, keywords={"_": None, "gettext": None, "word": None})
    english = {text for _, _, text, _, _ in found} | {state.replace("_", " ") for state in State}

    known = shown.translations("zh")._catalog

    assert len(english) > 150
    assert english - known.keys() == set()
    names = re.compile(r"%\(\w+\)s")
    assert [
        text for text, chinese in known.items() if sorted(names.findall(text)) != sorted(names.findall(chinese))
    ] == []
