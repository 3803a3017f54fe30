"""Addresses as operators write them, made into the one form that every part of Noria reads; else refused in a sentence.

SQLAlchemy, redis-py, kombu and Flower each read an address in their own way, so the database's and the broker's get a
form that all of them read alike. The provider's and the object store's may come without a scheme, with a path, or with
the bucket in the host. An empty database or broker address stays empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from redis.connection import parse_url
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_REDIS = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
# TLS options, and the values that redis-py and kombu read alike; an empty set: any file's name.
_TLS: dict[str, frozenset[str]] = {
    "ssl_cert_reqs": frozenset({"required", "optional", "none"}),
    "ssl_check_hostname": frozenset({"true", "false"}),
    "ssl_ca_certs": frozenset(),
    "ssl_certfile": frozenset(),
    "ssl_keyfile": frozenset(),
}
_SENTINELS = ("sentinel", "sentinels")  # the second with TLS, to the sentinels and to Redis
# What is said of sentinels: whom they watch, and how they themselves are signed in to.
_EXAMPLE = "sentinel://:password@host:26379,host:26379/0?master=mymaster"
_SIGN_IN = ("username", "password")
_SENTINEL = ("master", *(f"sentinel_{name}" for name in _SIGN_IN))
# For what the libraries refuse: their own words would show the password.
_UNREADABLE = "cannot be read: in a password, write @ as %40, : as %3A and / as %2F"

_ROOTS = re.compile(r"/(api/v1|compatible-mode/v1|api-ws/v1|apps/anthropic)(/.*)?$")  # the provider's own paths
# Suffixes that no public name has (RFC 6762, RFC 8375, ICANN's `internal`), and OSS's hosts for machines of its cloud.
_INSIDE = (".localhost", ".local", ".internal", ".home.arpa", ".lan", "-internal.aliyuncs.com")
_STORES = ("oss-", "s3.", "s3-", "cos.", "obs.")  # how hosts of stores begin, after the bucket's name


def database_url(text: str) -> str:
    """The database's address for SQLAlchemy and psycopg; raises ValueError with a sentence."""
    scheme, separator, rest = text.partition("://")
    if not text:
        return text
    if not separator or scheme not in _POSTGRES:
        raise ValueError("must begin with postgresql:// (or postgres://), as in postgresql://user:password@host/noria")
    url = f"postgresql+psycopg://{_of_several(rest)}"
    try:
        make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(_UNREADABLE) from None
    return url


def _of_several(rest: str) -> str:
    """`user@a:5432,b/noria` as SQLAlchemy writes it, `user@/noria?host=a:5432&host=b`: of these the one that writes."""
    authority, slash, end = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return rest
    path, _, query = end.partition("?")
    said = [f"host={host}" for host in hosts.split(",")]
    if "target_session_attrs=" not in query:  # else a standby may answer, which writes nothing
        said.append("target_session_attrs=read-write")
    return f"{user}{at}{slash}{path}?{'&'.join((*said, *filter(None, [query])))}"


def broker_url(text: str) -> str:
    """The broker's address with the scheme redis, rediss, sentinel or sentinels; raises ValueError with a sentence."""
    if not text:
        return text
    scheme, separator, rest = text.partition("://")
    if scheme in _SENTINELS:
        _check_sentinels(text)
        return text
    if not separator or scheme not in _REDIS:
        raise ValueError("must begin with redis:// or sentinel://, or with rediss:// or sentinels:// for TLS")
    _check_broker(f"{_REDIS[scheme]}://{rest}")
    return f"{_REDIS[scheme]}://{rest}"


