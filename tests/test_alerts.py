"""Alarms to a group's robot: each in its own form, and its no is heard though it says 200."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from peers import answers, peer
from stage import Stage, stage
from structlog.testing import capture_logs

from ops.sandbox.options import Options
from ops.sandbox.testing import Sandbox, running
from worker.lanes import account_stops
from worker.settings import Settings
from worker.webhooks import alerts

TOKEN = "b1946ac9-robot-token"
FEISHU = {"msg_type": "text", "content": {"text": ...}}
MSGTYPE = {"msgtype": "text", "text": {"content": ...}}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with running(Options()) as made:
        yield made


def alarmed(environment: dict[str, str], sandbox: Sandbox, form: str, answer: bytes, status: int = 200) -> Any:
    """The request that a stopped account makes at such a receiver, its delivery's row, and the log's errors."""
    with peer(answers(status, answer)) as receiver, capture_logs() as logs:
        url = f"{receiver.url}/hook?token={TOKEN}"
        with stage(environment, sandbox, alert_url=url, alert_format=form) as play:
            _stop(play)
            play.play(play.tick())
            (row,) = play.sql("select state, last_status, last_error from deliveries")
        (request,) = receiver.requests
    return json.loads(request.partition(b"\r\n\r\n")[2]), row, [log for log in logs if log["log_level"] == "error"]


def _stop(play: Stage) -> None:
    now = play.now()
    with play.ctx.engine.begin() as connection:
        account_stops.stop(connection, "default", now, "Arrearage: pay", now)


@pytest.mark.parametrize(
    ("form", "answer", "shape"),
    [
        ("feishu", {"code": 0, "msg": "success", "data": {}}, FEISHU),
        ("feishu", {"StatusCode": 0, "StatusMessage": "success"}, FEISHU),
        ("dingtalk", {"errcode": 0, "errmsg": "ok"}, MSGTYPE),
        ("wecom", {"errcode": 0, "errmsg": "ok"}, MSGTYPE),
    ],
)
def test_a_robot_is_given_a_text_of_its_own_form(
    environment: dict[str, str], sandbox: Sandbox, form: str, answer: dict[str, Any], shape: dict[str, Any]
) -> None:
    sent, row, errors = alarmed(environment, sandbox, form, json.dumps(answer).encode())

    (field,) = (name for name, value in shape.items() if isinstance(value, dict))
    (inner,) = shape[field]
    text = sent[field][inner]
    assert sent == {**shape, field: {inner: text}}
    assert "Noria: the account default is stopped: Arrearage: pay" in text
    assert (row["state"], row["last_error"]) == ("delivered", None)
    assert len(errors) == 1, "the stop itself"


@pytest.mark.parametrize(
    ("form", "answer", "why"),
    [
        ("feishu", b'{"code": 19021, "msg": "sign match fail"}', "code 19021: sign match fail"),
        ("dingtalk", b'{"errcode": 310000, "errmsg": "keywords not in content"}', "code 310000: keywords not in"),
        ("wecom", b'{"errcode": 93000, "errmsg": "invalid webhook url"}', "code 93000: invalid webhook url"),
        ("wecom", b"<html>log in first</html>", "HTTP 200, code None: nothing"),
        ("dingtalk", b"", "HTTP 200, code None: nothing"),
    ],
)
def test_a_robots_no_is_a_failed_try_that_the_log_tells_without_the_token(
    environment: dict[str, str], sandbox: Sandbox, form: str, answer: bytes, why: str
) -> None:
    _, row, errors = alarmed(environment, sandbox, form, answer)

    assert row["state"] == "waiting"
    assert why in row["last_error"]
    (told,) = (log for log in errors if log["event"] == "an alarm was not delivered")
    assert why in told["why"]
    assert TOKEN not in json.dumps(errors, default=str)


def test_a_receiver_that_is_no_robot_gets_json(environment: dict[str, str], sandbox: Sandbox) -> None:
    sent, row, _ = alarmed(environment, sandbox, "", b"ok")

    assert sent["type"] == "account.stopped"
    assert row["state"] == "delivered"


@pytest.mark.parametrize(
    ("host", "form"),
    [
        ("open.feishu.cn", "feishu"), ("open.larksuite.com", "feishu"), ("oapi.dingtalk.com", "dingtalk"),
        ("qyapi.weixin.qq.com", "wecom"), ("example.com", None),
    ],
)  # fmt: skip
def test_a_robot_is_known_by_its_host_unless_a_form_is_said(host: str, form: str | None) -> None:
    def known(**said: Any) -> alerts.Robot | None:
        return alerts.robot(
            Settings.model_validate({"database_url": "", "broker_url": "", **said}), f"https://{host}/x"
        )

    assert known() is (alerts.ROBOTS[form] if form else None)
    assert known(alert_format="json") is None
    assert known(alert_format="wecom") is alerts.ROBOTS["wecom"]
