"""The way in: batches of datagrams to packets, the common ones many at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from crust.proto.utp.events import DropReason, UtpStats
from crust.proto.utp.receiver import Receiver
from crust.wire.utp import HEADER_BYTES, VERSION, Buffer, PacketType, is_header_run, unpack_header

__all__ = ["DATA_BYTE", "MICRO_MASK", "Fields", "Intake"]

MICRO_MASK = 0xFFFFFFFF
DATA_BYTE = PacketType.DATA << 4 | VERSION
_STATE = PacketType.STATE << 4 | VERSION

# First byte, extension, connection_id, timestamp, timestamp_difference, wnd_size, seq_nr and ack_nr.
Fields = tuple[int, int, int, int, int, int, int, int]


class Intake(ABC):
    """Takes the common packets in at once, data that comes next and says nothing new about what we sent, and hands the
    others on one by one.

    Attributes:
        stats: counters.
    """

    __slots__ = ("_heard", "_last", "_receive_id", "_receiver", "stats")

    def __init__(self, receiver: Receiver, receive_id: int, stats: UtpStats, now: float) -> None:
        self.stats = stats
        self._receiver = receiver
        self._receive_id = receive_id
        self._last = (-1, -1)  # ack_nr and wnd_size of the last header whose acknowledgement was looked at
        self._heard = now

    @abstractmethod
    def _receive_packet(self, fields: Fields, body: Buffer, now: float) -> None:
        """Take in any packet."""

    @abstractmethod
    def _receive_plain(self, fields: Fields, payload: Buffer, now: float) -> bool:
        """Take in a packet of the most common kind; False, and nothing done, when it is another."""

    @abstractmethod
    def _receive_next(self, seq_nr: int, payload: Buffer, now: float) -> None:
        """Take in a packet of data of which only the data counts."""

    def receive_datagrams(self, batch: Iterable[Buffer], now: float) -> None:
        """Take in datagrams, each a whole packet; data of them stays referenced until it has been read.

        Never raises for what a datagram holds: it is dropped and counted, or ends the connection with one event.
        """
        receiver, receive_id, last = self._receiver, self._receive_id, self._last
        expected = receiver.buffer.next_seq & 0xFFFF
        payloads: list[Buffer] = []  # the next ones in order, with nothing new to say about what we sent
        ack: Fields | None = None  # a packet that only acknowledges, and that a later one may make needless
        timestamp = 0
        for datagram in batch:
            if len(datagram) < HEADER_BYTES:
                self.stats.drop(DropReason.MALFORMED)
                continue
            fields: Fields = unpack_header(datagram)
            first, extension, connection_id, sent, _, window, seq_nr, ack_nr = fields
            if (
                first == DATA_BYTE
                and seq_nr == expected
                and not extension
                and (ack_nr, window) == last
                and connection_id == receive_id
            ):
                payloads.append(datagram[HEADER_BYTES:])
                expected = expected + 1 & 0xFFFF
                timestamp = sent
                continue
            if payloads:
                self._receive_in_order(payloads, timestamp, now)
                payloads = []
            if first == _STATE and not extension and connection_id == receive_id:
                ack = self._later_ack(ack, fields, now)
                continue
            if ack is not None:
                self._receive_packet(ack, b"", now)
                ack = None
            self._receive_packet(fields, datagram[HEADER_BYTES:], now)
            expected, last = receiver.buffer.next_seq & 0xFFFF, self._last
        if payloads:
            self._receive_in_order(payloads, timestamp, now)
        if ack is not None:
            self._receive_packet(ack, b"", now)
        self._heard = now

    def _receive_in_order(self, payloads: list[Buffer], timestamp: int, now: float) -> None:
        """Take in packets of data that come next and say nothing new about what we sent."""
        receiver = self._receiver
        size = sum(map(len, payloads))
        receiver.reply_micro = (int(now * 1e6) - timestamp) & MICRO_MASK
        if receiver.on_run(payloads, size):
            self.stats.packets_received += len(payloads)
            self.stats.bytes_received += size
            return
        seq_nr = receiver.buffer.next_seq
        for at, payload in enumerate(payloads):
            self._receive_next((seq_nr + at) & 0xFFFF, payload, now)

    def receive_run(self, headers: Buffer, bodies: Buffer, body_bytes: int, now: float) -> None:
        """Take in packets whose headers and bodies lie one after the other, as a tunnel lays them when it opens them.

        Args:
            headers: the headers, 20 bytes each.
            bodies: what follows each header, `body_bytes` long but for the last, which may be shorter; at least one
                byte each.
            body_bytes: see there.
            now: the present time.
        """
        count = len(headers) // HEADER_BYTES
        fields: Fields = unpack_header(headers)
        first, extension, connection_id, timestamp, _, window, seq_nr, ack_nr = fields
        receiver = self._receiver
        if count > 1 and first == DATA_BYTE and (ack_nr, window) != self._last and is_header_run(headers, count):
            # All say the same that is new: once is enough.
            view = memoryview(bodies)
            self._receive_packet(fields, view[:body_bytes], now)
            headers, bodies = headers[HEADER_BYTES:], view[body_bytes:]
            count -= 1
            seq_nr = (seq_nr + 1) & 0xFFFF
        if (
            first == DATA_BYTE
            and not extension
            and (ack_nr, window) == self._last
            and seq_nr == receiver.buffer.next_seq & 0xFFFF
            and connection_id == self._receive_id
            and is_header_run(headers, count)
            and receiver.on_run((bodies,), len(bodies), count)
        ):
            receiver.reply_micro = (int(now * 1e6) - timestamp) & MICRO_MASK
            self.stats.packets_received += count
            self.stats.bytes_received += len(bodies)
        else:
            self._receive_each(headers, bodies, body_bytes, now)
        self._heard = now

    def receive_one(self, header: Buffer, body: Buffer, now: float) -> None:
        """Take in one packet.

        Args:
            header: 20 bytes.
            body: what follows it.
            now: the present time.
        """
        fields: Fields = unpack_header(header)
        if not self._receive_plain(fields, body, now):
            self._receive_packet(fields, body, now)
        self._heard = now

    def _receive_each(self, headers: Buffer, bodies: Buffer, body_bytes: int, now: float) -> None:
        """Take in the packets of a run one by one."""
        view = memoryview(bodies)
        ack: Fields | None = None
        for at in range(len(headers) // HEADER_BYTES):
            fields: Fields = unpack_header(headers, at * HEADER_BYTES)
            if fields[0] == _STATE and not fields[1] and fields[2] == self._receive_id:
                ack = self._later_ack(ack, fields, now)
                continue
            if ack is not None:
                self._receive_packet(ack, b"", now)
                ack = None
            self._receive_packet(fields, view[at * body_bytes : (at + 1) * body_bytes], now)
        if ack is not None:
            self._receive_packet(ack, b"", now)

    def _later_ack(self, ack: Fields | None, fields: Fields, now: float) -> Fields:
        """Of two packets that only acknowledge the later one is enough, unless it repeats the earlier."""
        if ack is not None:
            if 0 < (fields[7] - ack[7]) & 0xFFFF < 0x8000:
                self.stats.packets_received += 1
            else:
                self._receive_packet(ack, b"", now)
        return fields
