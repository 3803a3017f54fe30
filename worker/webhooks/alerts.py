"""Alarms in the form that their receiver takes: Noria's own JSON, or a text for a chat group's robot.

A robot always answers 200: a code of 0 in the body means that the group has the message, any other is a refusal.
(Feishu Open Platform, 'Custom bot usage guide'; DingTalk Open Platform, 'Custom robot access'; WeCom developer center,
'Group robot configuration'.) A robot that lets only messages with a keyword through is given the word Noria.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from worker import egress, timeouts, webhooks
from worker.dashscope import responses
from worker.dashscope.errors import scrubbed
from worker.errors import CallFailed
from worker.settings import Settings
from worker.tables import Delivery

_BOUNDS = egress.Bounds(timeouts.DELIVERY.total_seconds(), cap=1 << 16)
_SAID = 200  # characters kept of a robot's words


@dataclass(frozen=True)
class Robot:
    """Its `hosts`, the message that carries a text, and the fields of an answer that hold its code and its words."""

    hosts: frozenset[str]
    message: Callable[[str], dict[str, Any]]
    codes: tuple[str, ...]
    words: str


def _msgtype(text: str) -> dict[str, Any]:
    return {"msgtype": "text", "text": {"content": text}}


ROBOTS = {
    "feishu": Robot(
        frozenset({"open.feishu.cn", "open.larksuite.com"}),
        lambda text: {"msg_type": "text", "content": {"text": text}},
        ("code", "StatusCode"),  # the second in older answers
        "msg",
    ),
    "dingtalk": Robot(frozenset({"oapi.dingtalk.com"}), _msgtype, ("errcode",), "errmsg"),
    "wecom": Robot(frozenset({"qyapi.weixin.qq.com"}), _msgtype, ("errcode",), "errmsg"),
}


def robot(settings: Settings, url: str) -> Robot | None:
    """The robot at that address, by NORIA_ALERT_FORMAT or by its host; None: it takes Noria's JSON."""
    if settings.alert_format:
        return ROBOTS.get(settings.alert_format)
    host = urlsplit(url).hostname
    return next((each for each in ROBOTS.values() if host in each.hosts), None)


def deliver(transport: egress.Transport, delivery: Delivery, robot: Robot | None, now: datetime) -> webhooks.Tried:
    """One try, as `webhooks.deliver` makes it; a robot's refusal is a failure, whatever its status."""
    if robot is None:
        return webhooks.deliver(transport, delivery, None, now)
    body = json.dumps(robot.message(_text(delivery.body)), ensure_ascii=False).encode()
    try:
        answer = egress.call(transport, "POST", delivery.url, _BOUNDS, {"content-type": "application/json"}, body)
    except CallFailed as error:
        return webhooks.failed(delivery, None, str(error), now)
    if refusal := _refusal(robot, answer):
        return webhooks.failed(delivery, answer.status, refusal, now)
    return webhooks.Tried("delivered", answer.status, None, None)


def _refusal(robot: Robot, answer: egress.Answer) -> str:
    """Why the group does not have the message; empty where it has."""
    body = responses.read(answer.body)
    code = next((body[name] for name in robot.codes if name in body), None)
    if 200 <= answer.status < 300 and code == 0:
        return ""
    words = scrubbed(str(body.get(robot.words) or "nothing"))[:_SAID]
    return f"the robot said HTTP {answer.status}, code {code}: {words}"


def _text(alarm: str) -> str:
    stop = json.loads(alarm)["data"]
    return f"Noria: the account {stop['account']} is stopped: {stop['why']}. Next try: {stop['next_try_at']}"
