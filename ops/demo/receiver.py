"""A receiver of webhooks, as a user would write one: it checks each signature, and answers 204."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from ops.local.servers import HOST


@dataclass
class Mail:
    """What came: the last word on each job by its id, and how much was not signed as it should be."""

    url: str
    told: dict[str, str] = field(default_factory=dict)  # job id → event type
    heard: Counter[str] = field(default_factory=Counter)  # message id → how often it came
    forged: int = 0
    is_down: bool = False  # it answers 503, and takes nothing
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, seconds: float) -> bool:
        """Whether so many jobs have been told of within that time."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.told) >= count, seconds)

    def take(self, message_id: str, event: Mapping[str, Any] | None) -> None:
        """Note an event; None: one whose signature is wrong."""
        with self.changed:
            if event is None:
                self.forged += 1
            else:
                self.heard[message_id] += 1
                self.told[event["data"]["id"]] = event["type"]
            self.changed.notify_all()


@contextlib.contextmanager
def receiving(secret: str) -> Iterator[Mail]:
    """A receiver on a free port of loopback, for as long as the block lasts."""
    signer = Webhook(secret)

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(503 if mail.is_down else self._taken(body))
            self.send_header("content-length", "0")
            self.end_headers()

        def _taken(self, body: bytes) -> int:
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                event = signer.verify(body, headers)
            except WebhookVerificationError:
                event = None
            mail.take(headers.get("webhook-id", ""), event)
            return 400 if event is None else 204

        def log_message(self, *_: object) -> None:
            """The demo shows what came."""

    server = ThreadingHTTPServer((HOST, 0), Receiver)
    mail = Mail(f"http://{HOST}:{server.server_port}/hooks")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="receiver", daemon=True)
    thread.start()
    try:
        yield mail
    finally:
        server.shutdown()
        server.server_close()
