"""The addresses of the database and of the broker, as people write them → as every part of Noria reads them.

SQLAlchemy, redis-py, kombu and Flower each have their own idea of what an address may say. Here it gets one form that
all of them take in the same sense, or is refused with a sentence. An empty address is none.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from redis.connection import parse_url
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_REDIS = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
# What may be said of TLS, and the values that redis-py and kombu take in one sense; an empty set is any file's name.
_TLS: dict[str, frozenset[str]] = {
    "ssl_cert_reqs": frozenset({"required", "optional", "none"}),
    "ssl_check_hostname": frozenset({"true", "false"}),
    "ssl_ca_certs": frozenset(),
    "ssl_certfile": frozenset(),
    "ssl_keyfile": frozenset(),
}


def database_url(text: str) -> str:
    """The database's address for SQLAlchemy and psycopg; raises ValueError with a sentence."""
    scheme, separator, rest = text.partition("://")
    if text and (not separator or scheme not in _POSTGRES):
        raise ValueError("must begin with postgresql:// (or postgres://), as in postgresql://user:password@host/noria")
    if not text:
        return text
    try:
        make_url(f"postgresql+psycopg://{rest}")
    except (ArgumentError, ValueError):
        # Its own words would show the password.
        raise ValueError("cannot be read: in a password, write @ as %40, : as %3A and / as %2F") from None
    return f"postgresql+psycopg://{rest}"


def broker_url(text: str) -> str:
    """The broker's address with the scheme redis or rediss; raises ValueError with a sentence."""
    if not text:
        return text
    scheme, separator, rest = text.partition("://")
    if scheme == "sentinel":
        raise ValueError("sentinel:// is not supported: give the master's own address, redis://…, or a proxy's")
    if not separator or scheme not in _REDIS:
        raise ValueError("must begin with redis:// or, for TLS, rediss:// (or valkey://, valkeys://)")
    _check_parts(f"{_REDIS[scheme]}://{rest}")
    return f"{_REDIS[scheme]}://{rest}"


def tls(url: str) -> dict[str, object] | None:
    """The options of a broker's TLS, for kombu and Flower; None without TLS. Certificates are verified by default."""
    if not url.startswith("rediss://"):
        return None
    said = {name: value for name, value in parse_url(url).items() if name in _TLS}  # type: ignore[no-untyped-call]
    return {"ssl_cert_reqs": "required", **said}


def _check_parts(url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("cannot be read: in a password, write @ as %40, : as %3A and / as %2F") from None
    if parts.fragment or "@" in parts.query:  # of a password, which no message may show
        raise ValueError("cannot be read: in a password, write # as %23, ? as %3F, @ as %40 and / as %2F")
    if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError("must end with a database's number, as in redis://:password@host:6379/0")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _TLS or parts.scheme != "rediss":
            raise ValueError(f"has the option {name}: with rediss://, there are {', '.join(_TLS)}; else there is none")
        if _TLS[name] and value not in _TLS[name]:
            raise ValueError(f"has {name}={value}: it is one of {', '.join(sorted(_TLS[name]))}")
