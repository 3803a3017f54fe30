"""A receiver of webhooks, as a user would write one: it checks each signature, and answers 204."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from ops.servers import HOST


@dataclass
class Mail:
    """What came: the last word on each job by its id, and how much was not signed as it should be."""

    url: str
    told: dict[str, str] = field(default_factory=dict)  # job id → event type
    forged: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, seconds: float) -> bool:
        """Whether so many jobs have been told of within that time."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.told) >= count, seconds)

    def take(self, event: Mapping[str, Any] | None) -> None:
        """Note an event; None: one whose signature is wrong."""
        with self.changed:
            if event is None:
                self.forged += 1
            else:
                self.told[event["data"]["id"]] = event["type"]
            self.changed.notify_all()


@contextlib.contextmanager
def receiving(secret: str) -> Iterator[Mail]:
    """A receiver on a free port of loopback, for as long as the block lasts."""
    signer = Webhook(secret)

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                event = signer.verify(body, {name.lower(): value for name, value in self.headers.items()})
            except WebhookVerificationError:
                mail.take(None)
                self.send_response(400)
            else:
                mail.take(event)
                self.send_response(204)
            self.send_header("content-length", "0")
            self.end_headers()

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
