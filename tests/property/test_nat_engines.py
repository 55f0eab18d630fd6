"""Whatever strangers send and peers claim: the engines of NAT traversal neither raise nor flood anybody."""

from __future__ import annotations

import ipaddress
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crust.proto.nat.behaviour import (
    Allocation,
    Filtering,
    FilteringKind,
    FilteringTest,
    Mapping,
    NatBehaviour,
    NatVerdict,
    Observation,
)
from crust.proto.nat.budget import DestinationBudget
from crust.proto.nat.candidates import LocalView, RemoteCandidate, Trust, screen
from crust.proto.nat.leases import LeaseClient
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.natpmp import NatPmpClient
from crust.proto.nat.pcp import PcpClient
from crust.proto.nat.punch import PunchOptions
from crust.proto.nat.strategy import plan
from crust.proto.nat.stun import StunClient, StunServer
from crust.proto.nat.tcp_punch import TcpPuncher
from crust.proto.nat.udp_punch import UdpPuncher
from crust.types import Candidate, CandidateKind, Transport

LIMITS = TraversalLimits()
VIEW = LocalView(
    on_link=(ipaddress.ip_network("192.168.1.0/24"),),
    outside_hosts=frozenset({"198.51.100.1"}),
    own=frozenset({("192.168.1.5", 5000)}),
)
NEVER = [
    ipaddress.ip_network(n)
    for n in ("224.0.0.0/4", "127.0.0.0/8", "0.0.0.0/8", "255.255.255.255/32", "ff00::/8", "::/127", "::ffff:0:0/96")
]

kinds = st.sampled_from(["host", "server-reflexive", "peer-reflexive", "mapped", "predicted", "relayed"])
hosts = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(
        ["203.0.113.5", "192.168.1.9", "192.168.1.255", "10.0.0.1", "127.0.0.1", "::1", "224.0.0.1", "0.0.0.0"]
    ),
    st.text(max_size=8),
)
ports = st.integers(-1, 70000)
verdicts = st.builds(
    NatVerdict,
    st.just("udp"),
    st.sampled_from(Mapping),
    st.sampled_from(Filtering),
    st.sampled_from(Allocation),
    st.integers(-4, 4),
    translated=st.booleans(),
)


def candidates(transport: Transport) -> st.SearchStrategy[list[Candidate]]:
    return st.lists(st.builds(Candidate, st.just(transport), hosts, ports, kinds), max_size=100)


def sent_by_udp(engine: UdpPuncher, until: float) -> Counter[tuple[str, int]]:
    sent: Counter[tuple[str, int]] = Counter()
    now = 0.0
    while now <= until:
        sent.update(probe.target for probe in engine.probes_to_send(now))
        due = engine.next_timeout()
        if due is None:
            break
        assert due > now or not engine.probes_to_send(now)
        now = max(due, now)
    return sent


@settings(max_examples=150)
@given(listed=candidates("utp"), ours=verdicts, theirs=verdicts, attested=st.booleans())
def test_a_lying_list_over_udp(listed: list[Candidate], ours: NatVerdict, theirs: NatVerdict, attested: bool) -> None:
    """No list makes us send to a group or to our own machine, or more than a handful to who did not ask for it."""
    vouched = frozenset({"203.0.113.5"}) if attested else frozenset[str]()
    kept = screen(listed, VIEW, attested_hosts=vouched).kept
    engine = UdpPuncher(plan(ours, theirs, controlling=True), Random(1).randbytes, DestinationBudget(), 0.0)
    engine.add(kept, 0.0)
    by_host: Counter[str] = Counter()
    for (host, _), count in sent_by_udp(engine, 12.0).items():
        assert not any(ipaddress.ip_address(host) in network for network in NEVER)
        by_host[host] += count
    for host, count in by_host.items():
        assert count <= (LIMITS.dial_datagrams if host in vouched else LIMITS.unverified_datagrams)
    assert sum(by_host.values()) <= LIMITS.dial_datagrams


