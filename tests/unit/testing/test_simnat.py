"""The simulated NATs do what their parameters say: else thousands of simulated dials prove nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from crust.proto.nat.behaviour import Allocation, Filtering, Mapping
from crust.testing.simnat import NatType, SimHost, SimInternet

EI, AD, APD = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
OPEN, HOST, STRICT = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
INSIDE, OUTSIDE = "192.168.1.2", "203.0.113.1"
SERVERS = ("198.51.100.1", "198.51.100.2")


class Bench:
    """A host behind a NAT and two servers that note what they see."""

    def __init__(self, kind: NatType, **options: Any) -> None:
        self.net = SimInternet(1, **options)
        self.nat = self.net.nat(OUTSIDE, kind)
        self.host = self.net.host(INSIDE, self.nat)
        self.servers = [self.net.host(address) for address in SERVERS]
        self.seen: list[tuple[str, int, tuple[str, int]]] = []
        self.got: list[tuple[Any, tuple[str, int]]] = []
        for server in self.servers:
            for port in (1, 2):
                server.listen_udp(port, lambda _, source, s=server, p=port: self.seen.append((s.address, p, source)))

    def open(self, port: int) -> None:
        self.host.listen_udp(port, lambda data, source: self.got.append((data, source)))

    def ask(self, port: int, server: int, server_port: int = 1, **options: Any) -> int | None:
        """Send, and return the outside port."""
        self.open(port)
        before = len(self.seen)
        self.host.send(port, (SERVERS[server], server_port), "?", **options)
        self.net.run(self.net.now + 0.1)
        return self.seen[-1][2][1] if len(self.seen) > before else None

    def gets_in(self, server: int, server_port: int, outside_port: int) -> bool:
        before = len(self.got)
        self.servers[server].send(server_port, (OUTSIDE, outside_port), "!")
        self.net.run(self.net.now + 0.1)
        return len(self.got) > before


@pytest.mark.parametrize("mapping", [EI, AD, APD])
def test_mapping(mapping: Mapping) -> None:
    bench = Bench(NatType(mapping, allocation=Allocation.RANDOM))
    first, port, host = bench.ask(5000, 0, 1), bench.ask(5000, 0, 2), bench.ask(5000, 1, 1)
    assert (port == first) == (mapping is not APD)
    assert (host == first) == (mapping is EI)
    assert bench.ask(5000, 0, 1) == first


@pytest.mark.parametrize("filtering", [OPEN, HOST, STRICT])
def test_filtering(filtering: Filtering) -> None:
    bench = Bench(NatType(EI, filtering))
    port = bench.ask(5000, 0, 1)
    assert port == 5000
    assert bench.gets_in(0, 1, port)
    assert bench.gets_in(0, 2, port) == (filtering is not STRICT)
    assert bench.gets_in(1, 1, port) == (filtering is OPEN)
    assert not bench.gets_in(0, 1, port + 1)


def test_allocation() -> None:
    bench = Bench(NatType(EI, allocation=Allocation.SEQUENTIAL, step=-3))
    ports = [bench.ask(5000 + n, 0) or 0 for n in range(4)]
    assert [b - a for a, b in pairwise(ports)] == [-3, -3, -3]
    bench = Bench(NatType(EI, allocation=Allocation.RANDOM))
    ports = [bench.ask(5000 + n, 0) or 0 for n in range(4)]
    assert all(abs(b - a) > 3 for a, b in pairwise(ports))
    bench = Bench(NatType(EI, allocation=Allocation.PRESERVING))
    other = bench.net.host("192.168.1.3", bench.nat)
    other.listen_udp(5000, lambda *_: None)
    other.send(5000, (SERVERS[0], 1), "?")
    bench.net.run(1.0)
    assert bench.seen[-1][2] == (OUTSIDE, 5000)
    assert bench.ask(5000, 0) != 5000  # taken


def test_noise_uses_up_ports() -> None:
    bench = Bench(NatType(APD, allocation=Allocation.SEQUENTIAL, noise=100.0))
    ports = [bench.ask(5000 + n, 0) or 0 for n in range(10)]
    assert 5 < (ports[-1] - ports[0]) / 9 < 20  # ten of others in a tenth of a second


def test_mappings_lapse() -> None:
    bench = Bench(NatType(EI, OPEN, Allocation.RANDOM, udp_life=30.0))
    port = bench.ask(5000, 0)
    assert port is not None
    bench.net.run(40.0)
    assert not bench.gets_in(0, 1, port)
    assert bench.ask(5000, 0) != port


@pytest.mark.parametrize("hairpinning", [True, False])
def test_hairpinning(hairpinning: bool) -> None:
    bench = Bench(NatType(EI, OPEN, hairpinning=hairpinning))
    bench.ask(5000, 0)
    bench.ask(5001, 0)
    bench.host.send(5000, (OUTSIDE, 5001), "!")
    bench.net.run(bench.net.now + 1)
    assert bench.got == ([("!", (OUTSIDE, 5000))] if hairpinning else [])


def test_two_hosts_on_one_link() -> None:
    bench = Bench(NatType())
    other = bench.net.host("192.168.1.3", bench.nat)
    got: list[Any] = []
    other.listen_udp(5000, lambda data, source: got.append((data, source)))
    bench.open(5000)
    bench.host.send(5000, ("192.168.1.3", 5000), "!")
    bench.host.send(5000, ("192.168.1.77", 5000), "!")  # nobody, and no packet leaves the site
    bench.net.run(1.0)
    assert got == [("!", (INSIDE, 5000))]
    assert bench.net.packets == 0


def test_ttl() -> None:
    """2 passes the NAT and ends at the first router of the core."""
    bench = Bench(NatType(EI, STRICT))
    assert bench.ask(5000, 0, ttl=1) is None
    assert bench.net.packets == 0
    assert bench.ask(5000, 0, ttl=2) is None
    assert bench.net.packets == 1
    assert bench.gets_in(0, 1, 5000)  # but the NAT is open
    assert bench.ask(5000, 0, ttl=3) == 5000
    bench.servers[0].send(1, (OUTSIDE, 5000), "!", ttl=2)
    bench.net.run(bench.net.now + 0.1)
    assert len(bench.got) == 1


def test_a_linux_router_without_an_input_firewall() -> None:
    bench = Bench(NatType(open_input=True))
    assert bench.ask(5000, 0) == 5000
    assert bench.ask(5000, 1) == 5000
    assert bench.gets_in(0, 1, 5000)
    assert not bench.gets_in(0, 2, 5000)  # too early: and this moves the port
    assert bench.ask(5000, 0, 2) != 5000
    assert bench.ask(5000, 1, 2) == 5000
    fresh = Bench(NatType(open_input=True))
    assert not fresh.gets_in(0, 2, 5000)
    fresh.net.run(40.0)
    assert fresh.ask(5000, 0, 2) == 5000  # after half a minute


def test_carrier_grade_nat() -> None:
    net = SimInternet(1)
    carrier = net.nat(OUTSIDE, NatType(EI, STRICT, Allocation.RANDOM, syn="rst"))
    home = net.nat("100.64.0.9", NatType(EI, OPEN, syn="rst"), carrier)
    host, server = net.host(INSIDE, home), net.host(SERVERS[0])
    seen: list[Any] = []
    server.listen_udp(1, lambda _, source: seen.append(source))
    host.listen_udp(5000, lambda *_: None)
    host.send(5000, (SERVERS[0], 1), "?", ttl=2)
    net.run(0.5)
    assert seen == []
    host.send(5000, (SERVERS[0], 1), "?")
    net.run(1.0)
    assert seen[0][0] == OUTSIDE
    assert seen[0][1] != 5000


def test_loss_and_jitter() -> None:
    net = SimInternet(1, loss=0.5, jitter=0.1)
    one, other = net.host("198.51.100.1"), net.host("198.51.100.2")
    times: list[float] = []
    other.listen_udp(1, lambda *_: times.append(net.now))
    for _ in range(200):
        one.send(1, ("198.51.100.2", 1), "!")
    one.send(1, ("198.51.100.99", 1), "nobody")
    net.run(5.0)
    assert 60 < len(times) < 140
    assert max(times) - min(times) > 0.05


# -- TCP ------------------------------------------------------------------------------------------------------------


def pair(kind: NatType | None = None) -> tuple[SimInternet, SimHost, SimHost]:
    net = SimInternet(1)
    one = net.host(INSIDE, net.nat(OUTSIDE, kind)) if kind else net.host(OUTSIDE)
    return net, one, net.host(SERVERS[0])


def test_connect_and_talk() -> None:
    net, client, server = pair(NatType())
    outcomes: list[str] = []
    accepted: list[Any] = []
    heard: list[Any] = []
    server.listen_tcp(80, accepted.append, lambda source, data: heard.append((source, data)))
    client.connect(5000, (SERVERS[0], 80), outcomes.append, heard.append)
    assert client.connect(5000, (SERVERS[0], 80), outcomes.append) is None
    net.run(1.0)
    assert outcomes == ["connected"]
    assert accepted == [(OUTSIDE, 5000)]
    client.tell(5000, (SERVERS[0], 80), "hello")
    server.tell(80, (OUTSIDE, 5000), "welcome")
    net.run(20.0)
    assert heard == [((OUTSIDE, 5000), "hello"), "welcome"]


def test_nobody_listens() -> None:
    net, client, _ = pair(NatType())
    outcomes: list[str] = []
    client.connect(5000, (SERVERS[0], 80), outcomes.append)
    net.run(1.0)
    assert outcomes == ["refused"]


def test_simultaneous_open() -> None:
    net, one, other = pair()
    outcomes: list[str] = []
    one.connect(5000, (SERVERS[0], 6000), lambda outcome: outcomes.append("one " + outcome))
    other.connect(6000, (OUTSIDE, 5000), lambda outcome: outcomes.append("other " + outcome))
    net.run(1.0)
    assert sorted(outcomes) == ["one connected", "other connected"]


@pytest.mark.parametrize(
    ("syn", "open_input", "outcomes"), [("drop", False, []), ("rst", False, ["refused"]), ("drop", True, ["refused"])]
)
def test_unexpected_syns(syn: Any, open_input: bool, outcomes: list[str]) -> None:
    net, _, server = pair(NatType(syn=syn, open_input=open_input))
    seen: list[str] = []
    server.connect(6000, (OUTSIDE, 5000), seen.append)
    net.run(20.0)
    assert seen == outcomes


def test_a_routers_rst_does_not_end_a_connection() -> None:
    """It knows no sequence numbers (RFC 9293 §3.10.7.4)."""
    net, one, other = pair(NatType(syn="rst"))
    outcomes: list[str] = []
    other.connect(6000, (OUTSIDE, 5000), lambda outcome: outcomes.append("other " + outcome))
    net.run(0.015)  # the SYN of the other side is on its way, and comes too early
    one.connect(5000, (SERVERS[0], 6000), lambda outcome: outcomes.append("one " + outcome))
    net.run(0.05)
    other.connect(6000, (OUTSIDE, 5000), lambda outcome: outcomes.append("again " + outcome))
    net.run(2.0)
    assert "one connected" in outcomes


def test_abort() -> None:
    net, client, server = pair(NatType())
    outcomes: list[str] = []
    attempt = client.connect(5000, ("198.51.100.99", 80), outcomes.append)
    assert attempt is not None
    net.run(1.5)
    client.abort(attempt)
    client.abort(attempt)
    net.run(10.0)
    assert attempt.state == "closed"
    assert outcomes == []
    again = client.connect(5000, ("198.51.100.99", 80), outcomes.append)
    assert again is not None
    # one that has received a SYN resets the other side
    heard: list[str] = []
    one = client.connect(5001, (SERVERS[0], 6000), outcomes.append)
    server.connect(6000, (OUTSIDE, 5001), heard.append)
    net.run(net.now + 0.025)
    assert one is not None
    assert one.state == "syn received"
    client.abort(one)
    net.run(net.now + 5.0)
    assert heard[-1] == "refused"


def test_stop_condition() -> None:
    net = SimInternet(1)
    net.at(1.0, lambda: None)
    net.at(2.0, lambda: None)
    assert net.run(5.0, lambda: net.now >= 1.0)
    assert net.now == 1.0
    assert not net.run(5.0, lambda: False)
    assert net.now == 5.0
