"""The containers' health checks, cheap enough to be made twice a minute: exit code 0 for healthy, 1 for not.

`python -m ops.docker.health http://127.0.0.1:8080/readyz` wants a 200. `python -m ops.docker.health control` wants
an answer from the Celery node `control@` this host: its loop has to take a message from the broker to give it.
`celery inspect ping` asks the same, and loads the whole engine first: 1.9 s of CPU against 0.5 s.
"""

from __future__ import annotations

import http.client
import re
import socket
import sys
import urllib.request

SECONDS = 5.0
_SLASHES = re.compile("(?<!:)//+")  # a prefix may be empty, or have slashes of its own


def main(asked: str) -> int:
    """The exit code for a URL, or for the first half of a node's name."""
    healthy = _answers(_SLASHES.sub("/", asked)) if "://" in asked else _pongs(f"{asked}@{socket.gethostname()}")
    return 0 if healthy else 1


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310, docker-compose.yml says which
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException) as error:
        print(error, file=sys.stderr)
        return False


def _pongs(node: str) -> bool:
    from worker import broker, settings  # a URL needs neither

    app = broker.celery_app(settings.load())
    # Flower and the other workers need not hear of it, and one answer is all there can be.
    return bool(app.control.ping(destination=[node], timeout=SECONDS, limit=1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
