"""A receiver of Noria's webhooks: `SECRET=whsec_… python receiver.py`, with `pip install standardwebhooks`.

Each event is kept before it is answered, once however often it comes: what is to be done about it is then done from
the table, and takes as long as it takes.
"""

from __future__ import annotations

import os
import sqlite3
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

SECRET = os.environ["SECRET"]
INBOX = os.environ.get("INBOX", "inbox.db")
LONGEST = 1 << 20  # bytes of a body


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # so that connections are kept
    timeout = 60

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            return self.answer(413)
        body = self.rfile.read(int(length))
        try:  # the signature, or one of two while the secret is rotated; and that it was signed within five minutes
            event = Webhook(SECRET).verify(body, dict(self.headers))
        except (WebhookVerificationError, ValueError):  # the latter of a signature that is no base64, say
            return self.answer(401)
        if keep(self.headers["webhook-id"], body):
            print(self.headers["webhook-id"], event["type"], event["data"]["id"], flush=True)
        return self.answer(204)

    def answer(self, status: int) -> None:
        self.close_connection = status == 413  # its body is not read
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, *_: object) -> None:
        """Says nothing of requests."""


def keep(message_id: str, body: bytes) -> bool:
    """Keeps an event; False where it has come before: the id is the same on every retry."""
    with sqlite3.connect(INBOX) as inbox:
        return inbox.execute("insert or ignore into inbox values (?, ?)", (message_id, body.decode())).rowcount == 1


if __name__ == "__main__":
    with sqlite3.connect(INBOX) as made:
        made.execute("create table if not exists inbox (id text primary key, body text not null)")
    ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Receiver).serve_forever()
