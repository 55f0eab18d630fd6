"""What the network that this machine is in allows, found out without a peer: for `crust doctor`.

Own addresses, what STUN servers and bootstrap nodes see of us, what the routers answer to requests for a port; the
verdicts are those of `crust.proto.nat`. A mapping that was obtained is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import msgspec

from crust.config import Config
from crust.crypto.keys import Identity
from crust.errors import CrustError
from crust.net.clock import monotonic
from crust.net.interfaces import AddressScope, Gateway, LocalAddress, default_gateways, local_addresses, source_host
from crust.net.portmap import PortMapper, PortMapReport
from crust.net.stun_probe import Sighting, probe_tcp, probe_udp
from crust.node.node import Node
from crust.proto.nat.behaviour import NatBehaviour, NatVerdict
from crust.proto.nat.leases import IpProtocol
from crust.proto.nat.verdict import (
    Access,
    Known,
    Outlook,
    Reach,
    advise,
    judge_passage,
    judge_ports,
    mapping_is_outermost,
    outlook,
    sureness,
)
from crust.types import Transport, format_address
from crust.wire.contact import parse_target
from crust.wire.stun import Address

__all__ = ["Diagnosis", "Doctor"]

_PROTOCOLS: Final[dict[Transport, IpProtocol]] = {"tcp": "tcp", "utp": "udp"}
_TCP_SECONDS: Final = 2.5
_BOOTSTRAP_SECONDS: Final = 3.0
_LEARNING_SECONDS: Final = 1.5
_PORT_MAPPING_SECONDS: Final = 5.0


@dataclass(slots=True)
class Diagnosis:
    """What was found out.

    Attributes:
        addresses: of this machine, loopback left out.
        gateways: the default gateways.
        sightings: what each observer said.
        udp: what UDP has here, over IPv4.
        tcp: the same for TCP.
        ipv6: whether IPv6 gets out; None: there are addresses, and nobody was asked.
        outside: our outside hosts, as confirmed by observers.
        port_mapping: what the routers answered; None: they were not asked.
        dials: what a dial to each kind of peer would take.
        advice: what would help, a sentence each.
        elapsed_ms: how long it took.
    """

    addresses: list[LocalAddress]
    gateways: list[Gateway]
    sightings: list[Sighting]
    udp: Access
    tcp: Access
    ipv6: bool | None
    outside: list[str]
    port_mapping: PortMapReport | None
    dials: list[Outlook] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    elapsed_ms: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready dictionaries, lists, strings and numbers; the keys are documented and stay."""
        return {
            "addresses": [
                {
                    "host": each.host,
                    "prefix_length": each.prefix_length,
                    "interface": each.interface,
                    "version": each.version,
                    "scope": each.scope.name.lower(),
                    "temporary": each.temporary,
                }
                for each in self.addresses
            ],
            "gateways": [asdict(each) for each in self.gateways],
            "outside": self.outside,
            "observers": [_sighting_record(each) for each in self.sightings],
            "udp": _access_record(self.udp, self.sightings),
            "tcp": _access_record(self.tcp, self.sightings),
            "ipv6": {
                "addresses": _usable(self.addresses, self.gateways, 6),
                "gateway": any(each.version == 6 for each in self.gateways),
                "passes": self.ipv6,
            },
            "port_mapping": None if self.port_mapping is None else self.port_mapping.to_dict(),
            "dials": [
                {
                    "peer": each.peer.name,
                    "text": each.peer.text,
                    "udp": None if each.udp is None else each.udp.value,
                    "tcp": None if each.tcp is None else each.tcp.value,
                    "best": each.best.value,
                    "sureness": each.sureness.value,
                    "why": each.why,
                }
                for each in self.dials
            ],
            "advice": self.advice,
            "elapsed_ms": round(self.elapsed_ms, 1),
        }


def _sighting_record(each: Sighting) -> dict[str, Any]:
    return {
        "protocol": each.protocol,
        "via": each.via,
        "observer": format_address(*each.observer),
        "local": format_address(*each.local) if each.local[0] else None,
        "observed": None if each.observed is None else format_address(*each.observed),
        "outcome": each.outcome,
        "rtt_ms": None if each.rtt_ms is None else round(each.rtt_ms, 1),
        "error": each.error,
    }


def _access_record(access: Access, sightings: Sequence[Sighting]) -> dict[str, Any]:
    verdict = access.verdict
    seen = access.passes is True and any(s.protocol == verdict.protocol and s.observed for s in sightings)

    def word(value: Any) -> str | None:
        return value.name.lower().replace("_", "-") if value else None

    return {
        "passes": access.passes,
        "only_ports": None if access.only_ports is None else sorted(access.only_ports),
        "translated": verdict.translated if seen else None,
        "mapping": word(verdict.mapping),
        "mapping_confidence": verdict.mapping_confidence,
        "mapping_sureness": sureness(verdict.mapping_confidence).value,
        "filtering": word(verdict.filtering),
        "filtering_confidence": verdict.filtering_confidence,
        "allocation": word(verdict.allocation),
        "allocation_confidence": verdict.allocation_confidence,
        "step": verdict.step,
        "hairpinning": verdict.hairpinning,
        "mapped": access.mapped,
        "observers": len({s.observer[0] for s in _of(sightings, verdict.protocol, 4) if s.observed}),
        "words": verdict.describe() if seen else "",
    }


