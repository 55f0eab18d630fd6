"""Our outside addresses, asked of STUN servers that the user has named, from the very ports that we listen on.

Rendezvous nodes tell the same over connections that stand anyway. Who swaps contacts by hand has none: the mappings are
then held open, over UDP by asking again and again, over TCP by keeping the connection, until the peer comes through.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from crust.config import parse_listen
from crust.net.interfaces import source_host
from crust.net.stun import StunConnection, StunSocket, resolve_server
from crust.node.udp import UdpFront
from crust.proto.nat.stun import StunFailed, StunSucceeded
from crust.types import Candidate, Transport
from crust.wire.stun import Address

__all__ = ["OutsideAddresses"]

_SERVERS_MOST: Final = 8
_PORTS_MOST: Final = 4
_REFRESH_SECONDS: Final = 20.0  # many NATs forget an idle UDP mapping after 30 s
_TCP_SECONDS: Final = 2.5
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104

_Key = tuple[Transport, Address, Address]


class OutsideAddresses:
    """Asks, and keeps asking.

    Args:
        servers: "HOST:PORT" each.
        transports: over which to ask.
        front: the node's UDP sockets; None without µTP.
        changed: called when `candidates` differ from before.
    """

    def __init__(
        self,
        servers: Sequence[str],
        transports: Sequence[Transport],
        front: UdpFront | None,
        changed: Callable[[], None],
    ) -> None:
        self._servers = [parse_listen(entry, "stun_servers") for entry in servers[:_SERVERS_MOST]]
        self._transports = set(transports)
        self._front = front
        self._changed = changed
        self._found: dict[_Key, Candidate] = {}
        self._sockets: dict[Address, StunSocket] = {}
        self._connections: dict[_Key, StunConnection] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: list[asyncio.Event] = []
        self._listening: list[Address] = []

    def start(self, listening: Sequence[Address]) -> None:
        """Begin to ask from these ports; returns at once."""
        locals_ = list(dict.fromkeys(listening))[:_PORTS_MOST]
        if not self._servers or not locals_:
            return
        self._listening = locals_
        if self._front is not None and "utp" in self._transports:
            if any(host == _ANY[0] for host, _ in locals_) and (quiet := self._front.open_quiet()) is not None:
                # See `PunchOptions.quiet`: a Linux router without a firewall of its own must not see what we send.
                locals_ = [*locals_, quiet]
            for local in locals_:
                self._sockets[local] = StunSocket.over(self._sender(self._front, local))
            self._front.stun_received = self._received
        for host, port in self._servers:
            asked = asyncio.Event()
            self._asked.append(asked)
            work = self._follow(host, port, locals_, asked)
            self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def settled(self, seconds: float) -> None:
        """Wait until every server has answered or failed once, or the time is up. A cancel loses nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for asked in self._asked:
                    await asked.wait()

    @property
    def candidates(self) -> list[Candidate]:
        """What the servers say; the user has named them, so each is believed.

        The quiet port comes first, to be tried first: a router that has moved the port of a socket towards one
        destination keeps it moved towards the next.
        """
        quiet = {found for (_, local, _), found in self._found.items() if local not in self._listening}
        found = dict.fromkeys(self._found.values())
        return sorted(found, key=lambda each: (each not in quiet, each.host, each.port, each.transport))

    def close(self) -> None:
        """Stop, and let the mappings go."""
        for task in self._tasks:
            task.cancel()
        for sock in self._sockets.values():
            sock.close()
        for connection in self._connections.values():
            connection.close()
        if self._front is not None:
            self._front.stun_received = None

    # --- asking --------------------------------------------------------------------------------------------------

    async def _follow(self, host: str, port: int, listening: Sequence[Address], asked: asyncio.Event) -> None:
        """Ask one server from every port, for as long as the node is up."""
        while True:
            try:
                servers = await resolve_server(host, port)
            except OSError:
                servers = []
            pairs = [(own, each) for each in servers for own in listening if (":" in own[0]) == (":" in each[0])]
            await asyncio.gather(*(self._ask(own, each) for own, each in pairs))
            asked.set()
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _ask(self, local: Address, server: Address) -> None:
        async with asyncio.TaskGroup() as group:
            if local in self._sockets:
                group.create_task(self._ask_udp(local, server))
            if "tcp" in self._transports and local in self._listening:
                group.create_task(self._ask_tcp(local, server))

    async def _ask_udp(self, local: Address, server: Address) -> None:
        self._take("utp", local, server, await self._sockets[local].ask(server))

    async def _ask_tcp(self, local: Address, server: Address) -> None:
        key: _Key = ("tcp", local, server)
        standing = self._connections.get(key)
        if standing is not None:
            if standing.alive:
                return
            standing.close()
            del self._connections[key]
        own = local
        if local[0] in _ANY:
            own = (source_host(server[0]) or local[0], local[1])
        try:
            made = self._connections[key] = await StunConnection.ask(server, own, timeout=_TCP_SECONDS)
        except OSError:
            return
        self._take("tcp", local, server, made.answer)

    def _take(self, transport: Transport, local: Address, server: Address, answer: StunSucceeded | StunFailed) -> None:
        key: _Key = (transport, local, server)
        before = self._found.get(key)
        if isinstance(answer, StunSucceeded):
            found = Candidate(transport, *answer.observed, "server-reflexive")
            self._found[key] = found
            if found != before:
                self._changed()
        elif before is not None:
            del self._found[key]
            self._changed()

    # --- datagrams -----------------------------------------------------------------------------------------------

    @staticmethod
    def _sender(front: UdpFront, local: Address) -> Callable[[bytes, Address], None]:
        def send(data: bytes, to: Address) -> None:
            with contextlib.suppress(OSError):
                front.send_plain(data, local[1], *to)

        return send

    def _received(self, data: bytes, source: Address) -> bool:
        return any(sock.take(data, source) for sock in self._sockets.values())
