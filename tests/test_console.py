"""The console without a browser: who may see and do what, and what pages say."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import re
import socket
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import time_machine
from babel.messages.extract import extract_from_dir
from serving import Served, eventually, served
from stage import CLIP, Stage

from api import bodies, problems
from api.console import live, pages, shown
from api.sessions import COOKIE, Sessions
from ops import cli
from worker import keys
from worker.schedules import plan
from worker.schedules.plan import Plan
from worker.settings import Settings
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


@pytest.mark.parametrize(
    ("said", "are_shared"),
    [
        ({"database_url": "postgresql://noria:p@h/noria"}, True),
        ({"database_url": "postgresql://h/noria", "s3_secret_access_key": "s"}, True),
        ({"database_url": "postgresql://h/noria", "console_secret": "s"}, True),
        ({"database_url": "postgresql://noria@h/noria"}, False),  # everybody could guess it
    ],
)
def test_processes_take_each_others_sessions_where_they_share_what_nobody_can_guess(
    said: dict[str, str], are_shared: bool
) -> None:
    nothing = {"broker_url": "redis://h", "s3_secret_access_key": None, "console_secret": None}
    here, there = (Sessions(Settings.model_validate({**nothing, **said})) for _ in range(2))

    assert (there.read(here.made(b"k", None).token) is not None) is are_shared


def test_a_session_ends_after_twelve_hours_and_a_link_after_a_day() -> None:
    said = {"database_url": "", "broker_url": "", "console_secret": "s"}
    sessions = Sessions(Settings.model_validate(said))
    session, link = sessions.made(b"k", None).token, sessions.link(b"k", None, datetime.now(UTC))

    def after(hours: float) -> tuple[bool, bool]:
        with time_machine.travel(datetime.now(UTC) + timedelta(hours=hours)):
            return sessions.read(session) is not None, sessions.linked(link) is not None

    assert [after(11.9), after(12.1), after(23.9), after(24.1)] == [
        (True, True),
        (False, True),
        (False, True),
        (False, False),
    ]


def test_a_session_is_good_at_a_process_whose_hosts_clock_is_behind() -> None:
    said = {"database_url": "", "broker_url": "", "console_secret": "s"}
    here, there = (Sessions(Settings.model_validate(said)) for _ in range(2))
    session, link = here.made(b"k", None).token, here.link(b"k", None, datetime.now(UTC))

    for behind in (timedelta(seconds=1), timedelta(hours=1)):
        with time_machine.travel(datetime.now(UTC) - behind):
            assert there.read(session)
            assert there.linked(link)


def test_over_https_the_cookie_goes_over_https_alone(environment: dict[str, str], play: Stage) -> None:
    with served(environment, public_url="https://noria.example") as api:
        cookie = Browser(api).sign_in(api.key(play.project.name)).headers["set-cookie"]

    assert "; Secure" in cookie


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


def test_a_key_that_may_only_read_makes_a_link_too(api: Served, play: Stage) -> None:
    key = api.key(play.project.name, scope=keys.Scope.READ)

    assert "spring-campaign" in Browser(api).open(f"/console/enter?link={_link(api, key)}")


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


def test_a_file_of_another_session_is_refused(browser: Browser, api: Served, key: str, play: Stage) -> None:
    other = Browser(api)
    other.sign_in(key)
    browser.page = other.open("/console/upload")

    assert browser.send("/console/upload", files=rows("a cat")).status_code == 403
    assert play.sql("select * from batches") == []


def test_a_schedule_is_run_once_however_often_the_form_is_sent(browser: Browser, play: Stage, key: str) -> None:
    asked = {"name": "nightly", "cron": "0 9 * * *", "template": BODY}
    browser.http.post("/v1/schedules", json=asked, headers={"authorization": f"Bearer {key}"})
    page = browser.open("/console/schedules")
    action = re.findall(r'action="(/console/schedules/[^"]+/run)"', page)[0]
    once = re.findall(r'name="once" value="(\w+)"', page)[0]

    for _ in range(2):
        assert browser.send(action, once=once).status_code == 303

    assert len(play.sql("select * from jobs")) == 1


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


# What an attack from outside found


def _link(api: Served, key: str) -> str:
    made = httpx.post(f"{api.url}/console/link", headers={"authorization": f"Bearer {key}"}, trust_env=False)
    return str(made.json()["url"].partition("link=")[2])


def test_a_link_that_was_used_holds_no_session(api: Served, key: str) -> None:
    token = _link(api, key)
    Browser(api).open(f"/console/enter?link={token}")  # spent: it lies in the history, and in the logs of proxies

    payload = token.lstrip(".").split(".")[0]
    read = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    read = zlib.decompress(read) if token.startswith(".") else read
    for found in re.findall(r"[\w.-]{60,}", read.decode()):
        answer = httpx.get(f"{api.url}/v1/project", headers={"cookie": f"{COOKIE}={found}"}, trust_env=False)
        assert answer.status_code == 401, "whoever reads the spent link is signed in by what it holds"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "http://a]b", "https://[v1.a]"])
def test_another_site_cannot_sign_a_person_in_by_a_browser_without_fetch_metadata(
    origin: str, api: Served, key: str
) -> None:
    # over plain HTTP no browser sends Sec-Fetch-Site but to localhost; Origin is sent always
    answer = httpx.post(f"{api.url}/console/sign-in", data={"key": key}, headers={"origin": origin}, trust_env=False)

    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("once", ["\xe9", "\u53a8", "a\nb"])
def test_a_word_that_no_page_has_written_is_refused(once: str, browser: Browser, api: Served, key: str) -> None:
    job = browser.http.post("/v1/jobs", json=BODY, headers={"authorization": f"Bearer {key}"}).json()
    browser.sign_in(key)
    browser.open(f"/console/jobs/{job['id']}")
    csrf = re.findall(r'csrf" value="(\w+)', browser.page)[0]

    answer = browser.http.post(f"/console/jobs/{job['id']}/retry", data={"csrf": csrf, "once": once})

    assert 400 <= answer.status_code < 500


def test_the_file_of_nobody_is_not_read(api: Served) -> None:
    host, port = api.url.removeprefix("http://").split(":")
    head = (
        "POST /console/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        "Content-Length: 50000000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    )
    with socket.create_connection((host, int(port)), timeout=5) as sent:
        sent.sendall(head.encode() + b"a" * 100_000)
        try:
            answer = sent.recv(100)
        except TimeoutError:
            answer = b"nothing: it waits for all 64 MiB, and keeps them on the disk"

    assert b" 303 " in answer or b" 401 " in answer, answer


def test_uploads_by_the_console_hold_a_place_as_those_by_the_api_do(
    api: Served, browser: Browser, play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates, real, held = api.app.state.context.gates, bodies.form, []

    def form(*said: Any, **more: Any) -> Any:
        held.append([gate.what for gate in vars(gates).values() if gate._own[play.project.id]._value < gate.each])
        return real(*said, **more)

    monkeypatch.setattr(bodies, "form", form)
    browser.open("/console/upload")
    browser.send("/console/upload", files=rows("a cat"))

    assert held[0], "the console's own copy of up to 64 MiB is on the disk, and nobody counts it"


def test_a_form_that_drips_is_given_up(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SECONDS", 1)  # as for the API's own bodies: a minute
    host, port = api.url.removeprefix("http://").split(":")
    head = "POST /console/sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nkey="
    with socket.create_connection((host, int(port)), timeout=5) as sent:
        sent.sendall(head.encode())
        try:
            answer = sent.recv(100)
        except TimeoutError:
            answer = b"nothing: it waits for ever"

    assert b" 408 " in answer, answer


@pytest.mark.parametrize("to", ["/console/../v1/jobs", "/console/%2e%2e/v1/jobs", "/console/./../docs"])
def test_nobody_is_sent_off_the_console_by_dots(api: Served, key: str, to: str) -> None:
    assert Browser(api).sign_in(key, back=to).headers["location"] == "/console/batches"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("money?days=x", 422),
        ("gallery?most=0", 422),
        ("gallery?most=x", 422),
        ("batches?cursor=" + "a" * 70, 422),
        ("batches/xyz", 404),
        ("jobs/xyz", 404),
        ("batches/01a21fb6-a722-72d9-928b-f51f78498604?cursor=x", 422),
    ],
)
def test_a_wrong_address_is_no_fault_of_norias_own(browser: Browser, path: str, status: int) -> None:
    answer = browser.http.get(f"/console/{path}")

    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")


def test_a_language_that_is_none_is_no_fault(browser: Browser) -> None:
    browser.open("/console/batches")

    assert browser.send("/console/language", language="中文").status_code < 500


def test_a_body_that_is_nested_too_deep_is_told_beside_its_form(browser: Browser, play: Stage) -> None:
    job = play.submit()
    browser.open(f"/console/jobs/{job.id}")

    assert browser.send(f"/console/jobs/{job.id}/again", body="[" * 20_000, once="x").status_code == 422


def test_a_browser_that_leaves_during_an_upload_is_no_fault(
    api: Served, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(problems._log, "error", lambda event, **_: told.append(event), raising=False)
    gate = api.app.state.context.gates.console
    host, port = api.url.removeprefix("http://").split(":")
    head = (
        f"POST /console/upload HTTP/1.1\r\nHost: x\r\nCookie: {COOKIE}={browser.http.cookies[COOKIE]}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 50000\r\n\r\n--x\r\n"
    )

    def free() -> bool:
        return all(places._value == gate.each for places in gate._own.values())

    with socket.create_connection((host, int(port)), timeout=5) as sent:
        sent.sendall(head.encode())
        eventually(lambda: not free())
    eventually(free)

    assert told == []


def test_a_draft_has_no_stream_that_breaks(browser: Browser) -> None:
    browser.open("/console/upload")
    draft = browser.send("/console/upload", files=rows("a cat")).headers["location"]

    with browser.http.stream("GET", f"{draft}/live") as answer:
        assert answer.status_code == 404 or b"event" in next(answer.iter_raw())


def test_a_page_of_schedules_fits_the_rate_of_a_key(environment: dict[str, str], play: Stage) -> None:
    with play.ctx.engine.begin() as connection:
        for n in range(20):
            plan.make(connection, play.project, Plan(f"s{n}", "0 9 * * *", "UTC", BODY), 100, play.now())
    with served(environment, api_rate=10) as slow:
        reader = Browser(slow)
        reader.sign_in(slow.key(play.project.name))

        page = reader.open("/console/schedules")  # a request for each schedule, at once

    assert "s19" in page
    assert "Next page" in page


@pytest.mark.parametrize("path", ["nope", "batches/", "jobs", "review/x"])
def test_what_is_not_there_is_a_page_too(browser: Browser, path: str) -> None:
    answer = browser.http.get(f"/console/{path}", follow_redirects=True)

    assert answer.headers["content-type"].startswith("text/html")


def test_the_language_can_be_changed_where_something_was_refused(browser: Browser, play: Stage) -> None:
    job = play.submit()
    browser.open(f"/console/jobs/{job.id}")
    browser.page = browser.send(f"/console/jobs/{job.id}/again", body="no JSON", once="x").text
    back = re.findall(r'name="back" value="([^"]*)"', browser.page)[0]

    to = browser.send("/console/language", language="zh", back=back).headers["location"]

    assert browser.http.get(to).status_code == 200, f"{to} takes POST alone"


def test_another_language_keeps_what_was_searched_for(browser: Browser) -> None:
    page = browser.open("/console/gallery?state=failed&q=heron")

    assert "q=heron" in re.findall(r'name="back" value="([^"]*)"', page)[0]


def test_who_signs_in_again_comes_back_to_what_was_filtered(browser: Browser, play: Stage) -> None:
    play.sql("update api_keys set revoked_at = now() - interval '1 hour'")

    # a key that was just seen is taken for a second longer
    to = eventually(lambda: browser.http.get("/console/gallery?q=heron").headers.get("location"))
    assert "heron" in to


def test_the_gallery_goes_on_after_a_page_without_pictures(browser: Browser, play: Stage) -> None:
    play.submit(custom_id="clip")
    play.submit("text", "qwen-plus", input={"prompt": "Name a colour."})

    page = browser.open("/console/gallery?state=&most=1")

    assert "clip" in page or "Next page" in page, "nothing is shown, and nothing leads on"


def test_a_nested_input_is_written_as_it_is(browser: Browser, play: Stage) -> None:
    asked = {"messages": [{"role": "user", "content": "你好, it's <b>"}]}
    job = play.submit("text", "qwen-plus", input=asked)

    page = browser.open(f"/console/jobs/{job.id}").partition('class="asked"')[2].partition("</dl>")[0]

    assert "你好, it" in page
    assert "\\u" not in page


def test_a_new_prompt_of_several_lines_is_what_was_typed(browser: Browser, play: Stage) -> None:
    job = play.submit(review="required")
    play.until(job, State.AWAITING_REVIEW)
    browser.open("/console/review")

    browser.send(f"/console/review/{job.id}/reroll", prompt="a heron\r\nby a river")  # as every browser sends it

    (take,) = play.sql("select * from jobs where take = 2")
    assert take["input"]["prompt"] == "a heron\nby a river"


def test_a_refused_upload_keeps_what_was_typed(browser: Browser) -> None:
    browser.open("/console/upload")

    page = browser.send(
        "/console/upload", files={"file": ("x.csv", b"\x00", "text/csv")}, name="Spring", review="1"
    ).text

    assert 'value="Spring"' in page


def test_a_waiting_parent_says_so_in_chinese() -> None:
    known = shown.translations("zh")

    assert known.ugettext("the provider says nothing yet") != "the provider says nothing yet"


def test_a_new_version_of_a_script_is_taken_with_its_page(browser: Browser) -> None:
    answer = browser.http.get("/console/static/console.js")

    assert "cache-control" in answer.headers, "a browser may keep it for days, by its own guess"


def test_a_fault_of_norias_own_names_the_line_in_the_log(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(pages, "kinds", broken)
    answer = browser.http.get("/console/upload")

    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.text, "nobody can find what the log is said to have"


def test_no_button_is_shown_that_is_always_refused(browser: Browser, play: Stage) -> None:
    narration = play.submit("speech", "qwen3-tts-flash", input={"paragraphs": [{"text": "One."}, {"text": "Two."}]})
    part = play.drive(
        lambda: play.sql("select id from jobs where parent_id = :id", id=narration.id), lambda found: bool(found)
    )[0]["id"]

    page = browser.open(f"/console/jobs/{part}")

    for action in re.findall(rf'action="(/console/jobs/{part}/(?:cancel|retry))"', page):
        answer = browser.send(action)
        assert answer.status_code == 303, f"{action}: {re.findall('alert.>(.*?)<', answer.text)}"


def test_a_key_that_may_only_read_is_shown_no_button_that_changes(api: Served, play: Stage) -> None:
    reader = Browser(api)
    reader.sign_in(api.key(play.project.name, scope=keys.Scope.READ))
    job = play.submit()

    assert f'action="/console/jobs/{job.id}/cancel"' not in reader.open(f"/console/jobs/{job.id}")


def test_the_key_is_not_offered_to_the_browsers_store_of_passwords(api: Served) -> None:
    page = Browser(api).open("/console/sign-in")

    assert "The key is not kept in the browser" in page
    assert 'autocomplete="current-password"' not in page


def test_a_page_that_is_not_there_speaks_of_nothing_typed(browser: Browser) -> None:
    page = browser.open("/console/jobs/01a21fb6-a722-72d9-928b-f51f78498604", 404)

    assert "what you typed" not in page


def test_the_page_after_a_wrong_key_is_of_the_session_that_goes_on(browser: Browser) -> None:
    page = browser.sign_in("noria_wrong").text

    csrf = re.findall(r'name="csrf" value="(\w*)"', page)[0]
    answer = browser.http.post("/console/language", data={"csrf": csrf, "language": "zh", "back": "/console/money"})
    assert answer.status_code == 303, "the cookie is still there, and the form says nothing of it"


def test_a_stream_is_never_silent_for_as_long_as_a_proxy_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    clock = iter([0.0, 0.0, 0.0, 9.0, 9.0, 9.0, 9.0, 4000.0])  # a look took nine seconds, of a busy database
    monkeypatch.setattr(live, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    async def look() -> None:
        async def written() -> str:
            return "part"

        async for _ in live._looks(written):
            pass

    asyncio.run(look())
    assert waits
    assert max(waits) <= 15


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


def test_the_commands_that_pages_name_are_there() -> None:
    pages_of = Path("api/console/templates").glob("*.html")
    named = {found for page in pages_of for found in re.findall(r"`noria ([a-z]+) ([a-z]+)`", page.read_text())}

    assert named
    for group, command in named:
        assert cli.run([group, command, "--help"]) == 0, (group, command)
