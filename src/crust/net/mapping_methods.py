"""The ways to have a router map ports, each as an object that starts, reports and stops: PCP, NAT-PMP, UPnP IGD.

`portmap` races them for each router; nothing here knows of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crust.errors import RemoteProtocolError
from crust.net.clock import monotonic
from crust.net.igd import SSDP_PORT, Igd, IgdRefusedError, UpnpMissingError, search_igd
from crust.net.interfaces import Gateway, IpNetwork
from crust.proto.nat.leases import (
    IpProtocol,
    LeaseClient,
    LeaseEvent,
    LeaseGranted,
    LeaseLost,
    LeaseRefused,
    LeaseRemoved,
    RouterSilent,
    RouterUnsupported,
)
from crust.wire.stun import Address

__all__ = ["EngineMethod", "IgdMethod", "MappingMethod", "MethodName", "Outcome", "PortMapAttempt", "PortMapping"]

MethodName = Literal["pcp", "nat-pmp", "igd"]
Outcome = Literal[
    "pending", "mapped", "refused", "no answer", "not spoken", "nonsense", "skipped", "not needed", "released"
]
Port = tuple[IpProtocol, int]

RELEASE_SECONDS = 1.0  # to give mappings back; what is not confirmed by then expires by itself
_IGD_REFRESH = 600.0  # mappings are made anew this often: it renews them, and finds routers that restarted
_IGD_RETRY_PORTS = 3
_PERMANENT_SECONDS = 7 * 86400.0  # what a lease without an end is called


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port that a router forwards to us, or lets through to us.

    Attributes:
        method: how it was obtained.
        protocol: "tcp" or "udp".
        internal: our address.
        external: where others reach us; for an IPv6 pinhole the same as `internal`.
        gateway: the router.
        expires_at: on the clock of `crust.net.clock`; renewed long before.
    """

    method: MethodName
    protocol: IpProtocol
    internal: Address
    external: Address
    gateway: str
    expires_at: float


@dataclass(slots=True)
class PortMapAttempt:
    """What was tried for one port at one router by one method, and what came back.

    Attributes:
        method: "pcp", "nat-pmp" or "igd".
        gateway: the router.
        protocol: "tcp" or "udp".
        internal: our address.
        outcome: see `Outcome`.
        detail: the same in words, for people.
        external: `HOST:PORT` outside, once mapped.
        started_ms: since the mapper was started; None: not started.
        ended_ms: when the outcome was known.
        code: error code of the protocol, 0 for none.
    """

    method: MethodName
    gateway: str
    protocol: IpProtocol
    internal: Address
    outcome: Outcome = "pending"
    detail: str = ""
    external: Address | None = None
    started_ms: float | None = None
    ended_ms: float | None = None
    code: int = 0