def _of(sightings: Sequence[Sighting], protocol: IpProtocol, version: int) -> list[Sighting]:
    """Of one protocol and family; a server on this very machine says nothing about the network."""
    return [
        s
        for s in sightings
        if s.protocol == protocol and _version(s.observer[0]) == version and not _is_loopback(s.observer[0])
    ]


def _version(host: str) -> int:
    return 6 if ":" in host else 4


def _usable(addresses: Sequence[LocalAddress], gateways: Sequence[Gateway], version: int) -> list[str]:
    """The addresses by which others could reach us; unique-local ones count where a router may translate them."""
    routed = any(each.version == version for each in gateways)
    scopes = (AddressScope.GLOBAL, AddressScope.UNIQUE_LOCAL) if routed else (AddressScope.GLOBAL,)
    return [each.host for each in addresses if each.version == version and each.scope in scopes]


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


class Doctor:
    """Examines the network once.

    Args:
        config: bootstrap nodes, transports, and whether routers may be asked for ports.
        identity: of the node that talks to bootstrap nodes; a fresh one by default, as a node of that identity may
            be running.
        stun: STUN servers, numeric.
        progress: told what is being done, in words.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity | None = None,
        *,
        stun: Sequence[Address] = (),
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._identity = identity
        self._stun = tuple(dict.fromkeys(stun))
        self._progress = progress
        self._protocols = [_PROTOCOLS[transport] for transport in config.transports]
        self._behaviours = {(p, v): NatBehaviour(p) for p in self._protocols for v in (4, 6)}
        self._sightings: list[Sighting] = []
        # One identity in two nodes at a time would look like two instances to the others.
        self._one_node = asyncio.Lock()

    async def examine(self) -> Diagnosis:
        """Find out everything; it takes one to six seconds. A cancel gives mappings back and leaves nothing open.

        Raises:
            ConfigError: the node cannot listen where the configuration says.
            ParseError: a bootstrap contact is mistyped.
        """
        started = monotonic()
        addresses, gateways = await asyncio.gather(
            asyncio.to_thread(local_addresses), asyncio.to_thread(default_gateways)
        )
        async with asyncio.TaskGroup() as group:
            mapping = group.create_task(self._map_ports())
            for transport in self._config.transports:
                group.create_task(self._ask_around(transport))
        diagnosis = self._judge(addresses, gateways, mapping.result())
        diagnosis.elapsed_ms = (monotonic() - started) * 1000
        return diagnosis

    # --- asking --------------------------------------------------------------------------------------------------

    async def _ask_around(self, transport: Transport) -> None:
        """All observers over one transport: the STUN servers side by side, then the bootstrap nodes."""
        protocol = _PROTOCOLS[transport]
        groups: dict[str, list[Address]] = {}  # by our address towards them
        for server in self._stun:
            host = source_host(server[0])
            if host is None:
                unasked = Sighting(protocol, "stun", server, ("", 0), None, "unasked", monotonic(), error="no route")
                self._sightings.append(unasked)
            else:
                groups.setdefault(host, []).append(server)
        if groups:
            self._progress(f"asking {len(self._stun)} STUN servers over {protocol.upper()}")
        for found in await asyncio.gather(*(self._probe(protocol, host, each) for host, each in groups.items())):
            self._sightings += found
        if self._config.bootstrap:
            async with self._one_node:
                await self._ask_bootstrap(transport)

    async def _probe(self, protocol: IpProtocol, host: str, servers: list[Address]) -> list[Sighting]:
        behaviour = self._behaviours[protocol, _version(host)]
        try:
            if protocol == "udp":
                return await probe_udp(host, servers, behaviour)
            return await probe_tcp(host, servers, behaviour, timeout=_TCP_SECONDS)
        except OSError as error:
            why = error.strerror or str(error)
            return [
                Sighting(protocol, "stun", each, (host, 0), None, "unasked", monotonic(), error=why) for each in servers
            ]

    async def _ask_bootstrap(self, transport: Transport) -> None:
        """Connect to the bootstrap nodes over one transport; they say where they see us."""
        protocol = _PROTOCOLS[transport]
        self._progress(f"asking {len(self._config.bootstrap)} bootstrap nodes over {protocol.upper()}")
        config = msgspec.structs.replace(
            self._config, transports=[transport], port_mapping=False, lan=False, stun_servers=[], stun_service=[]
        )
        reached = set()
        async with Node(self._identity, config) as node:
            await node.bootstrapped(_BOOTSTRAP_SECONDS)
            assert node._neighbourhood is not None
            surroundings = node._neighbourhood.surroundings
            await surroundings.learnt(_LEARNING_SECONDS)
            if not self._stun:
                # Rendezvous nodes that look at probes, at a second port of theirs, tell more than their addresses.
                for version in (4, 6):
                    self._behaviours[protocol, version] = surroundings.behaviour(transport, version)
            now = monotonic()
            for seen, observer, port in node._neighbourhood.signalling.sightings:
                observed, where = (seen.host, seen.port), (observer.host, observer.port)
                local = (source_host(observer.host) or "", port)
                reached.add(where)
                sighting = Sighting(protocol, "bootstrap", where, local, observed, "answered", now)
                self._sightings.append(sighting)
                if sighting.observation is not None and self._stun:
                    self._behaviours[protocol, _version(observer.host)].observe(sighting.observation)
            connected = {connection.peer for connection in node.connections}
        for text in self._config.bootstrap:
            contact = parse_target(text)
            candidates = [c for c in contact.candidates if c.transport == transport]
            if contact.id in connected or not candidates:
                continue
            where = (candidates[0].host, candidates[0].port)
            self._sightings.append(
                Sighting(protocol, "bootstrap", where, ("", 0), None, "silent", now, error="no connection")
            )

    async def _map_ports(self) -> PortMapReport | None:
        """Ask the routers for a port that is free here, and give it back."""
        if not self._config.port_mapping:
            return None
        self._progress("asking the routers for a port")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("", 0))
            port = holder.getsockname()[1]
            mapper = PortMapper([(protocol, port) for protocol in self._protocols])
            try:
                await mapper.start()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PORT_MAPPING_SECONDS):
                        await mapper.settled()
                report = mapper.report()
                report.attempts = [replace(attempt) for attempt in report.attempts]  # closing changes them
                return report
            except (OSError, CrustError):
                return None
            finally:
                await mapper.close()

    # --- judging -------------------------------------------------------------------------------------------------

    def _judge(self, addresses: list[LocalAddress], gateways: list[Gateway], report: PortMapReport | None) -> Diagnosis:
        self._sightings.sort(key=lambda sighting: sighting.protocol, reverse=True)  # UDP first
        udp, tcp = (self._access(protocol, report) for protocol in ("udp", "tcp"))
        ipv6 = self._ipv6(addresses, gateways)
        outside = list(dict.fromkeys(s.observed[0] for s in self._sightings if s.observed is not None))
        known = Known(
            observers={
                p: len({s.observer[0] for s in _of(self._sightings, p, 4) if s.observed}) for p in ("udp", "tcp")
            },
            ipv4_addresses=bool(_usable(addresses, gateways, 4)),
            ipv6_addresses=bool(_usable(addresses, gateways, 6)),
            ipv6=ipv6,
            port_mapping=() if report is None else tuple(report.advice),
        )
        diagnosis = Diagnosis(addresses, gateways, self._sightings, udp, tcp, ipv6, outside, report)
        diagnosis.dials = outlook(udp, tcp, known)
        diagnosis.advice = advise(udp, tcp, known)
        return diagnosis

    def _access(self, protocol: IpProtocol, report: PortMapReport | None) -> Access:
        if protocol not in self._protocols:
            return Access(NatVerdict(protocol), used=False)
        other: IpProtocol = "udp" if protocol == "tcp" else "tcp"
        here, there = self._reaches(protocol), self._reaches(other)
        hosts = [s.observed[0] for s in self._sightings if s.observed is not None and ":" not in s.observed[0]]
        mappings = [] if report is None else report.mappings
        mapped = any(
            each.protocol == protocol and ":" not in each.external[0] and mapping_is_outermost(each.external[0], hosts)
            for each in mappings
        )
        return Access(
            self._behaviours[protocol, 4].verdict,
            judge_passage(here, there),
            mapped,
            judge_ports(here) if protocol == "tcp" else None,
        )

    def _reaches(self, protocol: IpProtocol, version: int = 4) -> list[Reach]:
        return [
            Reach(s.observer[0], s.observer[1], s.outcome == "answered", s.outcome == "silent")
            for s in _of(self._sightings, protocol, version)
            if s.outcome != "unasked"
        ]

    def _ipv6(self, addresses: list[LocalAddress], gateways: list[Gateway]) -> bool | None:
        if not _usable(addresses, gateways, 6):
            return False
        asked = [reach for protocol in self._protocols for reach in self._reaches(protocol, 6)]
        if any(reach.answered or not reach.silent for reach in asked):
            return True
        return False if asked or not any(each.version == 6 for each in gateways) else None
