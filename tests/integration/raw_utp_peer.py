"""A peer made of the tunnel and µTP engines alone, which says what it likes over UDP."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Sequence

from crust.crypto.keys import Identity, PeerId
from crust.net.clock import monotonic
from crust.proto.noise.handshake import EphemeralCache, Hello, Network, Signing
from crust.proto.plain import PlainRecords
from crust.proto.tunnel.association import Association
from crust.proto.tunnel.endpoint import TunnelEndpoint
from crust.proto.tunnel.events import DialFailed, DialSucceeded
from crust.proto.utp.batch import Batch
from crust.proto.utp.config import UtpConfig
from crust.wire import frames
from crust.wire.tunnel import OVERHEAD_BYTES

__all__ = ["RawUtpPeer"]


class RawUtpPeer:
    """Dials a node over µTP.

    Attributes:
        sent: every datagram that went out.
        seen: frames that have come.
        silent: sends nothing more, not even acks.
    """

    def __init__(self, remote: PeerId, port: int, *, identity: Identity | None = None, network: str = "crust") -> None:
        self.identity = identity or Identity.generate()
        self.remote = remote
        self.port = port
        self.nonce = secrets.token_bytes(16)
        self.sent: list[bytes] = []
        self.seen: list[frames.Frame] = []
        self.silent = False
        self.failed: DialFailed | None = None
        self.association: Association | None = None
        self.endpoint = TunnelEndpoint(
            self.identity,
            Network.of(network),
            Hello(self.identity.id, signing=Signing.OFF, hashes=1),
            random=secrets.token_bytes,
            seen=EphemeralCache(),
            now=monotonic(),
        )
        self._records = PlainRecords()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(("127.0.0.1", 0))
        self._loop.add_reader(self.socket, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self.socket)
        self.socket.close()
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> RawUtpPeer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def dial(self) -> None:
        """Send message 1."""
        config = UtpConfig(tunnel=True, datagram_overhead=OVERHEAD_BYTES)
        self.endpoint.dial(self.remote, (0, ("127.0.0.1", self.port)), config, monotonic())
        self.pump()

    async def shake(self) -> Association:
        """Message 1, and wait for message 2."""
        self.dial()
        await self.until(lambda: self.association or self.failed)
        assert self.association is not None
        return self.association

    async def join(self) -> None:
        """Shake hands, exchange HELLOs."""
        await self.shake()
        self.say(self.hello())
        await self.until(lambda: any(isinstance(frame, frames.Hello) for frame in self.seen))

    def hello(self) -> bytes:
        return frames.serialize_hello(frames.Hello(self.nonce, bytes(16), 0, 1 << 24, 1 << 20, 1 << 26))

    def say(self, *pieces: bytes, payloads: Sequence[bytes] = ()) -> None:
        """Write a group."""
        control = bytes((len(payloads),)) + b"".join(pieces)
        self.write(b"".join(PlainRecords.buffers([(control, [memoryview(p) for p in payloads])])))

    def write(self, data: bytes) -> None:
        """Write bytes into the stream."""
        assert self.association is not None
        self.association.utp.send_data(data, monotonic())
        self.endpoint.touch(self.association)
        self.pump()

    def say_packet(self, header: bytes, body: bytes = b"") -> None:
        """Send a µTP packet as it is, sealed like a true one."""
        assert self.association is not None
        self.association._batches.append(Batch(header, [body]))
        self.endpoint.touch(self.association)
        self.pump()

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _read(self) -> None:
        for _ in range(64):
            try:
                data, source = self.socket.recvfrom(65_536)
            except OSError:
                break
            self.endpoint.receive_datagrams(memoryview(data), len(data), (0, source), monotonic())
        self.pump()
        self._news.set()

    def pump(self) -> None:
        endpoint, now = self.endpoint, monotonic()
        while (event := endpoint.next_event()) is not None:
            if isinstance(event, DialSucceeded):
                self.association = event.association
            elif isinstance(event, DialFailed):
                self.failed = event
        while endpoint.touched:
            association = endpoint.touched.popitem()[0]
            chunks = association.utp.data_to_read()
            association.utp.consumed(sum(map(len, chunks)))
            for control, payloads in self._records.receive(chunks):
                self.seen += frames.parse_frames(control, payloads, start=1)
            while not self.silent:
                out = endpoint.association_outgoing(association, now)
                if out is not None:
                    for at in range(0, len(out.data), out.size):
                        self.transmit(bytes(out.data[at : at + out.size]))
                if not association.has_more:
                    break
        while (handshake := endpoint.next_outgoing()) is not None:
            self.transmit(bytes(handshake.data))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = endpoint.next_timeout()
        if due is not None:
            self._timer = self._loop.call_at(due, self._on_timer)

    def transmit(self, datagram: bytes) -> None:
        self.sent.append(datagram)
        self.socket.sendto(datagram, ("127.0.0.1", self.port))

    def _on_timer(self) -> None:
        self.endpoint.handle_timeout(monotonic())
        self.pump()
        self._news.set()
