"""Asking STUN servers from sockets of our own: one UDP socket with its transactions, one TCP connection for one answer.

What is learned holds for the very socket that asked (see `crust.proto.nat.stun`), so both let the caller choose it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from crust.net.clock import monotonic
from crust.net.tcp import share_port
from crust.proto.nat.stun import (
    StunClient,
    StunEvent,
    StunFailed,
    StunFailure,
    StunStreamClient,
    StunSucceeded,
)
from crust.wire.stun import Address, ChangeRequest

__all__ = ["StunConnection", "StunSocket", "resolve_server"]

_READ_BYTES = 4096
_FOREIGN_KEPT = 64


class StunSocket(asyncio.DatagramProtocol):
    """A UDP socket that asks STUN servers; made by `open`.

    Attributes:
        local: its address.
        foreign: datagrams that were no answers, and their sources.
    """

    def __init__(self, client: StunClient) -> None:
        self.local: Address = ("", 0)
        self.foreign: asyncio.Queue[tuple[bytes, Address]] = asyncio.Queue(_FOREIGN_KEPT)
        self._client = client
        self._waiting: dict[bytes, asyncio.Future[StunEvent]] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._send: Callable[[bytes, Address], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def over(
        cls, send: Callable[[bytes, Address], None], *, initial_rto: float = 0.25, transmissions: int = 4
    ) -> StunSocket:
        """Ask over a socket that belongs to somebody else, who hands in what it receives (`take`).

        Args:
            send: sends a datagram.
            initial_rto: seconds to the first retransmission; doubled each time.
            transmissions: how often a request is sent before it has failed.
        """
        made = cls(StunClient(os.urandom, initial_rto=initial_rto, transmissions=transmissions, last_wait=3))
        made._send = send
        return made

    @classmethod
    async def open(cls, host: str, *, initial_rto: float = 0.25, transmissions: int = 4) -> StunSocket:
        """Open a socket on one of our addresses, at a random port.

        Args:
            host: numeric address to send from.
            initial_rto: seconds to the first retransmission; doubled each time.
            transmissions: how often a request is sent before it has failed.

        Raises:
            OSError: the address cannot be used.
        """
        client = StunClient(os.urandom, initial_rto=initial_rto, transmissions=transmissions, last_wait=3)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        _, made = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: cls(client), local_addr=(host, 0), family=family
        )
        return made

    async def ask(self, server: Address, *, change: ChangeRequest | None = None) -> StunSucceeded | StunFailed:
        """Ask one server for our outside address; several may be asked at a time. A cancel only forgets the answer.

        Args:
            server: numeric host and port.
            change: have it answer from another of its addresses (RFC 5780).
        """
        transaction = self._client.request(server, monotonic(), change=change)
        answer: asyncio.Future[StunEvent] = asyncio.get_running_loop().create_future()
        self._waiting[transaction] = answer
        try:
            self._pump()
            return await answer
        finally:
            del self._waiting[transaction]
            self._client.cancel(transaction)

    def send(self, data: bytes, to: Address) -> None:
        """Send a datagram of another kind."""
        if self._send is not None:
            self._send(data, to)
        elif self._transport is not None:
            self._transport.sendto(data, to)

    def close(self) -> None:
        """Close the socket."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.DatagramTransport) or hasattr(transport, "sendto")
        self._transport = transport  # type: ignore[assignment]  # uvloop's is of no such class
        self.local = transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Called by the event loop."""
        source: Address = (str(addr[0]), int(addr[1]))
        if not self.take(data, source):
            with contextlib.suppress(asyncio.QueueFull):
                self.foreign.put_nowait((data, source))

    def take(self, data: bytes, source: Address) -> bool:
        """Take a datagram if it answers a request of ours."""
        if not self._client.owns(data):
            return False
        self._client.receive_datagrams([(data, source)], monotonic())
        self._pump()
        return True

    def _pump(self) -> None:
        now = monotonic()
        for data, server in self._client.datagrams_to_send(now):
            self.send(data, server)
        while (event := self._client.next_event()) is not None:
            answer = self._waiting.get(event.transaction_id)
            if answer is not None and not answer.done():
                answer.set_result(event)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._client.next_timeout()
        if due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._client.handle_timeout(monotonic())
        self._pump()


class StunConnection:
    """A TCP connection from a port of our choice to one STUN server; made by `ask`.

    It stays open until `close`, and with it the mapping that was asked about.

    Attributes:
        local: our address.
        answer: what came of the request.
        silent: the server (or whatever is on the way) did not even refuse the connection.
    """

    def __init__(self, server: Address, sock: socket.socket) -> None:
        self.local: Address = ("", 0)
        self.answer: StunSucceeded | StunFailed
        self.silent = False
        self._server = server
        self._socket = sock

    @classmethod
    async def ask(cls, server: Address, local: Address, *, timeout: float) -> StunConnection:
        """Connect and ask; a failure is an answer, too. A cancel closes the socket.

        Args:
            server: numeric host and port.
            local: our address, with port 0 for a random port; others may be bound to the same port.
            timeout: seconds for connection and answer.

        Raises:
            OSError: the local address cannot be used.
        """
        sock = socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_STREAM)
        made = cls(server, sock)
        try:
            sock.setblocking(False)
            share_port(sock)
            sock.bind(local)
            made.local = sock.getsockname()[:2]
            made.answer = await made._run(timeout)
        except BaseException:
            sock.close()
            raise
        return made

    async def _run(self, timeout: float) -> StunSucceeded | StunFailed:
        loop = asyncio.get_running_loop()
        client = StunStreamClient(self._server, os.urandom, timeout=timeout)
        began = monotonic()
        reached = False
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_connect(self._socket, self._server)
                reached = True
                # The mapping began with the SYN, but what orders mappings is how they follow one another.
                client.request(began)
                await loop.sock_sendall(self._socket, client.data_to_send())
                while (event := client.next_event()) is None:
                    data = await loop.sock_recv(self._socket, _READ_BYTES)
                    if data:
                        client.receive_data(data, monotonic())
                    else:
                        client.receive_eof()
                return event
        except TimeoutError:
            self.silent = not reached
            detail = "no answer" if reached else "no connection"
            return StunFailed(b"", self._server, StunFailure.TIMEOUT, 0, f"{detail} within {timeout:g} s", 1)
        except OSError as error:
            self.silent = not reached and error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET)
            detail = error.strerror or str(error)
            return StunFailed(b"", self._server, StunFailure.UNREACHABLE, 0, detail, 1)

    @property
    def alive(self) -> bool:
        """Whether the answer came, and the other end has not hung up since."""
        if not isinstance(self.answer, StunSucceeded):
            return False
        try:
            return self._socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


async def resolve_server(host: str, port: int) -> list[Address]:
    """Numeric addresses of a server, at most one of each family, IPv4 first.

    Raises:
        OSError: there is no such host.
    """
    found: dict[int, Address] = {}
    for family, _, _, _, address in await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        found.setdefault(family, (str(address[0]), int(address[1])))
    return [found[family] for family in sorted(found)]
