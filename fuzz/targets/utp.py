"""µTP: any datagram from anybody, and a connection whose peer, authenticated or not, follows no rule."""

from __future__ import annotations

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection
from crust.wire import utp
from fuzz.target import Reader, Target, block

WINDOW = 256 * 1024
MOST_OPERATIONS = 200


def run_packet(data: bytes) -> None:
    """A datagram is a header, extensions and a payload, or a RemoteProtocolError."""
    header = utp.parse_header(data)
    assert utp.serialize_header(header) == data[: utp.HEADER_BYTES]
    body = memoryview(data)[utp.HEADER_BYTES :]
    extensions = utp.parse_extensions(header.extension, body)
    assert 0 <= extensions.length <= len(body)
    assert extensions.sack.bit_length() <= utp.SEQUENCE_NUMBERS


def run_connection(data: bytes) -> None:
    """A connection takes any packets, and neither raises nor holds more than its window."""
    reader = Reader(data)
    tunnel = bool(reader.byte() & 1)
    config = UtpConfig(tunnel=tunnel, receive_window=WINDOW, send_buffer=WINDOW, idle_timeout=60.0)
    connection = UtpConnection.established(config, 0.0, receive_id=1, send_id=2)
    now, sent, held = 0.0, 0, 0
    for _ in range(MOST_OPERATIONS):
        if not reader or connection.ended:
            break
        what = reader.byte()
        if what < 0xA0:
            connection.receive_datagrams([_packet(reader, sent) for _ in range(1 + what % 3)], now)
        elif what < 0xB0:
            now += what % 16 / 4
            connection.handle_timeout(now)
        elif what < 0xD0:
            try:
                connection.send_data(bytes((what & 15) * 1000), now)
            except LocalProtocolError:
                assert connection.ended or what < 0xD0
        elif what < 0xF0:
            held += sum(map(len, connection.data_to_read()))
            connection.consumed(held)
            held = 0
        elif what < 0xF4:
            connection.close()
        elif what < 0xF8:
            connection.datagram_too_big(1000 + what, now)
        else:
            connection.path_changed(now)
        sent += sum(len(batch.bodies) for batch in connection.datagrams_to_send(now))
        while connection.next_event() is not None:
            pass
    held += sum(map(len, connection.data_to_read()))
    assert held <= 2 * WINDOW


def _packet(reader: Reader, sent: int) -> bytes:
    """A packet of the input as it is, or one with numbers near those that would be right."""
    how = reader.byte()
    if how < 0x20:
        return reader.block()
    kind, extension, seq, ack = how % 6, reader.byte() % 4, reader.byte(), reader.byte()
    header = utp.Header(
        utp.PacketType(kind) if kind < 5 else utp.PacketType.DATA,
        (0, utp.Extension.SELECTIVE_ACK, utp.Extension.FAR_ACK, utp.Extension.PART)[extension],
        1,
        reader.byte() << 16,
        reader.byte() << 12,
        reader.byte() << 12,
        1 + seq,
        sent + 4 - ack % 16 & 0xFFFF,
    )
    return utp.serialize_header(header) + reader.block()


def _connection_seeds() -> list[bytes]:
    data = b"\0\x24" + bytes((0, 0, 4, 1, 1, 255)) + block(b"payload" * 50)
    later = b"\0\x24" + bytes((0, 3, 4, 1, 1, 255)) + block(b"payload" * 50)
    state = b"\0\x26" + bytes((1, 0, 4, 1, 1, 255)) + block(b"\0\4\xff\0\0\0")
    fin = b"\0\x25" + bytes((0, 1, 4, 1, 1, 255)) + block(b"")
    own = b"\xcf\xcf\xa1"
    return [bytes((tunnel,)) + part for tunnel in (0, 1) for part in (data + later + own, own + state * 3, data + fin)]


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


TARGETS = (
    Target("utp-packet", run_packet, (RemoteProtocolError,), _seeds),
    Target("utp-connection", run_connection, (), _connection_seeds),
)
