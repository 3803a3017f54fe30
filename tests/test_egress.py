"""What leaves this machine: for how long, how much of it comes back, and whom it may reach."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import peers
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from peers import peer

from worker import egress
from worker.egress import Bounds, NotAllowed, TooLarge, transports
from worker.errors import Ambiguous, NotSent
from worker.settings import Settings

SECRET = "Signature=do-not-tell"
SLACK = 0.8  # seconds that a busy machine may add to a deadline


def settings(*egress_allow: str) -> Settings:
    return Settings.model_validate({"database_url": "", "broker_url": "", "egress_allow": egress_allow})


def get(transport: egress.Transport, url: str, deadline: float = 5, cap: int = 1 << 20) -> egress.Answer:
    return egress.call(transport, "GET", url, Bounds(deadline, cap), {})


@contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds + SLACK


def resolving(addresses: dict[str, list[str]]) -> Any:
    """A stand-in for getaddrinfo that knows these names only, and numbers as the system reads them."""

    def resolve(host: str, port: int, *_: object) -> list[tuple[Any, ...]]:
        if host not in addresses:
            return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses[host]
        ]

    return resolve


# The deadline


@pytest.mark.parametrize(
    "script",
    [
        peers.hangs,
        peers.drips(b"", b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 999),
        peers.drips(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n", b"a" * 999),
        peers.drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99),
    ],
    ids=["says nothing", "drips its headers", "drips its body", "says 100 Continue for ever"],
)
def test_no_peer_holds_a_call_beyond_its_deadline(script: peers.Script) -> None:
    with peer(script) as slow, takes_at_most(0.4), pytest.raises(Ambiguous):
        get(transports.keeping(), slow.url, deadline=0.4)


def test_a_body_that_flows_is_cut_at_the_deadline_too() -> None:
    def floods(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            conn.sendall(b"a" * 65536)

    with peer(floods) as flood, takes_at_most(0.4), pytest.raises(Ambiguous):
        get(transports.keeping(), flood.url, deadline=0.4, cap=1 << 40)


def test_a_peer_that_does_not_read_holds_no_call_beyond_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"

        with takes_at_most(0.4), pytest.raises(Ambiguous):
            egress.call(transports.single(), "POST", url, Bounds(0.4, 1), {}, b"a" * (32 << 20))


def test_a_peer_that_reads_in_sips_holds_no_call_beyond_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_sip, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        with takes_at_most(0.5), pytest.raises(Ambiguous):
            egress.call(transports.single(), "POST", url, Bounds(0.5, 1), {}, b"a" * (32 << 20))


def _sip(listener: socket.socket) -> None:
    conn, _ = listener.accept()
    try:
        while conn.recv(20_000):
            time.sleep(0.02)
    except OSError:
        return


def test_a_peer_that_never_shakes_hands_was_sent_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}"

        with takes_at_most(0.4), pytest.raises(NotSent):
            get(transports.keeping(), url, deadline=0.4)


def test_a_name_with_many_dead_addresses_holds_no_call_beyond_its_deadline() -> None:
    addresses = [f"127.0.0.{n}" for n in range(1, 5)]
    with ExitStack() as stack:
        port = 0
        for address in addresses:
            port = _full_listener(stack, address, port)
        transport = transports.webhooks(settings("127.0.0.0/8"), resolving({"many": addresses}))
        started = time.monotonic()

        with takes_at_most(0.6), pytest.raises(NotSent):
            get(transport, f"http://many:{port}", deadline=0.6)

        assert time.monotonic() - started > 0.5, "the addresses are dead, they do not refuse"


def _full_listener(stack: ExitStack, address: str, port: int) -> int:
    """The port of a listener that neither takes nor refuses connections: its backlog is full."""
    listener = stack.enter_context(socket.create_server((address, port), backlog=0))
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return int(listener.getsockname()[1])


def test_a_silence_within_the_deadline_can_be_bounded_as_well() -> None:
    with peer(peers.hangs) as silent, takes_at_most(0.3), pytest.raises(Ambiguous):
        egress.call(transports.keeping(), "GET", silent.url, Bounds(30, 1, idle=0.3), {})


def test_a_call_inside_another_ends_with_the_outer() -> None:
    with peer(peers.hangs) as silent, takes_at_most(0.3), transports.until(0.3), pytest.raises(Ambiguous):
        get(transports.keeping(), silent.url, deadline=30)


def test_the_deadline_holds_over_tls(certificate: tuple[ssl.SSLContext, Path]) -> None:
    server, ca = certificate
    transports._tls().load_verify_locations(ca)
    whole = peers.answers(200, b"hello")
    slow = peers.drips(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n", b"a" * 999)

    with peer(whole, server) as fine, peer(slow, server) as dripping:
        assert get(transports.keeping(), fine.url).body == b"hello"
        with takes_at_most(0.4), pytest.raises(Ambiguous):
            get(transports.keeping(), dripping.url, deadline=0.4)


# What came back


def test_an_answer_is_given_whole_whatever_its_status() -> None:
    with peer(peers.answers(418, b"tea", x_request_id="r-1")) as pot:
        answer = get(transports.keeping(), pot.url)

    assert (answer.status, answer.body, answer.request_id) == (418, b"tea", "r-1")
    assert answer.headers["X-Request-Id"] == "r-1"


def test_a_body_over_the_cap_is_cut_off() -> None:
    with peer(peers.answers(200, b"a" * 1001, x_request_id="r-2")) as large, pytest.raises(TooLarge) as raised:
        get(transports.keeping(), large.url, cap=1000)

    assert raised.value.request_id == "r-2"


def test_compressed_bodies_are_neither_asked_for_nor_unpacked() -> None:
    with peer(peers.answers(200, b"\x1f\x8b bomb", content_encoding="gzip")) as bomber:
        answer = get(transports.keeping(), bomber.url)

    assert answer.body == b"\x1f\x8b bomb"
    assert b"\r\naccept-encoding: identity\r\n" in bomber.requests[0].lower()


@pytest.mark.parametrize(
    ("script", "request_id"),
    [
        (peers.breaks(), None),
        (peers.breaks(b"HTTP/1.1 200 OK\r\nx-request"), None),
        (peers.breaks(b"HTTP/1.1 200 OK\r\nx-request-id: r-3\r\ncontent-length: 9\r\n\r\nabc"), "r-3"),
        (peers.ends(b"HTTP/1.1 200 OK\r\nx-request-id: r-4\r\ncontent-length: 9\r\n\r\nabc"), "r-4"),
        (peers.ends(b"HTTP/1.1 200 OK\r\nx-request-id: r-5\r\ntransfer-encoding: chunked\r\n\r\nf\r\na"), "r-5"),
        (peers.sends(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), None),
    ],
    ids=["reset", "reset in the headers", "reset in the body", "short body", "short chunk", "not HTTP"],
)
def test_what_breaks_after_sending_is_ambiguous_with_the_id_that_had_come(
    script: peers.Script, request_id: str | None
) -> None:
    with peer(script) as broken, pytest.raises(Ambiguous) as raised:
        get(transports.keeping(), f"{broken.url}/v?{SECRET}")

    assert raised.value.request_id == request_id
    assert "127.0.0.1" in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_refused_connection_was_sent_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}/?{SECRET}"

    with pytest.raises(NotSent) as raised:
        get(transports.keeping(), url)

    assert SECRET not in str(raised.value)


def test_a_peer_whose_certificate_is_not_trusted_was_sent_nothing(
    certificate: tuple[ssl.SSLContext, Path],
) -> None:
    stranger = _self_signed()[0]

    with peer(peers.answers(200, b""), stranger) as liar, pytest.raises(NotSent):
        get(transports.keeping(), liar.url)

    assert liar.requests == []


@pytest.mark.parametrize("url", ["http://", "ftp://127.0.0.1/", "nonsense", "http://a..b/", "http://[::1"])
def test_what_is_no_url_was_sent_nowhere(url: str) -> None:
    with pytest.raises(NotSent):
        get(transports.keeping(), url)


def test_a_header_that_cannot_be_written_is_not_sent_and_not_told() -> None:
    with peer(peers.answers(200, b"")) as nobody, pytest.raises(NotSent) as raised:
        egress.call(transports.keeping(), "GET", nobody.url, Bounds(5, 1), {"Authorization": "Bearer sk-1\nx: y"})

    assert "sk-1" not in str(raised.value)
    assert nobody.requests == []


# How it is sent


def test_a_link_goes_out_byte_for_byte() -> None:
    target = "/1d/%e7%8c%ab/a+b.mp4?Expires=1&OSSAccessKeyId=L%2f&Signature=a%2Bb%2F+/c%3d==&x=%7E~'\"|"

    with peer(peers.answers(200, b"")) as oss:
        get(transports.keeping(), f"{oss.url}{target}#fragment")

    assert oss.requests[0].split(b" ")[1] == target.encode()


def test_a_wire_for_creates_never_uses_a_connection_twice() -> None:
    with peer(peers.answers(200, b"ok")) as provider:
        single, keeping = transports.single(), transports.keeping()
        for transport in (single, single, single, keeping, keeping, keeping):
            get(transport, provider.url)

    assert provider.connections == 3 + 1
    assert b"connection: close" in provider.requests[0].lower()


def test_a_call_that_a_kept_connection_loses_is_sent_once_more() -> None:
    answered = set[int]()

    def answers_once(conn: socket.socket, request: bytes) -> None:
        if conn.fileno() in answered:
            answered.remove(conn.fileno())
            conn.shutdown(socket.SHUT_RDWR)
        else:
            answered.add(conn.fileno())
            peers.answers(200, b"hello")(conn, request)

    with peer(answers_once) as fickle, peer(peers.breaks()) as broken:
        transport = transports.webhooks(settings("127.0.0.1/32"))

        assert [get(transport, fickle.url).body for _ in range(2)] == [b"hello"] * 2
        assert (fickle.connections, len(fickle.requests)) == (2, 3)
        with pytest.raises(Ambiguous):
            get(transport, broken.url)
        assert len(broken.requests) == 1, "a connection of its own is not tried again"


def test_an_answer_that_is_read_out_leaves_its_connection_and_one_that_drips_holds_nobody() -> None:
    drips = peers.drips(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n", b"a" * 999)
    with peer(peers.answers(200, b"thanks")) as polite, peer(drips) as slow:
        transport = transports.webhooks(settings("127.0.0.1/32"))

        for receiver in (polite, polite, slow):
            with takes_at_most(0.2), egress.stream(transport, "POST", receiver.url, Bounds(5, 99), {}) as answer:
                egress.read_out(answer, 0.2)
                assert answer.status == 200

        assert (polite.connections, len(polite.requests)) == (1, 2)


def test_no_transport_follows_a_redirect_or_keeps_a_cookie() -> None:
    with peer(peers.answers(302, b"", location="/elsewhere", set_cookie="a=b")) as sly:
        transport = transports.webhooks(settings("127.0.0.1/32"))
        statuses = {get(transport, sly.url).status for _ in range(2)}

    assert statuses == {302}
    assert len(sly.requests) == 2
    assert b"cookie" not in sly.requests[1].lower()


def test_no_wire_reads_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    with peer(peers.answers(200, b"direct")) as provider:
        assert get(transports.keeping(), provider.url).body == b"direct"
        assert get(transports.webhooks(settings("127.0.0.1/32")), provider.url).body == b"direct"


# Whom it may reach

# Names are looked up here, so that no test needs DNS.
NAMES = {
    "metadata.attacker.example": ["169.254.169.254"],
    "private.attacker.example": ["10.1.2.3"],
    "loopback.attacker.example": ["127.0.0.1"],
    "six.attacker.example": ["::1"],
    "mapped.attacker.example": ["::ffff:127.0.0.1"],
    "nat64.attacker.example": ["64:ff9b::a9fe:a9fe"],
    "siit.attacker.example": ["::ffff:0:7f00:1"],
    "isatap.attacker.example": ["2001:4860::5efe:7f00:1"],
    "both.attacker.example": ["93.184.215.14", "10.0.0.1"],
    "localhost": ["127.0.0.1"],
    "localhost.": ["127.0.0.1"],
    "app.localhost": ["127.0.0.1"],
    "ip6-localhost": ["::1"],
    "public.example": ["93.184.215.14"],
    "127.0.0.1.attacker.example": ["127.0.0.1"],
}

HOSTILE = [
    "https://127.0.0.1/",
    "https://127.1/",
    "https://127.0.0.1./",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://017700000001/",
    "https://0/",
    "https://0.0.0.0/",
    "https://127.8.8.8/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.100.100.200/latest/meta-data/",
    "https://100.64.0.1/",
    "https://192.0.0.192/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[2002:7f00:1::]/",
    "https://[::ffff:0:127.0.0.1]/",
    "https://[::ffff:0:a9fe:a9fe]/",
    "https://[0:0:0:0:ffff:0:10.0.0.1]/",
    "https://[::ffff:0:93.184.215.14]/",
    "https://[::ffff:0a00:0001]/",
    "https://[0:0:0:0:0:ffff:127.0.0.1]/",
    "https://[::10.0.0.1]/",
    "https://[64:ff9b::127.0.0.1]/",
    "https://[64:ff9b:1::127.0.0.1]/",
    "https://[64:ff9b:1:fffe::10.0.0.1]/",
    "https://[64:ff9b:0:1::7f00:1]/",
    "https://[2002:a9fe:a9fe::1]/",
    "https://[2001:0:7f00:1::]/",
    "https://[2001:0:5db8:d70e:0:0:f5ff:fffe]/",
    "https://[2001:4860::5efe:127.0.0.1]/",
    "https://[2001:4860::5efe:a9fe:a9fe]/",
    "https://[2001:4860::200:5efe:10.0.0.1]/",
    "https://[fe80::5efe:127.0.0.1]/",
    "https://[1:2:3:4:5:6:7:8]/",
    "https://[4000::1]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[ff02::1]/",
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://app.localhost/",
    "https://ip6-localhost/",
    "https://ⓁⓄⒸⒶⓁⒽⓄⓈⓉ/",
    "https://①②⑦.0.0.1/",
    "https://127。0。0。1/",
    "https://127.0.0.1%00.public.example/",
    "https://public.example@127.0.0.1/",
    "https://user:password@public.example/",
    "https://public.example:8443/",
    "https://public.example:22/",
    "https://public.example:80/",
    "http://public.example/",
    "http://public.example:443/",
    "https://metadata.attacker.example/",
    "https://private.attacker.example/",
    "https://loopback.attacker.example/",
    "https://six.attacker.example/",
    "https://mapped.attacker.example/",
    "https://nat64.attacker.example/",
    "https://siit.attacker.example/",
    "https://isatap.attacker.example/",
    "https://both.attacker.example/",
    "https://127.0.0.1.attacker.example/",
    "https:///etc/passwd",
    "https:\\\\127.0.0.1\\",
    "https://public.example\\@127.0.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://public.example/",
    "unix:///var/run/docker.sock",
    "//127.0.0.1/",
    "",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_reaches_nobody(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _self, address: connected.append(address))
    transport = transports.webhooks(settings(), resolving(NAMES))

    with pytest.raises(NotSent):
        get(transport, url)

    assert connected == []


def test_a_public_receiver_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[object] = []

    def refuse(_sock: socket.socket, address: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", refuse)

    with pytest.raises(NotSent) as raised:
        get(transports.webhooks(settings(), resolving(NAMES)), "https://public.example/")

    assert connected == [("93.184.215.14", 443)]
    assert not isinstance(raised.value, NotAllowed)


def test_an_address_is_judged_by_the_one_that_it_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _self, address: connected.append(address[0]))
    carrying = ["::ffff:93.184.215.14", "64:ff9b::5db8:d70e", "2001:4860::5efe:5db8:d70e", "2606:4700::1111"]

    for address in carrying:
        with pytest.raises(NotSent):
            get(transports.webhooks(settings(), resolving({"six.example": [address]})), "https://six.example/")

    assert [ipaddress.ip_address(address) for address in connected] == [ipaddress.ip_address(one) for one in carrying]


def test_a_name_that_turns_private_after_the_check_reaches_nobody() -> None:
    answers = [["93.184.215.14"], ["127.0.0.1"]]

    def rebinding(host: str, port: int, *_: object) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answers.pop()]

    with peer(peers.answers(200, b"")) as inside, pytest.raises(NotAllowed):
        get(transports.webhooks(settings(), rebinding), f"https://rebinding.example/{inside.port}")

    assert inside.connections == 0


def test_the_operators_networks_are_reached_on_any_port_without_tls() -> None:
    names = resolving({"hooks.internal": ["127.0.0.1"], "elsewhere.internal": ["10.0.0.1"]})

    with peer(peers.answers(200, b"in")) as receiver:
        transport = transports.webhooks(settings("127.0.0.1/32"), names)

        assert get(transport, receiver.url).body == b"in"
        assert get(transport, f"http://hooks.internal:{receiver.port}/").body == b"in"
        with pytest.raises(NotAllowed):
            get(transport, f"http://elsewhere.internal:{receiver.port}/")
        with pytest.raises(NotAllowed):
            get(transport, "http://93.184.215.14/")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/",
        "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com.attacker.example/x",
        "https://attacker.example/dashscope-result-bj.oss-cn-beijing.aliyuncs.com",
        "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com:8443/x",
        "http://169.254.169.254/",
    ],
)
def test_a_source_is_fetched_from_nobody_but_the_provider(url: str) -> None:
    host = httpx.URL(url).host
    names = resolving({} if host == "169.254.169.254" else {host: ["93.184.215.14"]})

    with pytest.raises(NotAllowed):
        get(transports.sources(settings(), names), url)


def test_the_providers_links_are_raised_to_https_and_others_are_left() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200)

    links = ("http://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/a.wav?Signature=x%2B", "http://10.0.0.1:8/b")
    for link in links:
        with egress.source(httpx.MockTransport(answer), link, Bounds(5, 1), settings()):
            pass

    assert asked == [links[0].replace("http:", "https:"), links[1]]


def test_a_source_may_redirect_three_times() -> None:
    def hop(conn: socket.socket, request: bytes) -> None:
        left = int(request.split(b" ")[1][1:])
        there = peers.whole(302, b"", location=f"/{left - 1}")
        conn.sendall(there if left else peers.whole(200, b"arrived"))

    with peer(hop) as chain:
        transport, here = transports.sources(settings("127.0.0.1/32")), settings("127.0.0.1/32")
        with egress.source(transport, f"{chain.url}/3", Bounds(5, 99), here) as answer:
            assert b"".join(answer.chunks) == b"arrived"
        with (
            pytest.raises(NotAllowed),
            egress.source(transport, f"{chain.url}/4", Bounds(5, 99), here) as answer,
        ):
            pytest.fail(f"got {answer.status}")


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/",
        "http://[::1]/",
        "https://attacker.example/",
        "file:///etc/passwd",
        "//10.0.0.1/",
        "https://[::1",
        "//a]b/",
        "https://\u2100.com/",
    ],
)
def test_a_source_redirects_to_nobody_else(location: str) -> None:
    with peer(peers.answers(302, b"", location=location)) as sly:
        transport = transports.sources(settings("127.0.0.1/32"), resolving({"attacker.example": ["93.184.215.14"]}))
        with (
            pytest.raises(NotAllowed),
            egress.source(transport, sly.url, Bounds(5, 99), settings("127.0.0.1/32")) as answer,
        ):
            pytest.fail(f"got {answer.status}")


# The check when an endpoint is registered


@pytest.mark.parametrize("url", ["https://example.com/hook?a=b", "https://例子.测试/", "https://93.184.215.14/"])
def test_a_public_https_url_may_be_registered(url: str) -> None:
    assert transports.check_url(url, settings()) is None


@pytest.mark.parametrize(
    "url",
    [url for url in HOSTILE if not url.endswith(".attacker.example/") and url != "https://ip6-localhost/"],
)
def test_a_url_that_is_hostile_as_written_cannot_be_registered(url: str) -> None:
    fault = transports.check_url(url, settings(), "/webhook_url")

    assert fault is not None
    assert fault.pointer == "/webhook_url"
    assert "password" not in fault.message


def test_inside_the_operators_networks_any_port_may_be_registered() -> None:
    assert transports.check_url("http://10.1.2.3:8080/hook", settings("10.0.0.0/8")) is None
    assert transports.check_url("http://hooks.internal:8080/", settings("10.0.0.0/8")) is None
    assert transports.check_url("http://11.1.2.3:8080/hook", settings("10.0.0.0/8")) is not None


def test_a_name_that_leads_out_of_the_operators_networks_is_refused_where_it_is_named() -> None:
    """`localhost` stands for any name that is found: where it leads to is what the transport would refuse for days."""
    for url in ("https://localhost:8443/hook", "http://localhost/hook", "http://localhost:8080/hook"):
        fault = transports.check_url(url, settings("10.0.0.0/8"))

        assert fault is not None
        assert "leads to 127.0.0.1" in fault.message
        with pytest.raises(NotAllowed):
            egress.call(transports.webhooks(settings("10.0.0.0/8")), "POST", url, Bounds(5, 100), {})
        assert transports.check_url(url, settings("127.0.0.0/8", "::1/128")) is None
    assert transports.check_url("https://no-such-name.invalid:8443/", settings("10.0.0.0/8")) is None, (
        "it may come to be"
    )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS for 127.0.0.1, and the certificate to trust."""
    context, pem = _self_signed()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    path.write_bytes(pem)
    return context, path


def _self_signed() -> tuple[ssl.SSLContext, bytes]:
    pem, secret = signed()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _file(pem + secret) as path:
        context.load_cert_chain(path)
    return context, pem


def signed() -> tuple[bytes, bytes]:
    """A certificate of 127.0.0.1 that signs itself, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peer")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, secret


@contextmanager
def _file(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.pem"
        path.write_bytes(content)
        yield path
