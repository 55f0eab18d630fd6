"""What leaves the engine: runs of packets of one size, ready for UDP_SEGMENT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from crust.wire.utp import HEADER_BYTES, Buffer

__all__ = ["Batch"]


class Batch(NamedTuple):
    """Packets that go out in one send: all of one size, the last perhaps shorter.

    Headers and bodies are kept apart, so that a tunnel can seal each body straight from the application's memory into
    its own buffer, with the header as associated data, and a bare socket can gather both without a copy.

    Attributes:
        headers: the 20-byte headers, one after the other.
        bodies: for each packet what follows its header: extensions, if any, and payload.
        probe: a probe of the path MTU: not to be fragmented, and one whose refusal (EMSGSIZE) is reported with
            `UtpConnection.datagram_too_big`.
        is_run: the headers differ in `seq_nr` only, each one more than the one before.
    """

    headers: bytes | bytearray
    bodies: list[Buffer]
    probe: bool = False
    is_run: bool = False

    @property
    def segment_size(self) -> int:
        """Size of each packet; the last may be shorter."""
        return HEADER_BYTES + len(self.bodies[0])

    @property
    def size(self) -> int:
        """Bytes of all packets."""
        return len(self.headers) + len(self.bodies[0]) * (len(self.bodies) - 1) + len(self.bodies[-1])

    def packets(self) -> Iterator[tuple[memoryview, Buffer]]:
        """(header, body) of each packet."""
        headers = memoryview(self.headers)
        return zip(
            (headers[at : at + HEADER_BYTES] for at in range(0, len(headers), HEADER_BYTES)), self.bodies, strict=True
        )

    def datagrams(self) -> list[bytes]:
        """Each packet as one piece, for a carrier that takes no better."""
        return [b"".join(pair) for pair in self.packets()]

    def buffers(self) -> list[Buffer]:
        """Headers and bodies in turn, for one gathering send with UDP_SEGMENT."""
        found: list[Buffer] = []
        for header, body in self.packets():
            found += (header, body)
        return found
