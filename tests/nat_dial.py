"""Dials between two simulated NATs: measurement, offer and answer through a rendezvous, punching; for tests.

Times are those of the lab: 40 ms round trip between the sites, 20 ms to the rendezvous. What the dialling layer does
over sockets is done here over `SimInternet`, with the same engines.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

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
from crust.proto.nat.candidates import LocalView, screen
from crust.proto.nat.limits import TraversalLimits
from crust.proto.nat.prediction import Prediction, predict
from crust.proto.nat.punch import Established, Hopeless, PunchOptions, SocketsWanted
from crust.proto.nat.strategy import Approach, PortKnowledge, knowledge_of, plan
from crust.proto.nat.tcp_punch import MEETING_SOCKETS, TcpPuncher
from crust.proto.nat.udp_punch import UdpPuncher
from crust.testing.simnat import NatType, SimHost, SimInternet, SimNat
from crust.types import Candidate

EI, AD, APD = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
OPEN, HOST, STRICT = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)

TYPES: dict[str, NatType | None] = {
    "public": None,
    "full cone": NatType(EI, OPEN),
    "address-restricted": NatType(EI, HOST),
    "port-restricted": NatType(EI, STRICT),
    "port-restricted random": NatType(EI, STRICT, Allocation.RANDOM),
    "symmetric sequential": NatType(APD, STRICT, Allocation.SEQUENTIAL),
    "symmetric random": NatType(APD, STRICT, Allocation.RANDOM),
    "linux": NatType(open_input=True),
}

Address = tuple[str, int]
RENDEZVOUS, SECOND = ("198.51.100.1", 3478), ("192.0.2.1", 3478)
ROUNDS = 4
MAIN = 5000


@dataclass
class Offer:
    """What one side tells the other."""

    verdict: NatVerdict
    addresses: list[Address]
    hosts: list[Address]
    prediction: Prediction | None
    meeting: list[int]


@dataclass
class DialResult:
    """How a dial went."""

    connected: bool = False
    seconds: float = float("inf")
    hopeless_after: float | None = None
    sent: tuple[int, int] = (0, 0)
    sockets: tuple[int, int] = (1, 1)
    approaches: tuple[str, str] = ("", "")
    to_one_address: int = 0
    source_port_is_measured: bool = True


@dataclass
class Side:
    """One peer: host, NAT, sockets, engines."""

    name: str
    net: SimInternet
    host: SimHost
    protocol: Literal["udp", "tcp"]
    random: Random
    kind: NatType | None
    outside: str
    controlling: bool
    behaviour: NatBehaviour = field(init=False)
    puncher: UdpPuncher | TcpPuncher | None = None
    offer: Offer | None = None
    established: tuple[int, Address] | None = None
    established_at: float = 0.0
    hopeless_at: float | None = None
    ports: dict[int, int] = field(default_factory=lambda: {0: MAIN})
    approach: Approach | None = None
    armed: float = float("inf")
    on_established: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.behaviour = NatBehaviour(self.protocol)

    # -- measurement ---------------------------------------------------------------------------------------------

    def measure(self, port: int, observer: Address, done: Callable[[], None] = lambda: None) -> None:
        """Ask an observer how we look from a port (over UDP, or a TCP that behaves alike)."""
        sent_at = self.net.now

        def seen(reply: Any, source: Address) -> None:
            local = (self.host.address, port)
            first = not self.behaviour.outside(local) or port == MAIN
            self.behaviour.observe(Observation(local, source, reply[1], sent_at, trusted=True))
            if first:
                done()

        if self.protocol == "udp":
            self.host.listen_udp(port, seen)
            self._ask(port, observer)
        else:
            self.host.connect(port, observer, lambda _: None, lambda data: seen(data, observer))

    def _ask(self, port: int, observer: Address) -> None:
        """Again until answered (RFC 8489 §6.2.1, in short)."""

        def again() -> None:
            if self.puncher is None and not self.behaviour.outside((self.host.address, port)):
                self._ask(port, observer)

        self.host.send(port, observer, "ask")
        self.net.at(self.net.now + 0.2, again)

    def learn(self) -> None:
        """What a node finds out while it is idle."""
        self.net.run(self.net.now + 0.1)
        for observer in (RENDEZVOUS, SECOND, (RENDEZVOUS[0], 3479)):
            self.measure(MAIN, observer)
            self.net.run(self.net.now + 0.1)
        filtering = self.kind.filtering if self.kind else OPEN
        if self.kind is not None and self.kind.open_input:
            filtering = STRICT
        for kind, answered in (
            (FilteringKind.OTHER_ADDRESS, filtering is OPEN),
            (FilteringKind.OTHER_PORT, filtering is not STRICT),
        ):
            self.behaviour.filtering_test(FilteringTest(kind, answered, RENDEZVOUS, trusted=True))

    def prepare(self, done: Callable[[], None]) -> None:
        """The last measurement before an offer: a sequential NAT is asked where it stands."""

        def ready() -> None:
            verdict = self.behaviour.verdict
            prediction = predict(self.behaviour.samples, verdict.step, self.net.now) if verdict.step else None
            sockets = TraversalLimits().meeting_sockets if self.protocol == "udp" else MEETING_SOCKETS
            at = self.net.now + 0.05
            meeting = [prediction.meeting_port(sockets, at + r / 2, r) for r in range(ROUNDS)] if prediction else []
            addresses = [o.address for o in self.behaviour.outside((self.host.address, MAIN))][:1]
            hosts = [(self.host.address, MAIN)] if self.kind is not None else []
            self.offer = Offer(verdict, addresses, hosts, prediction, meeting)
            done()

        if knowledge_of(self.behaviour.verdict) is PortKnowledge.SEQUENTIAL:
            self.measure(self.random.randrange(20000, 60000), RENDEZVOUS, ready)
        else:
            ready()

    # -- punching ------------------------------------------------------------------------------------------------

    def begin(self, theirs: Offer, options: PunchOptions, budget: DestinationBudget | None = None) -> None:
        """Start with the other's offer."""
        assert self.offer is not None
        if self.established is not None:
            return
        decided = plan(self.offer.verdict, theirs.verdict, controlling=self.controlling)
        self.approach = decided.approach
        transport: Literal["tcp", "utp"] = "utp" if self.protocol == "udp" else "tcp"
        make = UdpPuncher if self.protocol == "udp" else TcpPuncher
        self.puncher = make(decided, self.random.randbytes, budget or DestinationBudget(), self.net.now, options)
        candidates = [Candidate(transport, host, port, "server-reflexive") for host, port in theirs.addresses]
        if decided.approach is Approach.MEET:
            ports = theirs.meeting
        elif decided.approach is Approach.PREDICT_THEIRS and theirs.prediction is not None:
            ports = theirs.prediction.ports(options.limits.predicted_ports, self.net.now)
        else:
            ports = []
        host = theirs.addresses[0][0]
        candidates += [Candidate(transport, host, port, "predicted") for port in ports]
        candidates = [Candidate(transport, *address) for address in theirs.hosts] + candidates
        view = LocalView(
            on_link=(self._link(),) if self.kind else (),
            outside_hosts=frozenset({self.outside}),
            own=frozenset({(self.host.address, MAIN)}),
        )
        kept = screen(candidates, view, attested_hosts=frozenset({host})).kept
        rank = {(c.host, c.port): i for i, c in enumerate(candidates)}
        kept.sort(key=lambda remote: rank[remote.address])
        self.puncher.add(kept, self.net.now)
        self.pump()

    def _link(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        length = 64 if ":" in self.host.address else 24
        return ipaddress.ip_network(f"{self.host.address}/{length}", strict=False)

    def pump(self) -> None:
        """Take events, do what is due, arm one timer."""
        puncher = self.puncher
        if puncher is None:
            return
        self._events(puncher)
        if isinstance(puncher, UdpPuncher):
            for probe in puncher.probes_to_send(self.net.now):
                self.host.send(self.ports[probe.socket], probe.target, "probe", probe.ttl or 64)
        else:
            for connect in puncher.connects_to_start(self.net.now):
                self._connect(connect.socket, connect.target, connect.timeout)
        self._events(puncher)
        due = puncher.next_timeout()
        if due is not None and (due < self.armed or self.armed <= self.net.now):
            self.armed = due
            self.net.at(due, self.pump)

    def _events(self, puncher: UdpPuncher | TcpPuncher) -> None:
        while (event := puncher.next_event()) is not None:
            if isinstance(event, SocketsWanted):
                for number in range(event.first, event.last + 1):
                    port = self.random.randrange(20000, 60000)
                    while port in self.ports.values():
                        port = self.random.randrange(20000, 60000)
                    self.ports[number] = port
                    self.listen(number)
            elif isinstance(event, Hopeless):
                self.hopeless_at = self.net.now
            elif isinstance(event, Established):
                self.established, self.established_at = (event.socket, event.remote), self.net.now
                self.on_established()

    def listen(self, number: int) -> None:
        """Open a socket."""
        port = self.ports[number]
        if self.protocol == "udp":
            self.host.listen_udp(port, lambda data, source: self._datagram(number, data, source))
        else:
            self.host.listen_tcp(
                port, lambda source: self._connected(number, source), lambda source, _: self._hello(number, source)
            )

    def _datagram(self, number: int, data: Any, source: Address) -> None:
        if data not in ("probe", "answer", "confirm"):
            return
        if self.puncher is None:  # the tunnel answers before any dial of ours
            self.host.send(self.ports[number], source, "answer")
            return
        assert isinstance(self.puncher, UdpPuncher)
        self.puncher.received(number, source, self.net.now)
        if data == "probe":
            self.host.send(self.ports[number], source, "answer")
        elif self.established is None:
            if data == "answer":
                self.host.send(self.ports[number], source, "confirm")
            self.puncher.established(number, source, self.net.now)
        self.pump()

    def _connect(self, number: int, target: Address, timeout: float) -> None:
        puncher = self.puncher
        assert isinstance(puncher, TcpPuncher)

        def done(outcome: str) -> None:
            if outcome == "connected":
                self._connected(number, target)
            else:
                puncher.refused(number, target, self.net.now)
                self.pump()

        attempt = self.host.connect(self.ports[number], target, done, lambda _: self._hello(number, target))

        def give_up() -> None:
            if attempt is not None and attempt.state == "syn sent":
                self.host.abort(attempt)
                puncher.timed_out(number, target, self.net.now)
                self.pump()

        self.net.at(self.net.now + timeout, give_up)

    def _connected(self, number: int, source: Address) -> None:
        """A connection is up; each side authenticates itself with its first bytes."""
        self.host.tell(self.ports[number], source, "hello")

    def _hello(self, number: int, source: Address) -> None:
        if self.puncher is None:  # accepted before any dial of ours
            self.established, self.established_at = (number, source), self.net.now
        elif self.established is None:
            assert isinstance(self.puncher, TcpPuncher)
            self.puncher.established(number, source, self.net.now)
            self.pump()


def make_side(
    name: str,
    net: SimInternet,
    kind: NatType | None,
    protocol: Literal["udp", "tcp"],
    *,
    outside: str,
    inside: str,
    carrier: NatType | None = None,
    shared: SimNat | None = None,
) -> Side:
    """A peer behind a NAT; `carrier` puts another one before it, `shared` is a NAT that exists already."""
    if shared is not None:
        host = net.host(inside, shared)
    elif kind is None:
        host = net.host(outside)
    elif carrier is not None:
        nat = net.nat("100.64.0.9", kind, net.nat(outside, carrier))
        host = net.host(inside, nat)
    else:
        host = net.host(inside, net.nat(outside, kind))
    random = Random(net.random.random())
    return Side(name, net, host, protocol, random, kind, outside, controlling=name == "a")


def make_servers(net: SimInternet) -> None:
    """The rendezvous and a second observer."""
    for address in (RENDEZVOUS, SECOND):
        server = net.host(address[0])
        net.central.add(address[0])
        for port in (address[1], 3479):
            server.listen_udp(port, lambda _, source, s=server, p=port: s.send(p, source, ("seen", source)))
            server.listen_tcp(port, lambda source, s=server, p=port: s.tell(p, source, ("seen", source)))


def dial(
    ours: NatType | None,
    theirs: NatType | None,
    *,
    seed: int = 0,
    protocol: Literal["udp", "tcp"] = "udp",
    late: float | None = None,
    loss: float = 0.0,
    jitter: float = 0.0,
    limits: TraversalLimits | None = None,
    carriers: tuple[NatType | None, NatType | None] = (None, None),
    place: Literal["sites", "one site", "firewalls"] = "sites",
    cheat: bool = False,
    quiet: bool = False,
    seconds: float = 12.0,
) -> DialResult:
    """One dial from a to b.

    Args:
        ours: a's NAT.
        theirs: b's NAT.
        seed: of everything.
        protocol: "udp" or "tcp".
        late: None: with offer and answer through the rendezvous. Else contacts were swapped by hand, nobody tells
            who begins, and b begins that many seconds after a (before a, if negative).
        loss: share of packets lost, once behaviour has been measured.
        jitter: up to so many seconds more for each packet, and for the offer and the answer.
        limits: of both.
        carriers: carrier-grade NATs before each side's own.
        place: "one site": both behind a's NAT. "firewalls": the NATs translate nothing (IPv6).
        cheat: a sends from another port than the one that it measured.
        quiet: use a second, quiet socket.
        seconds: until the dial is given up.
    """
    net = SimInternet(seed)
    make_servers(net)
    outside = ("203.0.113.1", "203.0.115.1") if place != "firewalls" else ("2001:db8:a::1", "2001:db8:b::1")
    inside = ("192.168.1.2", "192.168.1.3") if place != "firewalls" else outside
    a = make_side("a", net, ours, protocol, outside=outside[0], inside=inside[0], carrier=carriers[0])
    shared = a.host.nat if place == "one site" else None
    b = make_side(
        "b",
        net,
        ours if shared else theirs,
        protocol,
        outside=outside[0 if shared else 1],
        inside=inside[1],
        carrier=carriers[1],
        shared=shared,
    )
    for side in (a, b):
        side.listen(0)
        side.learn()
        side.listen(0)
    net.loss, net.jitter = loss, jitter
    limits = limits or TraversalLimits()
    ttls = [3 if carrier else 2 for carrier in carriers]
    began = net.now + 0.3
    sent_before = a.host.sent, b.host.sent
    relay = 2 * (net.latency / 2 + net.access) + 0.0005  # half the way to the rendezvous, twice

    def both_established() -> bool:
        return a.established is not None and b.established is not None

    def answer() -> None:
        assert a.offer is not None
        assert b.offer is not None
        hold = 0.1 if protocol == "udp" else relay
        if cheat:
            a.ports[0] = MAIN + 7
            a.listen(0)
        b.begin(a.offer, PunchOptions(limits, hold=hold, opener_ttl=ttls[1]))
        later = relay + net.random.random() * jitter
        net.at(net.now + later, lambda: a.begin(b.offer, PunchOptions(limits, opener_ttl=ttls[0])))

    def start() -> None:
        a.prepare(lambda: net.at(net.now + relay, lambda: b.prepare(answer)))

    if late is None:
        net.at(began, start)
    else:
        _begin_by_hand(a, b, began, late, limits, quiet)
    net.run(began + seconds, both_established)
    hopeless = [side.hopeless_at for side in (a, b) if side.hopeless_at is not None]
    counts = [
        count
        for side, other in ((a, b), (b, a))
        for address, count in side.host.sent_to.items()
        if address[0] in (other.outside, other.host.address)
    ]
    return DialResult(
        both_established(),
        max(a.established_at, b.established_at) - began if both_established() else float("inf"),
        min(hopeless) - began if hopeless else None,
        (a.host.sent - sent_before[0], b.host.sent - sent_before[1]),
        (len(a.ports), len(b.ports)),
        (a.approach.name if a.approach else "", b.approach.name if b.approach else ""),
        max(counts, default=0),
        _measured_is_used(a, b) and _measured_is_used(b, a),
    )


def _begin_by_hand(a: Side, b: Side, began: float, late: float, limits: TraversalLimits, quiet: bool) -> None:
    net = a.net
    for side in (a, b):
        if quiet:
            side.ports[1] = MAIN + 1
            side.measure(MAIN + 1, RENDEZVOUS)
            net.run(net.now + 0.1)
            side.listen(1)
        side.prepare(lambda: None)
        net.run(net.now + 0.1)
        assert side.offer is not None
        if quiet:
            side.offer.addresses += [o.address for o in side.behaviour.outside((side.host.address, MAIN + 1))][:1]
    options = PunchOptions(limits, opener_ttl=2, coordinated=False, quiet=(1,) if quiet else (), patience=60.0)
    for side, other, when in ((a, b, max(0.0, -late)), (b, a, max(0.0, late))):
        offer = other.offer
        net.at(began + when, lambda s=side, o=offer: s.begin(o, options))


def _measured_is_used(side: Side, other: Side) -> bool:
    """Where our port is known, the other reaches us at the very port that was measured."""
    if side.established is None or other.established is None or side.offer is None:
        return True
    if knowledge_of(side.offer.verdict) is not PortKnowledge.FIXED:
        return True
    return other.established[1] in side.offer.addresses + side.offer.hosts