@settings(max_examples=150)
@given(listed=candidates("tcp"), ours=verdicts, theirs=verdicts, refused=st.booleans())
def test_a_lying_list_over_tcp(listed: list[Candidate], ours: NatVerdict, theirs: NatVerdict, refused: bool) -> None:
    engine = TcpPuncher(plan(ours, theirs, controlling=False), Random(1).randbytes, DestinationBudget(), 0.0)
    engine.add(screen(listed, VIEW).kept, 0.0)
    by_host: Counter[str] = Counter()
    now = 0.0
    while (due := engine.next_timeout()) is not None and due <= 12.0:
        now = max(due, now)
        for connect in engine.connects_to_start(now):
            by_host[connect.target[0]] += 1
            (engine.refused if refused else engine.timed_out)(connect.socket, connect.target, now)
    assert max(by_host.values(), default=0) <= LIMITS.unverified_connects


@given(listed=candidates("utp"), attested=st.booleans(), by_hand=st.booleans())
def test_screening(listed: list[Candidate], attested: bool, by_hand: bool) -> None:
    vouched = frozenset({"10.0.0.1"}) if attested else frozenset[str]()
    result = screen(listed, VIEW, attested_hosts=vouched, by_hand=by_hand)
    assert len(result.kept) <= LIMITS.candidates
    assert len(result.kept) + len(result.refused) == len({(c.host, c.port) for c in listed})
    for kept in result.kept:
        host = ipaddress.ip_address(kept.candidate.host)
        assert not host.is_multicast
        assert not host.is_unspecified
        assert by_hand or not host.is_loopback
        assert 0 < kept.candidate.port < 65536
        assert (kept.trust is Trust.CLAIMED) == (not by_hand and kept.candidate.host not in vouched)


