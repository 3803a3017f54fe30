"""httpx transports that check which address they connect to, over sockets that keep the call's deadline.

httpx has no total timeout: its read timeout starts anew with each byte, so a peer that sends one byte a second holds a
thread for hours. Here a call's deadline is a context variable, and each connect, handshake, read and write waits no
longer than what is left of it. Only the name look-up is not bounded so, since `getaddrinfo` takes no timeout: the
platform's resolver bounds it (resolv.conf's `timeout` times `attempts` for each server, 10 s unless changed), and
leases must exceed deadlines by that much.

`keeping` and `single` trust their address, which the operator set. `webhooks`, `sources` and `documents` check the
address that the socket connects to, so that a name which is resolved differently the second time gets nowhere.
A user sees what the link of a document gives, so `documents` has its own private networks (DOCUMENTS_ALLOW): those of
EGRESS_ALLOW hold the bucket and other services, which a user must not read.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import httpcore
import httpx
from ssrfguard import (
    DEFAULT_DENIED,
    AddressTable,
    Block,
    BlockedAddressError,
    BlockedURLError,
    Policy,
    Reach,
    Resolver,
    Verdict,
)
from ssrfguard.httpx import SafeBackend

from worker.errors import Fault
from worker.settings import Network, Settings

_LOOKUPS = ThreadPoolExecutor(4, "lookup")  # a name look-up takes no timeout, so the wait for its thread has one
_LOOKUP_SECONDS = 2.0
_LOOKUP_KEPT = 10.0  # seconds
_ADDRESSES = 4  # of one name that are tried; they share the time that connecting may take
_ANY_PORT = frozenset(range(1, 65536))
_ALL = ("0.0.0.0/0", "::/0")
# All of IPv6 but 2000::/3, the only space that is allocated (IANA, 'IPv6 Address Space'). SIIT's ::ffff:0:0:0/96 lies
# there, and whatever else a host translates. The forms that ssrfguard decodes are more exact, so they go before.
_UNALLOCATED = ("::/3", "4000::/2", "8000::/1")

_PORTS = {"http": 80, "https": 443}

_deadline: ContextVar[float] = ContextVar("deadline")  # on the monotonic clock
_connected: ContextVar[bool] = ContextVar("connected")  # whether the call has a connection of its own, not a kept one

_HUNG_UP = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


def keeping() -> httpx.BaseTransport:
    """To an address that the operator set; it keeps connections: for what may be sent twice."""
    return _Pool(_trusting(), httpx.Limits(max_keepalive_connections=64, keepalive_expiry=30))


def single() -> httpx.BaseTransport:
    """To an address that the operator set, with a new connection for each call.

    On a kept connection that the peer has just closed a call fails after sending, so it is unknown what was received.
    """
    return _Pool(_trusting(), httpx.Limits(max_keepalive_connections=0))


def webhooks(settings: Settings, resolver: Resolver | None = None) -> httpx.BaseTransport:
    """To receivers: https on 443 to public addresses, any scheme and port inside EGRESS_ALLOW."""
    return _Guarded(_is_https, settings.egress_allow, resolver)


def sources(settings: Settings, resolver: Resolver | None = None) -> httpx.BaseTransport:
    """To outputs: https on 443 to hosts that match SOURCE_HOSTS, any scheme and port inside EGRESS_ALLOW."""

    def is_public(url: httpx.URL) -> bool:
        return _is_https(url) and is_source_host(url, settings)

    return _Guarded(is_public, settings.egress_allow, resolver)


def documents(settings: Settings, resolver: Resolver | None = None) -> httpx.BaseTransport:
    """To users' documents: https on 443 to public addresses, any scheme and port inside DOCUMENTS_ALLOW."""
    return _Guarded(_is_https, settings.documents_allow, resolver)


def check_url(url: str, settings: Settings, pointer: str = "/url") -> Fault | None:
    """What is wrong with a receiver's URL; None: nothing.

    The address of its name is checked at each connect. It is looked up here too where such a URL is called inside
    EGRESS_ALLOW alone: else each delivery would be refused, until its tries are spent.
    """
    public, inside = _policies(settings.egress_allow)
    try:
        policy = public if _is_https(httpx.URL(url)) or not settings.egress_allow else inside
        target = policy.check_url(url)
    except (BlockedURLError, BlockedAddressError) as blocked:
        return Fault(pointer, "url_not_allowed", f"this address is not called: {blocked.reason}")
    except (httpx.InvalidURL, ValueError):
        return Fault(pointer, "url_unreadable", "this is not a URL")
    last = target.host.rstrip(".").rpartition(".")[2]
    if target.address is None and last[:1].isdigit():  # 0x7f000001 and its like: no domain ends so
        return Fault(pointer, "url_not_allowed", "this address is not called: its host is a number in disguise")
    if last == "localhost" and not settings.egress_allow:
        return Fault(pointer, "url_not_allowed", "this address is not called: it is this machine's own")
    if policy is inside and target.address is None and (outside := _outside(target.host, settings.egress_allow)):
        where = "outside EGRESS_ALLOW, where only https on port 443 is called"
        return Fault(pointer, "url_not_allowed", f"this address is not called: it leads to {outside}, {where}")
    return None


