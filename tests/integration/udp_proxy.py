"""A UDP relay in front of a node that delays, loses, and changes its port like a NAT that forgot."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["UdpProxy"]


class UdpProxy:
    """Relays between whoever writes to `port` and the upstream port.

    Attributes:
        port: where it listens.
        delay: seconds each way.
        loss: share of datagrams lost.
        jitter: seconds of random further delay, so that datagrams overtake each other.
        closed: forwards nothing.
        passed: datagrams forwarded.
        keep: is shown each datagram towards the upstream; False drops it.
    """

    def __init__(self, upstream: int = 0, *, delay: float = 0.0, loss: float = 0.0, jitter: float = 0.0) -> None:
        self.upstream = upstream
        self.delay = delay
        self.loss = loss
        self.jitter = jitter
        self.closed = False
        self.passed = 0
        self.keep: Callable[[bytes], bool] = lambda data: True
        self.port = 0
        self._chance = random.Random(1)
        self._front: socket.socket | None = None
        self._backs: dict[tuple[Any, ...], socket.socket] = {}

    async def __aenter__(self) -> UdpProxy:
        self._front = self._socket()
        self.port = self._front.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._front, self._from_client)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._front is not None
        self._loop.remove_reader(self._front)
        self._front.close()
        self.rebind()

    @staticmethod
    def _socket() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind(("127.0.0.1", 0))
        return sock

    def rebind(self) -> None:
        """Forget every mapping: what clients send next comes from another port."""
        for back in self._backs.values():
            self._loop.remove_reader(back)
            back.close()
        self._backs.clear()

    def _from_client(self) -> None:
        assert self._front is not None
        for _ in range(64):
            try:
                data, client = self._front.recvfrom(65_536)
            except OSError:
                return
            if not self.keep(data):
                continue
            back = self._backs.get(client)
            if back is None:
                back = self._backs[client] = self._socket()
                self._loop.add_reader(back, self._from_upstream, back, client)
            self._forward(lambda data=data, back=back: back.sendto(data, ("127.0.0.1", self.upstream)))  # type: ignore[misc]

    def _from_upstream(self, back: socket.socket, client: tuple[Any, ...]) -> None:
        for _ in range(64):
            try:
                data = back.recv(65_536)
            except OSError:
                return
            front = self._front
            if front is not None:
                self._forward(lambda data=data: front.sendto(data, client))  # type: ignore[misc]  # noqa: B023 - called in the same turn or bound

    def _forward(self, send: Callable[[], object]) -> None:
        if self.closed or self._chance.random() < self.loss:
            return
        self.passed += 1
        delay = self.delay + self.jitter * self._chance.random()
        if delay:
            self._loop.call_later(delay, self._send, send)
        else:
            self._send(send)

    @staticmethod
    def _send(send: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):  # full, or closed meanwhile
            send()
