"""Who is signed in at the console: a token, signed, that names a key by its hash, and for an operator's the project.

The key itself is nowhere in it. A session ends with its key, or after twelve hours; whoever has the token may do what
the key may, so it lies in a cookie that no script can read, and no other site's request can send for a change.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from worker.settings import Settings

COOKIE = "noria_session"
SECONDS = 12 * 3600  # that a session lasts
LINK_SECONDS = 24 * 3600  # that a link to sign in waits


@dataclass(frozen=True)
class Session:
    """A key's hash, the project that an operator's acts for, and the token that says so."""

    key: bytes
    project: str | None
    token: str


class Sessions:
    """Makes and reads tokens; every process of one installation takes those of the others."""

    def __init__(self, settings: Settings) -> None:
        self._secret = sha256(b"noria console " + _secret(settings).encode()).digest()
        self._sessions = URLSafeTimedSerializer(self._secret, salt="session")
        self._links = URLSafeTimedSerializer(self._secret, salt="link")

    def made(self, key: bytes, project: str | None) -> Session:
        """A session that begins now."""
        return Session(key, project, str(self._sessions.dumps([key.hex(), project, secrets.token_hex(8)])))

    def read(self, token: str) -> Session | None:
        """The session of a token; None where it is not one of ours, or has ended."""
        try:
            key, project, _ = _said(self._sessions, token, SECONDS)
            return Session(bytes.fromhex(key), project, token)
        except (BadSignature, ValueError, TypeError):
            return None

    def link(self, key: bytes, project: str | None, now: datetime) -> str:
        """The token of a link that signs in once; it is no session, and whoever finds it spent has nothing."""
        return str(self._links.dumps([key.hex(), project, now.timestamp()]))

    def linked(self, token: str) -> tuple[bytes, str | None, datetime] | None:
        """The key and project that a link signs in, and when it was made; None where it is not ours, or too old."""
        try:
            key, project, made_at = _said(self._links, token, LINK_SECONDS)
            return bytes.fromhex(key), project, datetime.fromtimestamp(made_at, UTC)
        except (BadSignature, ValueError, TypeError):
            return None

    def csrf(self, session: Session) -> str:
        """What each form of that session says, which no other site can know."""
        return hmac.new(self._secret, b"csrf " + session.token.encode(), sha256).hexdigest()


def _said(signed: URLSafeTimedSerializer, token: str, seconds: float) -> Any:
    """What a token says; raises BadSignature where it is not ours, or older than that.

    A token with a later time than ours was signed on a host whose clock is ahead; itsdangerous refuses it even if that
    is a second.
    """
    said, signed_at = signed.loads(token, return_timestamp=True)
    if datetime.now(UTC) - signed_at > timedelta(seconds=seconds):
        raise SignatureExpired("it is too old")
    return said


def _secret(settings: Settings) -> str:
    """What signs: the setting, or what all processes hold and nobody else; else a secret of this process alone."""
    if settings.console_secret:
        return settings.console_secret.get_secret_value()
    database, bucket = settings.database_url.get_secret_value(), settings.s3_secret_access_key
    held = (urlsplit(database).password, bucket.get_secret_value() if bucket else None)
    return " ".join(filter(None, held)) or secrets.token_hex(32)