def host_and_port(url: str) -> str:
    """The host and port of a URL, "example.com:443", however it is spelled; empty where it is no URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return ""
    return f"{parsed.raw_host.decode().rstrip('.')}:{parsed.port or _PORTS.get(parsed.scheme, 0)}"


def _outside(host: str, networks: tuple[Network, ...]) -> str:
    """A name's addresses in none of the networks; empty where there are none, or the look-up takes too long.

    It is looked up once in some seconds: each of a batch's rows may name it.
    """
    return _looked_up(host, networks, int(time.monotonic() / _LOOKUP_KEPT))


@lru_cache(maxsize=256)
def _looked_up(host: str, networks: tuple[Network, ...], _: int) -> str:
    try:
        rows = _LOOKUPS.submit(socket.getaddrinfo, host, None).result(_LOOKUP_SECONDS)
    except (OSError, UnicodeError, TimeoutError):
        return ""
    found = {ip_address(str(row[4][0])) for row in rows}
    return ", ".join(sorted(str(each) for each in found if not any(each in network for network in networks)))


def is_source_host(url: httpx.URL, settings: Settings) -> bool:
    """Whether the provider's outputs may come from that host."""
    return re.fullmatch(settings.source_hosts, url.host) is not None


@contextmanager
def until(seconds: float) -> Iterator[None]:
    """Set the deadline of this thread's calls; one inside another ends with the outer at the latest."""
    ends = time.monotonic() + seconds
    token = _deadline.set(min(ends, _deadline.get(ends)))
    try:
        yield
    finally:
        _deadline.reset(token)


def _left(bound: float | None, late: type[httpcore.TimeoutException]) -> float:
    """Seconds that the next wait may take; raises `late` when there are none."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise late("deadline")
    return left if bound is None else min(left, bound)


def _is_https(url: httpx.URL) -> bool:
    return url.scheme == "https" and url.port in (None, 443)


class _Addresses(AddressTable):
    """ssrfguard's table, which does not know ISATAP: an IPv4 address in the last half of any IPv6 one (RFC 5214)."""

    def classify(self, address: str | IPv4Address | IPv6Address) -> Verdict:
        verdict = super().classify(address)
        outer = verdict.address
        if verdict.blocked or outer.version == 4 or (int(outer) >> 32) & 0xFFFFFFFF not in (0x5EFE, 0x02005EFE):
            return verdict
        inner = super().classify(IPv4Address(int(outer) & 0xFFFFFFFF))
        return Verdict(outer, inner.blocked, inner.block)


@cache
def _trusting() -> Policy:
    return Policy(denied_networks=AddressTable(()), allowed_ports=_ANY_PORT, max_connection_attempts=_ADDRESSES)


@cache
def _policies(networks: tuple[Network, ...]) -> tuple[Policy, Policy]:
    """What a guarded transport may reach: public addresses by https on 443; the networks, by any scheme and port."""
    outside = [Block(ip_network(net), "outside what is allowed", "settings", Reach.DENIED) for net in _ALL]
    unknown = [Block(ip_network(net), "not given out", "RFC 4291", Reach.DENIED) for net in _UNALLOCATED]
    public = Policy(
        denied_networks=_Addresses((*DEFAULT_DENIED.blocks, *unknown)),
        allowed_schemes=frozenset({"https"}),
        allowed_ports=frozenset({443}),
        allowed_networks=networks,
        max_connection_attempts=_ADDRESSES,
    )
    inside = Policy(
        denied_networks=AddressTable(tuple(outside)),
        allowed_ports=_ANY_PORT,
        allowed_networks=networks,
        max_connection_attempts=_ADDRESSES,
    )
    return public, inside


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)  # 10 ms each, so one for all


class _Stream(httpcore.NetworkStream):
    """A socket that no operation holds beyond the deadline."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # The inner stream's loop would give each partial send the whole timeout again.
        sock = self._inner.get_extra_info("socket")
        rest = memoryview(buffer)
        while rest:
            sock.settimeout(_left(timeout, httpcore.WriteTimeout))
            try:
                rest = rest[sock.send(rest) :]
            except TimeoutError as error:
                raise httpcore.WriteTimeout(str(error)) from error
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(SafeBackend):
    """Opens sockets to addresses that the policy allows, within the deadline."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(None, httpcore.ConnectTimeout)
        each = min(left / _ADDRESSES, timeout or left)
        _connected.set(True)
        return _Stream(super().connect_tcp(host, port, each, local_address, socket_options))


class _Pool(httpx.HTTPTransport):
    """A pool of connections under one policy."""

    def __init__(self, policy: Policy, limits: httpx.Limits, resolver: Resolver | None = None) -> None:
        super().__init__(verify=_tls(), trust_env=False)
        self._policy = policy
        self._keeps = limits.max_keepalive_connections != 0
        self._pool = httpcore.ConnectionPool(
            ssl_context=_tls(),
            max_connections=None,  # the threads are the bound
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(policy=policy, resolver=resolver),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._policy.check_url(str(request.url))
        if not self._keeps:
            request.headers["Connection"] = "close"
        return super().handle_request(request)


class _Guarded(httpx.BaseTransport):
    """Two pools: URLs of the public form may reach all that is public, others the operator's networks.

    They keep connections. A peer may hang up on a kept one at the instant in which it is used again: then the call is
    sent once more, which all that goes this way may be.
    """

    def __init__(
        self,
        is_public: Callable[[httpx.URL], bool],
        networks: tuple[Network, ...],
        resolver: Resolver | None,
    ) -> None:
        # Under the five seconds after which common servers close an idle connection.
        limits = httpx.Limits(max_keepalive_connections=32, keepalive_expiry=3)
        public, inside = _policies(networks)
        self._is_public = is_public
        self._public = _Pool(public, limits, resolver)
        self._inside = _Pool(inside, limits, resolver)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        pool = self._public if self._is_public(request.url) else self._inside
        while True:  # each round uses up a kept connection, and there are few
            _connected.set(False)
            try:
                return pool.handle_request(request)
            except _HUNG_UP:
                if _connected.get():
                    raise

    def close(self) -> None:
        self._public.close()
        self._inside.close()
