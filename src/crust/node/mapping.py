"""The listening ports of a node, kept mapped at its routers while the node is up, and the candidates that come of it.

Nothing waits for a router: the node starts, dials and is dialled meanwhile. Where a port is mapped, the address outside
becomes a candidate, for the contact, for offers, and for the dials that are under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Collection, Sequence
from typing import Final

from crust.config import Config
from crust.net.interfaces import Gateway, LocalAddress, default_gateways, local_addresses, source_host
from crust.net.portmap import PortMapper, PortMapping, PortMapReport, PortMapSettings
from crust.proto.nat.leases import IpProtocol
from crust.proto.nat.verdict import mapping_is_outermost
from crust.types import Candidate, Transport

__all__ = ["PortMappings"]

_PROTOCOLS: Final[dict[Transport, IpProtocol]] = {"tcp": "tcp", "utp": "udp"}
_TRANSPORTS: Final[dict[IpProtocol, Transport]] = {"tcp": "tcp", "udp": "utp"}
_ANY: Final = {4: "0.0.0.0", 6: "::"}  # noqa: S104
_PORTS_MOST: Final = 8  # a node that listens on more is no home computer
_CLOSE_SECONDS: Final = 1.25  # a little above what the methods take to give their mappings back


class PortMappings:
    """The port mappings of one node.

    Args:
        config: whether to ask at all, and for which transports.
        changed: called when `candidates` may differ from before.
        outside: our outside hosts, as those see them whom the user has named; empty where nobody has said anything.
        settings: how to ask.
        gateways: reads the default gateways.
        addresses: reads our addresses.
    """

    def __init__(
        self,
        config: Config,
        *,
        changed: Callable[[], None],
        outside: Callable[[], Collection[str]],
        settings: PortMapSettings | None = None,
        gateways: Callable[[], Sequence[Gateway]] = default_gateways,
        addresses: Callable[[], Sequence[LocalAddress]] = local_addresses,
    ) -> None:
        self._config = config
        self._changed = changed
        self._outside = outside
        self._settings = settings
        self._read_gateways = gateways
        self._read_addresses = addresses
        self._listening: dict[int, set[str]] = {4: set(), 6: set()}  # hosts, by IP version
        self._mapper: PortMapper | None = None
        self._worker: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._news = asyncio.Event()
        self._closing = False

    def start(self, listening: Sequence[tuple[str, int]]) -> None:
        """Begin to ask; returns at once.

        Args:
            listening: the addresses that the node listens on. A router is asked for those that it can forward to:
                not for loopback, and not for the address of another interface.
        """
        if not self._config.port_mapping:
            return
        ports: dict[int, None] = {}
        for host, port in listening:
            address = ipaddress.ip_address(host.partition("%")[0])
            if not address.is_loopback:
                self._listening[address.version].add(str(address))
                ports[port] = None
        wanted = [(_PROTOCOLS[t], port) for port in list(ports)[:_PORTS_MOST] for t in sorted(self._config.transports)]
        if wanted:
            self._mapper = PortMapper(
                wanted,
                on_change=lambda _: self._changed(),
                settings=self._settings,
                gateways=self._gateways,
                addresses=self._addresses,
            )
            self._worker = asyncio.get_running_loop().create_task(self._work(self._mapper))

    async def settled(self, seconds: float) -> None:
        """Wait until every router has said something, or the time is up. A cancel loses nothing."""
        if self._mapper is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._begun.wait()
                    await self._mapper.settled()

    def network_changed(self) -> None:
        """Other interfaces or gateways than before: begin anew, in the background."""
        self._news.set()

    async def close(self) -> None:
        """Give the mappings back. Bounded, and finished even when cancelled."""
        self._closing = True
        self._news.set()
        if self._mapper is not None and self._worker is not None:
            await self._mapper.close()
            await asyncio.wait([self._worker], timeout=_CLOSE_SECONDS)
            self._worker.cancel()

    @property
    def candidates(self) -> list[Candidate]:
        """Where others reach us through our routers.

        A pinhole is left out: its address is that of the interface, which is a candidate anyway. So is a mapping of a
        router behind another NAT, as far as the outside address tells.
        """
        found = []
        for mapping in self._mappings():
            host, port = mapping.external
            if mapping.external != mapping.internal and self._is_outermost(host):
                found.append(Candidate(_TRANSPORTS[mapping.protocol], host, port, "mapped"))
        # TCP and µTP on one address share a part of a contact when they follow each other.
        found.sort(key=lambda each: (each.host, each.port, each.transport))
        return found

    def has(self, transport: Transport, port: int) -> bool:
        """Whether a router forwards a port of ours; a pinhole does not count, as nothing is translated."""
        return any(
            (each.protocol, each.internal[1]) == (_PROTOCOLS[transport], port) and each.external != each.internal
            for each in self._mappings()
        )

    def report(self) -> PortMapReport | None:
        """What was asked, and what the routers answered; None where they were not asked."""
        return None if self._mapper is None else self._mapper.report()

    # --- inside --------------------------------------------------------------------------------------------------

    async def _work(self, mapper: PortMapper) -> None:
        with contextlib.suppress(OSError):
            await mapper.start()
        self._begun.set()
        while not self._closing:
            await self._news.wait()
            self._news.clear()
            if not self._closing:
                with contextlib.suppress(OSError):
                    await mapper.network_changed()

    def _mappings(self) -> list[PortMapping]:
        return [] if self._mapper is None else self._mapper.mappings

    def _is_outermost(self, host: str) -> bool:
        """Whether a router's outside address is that of our network; where nobody has seen us, it is taken for it.

        Ranges say nothing then: carriers and laboratories have internets of private addresses.
        """
        seen = [each for each in self._outside() if (":" in each) == (":" in host)]
        return not seen or mapping_is_outermost(host, seen)

    def _gateways(self) -> list[Gateway]:
        return [each for each in self._read_gateways() if self._serves(each)]

    def _serves(self, gateway: Gateway) -> bool:
        """Whether what this gateway forwards would arrive at a listener."""
        hosts = self._listening[gateway.version]
        if gateway.version == 6 or _ANY[4] in hosts:
            return bool(hosts)
        return source_host(gateway.host) in hosts

    def _addresses(self) -> list[LocalAddress]:
        return [
            each for each in self._read_addresses() if self._listening[each.version] & {each.host, _ANY[each.version]}
        ]
