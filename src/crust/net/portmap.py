"""Ports mapped by routers: PCP, then NAT-PMP, then UPnP IGD, at every default gateway.

The order is that of preference, not of waiting: the search for a UPnP router runs beside PCP, and a method that stays
silent for a fraction of a second is overtaken by the next. The first that maps is kept, renewed, and asked again when
the router restarts; the others are called off. IPv6 is the same with pinholes instead of mappings, one set for each
global address.

    mapper = PortMapper([("tcp", 4000), ("udp", 4000)], on_change=print)
    await mapper.start()
    await mapper.settled()      # every router has an outcome
    mapper.mappings, mapper.report()
    await mapper.close()        # mappings are given back
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from crust.net.clock import monotonic
from crust.net.igd import SSDP_PORT
from crust.net.interfaces import (
    AddressScope,
    Gateway,
    LocalAddress,
    candidate_hosts,
    default_gateways,
    local_addresses,
    on_link_networks,
    source_host,
)
from crust.net.mapping_methods import (
    EngineMethod,
    IgdMethod,
    MappingMethod,
    MethodName,
    Port,
    PortMapAttempt,
    PortMapping,
    end_task,
)
from crust.proto.nat.leases import LIFETIME
from crust.proto.nat.natpmp import NatPmpClient
from crust.proto.nat.pcp import PcpClient
from crust.wire.pcp import PCP_CLIENT_PORT, PCP_PORT, PcpResult

__all__ = ["PortMapAttempt", "PortMapReport", "PortMapSettings", "PortMapper", "PortMapping"]

METHODS: tuple[MethodName, ...] = ("pcp", "nat-pmp", "igd")
# How long a silent method is waited for before the next one starts beside it. Routers answer PCP in milliseconds.
_HEAD_STARTS: dict[MethodName, float] = {"pcp": 0.25, "nat-pmp": 0.25, "igd": 0.0}
_OTHER_PORTS_SECONDS = 1.0  # once a method has mapped one port
_RACE_SECONDS = 10.0  # a router that has not granted anything in full by then does not
_MAX_ROUTERS = 8
_MAX_IPV6_HOSTS = 4
_PRIVATE = [ipaddress.ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")]


@dataclass(slots=True)
class PortMapReport:
    """What was tried and what came back: for `crust doctor` and the reports of dials.

    Attributes:
        gateways: the default gateways, numeric.
        attempts: one for each router, method and port.
        mappings: what is mapped now.
        ignored: answers that made no sense, by reason.
        advice: what would help, a sentence each.
    """

    gateways: list[str] = field(default_factory=list)
    attempts: list[PortMapAttempt] = field(default_factory=list)
    mappings: list[PortMapping] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready dictionaries, lists, strings and numbers."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PortMapSettings:
    """How to ask.

    Attributes:
        methods: which to try, in this order.
        lifetime: seconds of a lease.
        search_timeout: seconds of the search for UPnP routers.
        poll_interval: seconds between questions whether a router has restarted.
        retry_interval: seconds until everything is tried again where nothing worked.
        router_port: of PCP and NAT-PMP; another one in tests.
        announcement_port: where routers announce that they restarted; another one in tests.
        ssdp: port and multicast group of the search for UPnP routers; others in tests.
    """

    methods: tuple[MethodName, ...] = METHODS
    lifetime: int = LIFETIME
    search_timeout: float = 2.0
    poll_interval: float = 60.0
    """A question of 2 or 24 bytes to the router in the same house."""
    retry_interval: float = 300.0
    router_port: int = PCP_PORT
    announcement_port: int = PCP_CLIENT_PORT
    ssdp: tuple[int, str | None] = (SSDP_PORT, None)


class PortMapper:
    """Keeps ports mapped at every default gateway.

    Args:
        ports: what to map, as ("tcp" or "udp", our port).
        on_change: called in the event loop with all mappings, whenever they differ from before.
        settings: how to ask.
        gateways: reads the default gateways.
        addresses: reads our addresses.
    """

    def __init__(
        self,
        ports: Iterable[Port],
        *,
        on_change: Callable[[list[PortMapping]], None] | None = None,
        settings: PortMapSettings | None = None,
        gateways: Callable[[], Sequence[Gateway]] = default_gateways,
        addresses: Callable[[], Sequence[LocalAddress]] = local_addresses,
    ) -> None:
        self._ports = tuple(dict.fromkeys(ports))
        self._on_change = on_change
        self._read_gateways = gateways
        self._read_addresses = addresses
        self._settings = settings or PortMapSettings()
        self._routers: list[_Router] = []
        self._announcements: list[asyncio.DatagramTransport] = []
        self._gateways: list[Gateway] = []
        self._told: set[object] = set()
        self._closed = False

    async def start(self) -> None:
        """Find the gateways and begin; returns at once. A cancel leaves nothing behind that `close` does not end."""
        await self._begin()

    async def settled(self) -> list[PortMapping]:
        """Wait until every router has an outcome, mapped or not.

        Returns:
            What is mapped. A cancel loses nothing; without a router it returns at once.
        """
        for router in list(self._routers):
            await router.settled.wait()
        return self.mappings

    async def network_changed(self) -> None:
        """Begin anew with the gateways and addresses of now; also to be called after the machine has slept.

        Mappings at routers that are still there are made again, which is quick and keeps their outside ports.
        """
        if not self._closed:
            await self._end()
            await self._begin()
            self._tell()

    async def close(self) -> None:
        """Give all mappings back and end; bounded, and finished even when cancelled."""
        self._closed = True
        await asyncio.shield(self._end())

    @property
    def mappings(self) -> list[PortMapping]:
        """What is mapped now."""
        return [mapping for router in self._routers for mapping in router.mappings]

    def report(self) -> PortMapReport:
        """What was tried and what came back, until now."""
        report = PortMapReport([gateway.host for gateway in self._gateways], mappings=self.mappings)
        ignored: Counter[str] = Counter()
        for router in self._routers:
            for method in router.methods:
                report.attempts += map(replace, method.attempts.values())  # closing would change them
                ignored += method.ignored
        report.ignored = dict(ignored)
        report.advice = _advise(report)
        return report

    async def _begin(self) -> None:
        # Reading runs a program on some systems.
        gateways = await asyncio.to_thread(self._read_gateways)
        addresses = await asyncio.to_thread(self._read_addresses)
        if not self._closed and any(m != "igd" for m in self._settings.methods):
            await self._listen()
        if self._closed:  # meanwhile: `close` has not seen the sockets that came after it
            await self._end()
            return
        self._gateways = list(gateways)
        for gateway in self._gateways:
            for host in _hosts_towards(gateway, addresses):
                if len(self._routers) < _MAX_ROUTERS:
                    router = _Router(gateway, host, self._ports, self._settings, addresses, self._tell)
                    self._routers.append(router)
                    router.begin()

    async def _end(self) -> None:
        routers, self._routers = self._routers, []
        await asyncio.gather(*(router.end() for router in routers))
        for transport in self._announcements:
            transport.close()
        self._announcements.clear()

    def _tell(self) -> None:
        mappings = self.mappings
        tell: set[object] = {(m.method, m.protocol, m.internal, m.external) for m in mappings}  # a renewal is no change
        if self._on_change is not None and tell != self._told and not self._closed:
            self._told = tell
            self._on_change(mappings)

    async def _listen(self) -> None:
        """Announcements of routers that restarted (RFC 6887 §14.1, RFC 6886 §3.2.1). Nothing breaks without them."""
        loop = asyncio.get_running_loop()
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                sock = _announcement_socket(family, self._settings.announcement_port)
                transport, _ = await loop.create_datagram_endpoint(lambda: _Announcements(self), sock=sock)
                self._announcements.append(transport)

    def announced(self, data: bytes, source: tuple[str, int]) -> None:
        """Take an announcement from whoever sent it; the engines check whether it is their router."""
        for router in self._routers:
            for method in router.methods:
                if isinstance(method, EngineMethod):
                    method.announced(data, source)


class _Router:
    """One gateway and one of our addresses: a race of methods, the winner of which is kept."""

    def __init__(
        self,
        gateway: Gateway,
        local_host: str,
        ports: Sequence[Port],
        settings: PortMapSettings,
        addresses: Sequence[LocalAddress],
        tell: Callable[[], None],
    ) -> None:
        self._gateway = gateway
        self._local_host = local_host
        self._ports = ports
        self._settings = settings
        self._addresses = addresses
        self._tell = tell
        self._began_at = monotonic()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started: list[MappingMethod] = []
        self.settled = asyncio.Event()
        self.methods: list[MappingMethod] = []

    @property
    def mappings(self) -> list[PortMapping]:
        """Of the winner; while the race is on, of whoever is first."""
        winner = next((method for method in self.methods if method.works), None)
        return list(winner.mappings.values()) if winner else []

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        if self._task is not None:
            await end_task(self._task)
        await self._stop(self.methods)

    async def _run(self) -> None:
        while True:
            self.methods = [self._make(name) for name in self._settings.methods if self._applies(name)]
            winner = await self._race()
            for method in self.methods:
                if winner is None or method.attempts_begun:
                    method.skip("no answer", "no complete answer")
                else:
                    method.skip("not needed", "")
            self.settled.set()
            if winner is not None:
                await self._stop([method for method in self.methods if method is not winner])
                await self._until_failed(winner)
            else:
                await asyncio.sleep(self._settings.retry_interval)
            await self._stop(self.methods)

    async def _race(self) -> MappingMethod | None:
        """Start the methods one after the other; the first that maps wins."""
        for method in self.methods:
            if isinstance(method, IgdMethod):
                method.prepare()
        started: list[MappingMethod] = []
        for method in self.methods:
            method.start()
            started.append(method)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEAD_STARTS[method.name]):
                    await self._wait(lambda: any(m.works for m in started) or all(m.failed for m in started))
            if any(m.works for m in started):
                break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RACE_SECONDS):
                await self._wait(lambda: any(m.works for m in started) or all(m.failed for m in started))
        winner = next((method for method in started if method.works), None)
        if winner is not None:
            # Answers for the other ports are on their way.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_OTHER_PORTS_SECONDS):
                    await self._wait(lambda: winner.failed or not winner.pending)
        return winner

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _until_failed(self, method: MappingMethod) -> None:
        await self._wait(lambda: method.failed)

    async def _stop(self, methods: Sequence[MappingMethod]) -> None:
        await asyncio.gather(*(method.stop() for method in methods))

    def _notice(self) -> None:
        self._changed.set()
        self._tell()

    def _applies(self, name: MethodName) -> bool:
        return name != "nat-pmp" or self._gateway.version == 4

    def _make(self, name: MethodName) -> MappingMethod:
        settings = self._settings
        common = (name, self._gateway, self._local_host, self._ports, self._began_at, self._notice)
        if name == "igd":
            return IgdMethod(
                *common,
                lifetime=settings.lifetime,
                on_link=on_link_networks(self._addresses),
                search_timeout=settings.search_timeout,
                ssdp=settings.ssdp,
            )
        options = {"lifetime": settings.lifetime, "port": settings.router_port}
        engine = (
            PcpClient(self._gateway.host, self._local_host, os.urandom, **options)
            if name == "pcp"
            else NatPmpClient(self._gateway.host, os.urandom, **options)
        )
        return EngineMethod(engine, *common, poll_interval=settings.poll_interval, port=settings.router_port)


class _Announcements(asyncio.DatagramProtocol):
    def __init__(self, mapper: PortMapper) -> None:
        self._mapper = mapper

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._mapper.announced(data, (str(addr[0]), int(addr[1])))


def _hosts_towards(gateway: Gateway, addresses: Sequence[LocalAddress]) -> list[str]:
    """Our addresses that the gateway can map for: one for IPv4, every global one for IPv6."""
    if gateway.version == 4:
        host = source_host(gateway.host)
        return [host] if host is not None else []
    usable = [a for a in addresses if a.version == 6 and a.scope is AddressScope.GLOBAL]
    if gateway.interface:
        usable = [a for a in usable if a.interface == gateway.interface]
    return candidate_hosts(usable)[:_MAX_IPV6_HOSTS]


def _announcement_socket(family: int, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # other programs on this machine listen too
        if hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # All hosts are members of 224.0.0.1 and ff02::1 without joining.
        sock.bind(("::" if family == socket.AF_INET6 else "", port))
    except OSError:
        sock.close()
        raise
    return sock


def _advise(report: PortMapReport) -> list[str]:
    """What would help, from what came back."""
    advice = []
    if not report.gateways:
        return ["this machine has no default gateway: there is no router to ask for a port mapping"]
    for mapping in report.mappings:
        host = ipaddress.ip_address(mapping.external[0])
        if any(host in network for network in _PRIVATE):
            advice.append(
                f"the router {mapping.gateway} maps ports, but its own outside address {host} is private: "
                "it stands behind another NAT, which has to map the port too"
            )
    mapped = {attempt.gateway for attempt in report.attempts if attempt.outcome == "mapped"}
    for attempt in report.attempts:
        if attempt.gateway in mapped:
            continue
        if attempt.outcome == "refused" and attempt.method == "pcp" and attempt.code == PcpResult.NOT_AUTHORIZED:
            advice.append(
                f"the router {attempt.gateway} answers PCP, but it is switched off for this host: allow it there"
            )
        elif attempt.outcome == "refused":
            advice.append(f"the router {attempt.gateway} speaks {attempt.method} but refuses: {attempt.detail}")
        elif attempt.outcome == "skipped":
            advice.append(attempt.detail)
    if not mapped and not advice:
        advice.append(
            "no router answered PCP, NAT-PMP or UPnP: switch on UPnP or PCP in the router, or forward the port by hand"
        )
    return list(dict.fromkeys(advice))
