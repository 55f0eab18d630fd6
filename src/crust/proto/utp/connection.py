"""One µTP connection (BEP 29): bytes in order over datagrams, without socket, task or clock.

It runs bare, compatible with libutp and libtorrent, or inside Crust's tunnel, where both ends agree on connection ids
beforehand and no SYN is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.constants import (
    INITIAL_PEER_WINDOW,
    MAX_ABSURD_TIMESTAMPS,
    MAX_PLAUSIBLE_RTT,
    NO_DELAY_SAMPLE,
    SYN_RETRIES,
)
from crust.proto.utp.events import Connected, DropReason, EndReason, UtpEvent
from crust.proto.utp.intake import DATA_BYTE, MICRO_MASK, Fields
from crust.proto.utp.outlet import Outlet
from crust.proto.utp.state import Input, State
from crust.proto.utp.timers import Timer
from crust.wire.utp import (
    HEADER_BYTES,
    VERSION,
    Buffer,
    Extensions,
    PacketType,
    parse_extensions,
    parse_header,
)

__all__ = ["UtpConnection"]

_NO_EXTENSIONS = Extensions()
_PLAUSIBLE_MICROS = int(MAX_PLAUSIBLE_RTT * 1e6)
_SENDING = (State.ESTABLISHED, State.CLOSING, State.HALF_CLOSED, State.PEER_CLOSED, State.CLOSING_BOTH, State.LAST_ACK)
# What a peer does by mistake or by a late packet, and never ends a connection for.
_FORGIVEN = (DropReason.DUPLICATE, DropReason.OUT_OF_WINDOW)


class UtpConnection(Outlet):
    """A connection; made with `connect`, `accept` or `established`.

    After every call that takes something in, and whenever `next_timeout()` has passed (`handle_timeout`), drain
    `next_event()`, `data_to_read()` and `datagrams_to_send()`. `stats` counts.
    """

    __slots__ = ("_absurd",)

    def __init__(self, config: UtpConfig, now: float, ids: tuple[int, int], seq_nr: int, state: State) -> None:
        super().__init__(config, now, ids, seq_nr, state)
        self._absurd = 0
        if config.idle_timeout:
            self._timers.set(Timer.IDLE, now + config.idle_timeout)
        if config.keepalive:
            self._timers.set(Timer.KEEPALIVE, now + config.keepalive)

    # -- making one ----------------------------------------------------------------------------------------------

    @classmethod
    def connect(cls, config: UtpConfig, now: float, random: Callable[[int], bytes]) -> UtpConnection:
        """Open a connection with a SYN.

        Args:
            config: settings.
            now: the present time in seconds, of a clock that does not go back.
            random: gives so many random bytes.
        """
        receive_id, seq_nr = int.from_bytes(random(2)), int.from_bytes(random(2))
        # The SYN carries the id that its sender expects; the other direction uses the next one (BEP 29).
        self = cls(config, now, (receive_id, (receive_id + 1) & 0xFFFF), seq_nr + 1, State.SYN_SENT)
        self._syn, self._syn_due = seq_nr, True
        return self

    @classmethod
    def accept(
        cls, first_packet: Buffer, config: UtpConfig, now: float, random: Callable[[int], bytes]
    ) -> UtpConnection:
        """Answer a SYN.

        Args:
            first_packet: the datagram with the SYN.
            config: settings.
            now: the present time.
            random: gives so many random bytes.

        Raises:
            RemoteProtocolError: the datagram is no SYN.
        """
        header = parse_header(first_packet)
        if header.type is not PacketType.SYN:
            raise RemoteProtocolError(f"a connection cannot begin with {header.type.name}")
        if header.extension:
            parse_extensions(header.extension, first_packet[HEADER_BYTES:])
        ids = ((header.connection_id + 1) & 0xFFFF, header.connection_id)
        self = cls(config, now, ids, int.from_bytes(random(2)), State.SYN_RECEIVED)
        self._syn, self._syn_due = header.seq_nr, True
        self._receiver.buffer.next_seq = header.seq_nr + 1
        self._receiver.reply_micro = (int(now * 1e6) - header.timestamp) & MICRO_MASK
        self.stats.packets_received = 1
        self._timers.set(Timer.STALL, now + config.stall_timeout)
        return self

    @classmethod
    def established(
        cls,
        config: UtpConfig,
        now: float,
        *,
        receive_id: int,
        send_id: int,
        seq_nr: int = 1,
        peer_seq_nr: int = 1,
        rtt: float = 0.0,
    ) -> UtpConnection:
        """Begin with what both ends have agreed on: no SYN, and data at once.

        Args:
            config: settings.
            now: the present time.
            receive_id: connection id of packets to us.
            send_id: connection id of packets to the peer.
            seq_nr: number of our first packet.
            peer_seq_nr: number of the peer's first packet.
            rtt: the round trip of what came before, such as a handshake; 0 for unknown.
        """
        self = cls(config, now, (receive_id, send_id), seq_nr, State.ESTABLISHED)
        if rtt:
            self._sender.rtt.add(rtt, now)
        self._receiver.buffer.next_seq = peer_seq_nr
        self._sender.peer_window = INITIAL_PEER_WINDOW
        self._life.events.append(Connected())
        return self

    # -- what it is like -----------------------------------------------------------------------------------------

    @property
    def receive_id(self) -> int:
        """The connection id of packets to us: with the peer's address, what tells connections apart on a socket."""
        return self._receive_id

    @property
    def state(self) -> State:
        """Where the connection is."""
        return self._life.state

    @property
    def ended(self) -> bool:
        """Nothing will happen any more; the `Ended` event tells why."""
        return self._life.ended

    @property
    def send_space(self) -> int:
        """Bytes that `send_data` would accept now."""
        return self._sender.space if self._may_send else 0

    @property
    def unsent_bytes(self) -> int:
        """Bytes accepted and not sent yet."""
        return self._sender.queue.size

    @property
    def whole_batches_bytes(self) -> int:
        """Of the bytes not sent yet, those that fill batches: the most that one system call takes."""
        unsent = self._sender.queue.size
        return unsent - unsent % self._sender.batch_bytes

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes accepted that the peer has not acknowledged in order."""
        return self._sender.queue.size + self._sender.flight.held_bytes

    @property
    def cwnd(self) -> int:
        """The congestion window in bytes."""
        return self._sender.congestion.cwnd

    @property
    def srtt(self) -> float:
        """The smoothed round-trip time in seconds; 0 before it was measured."""
        return self._sender.rtt.srtt

    @property
    def mtu(self) -> int:
        """The size of full packets, header included."""
        return self._sender.mtu.current

    @property
    def _may_send(self) -> bool:
        return not self._life.ended and not self._sender.closing and not self._life.close_wanted

    # -- the application's side ----------------------------------------------------------------------------------

    def send_data(self, buffers: Buffer | Iterable[Buffer], now: float) -> int:
        """Queue data, as much as there is room for.

        Nothing is copied: a buffer must not change until it has been acknowledged.

        Args:
            buffers: one buffer or several.
            now: the present time.

        Returns:
            How many bytes were accepted, counted over the buffers in order.

        Raises:
            LocalProtocolError: after `close` or the end of the connection.
        """
        if not self._may_send:
            raise LocalProtocolError("send_data after the end of the connection")
        if isinstance(buffers, (bytes, bytearray, memoryview)):
            return self._sender.offer([_of_bytes(buffers)], now)
        return self._sender.offer(list(map(_of_bytes, buffers)), now)

    def read_all(self) -> list[Buffer]:
        """The data in order that has arrived since the last call, for who uses it up at once."""
        buffer = self._receiver.buffer
        if not buffer.readable:
            return []
        self._receiver.consumed(buffer.ready_bytes)
        return buffer.take()

    def data_to_read(self) -> list[Buffer]:
        """The data in order that has arrived since the last call.

        It counts against the receive window until `consumed` is called.
        """
        return self._receiver.buffer.take()

    def consumed(self, size: int) -> None:
        """Open the receive window by so many bytes of what `data_to_read` gave.

        Raises:
            LocalProtocolError: these are more than it gave.
        """
        if not self._receiver.consumed(size):
            raise LocalProtocolError(f"consumed({size}) is more than was read")

    def next_event(self) -> UtpEvent | None:
        """The next event, or None."""
        return self._life.events.pop(0) if self._life.events else None

    def close(self) -> None:
        """End our direction after all that was accepted; the peer's stays open until it ends it.

        The connection is over when both have ended, or when the peer does not follow within `close_timeout`.
        """
        if self._life.state in (State.SYN_SENT, State.SYN_RECEIVED):
            self._life.close_wanted = True
        elif self._may_send:
            self._sender.closing = True
            self._life.move(Input.CLOSE)

    def abort(self, detail: str = "aborted") -> None:
        """End the connection now: what is not acknowledged may be lost, and the peer is told by a RESET."""
        if not self._life.ended:
            self._fail(EndReason.ABORTED, detail)

    # -- from the network ----------------------------------------------------------------------------------------

    def _receive_plain(self, fields: Fields, payload: Buffer, now: float) -> bool:
        """Take in data that comes next and acknowledges in order, while nothing is missing in either direction.

        Returns:
            False when it is something else, so that nothing has been done.
        """
        first, extension, connection_id, timestamp, difference, window, seq_nr, ack_nr = fields
        sender, receiver = self._sender, self._receiver
        flight, buffer = sender.flight, receiver.buffer
        advance = (ack_nr + 1 - flight.una) & 0xFFFF
        micros = int(now * 1e6)
        if (
            first != DATA_BYTE
            or extension
            or connection_id != self._receive_id
            or self._life.state is not State.ESTABLISHED
            or seq_nr != buffer.next_seq & 0xFFFF
            or advance > flight.count
            or not flight.is_plain
            or (micros - timestamp + difference) & MICRO_MASK > _PLAUSIBLE_MICROS
            or not buffer.append_next(payload)
        ):
            return False
        receiver.reply_micro = (micros - timestamp) & MICRO_MASK
        receiver.unacknowledged += 1
        self._absurd = 0
        self._last = (ack_nr, window)
        stats = self.stats
        stats.packets_received += 1
        stats.bytes_received += len(payload)
        if advance:
            sender.on_ack(flight.una + advance, 0, window, difference or None, now, pure=False)
        else:
            sender.peer_window = window
        return True

    def _receive_packet(self, fields: Fields, body: Buffer, now: float) -> None:
        """Take in any packet."""
        first, kind, connection_id, timestamp, difference, window, seq_nr, ack_nr = fields
        packet_type = first >> 4
        if first & 15 != VERSION or packet_type > PacketType.SYN:
            self._refuse(DropReason.MALFORMED, f"a first byte of {first:#04x}")
            return
        if packet_type == PacketType.SYN:
            self._on_syn(connection_id, seq_nr)
            return
        if connection_id != self._receive_id or self._life.ended:
            self.stats.drop(DropReason.FOREIGN)
            return
        extensions = _NO_EXTENSIONS
        if kind:
            try:
                extensions = parse_extensions(kind, body)
            except RemoteProtocolError as error:
                self._refuse(DropReason.MALFORMED, str(error))
                return
        self.stats.packets_received += 1
        if packet_type == PacketType.RESET:
            self._on_reset(ack_nr)
            return
        if self._life.state is State.SYN_SENT and not self._on_syn_answer(packet_type, seq_nr, ack_nr, window, now):
            return
        payload = body[extensions.length :] if extensions.length else body
        if not self._on_ack(
            ack_nr,
            window,
            extensions.sack,
            self._check_times(timestamp, difference, now),
            now,
            pure=packet_type == PacketType.STATE,
        ):
            return
        if packet_type == PacketType.DATA:
            self._on_data(seq_nr, payload, extensions.part, now)
        elif packet_type == PacketType.FIN:
            self._on_drop(self._receiver.on_fin(seq_nr), "a FIN before the end of the data")
            self._check_peer_end(now)

    def _check_times(self, timestamp: int, difference: int, now: float) -> int | None:
        """Keep what the timestamps say; returns the one-way delay that the peer measured, if it is believable."""
        micros = int(now * 1e6)
        self._receiver.reply_micro = (micros - timestamp) & MICRO_MASK
        if not difference or difference == NO_DELAY_SAMPLE:
            return None
        # The peer's clock now less its clock then, added to our clock then, is our clock now less the round trip: the
        # offset between the clocks cancels out, so a lie shows.
        round_trip = (micros - timestamp + difference) & MICRO_MASK
        if round_trip <= MAX_PLAUSIBLE_RTT * 1e6:
            self._absurd = 0
            return difference
        self._absurd += 1
        self.stats.absurd_timestamps += 1
        if self._absurd >= MAX_ABSURD_TIMESTAMPS and self._config.tunnel and not self._life.ended:
            self._fail(EndReason.VIOLATION, "timestamps that cannot be")
        return None

    def _on_ack(self, ack_nr: int, window: int, sack: int, delay_us: int | None, now: float, *, pure: bool) -> bool:
        """Take in an acknowledgement; False when the rest of the packet is not to be looked at."""
        if self._life.ended:
            return False
        flight = self._sender.flight
        una = flight.una + ((ack_nr + 1 - flight.una + 0x8000) & 0xFFFF) - 0x8000
        if una > flight.next_seq or una + 1 + sack.bit_length() > max(flight.next_seq, una + 1):
            self._refuse(DropReason.IMPOSSIBLE_ACK, f"an ack of {(una + sack.bit_length()) & 0xFFFF}")
            return False
        if self._life.state is State.SYN_RECEIVED:
            if una != flight.next_seq:
                self.stats.drop(DropReason.UNEXPECTED)
                return False
            # The number of our answer was random: who knows it gets what we send.
            self._timers.clear(Timer.STALL)
            self._become_established(now)
        self._last = (ack_nr, window)
        self._sender.on_ack(una, sack << 1, window, delay_us, now, pure=pure)
        if self._sender.done and self._life.end_acknowledged(now, self._sender.rtt.rto):
            self._finish(EndReason.CLOSED, "")
            return False
        return True

    def _receive_next(self, seq_nr: int, payload: Buffer, now: float) -> None:
        """Take in a packet of data of which only the data counts."""
        if not self._life.ended:
            self.stats.packets_received += 1
            self._on_data(seq_nr, payload, None, now)

    def _on_data(self, seq_nr: int, payload: Buffer, part: tuple[int, int] | None, now: float) -> None:
        before = self._receiver.buffer.used_bytes
        drop = self._receiver.on_data(seq_nr, payload, part)
        self.stats.bytes_received += self._receiver.buffer.used_bytes - before
        self._on_drop(drop, f"data with seq_nr {seq_nr}")
        self._check_peer_end(now)

    def _on_drop(self, reason: DropReason | None, what: str) -> None:
        if reason in _FORGIVEN:
            self.stats.drop(reason)
        elif reason is not None:
            self._refuse(reason, what)

    def _refuse(self, reason: DropReason, what: str) -> None:
        """A packet breaks the protocol: bare, anybody could have sent it; in the tunnel it was the peer."""
        self.stats.drop(reason)
        if self._config.tunnel and not self._life.ended:
            self._fail(EndReason.VIOLATION, f"{what}: {reason.value}")

    def _check_peer_end(self, now: float) -> None:
        if self._receiver.buffer.finished:
            self._life.peer_finished(now, self._sender.rtt.rto)

    # -- beginning and end ---------------------------------------------------------------------------------------

    def _on_syn(self, connection_id: int, seq_nr: int) -> None:
        """A SYN once more: our answer was lost. (libtorrent ignores these; libutp answers.)"""
        if connection_id == self._send_id and seq_nr == self._syn and self._life.state is not State.SYN_SENT:
            if self._life.state is State.SYN_RECEIVED:
                self._syn_due = True
            else:
                self._receiver.force_ack()
        else:
            self._refuse(DropReason.UNEXPECTED, "a SYN")

    def _on_syn_answer(self, packet_type: int, seq_nr: int, ack_nr: int, window: int, now: float) -> bool:
        # Data that overtook the answer does not tell where the stream begins: it will be sent again.
        if packet_type != PacketType.STATE or ack_nr != self._syn:
            self.stats.drop(DropReason.UNEXPECTED)
            return False
        # libutp and libtorrent: the answer carries the number of the first data packet to come.
        self._receiver.buffer.next_seq = seq_nr
        self._sender.peer_window = window
        self._timers.clear(Timer.RETRANSMIT)
        if self._syn_count == 1:
            self._sender.rtt.add(max(now - self._sent, 1e-6), now)
        # Shows the peer that its answer arrived, in case we have nothing to send.
        self._receiver.force_ack()
        self._become_established(now)
        return True

    def _become_established(self, now: float) -> None:
        self._life.connected()
        if self._life.close_wanted:
            self._life.close_wanted = False
            self.close()
        if self._sender.queue.size:
            self._timers.set(Timer.STALL, now + self._config.stall_timeout)

    def _on_reset(self, ack_nr: int) -> None:
        if self._life.state is State.SYN_SENT:
            known = ack_nr == self._syn
        else:
            # As libtorrent: a forged one hardly knows our numbers.
            known = (self._sender.flight.next_seq - 1 - ack_nr) & 0xFFFF < 0x8000
        if known:
            self._finish(*self._life.reset())
        else:
            self._refuse(DropReason.IMPOSSIBLE_ACK, "a RESET")

    def _fail(self, reason: EndReason, detail: str) -> None:
        self._life.fail()
        self._finish(reason, detail)

    def _finish(self, reason: EndReason, detail: str) -> None:
        """The one end of a connection: what has arrived can still be read."""
        self._life.end(reason, detail)
        self._last = (-1, -1)
        self._sender.forget()
        self._receiver.buffer.forget_gaps()

    # -- time ----------------------------------------------------------------------------------------------------

    @property
    def deadlines(self) -> dict[Timer, float]:
        """The timers; the least deadline is `next_timeout()`."""
        return self._timers.deadlines

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is to be called, or None."""
        return self._timers.next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Let the timers fire that are due."""
        for timer in self._timers.pop_due(now):
            if self._life.ended:
                return
            if timer is Timer.DELAYED_ACK:
                self._receiver.force_ack()
            elif timer is Timer.KEEPALIVE:
                self._keepalive_due = now - self._sent >= self._config.keepalive
                self._timers.set(Timer.KEEPALIVE, (now if self._keepalive_due else self._sent) + self._config.keepalive)
            elif timer is Timer.IDLE:
                self._on_idle(now)
            elif timer is Timer.LINGER:
                sender = self._sender
                if self._life.patience_over(
                    now, sender.rtt.rto, self._heard, only_fin_missing=sender.flight.una == sender.fin_seq
                ):
                    self._finish(EndReason.CLOSED, "")
            elif self._life.state is State.SYN_SENT and timer is Timer.RETRANSMIT:
                self._syn_due = True
                if self._syn_count > SYN_RETRIES:
                    self._fail(EndReason.TIMED_OUT, "no answer to the SYN")
            elif self._sender.on_timer(timer, now):
                self._on_stall()

    def _on_idle(self, now: float) -> None:
        deadline = self._heard + self._config.idle_timeout
        if deadline <= now:
            self._fail(EndReason.TIMED_OUT, f"nothing heard for {self._config.idle_timeout:g} s")
        else:
            self._timers.set(Timer.IDLE, deadline)

    def _on_stall(self) -> None:
        seconds = f"{self._config.stall_timeout:g} s"
        if self._sender.peer_window < self._config.mtu and self._life.state is not State.SYN_RECEIVED:
            self._fail(EndReason.STALLED, f"the peer's window has been shut for {seconds}")
        else:
            self._fail(EndReason.TIMED_OUT, f"nothing acknowledged for {seconds}")

    def datagram_too_big(self, size: int, now: float) -> None:
        """The carrier refused a packet of `size` bytes, header included (EMSGSIZE): use smaller ones."""
        if not self._life.ended:
            self._sender.datagram_too_big(size, now)

    def path_changed(self, now: float, mtu_ceiling: int | None = None) -> None:
        """Packets travel another way from now on: forget round trips, window and packet size of the old one.

        Args:
            now: the present time.
            mtu_ceiling: largest packet that the new way may take, if that is known.
        """
        if not self._life.ended:
            self._sender.restart_path(now, mtu_ceiling)


def _of_bytes(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view if view.itemsize == 1 and view.contiguous and view.ndim == 1 else view.cast("B")
