"""µTP packets, bare: any datagram from anybody."""

from __future__ import annotations

from crust.errors import RemoteProtocolError
from crust.wire import utp
from fuzz.target import Target


def run_packet(data: bytes) -> None:
    """A datagram is a header, extensions and a payload, or a RemoteProtocolError."""
    header = utp.parse_header(data)
    assert utp.serialize_header(header) == data[: utp.HEADER_BYTES]
    body = memoryview(data)[utp.HEADER_BYTES :]
    extensions = utp.parse_extensions(header.extension, body)
    assert 0 <= extensions.length <= len(body)
    assert extensions.sack.bit_length() <= utp.SEQUENCE_NUMBERS


def _seeds() -> list[bytes]:
    def packet(kind: utp.PacketType, extension: int = 0, body: bytes = b"") -> bytes:
        return utp.serialize_header(utp.Header(kind, extension, 4711, 1, 2, 1 << 20, 3, 4)) + body

    far = utp.serialize_selective_ack(0b1011, utp.Extension.FAR_ACK)
    return [
        packet(utp.PacketType.SYN),
        packet(utp.PacketType.DATA, body=b"payload"),
        packet(utp.PacketType.STATE, utp.Extension.SELECTIVE_ACK, utp.serialize_selective_ack(0b1011)),
        packet(utp.PacketType.STATE, utp.Extension.SELECTIVE_ACK, far + utp.serialize_far_acks(0b111 << 3000)),
        packet(utp.PacketType.DATA, utp.Extension.PART, utp.serialize_part(10, 1000) + b"piece"),
        packet(utp.PacketType.RESET, utp.Extension.CLOSE_REASON, b"\0\4\0\0\0\7"),
    ]


TARGETS = (Target("utp-packet", run_packet, (RemoteProtocolError,), _seeds),)