class MappingMethod(ABC):
    """One method at one router, for a set of ports.

    Args:
        name: of the method.
        gateway: the router.
        local_host: our address towards it, or (IPv6) the one to be let through.
        ports: what to map.
        began_at: the start of the mapper, from which attempts count.
        changed: called whenever anything changed.
    """

    def __init__(
        self,
        name: MethodName,
        gateway: Gateway,
        local_host: str,
        ports: Sequence[Port],
        began_at: float,
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self.gateway = gateway
        self.local_host = local_host
        self.ports = tuple(ports)
        self.mappings: dict[Port, PortMapping] = {}
        self.attempts = {
            port: PortMapAttempt(name, gateway.host, port[0], (local_host, port[1])) for port in self.ports
        }
        self.ignored: Counter[str] = Counter()
        self._began_at = began_at
        self._changed = changed

    @abstractmethod
    def start(self) -> None:
        """Begin to map."""

    @abstractmethod
    async def stop(self) -> None:
        """Give back what is mapped, within `RELEASE_SECONDS`."""

    @property
    def works(self) -> bool:
        """Some port is mapped."""
        return bool(self.mappings)

    @property
    def pending(self) -> bool:
        """Some port has no outcome yet."""
        return any(a.outcome == "pending" for a in self.attempts.values())

    @property
    def failed(self) -> bool:
        """Every port has been tried, and none is mapped."""
        return not self.mappings and all(a.outcome != "pending" for a in self.attempts.values())

    @property
    def attempts_begun(self) -> bool:
        """Whether it was started."""
        return any(attempt.started_ms is not None for attempt in self.attempts.values())

    def skip(self, outcome: Outcome, detail: str) -> None:
        """Say of everything that has no outcome why it will have none."""
        for port, attempt in self.attempts.items():
            if attempt.outcome == "pending":
                self._ended(port, outcome, detail)

    def _begin(self) -> None:
        for attempt in self.attempts.values():
            attempt.started_ms = self._elapsed_ms()
            attempt.outcome = "pending"

    def _ended(self, port: Port, outcome: Outcome, detail: str, code: int = 0) -> None:
        attempt = self.attempts[port]
        attempt.outcome, attempt.detail, attempt.code = outcome, detail, code
        attempt.ended_ms = self._elapsed_ms()
        self._changed()

    def _mapped(self, port: Port, external: Address, expires_at: float) -> None:
        internal = (self.local_host, port[1])
        before = self.mappings.get(port)
        self.mappings[port] = PortMapping(self.name, port[0], internal, external, self.gateway.host, expires_at)
        self.attempts[port].external = external
        if before is None:
            self._ended(port, "mapped", "")
        else:
            self._changed()

    def _lost(self, port: Port) -> None:
        if self.mappings.pop(port, None) is not None:
            self.attempts[port].outcome = "pending"
            self._changed()

    def _elapsed_ms(self) -> float:
        return round((monotonic() - self._began_at) * 1000, 1)


class EngineMethod(MappingMethod, asyncio.DatagramProtocol):
    """PCP or NAT-PMP: a `LeaseClient` on a connected UDP socket.

    Args:
        engine: the client; the remaining arguments are those of `MappingMethod`.
        poll_interval: seconds between questions whether the router has restarted.
        port: of the router.
    """

    def __init__(self, engine: LeaseClient, *args: Any, poll_interval: float, port: int) -> None:
        super().__init__(*args)
        self._engine = engine
        self._port = port
        self._poll_interval = poll_interval
        self._poll_at = float("inf")
        self._transport: asyncio.DatagramTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self.ignored = engine.ignored

    def start(self) -> None:
        """Open the socket and ask for all ports."""
        self._begin()
        self._opening = asyncio.get_running_loop().create_task(self._open())

    async def stop(self) -> None:
        """Delete the mappings; unconfirmed deletions are given up after `RELEASE_SECONDS`.

        A router that has never answered is told, in case it was about to, but not waited for.
        """
        if self._opening is not None:
            await end_task(self._opening)
        if self._transport is not None:
            self._poll_at = float("inf")
            self._engine.unmap_all(monotonic())
            self._pump()
            if self._engine.answered:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RELEASE_SECONDS):
                        await self._idle.wait()
            self._transport.close()
            self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        for port in list(self.mappings):
            del self.mappings[port]
            self.attempts[port].outcome = "released"

    def announced(self, data: bytes, source: Address) -> None:
        """Take a multicast announcement of some router."""
        if self._transport is not None:
            self._engine.receive_datagrams([(data, source)], monotonic())
            self._pump()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock = _connected_socket(self.gateway.host, self._port, self.local_host)
            transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=sock)
        except OSError as error:
            self.skip("no answer", f"cannot send to {self.gateway.host}: {error.strerror or error}")
            return
        self._transport = transport
        now = monotonic()
        self._poll_at = now + self._poll_interval
        for protocol, port in self.ports:
            self._engine.map(protocol, port, now)
        self._pump()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Take an answer."""
        self._engine.receive_datagrams([(data, (str(addr[0]), int(addr[1])))], monotonic())
        self._pump()

    def error_received(self, exc: Exception) -> None:
        """ICMP says that nobody listens there; the engine goes on asking, as this may be a restart."""
        for port, attempt in self.attempts.items():
            if attempt.outcome == "pending":
                self._ended(port, "no answer", f"nothing listens on port {self._port}: {exc}")

    def _pump(self) -> None:
        """Send, take events, arm one timer."""
        if self._transport is None:
            return
        now = monotonic()
        for data in self._engine.datagrams_to_send(now):
            self._transport.sendto(data)
        while (event := self._engine.next_event()) is not None:
            self._take(event)
        if not self._engine.busy:
            self._idle.set()
        if self._timer is not None:
            self._timer.cancel()
        due = min(self._poll_at, self._engine.next_timeout() or float("inf"))
        if due != float("inf"):
            self._timer = asyncio.get_running_loop().call_later(max(due - now, 0), self._timeout)

    def _timeout(self) -> None:
        now = monotonic()
        if now >= self._poll_at:
            self._poll_at = now + self._poll_interval
            self._engine.probe(now)
        self._engine.handle_timeout(now)
        self._pump()

    def _take(self, event: LeaseEvent) -> None:
        match event:
            case LeaseGranted(lease):
                if lease.external_host is not None:  # NAT-PMP tells it a little later
                    external = (lease.external_host, lease.external_port)
                    self._mapped((lease.protocol, lease.internal_port), external, lease.expires_at)
            case LeaseLost(lease):
                self._lost((lease.protocol, lease.internal_port))
            case LeaseRefused(protocol, port, code, detail):
                if (protocol, port) not in self.mappings:
                    self._ended((protocol, port), "refused", detail, code)
            case RouterSilent(protocol, port):
                if self.attempts[protocol, port].outcome == "pending":
                    detail = "what came back made no sense" if self.ignored else "no answer"
                    self._ended((protocol, port), "nonsense" if self.ignored else "no answer", detail)
            case RouterUnsupported(detail):
                self.skip("not spoken", detail)
            case LeaseRemoved(protocol, port):
                self.mappings.pop((protocol, port), None)
                self.attempts[protocol, port].outcome = "released"
            case _:
                self._changed()


class IgdMethod(MappingMethod):
    """UPnP IGD: port mappings at an IPv4 router, pinholes at an IPv6 one.

    Args:
        lifetime: seconds to ask for; the positional arguments are those of `MappingMethod`.
        on_link: prefixes in which a description may lie.
        search_timeout: seconds to look for a router.
        ssdp: port and group of the search; others in tests.
    """

    def __init__(
        self,
        *args: Any,
        lifetime: int,
        on_link: Sequence[IpNetwork] = (),
        search_timeout: float = 2.0,
        ssdp: tuple[int, str | None] = (SSDP_PORT, None),
    ) -> None:
        super().__init__(*args)
        self._lifetime = lifetime
        self._on_link = on_link
        self._search_timeout = search_timeout
        self._ssdp = ssdp
        self._go = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._igd: Igd | None = None
        self._pinholes: dict[Port, int] = {}

    def prepare(self) -> None:
        """Look for the router, but map nothing before `start`."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def start(self) -> None:
        """Map, as soon as the router is found."""
        self._begin()
        self.prepare()
        self._go.set()

    async def stop(self) -> None:
        """Delete the mappings, within `RELEASE_SECONDS`."""
        if self._task is not None:
            await end_task(self._task)
        if self._igd is not None:
            with contextlib.suppress(TimeoutError, OSError, RemoteProtocolError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._release(self._igd)
            await self._igd.close()
            self._igd = None

    async def _release(self, igd: Igd) -> None:
        for port, mapping in list(self.mappings.items()):
            del self.mappings[port]
            self.attempts[port].outcome = "released"
            with contextlib.suppress(RemoteProtocolError):
                if port in self._pinholes:
                    await igd.delete_pinhole(self._pinholes.pop(port))
                else:
                    await igd.unmap(port[0], mapping.external[1])

    async def _run(self) -> None:
        try:
            await self._find()
        except UpnpMissingError as error:
            self.skip("skipped", str(error))
        except RemoteProtocolError as error:
            self.skip("nonsense", str(error))
        except (OSError, TimeoutError) as error:
            self.skip("no answer", f"the router's description cannot be fetched: {error}")
        if self._igd is None:
            return
        await self._go.wait()
        while True:
            for port in self.ports:
                await self._refresh(self._igd, port)
            await asyncio.sleep(min(_IGD_REFRESH, self._lifetime / 2))

    async def _find(self) -> None:
        port, group = self._ssdp
        answers = await search_igd(
            self.gateway,
            self.local_host,
            on_link=self._on_link,
            timeout=self._search_timeout,
            port=port,
            group=group,
        )
        if not answers:
            self.skip("no answer", "no UPnP router answered the search")
            return
        igd = await Igd.open(answers[0].location, self.local_host)
        if igd.makes_pinholes if self.gateway.version == 6 else igd.maps_ports:
            self._igd = igd
        else:
            await igd.close()
            self.skip("not spoken", f"{igd.name!r} makes no {'pinholes' if self.gateway.version == 6 else 'mappings'}")

    async def _refresh(self, igd: Igd, port: Port) -> None:
        """Map a port, or make the mapping anew."""
        try:
            if self.gateway.version == 6:
                await self._refresh_pinhole(igd, port)
            else:
                await self._refresh_mapping(igd, port)
        except IgdRefusedError as error:
            self._lost(port)
            self._ended(port, "refused", str(error), error.code)
        except RemoteProtocolError as error:
            self._lost(port)
            self._ended(port, "nonsense", str(error))
        except (OSError, TimeoutError) as error:
            self._lost(port)
            self._ended(port, "no answer", f"the router does not answer: {error}")

    async def _refresh_mapping(self, igd: Igd, port: Port) -> None:
        host = await igd.external_host()
        if host is None:
            raise IgdRefusedError(0, "the router has no outside address at present")
        known = self.mappings.get(port)
        wanted = known.external[1] if known else port[1]
        others = [1024 + int.from_bytes(os.urandom(2), "big") % 64512 for _ in range(_IGD_RETRY_PORTS)]
        external, lifetime = await igd.map(
            port[0], self.local_host, port[1], wanted, self._lifetime, other_ports=others
        )
        self._mapped(port, (host, external), monotonic() + (lifetime or _PERMANENT_SECONDS))

    async def _refresh_pinhole(self, igd: Igd, port: Port) -> None:
        if port in self._pinholes:
            try:
                await igd.update_pinhole(self._pinholes[port], self._lifetime)
            except IgdRefusedError:
                del self._pinholes[port]  # the router restarted
        if port not in self._pinholes:
            if not await igd.pinholes_allowed():
                raise IgdRefusedError(0, "the router does not let hosts open its IPv6 firewall")
            self._pinholes[port] = await igd.add_pinhole(port[0], self.local_host, port[1], self._lifetime)
        self._mapped(port, (self.local_host, port[1]), monotonic() + self._lifetime)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end, without taking our own cancellation for its."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


def _connected_socket(host: str, port: int, local_host: str) -> socket.socket:
    """A UDP socket from our address to a router: PCP wants its requests from the address that they name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(socket.getaddrinfo(local_host, 0, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4])
        sock.connect(socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4])
    except OSError:
        sock.close()
        raise
    return sock
