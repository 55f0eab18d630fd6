"""The way out: data, acknowledgements and the packets of beginning and end, as batches of packets."""

from __future__ import annotations

from abc import ABC

from crust.proto.timers import TimerTable
from crust.proto.utp.batch import Batch
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.constants import BATCHES_AT_ONCE, INITIAL_RTO
from crust.proto.utp.events import UtpStats
from crust.proto.utp.intake import DATA_BYTE, MICRO_MASK, Intake
from crust.proto.utp.lifecycle import Lifecycle
from crust.proto.utp.receiver import Receiver
from crust.proto.utp.sender import Sender
from crust.proto.utp.state import State
from crust.proto.utp.timers import Timer
from crust.wire.utp import Extension, Header, PacketType, pack_header, serialize_header

__all__ = ["Outlet"]

_SENDING = (State.ESTABLISHED, State.CLOSING, State.HALF_CLOSED, State.PEER_CLOSED, State.CLOSING_BOTH, State.LAST_ACK)


class Outlet(Intake, ABC):
    """What a connection is made of, and how it makes packets."""

    __slots__ = (
        "_config",
        "_keepalive_due",
        "_life",
        "_send_id",
        "_sender",
        "_sent",
        "_syn",
        "_syn_count",
        "_syn_due",
        "_timers",
    )

    def __init__(self, config: UtpConfig, now: float, ids: tuple[int, int], seq_nr: int, state: State) -> None:
        stats = UtpStats()
        self._timers: TimerTable[Timer] = TimerTable()
        super().__init__(Receiver(config, 0, self._timers, stats), ids[0], stats, now)
        self._config = config
        self._send_id = ids[1]
        self._life = Lifecycle(config, self._timers, state)
        self._sender = Sender(config, seq_nr, self._timers, stats, now)
        self._syn = 0  # seq_nr of the SYN, ours or the peer's
        self._syn_count = 0
        self._syn_due = self._keepalive_due = False
        self._sent = now

    def send_lone(self, data: memoryview, now: float) -> bytes | None:
        """Send data in one packet at once, where nothing else waits and nothing is in the way: a request or an answer.

        The same as `send_data` and `datagrams_to_send`, in a third of the time.

        Args:
            data: not empty; must not change until it has been acknowledged.
            now: the present time.

        Returns:
            The packet's header; None when it is not that easy, and nothing has been done.
        """
        receiver, sender = self._receiver, self._sender
        buffer = receiver.buffer
        if self._life.state is not State.ESTABLISHED or buffer.held or not sender.send_lone(data, now):
            return None
        window = buffer.window
        receiver.sent(window)
        self._keepalive_due = False
        self._sent = now
        return pack_header(
            DATA_BYTE,
            0,
            self._send_id,
            int(now * 1e6) & MICRO_MASK or 1,
            receiver.reply_micro,
            window,
            (sender.flight.next_seq - 1) & 0xFFFF,
            (buffer.next_seq - 1) & 0xFFFF,
        )

    def datagrams_to_send(self, now: float, max_bytes: int = 0) -> list[Batch]:
        """Packets to send now; to be called again until there are none.

        Args:
            now: the present time.
            max_bytes: about how much payload to give out at once, so that a burst stays within what a socket takes; 0
                for `BATCHES_AT_ONCE` full batches.
        """
        if self._life.state not in _SENDING:
            return self._control_packets(now)
        receiver = self._receiver
        batches: list[Batch] = []
        if receiver.sack_due:
            # In a packet of its own, so that those with data keep one size; and first, as it is urgent.
            batches.append(self._state_packet(now))
        sender = self._sender
        data: list[Batch] | None = None
        if sender.ready:
            header = self._header(PacketType.DATA, now)
            data = sender.collect(now, max_bytes or BATCHES_AT_ONCE * sender.batch_bytes, header)
        if data:
            receiver.sent(receiver.buffer.window)
            batches += data
            if sender.fin_seq is not None:
                self._life.wait_for_last_ack(now, sender.rtt.rto)
        elif receiver.ack_due and not batches:
            batches.append(self._state_packet(now))
        elif self._keepalive_due:
            # As libutp: the ack before the last one, which is not taken for a duplicate that means a loss.
            batches.append(self._state_packet(now, back=1))
        else:
            receiver.delay_ack(now)
        if batches:
            self._keepalive_due = False
            self._sent = now
        return batches

    def _control_packets(self, now: float) -> list[Batch]:
        """Packets of the states that carry no data."""
        packet: Batch | None = None
        if self._life.reset_due:
            self._life.reset_due = False
            packet = self._bare(self._header(PacketType.RESET, now))
        elif self._life.state is State.SYN_SENT and self._syn_due:
            packet = self._bare(
                self._header(PacketType.SYN, now)._replace(connection_id=self._receive_id, seq_nr=self._syn, ack_nr=0)
            )
            self._timers.set(Timer.RETRANSMIT, now + INITIAL_RTO * 2**self._syn_count)
            self._syn_count += 1
        elif (self._life.state is State.SYN_RECEIVED and self._syn_due) or (
            self._life.state is State.LINGERING and self._receiver.ack_due
        ):
            packet = self._state_packet(now)
        self._syn_due = False
        if packet is None:
            return []
        self._sent = now
        return [packet]

    def _header(self, packet_type: PacketType, now: float, extension: int = Extension.NONE, back: int = 0) -> Header:
        receiver = self._receiver
        return Header(
            packet_type,
            extension,
            self._send_id,
            int(now * 1e6) & MICRO_MASK or 1,  # libtorrent takes 0 for "no time"
            receiver.reply_micro,
            receiver.window,
            self._sender.flight.next_seq,
            receiver.buffer.next_seq - 1 - back,
        )

    def _state_packet(self, now: float, back: int = 0) -> Batch:
        """A packet that only acknowledges."""
        kind, chain = self._receiver.selective_ack()
        header = self._header(PacketType.STATE, now, kind, back)
        self._receiver.sent(header.wnd_size)
        return self._bare(header, chain)

    def _bare(self, header: Header, body: bytes = b"") -> Batch:
        self.stats.packets_sent += 1
        return Batch(serialize_header(header), [body])