class Punching(RuleBasedStateMachine):
    """Any order of verbs: limits hold, time is respected, nothing raises."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sent = 0
        self.sockets = 1
        self.claimed: Counter[str] = Counter()
        self.trusted: set[str] = set()
        self.engine: UdpPuncher | None = None

    @precondition(lambda self: self.engine is None)
    @rule(ours=verdicts, theirs=verdicts, hold=st.floats(0, 1), ttl=st.none() | st.just(2), quiet=st.booleans())
    def begin(self, ours: NatVerdict, theirs: NatVerdict, hold: float, ttl: int | None, quiet: bool) -> None:
        options = PunchOptions(hold=hold, opener_ttl=ttl, quiet=(1,) if quiet else (), coordinated=not quiet)
        decided = plan(ours, theirs, controlling=True)
        self.engine = UdpPuncher(decided, Random(2).randbytes, DestinationBudget(), self.now, options)
        self.sockets = 2 if quiet else 1

    @precondition(lambda self: self.engine is not None)
    @rule(
        host=st.integers(1, 5),
        port=st.integers(1, 65535),
        kind=kinds,
        trust=st.sampled_from(list(Trust)),
        near=st.booleans(),
    )
    def add(self, host: int, port: int, kind: CandidateKind, trust: Trust, near: bool) -> None:
        address = f"203.0.113.{host}"
        if trust is not Trust.CLAIMED:
            self.trusted.add(address)
        remote = RemoteCandidate(Candidate("utp", address, port, kind), trust, near, host * port)
        assert self.engine is not None
        self.engine.add([remote], self.now)
        self.drain()

    @precondition(lambda self: self.engine is not None)
    @rule(host=st.integers(1, 5), port=st.integers(1, 65535), what=st.integers(0, 3))
    def hear(self, host: int, port: int, what: int) -> None:
        assert self.engine is not None
        source = (f"203.0.113.{host}", port)
        if what == 0:
            self.trusted.add(source[0])
            self.engine.received(0, source, self.now)
        elif what == 1:
            self.engine.unreachable(0, source, self.now)
        elif what == 2:
            self.engine.peer_started(self.now)
        elif port % 10 == 0:
            self.engine.established(0, source, self.now)
        self.drain()

    @precondition(lambda self: self.engine is not None)
    @rule(seconds=st.floats(0, 1))
    def wait(self, seconds: float) -> None:
        assert self.engine is not None
        until = self.now + seconds
        while (due := self.engine.next_timeout()) is not None and due <= until:
            self.now = max(self.now, due)
            self.drain()
        self.now = until

    def drain(self) -> None:
        assert self.engine is not None
        while (event := self.engine.next_event()) is not None:
            self.sockets = max(self.sockets, getattr(event, "last", 0) + 1)
        for probe in self.engine.probes_to_send(self.now):
            self.sent += 1
            self.claimed[probe.target[0]] += 1
        while (event := self.engine.next_event()) is not None:
            self.sockets = max(self.sockets, getattr(event, "last", 0) + 1)

    @invariant()
    def limits_hold(self) -> None:
        assert self.sent <= LIMITS.dial_datagrams
        assert self.sockets <= LIMITS.dial_sockets
        for host, count in self.claimed.items():
            assert host in self.trusted or count <= LIMITS.unverified_datagrams
        if self.engine is not None and self.engine.ended is not None:
            assert self.engine.probes_to_send(self.now) == []


Punching.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestPunching = Punching.TestCase

octets = st.integers(1, 254)
observations = st.builds(
    Observation,
    st.tuples(st.just("192.168.1.2"), st.integers(5000, 5003)),
    st.tuples(st.builds("{}.{}.0.{}".format, octets, octets, octets), st.integers(1, 65535)),
    st.tuples(st.sampled_from(["203.0.113.1", "203.0.113.2", "192.168.1.2"]), st.integers(1, 65535)),
    st.floats(0, 1000),
    trusted=st.booleans(),
)


@given(seen=st.lists(observations, max_size=40), answered=st.lists(st.booleans(), max_size=5))
def test_any_observations(seen: list[Observation], answered: list[bool]) -> None:
    behaviour = NatBehaviour("udp")
    for observation in seen:
        verdict = behaviour.observe(observation)
        assert 0 <= verdict.mapping_confidence <= 1
        assert 0 <= verdict.allocation_confidence <= 1
        assert verdict.describe()
    for answer in answered:
        for kind in FilteringKind:
            verdict = behaviour.filtering_test(FilteringTest(kind, answer, ("192.0.2.1", 1)))
            assert 0 <= verdict.filtering_confidence <= 1


@given(
    honest=st.integers(2, 5),
    lies=st.lists(st.tuples(octets, st.integers(1, 65535), st.integers(1, 65535)), max_size=40),
)
def test_one_network_of_liars_changes_nothing(honest: int, lies: list[tuple[int, int, int]]) -> None:
    behaviour = NatBehaviour("udp")
    local, outside = ("192.168.1.2", 5000), ("203.0.113.1", 33000)
    for n in range(honest):
        behaviour.observe(Observation(local, (f"198.{n}.0.1", 1), outside, float(n)))
    before = behaviour.verdict
    for n, (octet, port, lie) in enumerate(lies):
        behaviour.observe(Observation(local, (f"10.66.0.{octet}", port), ("203.0.113.1", lie), 10.0 + n / 100))
    after = behaviour.verdict
    assert (after.mapping, after.translated, after.hosts) == (before.mapping, before.translated, before.hosts)
    assert behaviour.outside(local)[0].address == outside


@given(data=st.lists(st.binary(max_size=80), max_size=20), deleting=st.booleans())
def test_any_answers_of_a_router(data: list[bytes], deleting: bool) -> None:
    clients: list[LeaseClient] = [
        PcpClient("192.168.1.1", "192.168.1.2", Random(1).randbytes),
        NatPmpClient("192.168.1.1", Random(1).randbytes),
    ]
    for client in clients:
        client.map("udp", 4000, 0.0)
        requests = client.datagrams_to_send(0.0)
        # random bytes, and random bytes in the shape of an answer to the request
        shaped = [r[:1] + bytes([r[1] | 0x80]) + d + r[2 + len(d) :] for r in requests for d in data]
        if deleting:
            client.unmap("udp", 4000, 0.0)
        for n, datagram in enumerate([*data, *shaped]):
            client.receive_datagrams([(datagram, ("192.168.1.1", 5351))], n / 10)
            client.handle_timeout(n / 10)
            assert len(client.datagrams_to_send(n / 10)) <= 8
        while client.next_event() is not None:
            pass


@given(data=st.lists(st.binary(max_size=60), max_size=10))
def test_any_answers_of_a_stun_server(data: list[bytes]) -> None:
    client = StunClient(Random(1).randbytes)
    server = ("192.0.2.1", 3478)
    client.request(server, 0.0)
    [(request, _)] = client.datagrams_to_send(0.0)
    for tail in data:
        for datagram in (tail, b"\x01\x01\x00\x00" + request[4:20] + tail, request[:20] + tail):
            client.receive_datagrams([(datagram, server)], 0.1)
            reply = StunServer().respond(datagram, ("198.51.100.7", 5))
            assert reply is None or len(reply.data) <= 2 * max(len(datagram), 32)
