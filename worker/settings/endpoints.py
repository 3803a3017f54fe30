"""Addresses as operators write them, made into what is meant: without a scheme, with a path, a bucket in the host."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

_ROOTS = re.compile(r"/(api/v1|compatible-mode/v1|api-ws/v1|apps/anthropic)(/.*)?$")  # the provider's own paths
# Suffixes that no public name has (RFC 6762, RFC 8375, ICANN's `internal`), and OSS's hosts for machines of its cloud.
_INSIDE = (".localhost", ".local", ".internal", ".home.arpa", ".lan", "-internal.aliyuncs.com")

_STORES = ("oss-", "s3.", "s3-", "cos.", "obs.")  # how hosts of stores begin, after the bucket's name


def provider_root(url: str) -> str:
    """The address that the provider's paths are appended to; raises ValueError where there is none to be read."""
    parts = _read(url)
    return f"{parts.scheme}://{parts.netloc}{_ROOTS.sub('', parts.path.rstrip('/'))}"


def store_root(url: str, bucket: str) -> str:
    """The address of the object store, without the bucket, whose name the client adds; raises as `provider_root`."""
    parts = _read(url)
    shared = parts.netloc.removeprefix(f"{bucket}.")
    netloc = shared if shared.startswith(_STORES) else parts.netloc
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/').removesuffix(f'/{bucket}')}"


def is_near(url: str) -> bool:
    """Whether only neighbours reach it, by the way it is written: its host is private or a bare name, or it is http.

    Where a name leads to is not asked: inside a network it may lead elsewhere than outside.
    """
    parts = urlsplit(url)
    return parts.scheme != "https" or _is_inside(parts.hostname or "")


def _is_inside(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(_INSIDE)


def _read(url: str) -> SplitResult:
    written = url.strip()
    parts = urlsplit(written if "://" in written else f"https://{written}")
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.port == 0:
        raise ValueError("is no address: write it as https://host")
    if "://" not in written and _is_inside(host):
        raise ValueError(f"say how it is reached: http://{written} or https://{written}")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("is an address alone: no user, password, query or fragment")
    return parts
