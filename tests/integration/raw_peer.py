"""A peer made of the engines alone, which says what it likes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from crust.crypto.keys import Identity, PeerId
from crust.net.clock import monotonic
from crust.proto.noise.handshake import Hello, InitiatorHandshake, Network, Role, Signing
from crust.proto.noise.transport import KeyPair
from crust.proto.record import RecordCodec
from crust.wire import frames


class RawPeer:
    """Dials a node and shakes hands with it, step by step.

    Attributes:
        nonce: our nonce.
        their_nonce: the node's, once its HELLO has come.
        seen: frames that have come.
    """

    def __init__(self, remote: PeerId, port: int, *, signing: Signing = Signing.OFF, identity: Identity | None = None):
        self.identity = identity or Identity.generate()
        self.remote = remote
        self.port = port
        self.nonce = secrets.token_bytes(16)
        self.their_nonce = bytes(16)
        self.seen: list[frames.Frame] = []
        hello = Hello(self.identity.id, role=Role.NODE, signing=signing, hashes=1)
        self.handshake = InitiatorHandshake(
            self.identity, remote, Network.of("crust"), hello, random=secrets.token_bytes
        )
        self.first = self.handshake.data_to_send()
        self.codec: RecordCodec | None = None
        self._data = b""

    async def open(self) -> RawPeer:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def shake(self) -> None:
        """Message 1, and wait for message 2."""
        self.writer.write(self.first)
        result = None
        while result is None:
            data = await self.reader.read(65536)
            assert data, "the node hung up"
            result = self.handshake.receive_data(data)
        self._data = result.rest
        keys = KeyPair(result.root, result.send, result.receive)
        self.codec = RecordCodec(keys, initiator=True, random=secrets.token_bytes, now=monotonic())

    def seal(self, *pieces: bytes, payloads: Sequence[bytes] = ()) -> bytes:
        assert self.codec is not None
        control = bytes((len(payloads),)) + b"".join(pieces)
        return bytes(self.codec.seal([(control, [memoryview(p) for p in payloads])], monotonic()))

    def say(self, *pieces: bytes, payloads: Sequence[bytes] = ()) -> None:
        self.writer.write(self.seal(*pieces, payloads=payloads))

    def hello(self, **changes: object) -> bytes:
        values = {"nonce": self.nonce, "your_nonce": bytes(16), "next_expected": 0, **changes}
        values = {"window": 1 << 24, "stream_window": 1 << 20, "max_message": 1 << 26, **values}
        return frames.serialize_hello(frames.Hello(**values))  # type: ignore[arg-type]

    async def join(self) -> None:
        """Shake hands, exchange HELLOs."""
        await self.shake()
        self.say(self.hello())
        while not any(isinstance(frame, frames.Hello) for frame in self.seen):
            await self.listen()
        self.their_nonce = next(f.nonce for f in self.seen if isinstance(f, frames.Hello))

    async def listen(self) -> list[frames.Frame]:
        """The next frames of the node; none at the end of the stream."""
        assert self.codec is not None
        while True:
            groups, used = self.codec.receive_data(memoryview(self._data), monotonic())
            self._data = self._data[used:]
            if groups:
                found = [
                    frame for control, payloads in groups for frame in frames.parse_frames(control, payloads, start=1)
                ]
                self.seen += found
                return found
            data = await self.reader.read(65536)
            if not data:
                return []
            self._data += data

    async def ended(self) -> None:
        """Read until the node closes the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except OSError:
            pass

    def close(self) -> None:
        self.writer.transport.abort()