@dataclass(frozen=True)
class Sentinels:
    """Who knows which Redis is the master now, of those called `master`; and how to reach these and those."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    database: int
    own: dict[str, object]  # a client's options for the sentinels: username, password, TLS
    redis: dict[str, object]  # the same for Redis
    user: str  # username and password of Redis as they are written


def sentinels(url: str) -> Sentinels | None:
    """What `sentinel://user:password@host:26379,host:26379/0?master=NAME` says; None for another address.

    Raises ValueError where it cannot be read.
    """
    parts, hosts = _several(url)
    if parts.scheme not in _SENTINELS:
        return None
    user, _, _ = parts.netloc.rpartition("@")
    each = [urlsplit(f"//{host}") for host in hosts]
    said = dict(parse_qsl(parts.query))
    name, _, password = user.partition(":")
    secure = {"ssl": True, **known} if (known := tls(url)) else {}
    return Sentinels(
        hosts=tuple((one.hostname or "", one.port or 26379) for one in each),
        master=said.get("master", ""),
        database=int(parts.path.strip("/") or 0),
        own=secure | {what: said[f"sentinel_{what}"] for what in _SIGN_IN if f"sentinel_{what}" in said},
        redis=secure | {what: unquote(text) for what, text in zip(_SIGN_IN, (name, password), strict=True) if text},
        user=user,
    )


def tls(url: str) -> dict[str, object] | None:
    """The options of a broker's TLS, for kombu and Flower; None without TLS. Certificates are verified by default."""
    parts, _ = _several(url)
    if parts.scheme not in ("rediss", "sentinels"):
        return None
    asked = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name in _TLS])
    read = parse_url(f"rediss://host?{asked}")  # type: ignore[no-untyped-call]
    given = {name: read[name] for name in _TLS if name in read}
    return {"ssl_cert_reqs": "required", **given}


def provider_root(url: str) -> str:
    """The address that the provider's paths are appended to; raises ValueError with a sentence."""
    parts = _http(url)
    return f"{parts.scheme}://{parts.netloc}{_ROOTS.sub('', parts.path.rstrip('/'))}"


def store_root(url: str, bucket: str) -> str:
    """The address of the object store without the bucket, which the client adds; raises ValueError with a sentence."""
    parts = _http(url)
    shared = parts.netloc.removeprefix(f"{bucket}.")
    netloc = shared if shared.startswith(_STORES) else parts.netloc
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/').removesuffix(f'/{bucket}')}"


def is_near(url: str) -> bool:
    """Whether the address looks local: http, a private IP address, a bare host name, or a private suffix.

    The name is not looked up: inside a network it may lead elsewhere than outside.
    """
    parts = urlsplit(url)
    return parts.scheme != "https" or _is_inside(parts.hostname or "")


def _is_inside(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(_INSIDE)


def _http(url: str) -> SplitResult:
    written = url.strip()
    parts = urlsplit(written if "://" in written else f"https://{written}")
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.port == 0:
        raise ValueError("must be an address, as in https://host")
    if "://" not in written and _is_inside(host):
        raise ValueError(f"must begin with a scheme: http://{written} or https://{written}")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be the address alone, without user, password, query or fragment")
    return parts


def _several(url: str) -> tuple[SplitResult, list[str]]:
    """The address with the first of its hosts alone, and all of them: of many urlsplit refuses one with brackets."""
    scheme, _, rest = url.partition("://")
    end = re.search("[/?#]|$", rest)
    assert end, "there is an end"
    user, at, hosts = rest[: end.start()].rpartition("@")
    each = hosts.split(",")
    return _split(f"{scheme}://{user}{at}{each[0]}{rest[end.start() :]}"), each


def _check_sentinels(url: str) -> None:
    parts, _ = _several(url)
    _check_ends(parts)
    _check_options(parts, _SENTINEL)
    try:
        said = sentinels(url)
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    if said is None or not said.master or not all(host for host, _ in said.hosts):
        raise ValueError(f"must name hosts and master, as in {_EXAMPLE}")


def _check_broker(url: str) -> None:
    parts = _split(url)
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    _check_ends(parts)
    _check_options(parts)


def _check_options(parts: SplitResult, others: tuple[str, ...] = ()) -> None:
    """Takes those of TLS where there is TLS, and the others."""
    has_tls = parts.scheme in ("rediss", "sentinels")
    known = (*others, *(_TLS if has_tls else ()))
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            hint = "" if has_tls else f"; for TLS: {parts.scheme}s://"
            raise ValueError(f"has the option {name}: {parts.scheme}:// takes {', '.join(known) or 'none'}{hint}")
        if name in _TLS and _TLS[name] and value not in _TLS[name]:
            raise ValueError(f"has {name}={value}: it must be one of {', '.join(sorted(_TLS[name]))}")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise ValueError(_UNREADABLE) from None


def _check_ends(parts: SplitResult) -> None:
    if parts.fragment or "@" in parts.query:  # part of a password, which no message may show
        raise ValueError("cannot be read: in a password, write # as %23, ? as %3F, @ as %40 and / as %2F")
    if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError("must end with a database's number, as in redis://:password@host:6379/0")
