"""What a lab is made of, as declarations: NATs, firewalls, routers, and the kinds of places that peers live in."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

__all__ = ["NATS", "Behaviour", "Firewall", "Kind", "Link", "Nat", "Ports", "Router"]


class Behaviour(enum.StrEnum):
    """How far a NAT's mapping or filtering looks at the remote endpoint (RFC 4787 §4.1, §5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Ports(enum.StrEnum):
    """How a NAT chooses outside ports (RFC 4787 §4.2)."""

    PRESERVING = "preserving"
    RANDOM = "random"
    SEQUENTIAL = "sequential"


EI = Behaviour.ENDPOINT_INDEPENDENT
AD = Behaviour.ADDRESS_DEPENDENT
APD = Behaviour.ADDRESS_AND_PORT_DEPENDENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """The behaviour of one NAT; strings are taken for the enumerations.

    Attributes:
        mapping: whether an inside endpoint keeps its outside port towards other remote endpoints (RFC 4787 §4.1).
        filtering: from which remote endpoints packets are let in (RFC 4787 §5).
        ports: how outside ports are chosen.
        port_step: distance between two sequential ports.
        port_range: first and last outside port.
        hairpinning: whether inside hosts reach each other by their outside endpoints (RFC 4787 §6).
        refuse: whether an unexpected TCP segment from outside is answered by a RST or dropped in silence.
        simultaneous_open: whether a SYN may come in while one of ours is out (RFC 5382 REQ-2).
        icmp_errors: whether ICMP errors about a mapping are passed (RFC 5508 §4).
        udp_timeout: seconds after which an idle UDP mapping is forgotten.
        inbound_refresh: whether packets from outside keep a UDP mapping alive, too.
        tcp_timeout: seconds for an established, idle TCP connection.
        tcp_transitory_timeout: seconds for one that is being opened or closed.
        tcp_reset_timeout: seconds that a reset connection keeps its mapping.
    """

    mapping: Behaviour = EI
    filtering: Behaviour = APD
    ports: Ports = Ports.PRESERVING
    port_step: int = 1
    port_range: tuple[int, int] = (1024, 65535)
    hairpinning: bool = False
    refuse: bool = False
    simultaneous_open: bool = True
    icmp_errors: bool = True
    udp_timeout: float = 120.0
    inbound_refresh: bool = True
    tcp_timeout: float = 7440.0
    tcp_transitory_timeout: float = 240.0
    tcp_reset_timeout: float = 10.0

    def __post_init__(self) -> None:
        """Check that such a NAT can be.

        Raises:
            ValueError: it cannot.
        """
        object.__setattr__(self, "mapping", Behaviour(self.mapping))
        object.__setattr__(self, "filtering", Behaviour(self.filtering))
        object.__setattr__(self, "ports", Ports(self.ports))
        low, high = self.port_range
        if not 0 < low <= high < 65536 or self.port_step < 1:
            raise ValueError(f"no ports in {self.port_range} with a step of {self.port_step}")
        if self.ports is Ports.PRESERVING and self.mapping is not EI:
            raise ValueError("an endpoint-dependent mapping cannot preserve the port towards more than one endpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """What a router does not let out; unexpected packets from outside are the NAT's business.

    Attributes:
        blocked: protocols that are dropped in both directions: "udp", "tcp", "icmp".
        tcp_ports: the only destination ports that TCP may go to; None for any.
    """

    blocked: frozenset[Literal["udp", "tcp", "icmp"]] = frozenset()
    tcp_ports: frozenset[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A router of a site.

    Attributes:
        nat: how IPv4 is translated; None for a site without IPv4.
        firewall: what is not let out.
        kernel: whether this is a Linux router (netfilter) or the lab's own NAT. Linux does two kinds of NAT: ports
            preserved, which is as good as endpoint-independent, and random ports for each remote endpoint.
        open_input: Linux only: no firewall for the router itself, so that a packet which comes before its time makes
            a connection-tracking entry, which later moves the outside port.
        ipv6: Linux only: routes a /64, behind a stateful firewall.
        port_mapping: Linux only: miniupnpd serves IGD, NAT-PMP and PCP on the inside.
    """

    nat: Nat | None = field(default_factory=Nat)
    firewall: Firewall = field(default_factory=Firewall)
    kernel: bool = False
    open_input: bool = False
    ipv6: bool = False
    port_mapping: bool = False

    def __post_init__(self) -> None:
        """Check that such a router can be.

        Raises:
            ValueError: it cannot.
        """
        if not self.kernel:
            if self.open_input or self.ipv6 or self.port_mapping:
                raise ValueError("open_input, ipv6 and port_mapping need a kernel router")
            if self.nat is None:
                raise ValueError("a router without NAT needs a kernel router")
            return
        nat = self.nat
        if nat is None:
            if not self.ipv6 or self.port_mapping:
                raise ValueError("a router without NAT needs IPv6, and has no use for port mapping")
            return
        if (nat.mapping, nat.filtering, nat.ports) not in ((EI, APD, Ports.PRESERVING), (APD, APD, Ports.RANDOM)):
            raise ValueError(
                "Linux NAT either preserves ports or takes random ones for each remote endpoint, and always "
                "filters by address and port"
            )
        if nat.hairpinning or not nat.icmp_errors or not nat.simultaneous_open:
            raise ValueError("a kernel router does not hairpin, and passes ICMP errors and simultaneous SYNs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Both directions of an access link.

    Attributes:
        delay: seconds one way.
        loss: share of packets lost, 0 to 1, in each direction.
        rate: bytes per second in each direction; None for no limit.
        queue: seconds of traffic that may wait for the rate limit.
        mtu: largest IP packet in bytes; larger ones are answered by "fragmentation needed".
    """

    delay: float = 0.0
    loss: float = 0.0
    rate: float | None = None
    queue: float = 0.1
    mtu: int = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of place that a peer may live in, as the NAT matrix names them.

    Attributes:
        name: the key in `NATS`.
        text: one line for people.
        routers: from the internet inwards; none for a public host.
        shared: whether two peers of this kind sit in one site.
        ipv4: whether the host has IPv4.
        ipv6: whether the host has IPv6.
    """

    name: str
    text: str
    routers: tuple[Router, ...] = ()
    shared: bool = False
    ipv4: bool = True
    ipv6: bool = False

    @property
    def needs_kernel_nat(self) -> bool:
        """Whether the program `nft` is needed."""
        return any(router.kernel for router in self.routers)


def _own(**choices: object) -> tuple[Router, ...]:
    return (Router(nat=Nat(**choices)),)  # type: ignore[arg-type]


_LINUX = Router(nat=Nat(), kernel=True)
_LINUX_RANDOM = Nat(mapping=APD, ports=Ports.RANDOM)

_KINDS = (
    Kind(name="public", text="a host on the internet, no NAT", ipv6=True),
    Kind(name="full-cone", text="endpoint-independent mapping and filtering", routers=_own(filtering=EI)),
    Kind(
        name="address-restricted",
        text="endpoint-independent mapping, address-dependent filtering",
        routers=_own(filtering=AD),
    ),
    Kind(
        name="port-restricted",
        text="Linux router, ports preserved: in effect endpoint-independent mapping, filters address and port",
        routers=(_LINUX,),
    ),
    Kind(
        name="port-restricted-random",
        text="endpoint-independent mapping to random ports, filters address and port",
        routers=_own(ports=Ports.RANDOM),
    ),
    Kind(
        name="symmetric-sequential",
        text="address-and-port-dependent mapping to consecutive ports",
        routers=_own(mapping=APD, ports=Ports.SEQUENTIAL),
    ),
    Kind(
        name="symmetric-random",
        text="Linux router, a random port for each remote endpoint",
        routers=(Router(nat=_LINUX_RANDOM, kernel=True),),
    ),
    Kind(
        name="address-dependent",
        text="address-dependent mapping to random ports, address-dependent filtering",
        routers=_own(mapping=AD, filtering=AD, ports=Ports.RANDOM),
    ),
    Kind(
        name="cgnat",
        text="a port-restricted home router behind a port-restricted carrier",
        routers=(*_own(ports=Ports.RANDOM), _LINUX),
    ),
    Kind(
        name="same-nat-hairpin",
        text="behind one NAT with another peer, which they can also reach by their outside addresses",
        routers=_own(hairpinning=True),
        shared=True,
    ),
    Kind(name="same-nat", text="behind one NAT with another peer, no hairpinning", routers=_own(), shared=True),
    Kind(
        name="udp-blocked",
        text="a firewall drops all UDP",
        routers=(Router(firewall=Firewall(blocked=frozenset({"udp"}))),),
    ),
    Kind(
        name="tcp-443-only",
        text="nothing but outgoing TCP to port 443",
        routers=(Router(firewall=Firewall(blocked=frozenset({"udp"}), tcp_ports=frozenset({443}))),),
    ),
    Kind(
        name="igd-symmetric",
        text="Linux router with random ports and miniupnpd (IGD, NAT-PMP, PCP)",
        routers=(Router(nat=_LINUX_RANDOM, kernel=True, port_mapping=True),),
    ),
    Kind(
        name="ipv6-firewall",
        text="IPv6 only, behind a stateful firewall",
        routers=(Router(nat=None, kernel=True, ipv6=True),),
        ipv4=False,
        ipv6=True,
    ),
    Kind(
        name="linux-open",
        text="Linux router, ports preserved, without a firewall for itself",
        routers=(Router(nat=Nat(refuse=True), kernel=True, open_input=True),),
    ),
    Kind(
        name="tcp-reset",
        text="port-restricted, and unexpected TCP segments are answered by RST",
        routers=_own(refuse=True),
    ),
    Kind(
        name="linux-reset",
        text="Linux router, ports preserved, whose firewall answers unexpected TCP segments by RST",
        routers=(Router(nat=Nat(refuse=True), kernel=True),),
    ),
)

NATS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _KINDS})
"""Every kind of place, by name."""
