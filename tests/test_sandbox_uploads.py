"""The sandbox takes temporary uploads as the provider does: by policy, once, for one account, model and two days."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dashscope
import httpx
import pytest
from dashscope import VideoSynthesis

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running

KEY = "sk-one"
MODEL = "wan2.5-i2v-preview"
PICTURE = b"\x89PNG and so on"
RESOLVED = {"X-DashScope-Async": "enable", "X-DashScope-OssResourceResolve": "enable"}
VIDEO = "/services/aigc/video-generation/video-synthesis"


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with running(Options(run_seconds=0, queue_seconds=0)) as sandbox:
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
    return httpx.Client(base_url=sandbox.api, headers={"Authorization": f"Bearer {key}"}, timeout=10, verify=False)


def policy(wire: httpx.Client, model: str = MODEL) -> dict[str, Any]:
    answer = wire.get("/uploads", params={"action": "getPolicy", "model": model})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["data"])


def form(granted: dict[str, Any], name: str = "cat.png") -> dict[str, str]:
    return {
        "OSSAccessKeyId": granted["oss_access_key_id"],
        "Signature": granted["signature"],
        "policy": granted["policy"],
        "key": f"{granted['upload_dir']}/{name}",
        "x-oss-object-acl": granted["x_oss_object_acl"],
        "x-oss-forbid-overwrite": granted["x_oss_forbid_overwrite"],
        "success_action_status": "200",
    }


def post(granted: dict[str, Any], fields: dict[str, str], content: bytes = PICTURE) -> httpx.Response:
    return httpx.post(granted["upload_host"], data=fields, files={"file": ("cat.png", content)})


def uploaded(wire: httpx.Client, model: str = MODEL) -> str:
    granted = policy(wire, model)
    answer = post(granted, form(granted))
    assert (answer.status_code, answer.content) == (200, b"")
    return f"oss://{form(granted)['key']}"


def created(wire: httpx.Client, link: str, model: str = MODEL) -> httpx.Response:
    body = {"model": model, "input": {"img_url": link}, "parameters": {"resolution": "720P"}}
    return wire.post(VIDEO, json=body, headers=RESOLVED)


def test_the_official_sdk_uploads_a_local_picture_and_submits_it(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", sandbox.api)
    picture = tmp_path / "cat.png"
    picture.write_bytes(PICTURE)

    made = VideoSynthesis.async_call(model=MODEL, prompt="it yawns", img_url=f"file://{picture}", api_key=KEY)

    assert made.status_code == 200, made.message
    [upload] = sandbox.ledger()["uploads"]
    assert (upload["model"], upload["bytes"]) == (MODEL, len(PICTURE))
    assert upload["key"].endswith("/cat.png")


def test_a_policy_is_signed_for_one_directory_and_five_minutes(wire: httpx.Client) -> None:
    answer = wire.get("/uploads", params={"action": "getPolicy", "model": MODEL}).json()

    granted = answer["data"]
    assert granted["upload_dir"].endswith(f"/{answer['request_id']}")
    assert granted["expire_in_seconds"] == 300
    assert ["starts-with", "$key", granted["upload_dir"]] in json.loads(base64.b64decode(granted["policy"]))[
        "conditions"
    ]


def test_an_expired_policy_is_denied_in_the_stores_own_words(sandbox: Sandbox, wire: httpx.Client) -> None:
    granted = policy(wire)
    sandbox.set(clock_offset_seconds=301)

    answer = post(granted, form(granted))

    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/xml")
    assert "Invalid according to Policy: Policy expired." in answer.text


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"Signature": "bm9uc2Vuc2U="}, 403, "SignatureDoesNotMatch"),
        ({"OSSAccessKeyId": "LTAIother"}, 403, "InvalidAccessKeyId"),
        ({"key": "dashscope-instant/elsewhere/cat.png"}, 403, "AccessDenied"),
        ({"x-oss-object-acl": "public-read"}, 403, "AccessDenied"),
    ],
)
def test_a_form_that_its_policy_does_not_allow_is_denied(
    sandbox: Sandbox, wire: httpx.Client, change: dict[str, str], status: int, code: str
) -> None:
    granted = policy(wire)

    answer = post(granted, form(granted) | change)

    assert (answer.status_code, f"<Code>{code}</Code>" in answer.text) == (status, True)
    assert sandbox.ledger()["uploads"] == []


def test_a_name_is_taken_once_and_a_policy_serves_for_several(wire: httpx.Client) -> None:
    granted = policy(wire)

    answers = [post(granted, form(granted, name)) for name in ("cat.png", "dog.png", "cat.png")]

    assert [answer.status_code for answer in answers] == [200, 200, 409]
    assert "<Code>FileAlreadyExists</Code>" in answers[2].text


def test_what_follows_the_file_in_a_form_is_not_looked_at(wire: httpx.Client) -> None:
    granted = policy(wire)
    parts: list[tuple[str, Any]] = [("file", ("cat.png", PICTURE))]
    parts += [(name, (None, value)) for name, value in form(granted).items()]

    answer = httpx.post(granted["upload_host"], files=parts)

    assert answer.status_code == 403


def test_an_upload_serves_its_own_model_and_account_for_two_days(sandbox: Sandbox, wire: httpx.Client) -> None:
    link = uploaded(wire)

    ours = created(wire, link)
    with client(sandbox, "sk-two") as other:
        theirs = created(other, link)
    otherwise = created(wire, link, "wan2.6-i2v")
    sandbox.set(clock_offset_seconds=48 * 3600 + 1)
    late = created(wire, link)

    assert ours.status_code == 200, ours.text
    assert [answer.json().get("code") for answer in (theirs, otherwise, late)] == [
        "InvalidParameter.DataInspection"
    ] * 3
    assert sandbox.ledger()["totals"]["tasks"] == 1


def test_an_upload_that_never_was_cannot_be_downloaded(wire: httpx.Client) -> None:
    answer = created(wire, "oss://dashscope-instant/a/b/c/cat.png")

    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter.DataInspection")
    assert "Unable to download the media resource" in answer.json()["message"]


def test_policies_over_an_account_and_models_rate_are_refused(sandbox: Sandbox, wire: httpx.Client) -> None:
    sandbox.set(policies_per_second=0.1)

    answers = [
        wire.get("/uploads", params={"action": "getPolicy", "model": model}) for model in (MODEL, MODEL, "other")
    ]

    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert answers[1].json()["code"] == "Throttling.RateQuota"
    assert sandbox.ledger()["throttled"] == {"policy": 1}


def test_policies_and_uploads_meet_faults_of_their_own(sandbox: Sandbox, wire: httpx.Client) -> None:
    sandbox.fault(where="policy", what="error", code="InternalError", times=1)
    sandbox.fault(where="upload", what="error", code="InternalError", times=1)
    sandbox.fault(where="upload", what="lost_answer", times=1)

    refused = wire.get("/uploads", params={"action": "getPolicy", "model": MODEL})
    granted = policy(wire)
    broken = post(granted, form(granted))
    with pytest.raises(httpx.TransportError):
        post(granted, form(granted))
    again = post(granted, form(granted))

    assert (refused.status_code, refused.json()["code"]) == (500, "InternalError")
    assert (broken.status_code, "<Code>InternalError</Code>" in broken.text) == (500, True)
    assert again.status_code == 409


def test_a_restarted_sandbox_knows_its_uploads(tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    with running(state=state) as before, client(before) as wire:
        link = uploaded(wire)

    with running(state=state) as after, client(after) as wire:
        assert created(wire, link).status_code == 200
