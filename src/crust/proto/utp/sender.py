"""The sending half of a connection: what to send, when, and when to send it again."""

from __future__ import annotations

from crust.proto.timers import TimerTable
from crust.proto.utp.batch import Batch
from crust.proto.utp.config import UtpConfig
from crust.proto.utp.congestion import AckSample, CongestionControl
from crust.proto.utp.constants import (
    DUPLICATE_ACK_THRESHOLD,
    MAX_BATCH_BYTES,
    MAX_PACKETS_IN_FLIGHT,
    MAX_REORDER_MULTIPLIER,
    MAX_RTO,
    MIN_LOSS_PROBE,
    REORDER_WINDOW_FRACTION,
)
from crust.proto.utp.cubic import Cubic
from crust.proto.utp.events import UtpStats
from crust.proto.utp.flight import Flight
from crust.proto.utp.ledbat import Ledbat
from crust.proto.utp.mtu import MtuSearch
from crust.proto.utp.pacing import Pacer
from crust.proto.utp.rtt import RttEstimator
from crust.proto.utp.send_queue import SendQueue
from crust.proto.utp.timers import Timer
from crust.wire.utp import (
    HEADER_BYTES,
    MAX_RUN,
    Buffer,
    Extension,
    Header,
    PacketType,
    serialize_header,
    serialize_header_run,
    serialize_part,
)

__all__ = ["Sender"]

_PART_BYTES = len(serialize_part(0, 1))


class Sender:
    """Queue, flight, congestion window, pacing and time-outs.

    Attributes:
        queue: what waits to be sent.
        flight: what is on its way.
        rtt: round-trip times.
        congestion: the controller.
        mtu: size of packets.
        fin_seq: the number of our FIN, once it is sent.
        closing: a FIN is to follow the last byte.
        batch_bytes: payload of as many full packets as fit one batch.
    """

    __slots__ = (
        "_backoff",
        "_config",
        "_duplicate_acks",
        "_fast_resend",
        "_limited",
        "_limited_before",
        "_lost_in_recovery",
        "_multiplier_until",
        "_pacer",
        "_path_start",
        "_persist",
        "_probe",
        "_probed",
        "_progress",
        "_recovery_point",
        "_recovery_start",
        "_reorder_multiplier",
        "_round_end",
        "_segment",
        "_spurious_in_recovery",
        "_stats",
        "_timers",
        "batch_bytes",
        "closing",
        "congestion",
        "fin_seq",
        "flight",
        "mtu",
        "peer_window",
        "queue",
        "rtt",
    )

    def __init__(self, config: UtpConfig, seq_nr: int, timers: TimerTable[Timer], stats: UtpStats, now: float) -> None:
        self._config, self._timers, self._stats = config, timers, stats
        self.queue = SendQueue()
        self.flight = Flight(seq_nr)
        self.rtt = RttEstimator()
        self.mtu = MtuSearch(config.mtu, config.mtu_ceiling, config.datagram_overhead)
        self.fin_seq: int | None = None
        self.closing = False
        self.peer_window = config.mtu_ceiling  # until the peer tells
        self._start_path(now)

    def _start_path(self, now: float) -> None:
        """What belongs to a path rather than to the connection, as it is at its start."""
        self._use_segment(self.mtu.current - HEADER_BYTES)
        self.congestion: CongestionControl = (
            Ledbat(self._segment) if self._config.congestion == "ledbat" else Cubic(self._segment)
        )
        self._pacer = Pacer(self._segment, now)
        self._backoff = self._duplicate_acks = 0
        self._limited = self._limited_before = False
        self._recovery_point = self._multiplier_until = self.flight.una
        self._recovery_start = now - 1.0
        self._lost_in_recovery = self._spurious_in_recovery = 0
        self._reorder_multiplier = 1
        self._round_end = self.flight.una
        self._fast_resend = self._probe = self._probed = self._persist = False
        self._progress = self._path_start = now

    # -- the application's side ----------------------------------------------------------------------------------

    @property
    def space(self) -> int:
        """Bytes that would be accepted now."""
        room = self._config.send_buffer - self.flight.held_bytes - self.queue.size
        return max(min(room, self._config.unsent_limit - self.queue.size), 0)

    @property
    def done(self) -> bool:
        """Everything is acknowledged, the FIN too."""
        return self.fin_seq is not None and self.flight.una > self.fin_seq

    @property
    def recovering(self) -> bool:
        """Losses of an earlier window are being mended."""
        return self.flight.una < self._recovery_point

    def offer(self, buffers: list[memoryview], now: float) -> int:
        """Queue as much of some buffers as there is room for; returns how much."""
        size = min(sum(map(len, buffers)), self.space)
        if size:
            if not self.queue.size and not self.flight.count:
                self._progress = now
                self._timers.set_if_unset(Timer.STALL, now + self._config.stall_timeout)
            self.queue.extend(buffers, size)
        return size

    def forget(self) -> None:
        """The connection is over: nothing is sent again."""
        self.queue.clear()
        self.flight = Flight(self.flight.next_seq)

    # -- acknowledgements ----------------------------------------------------------------------------------------

    def on_ack(self, una: int, sack: int, window: int, delay_us: int | None, now: float, *, pure: bool) -> None:
        """Take in an acknowledgement that has been checked.

        Args:
            una: everything below it has arrived.
            sack: bit i is set when packet `una` + i has arrived, too.
            window: bytes that the peer takes beyond `una`.
            delay_us: one-way delay as the peer measured it, for LEDBAT.
            now: the present time.
            pure: the packet had no payload, so that a repetition of it means a gap.
        """
        flight = self.flight
        before, in_flight = flight.una, flight.in_flight
        same_window = window == self.peer_window
        if una >= before:
            self.peer_window = window
        delivered = flight.acknowledge(una, sack, now, self.rtt.min_rtt)
        if flight.una == before:
            if not delivered:
                if pure and same_window and una == before and not sack and flight.count:
                    self._on_duplicate_ack(now)
                return
        else:
            self.queue.drop(flight.base)
        self._duplicate_acks = self._backoff = 0
        self._probed = False
        self._progress = now
        if flight.rtt_sample:
            self.rtt.add(flight.rtt_sample, now)
        if flight.spurious:
            self._on_spurious()
        if self.mtu.probe_seq is not None:
            self._check_mtu_probe(self.mtu.probe_seq)
        if flight.sacked or flight.resent:
            self._find_losses(now)
        else:
            self._timers.deadlines.pop(Timer.REORDER, None)
        self._grow(delivered, in_flight, delay_us, now)
        self._arm(now)

    def _grow(self, delivered: int, in_flight: int, delay_us: int | None, now: float) -> None:
        flight, rtt, congestion = self.flight, self.rtt, self.congestion
        round_start = flight.una >= self._round_end
        if round_start:
            self._round_end = flight.next_seq
            self._limited, self._limited_before = False, self._limited
        limited = self._limited or self._limited_before or (congestion.slow_start and 2 * in_flight >= congestion.cwnd)
        if not limited and congestion.on_unlimited_ack():
            return
        congestion.on_ack(
            AckSample(
                now,
                delivered,
                in_flight,
                flight.rtt_sample,
                rtt.srtt,
                rtt.min_rtt,
                delay_us,
                limited,
                self.recovering,
                round_start,
            )
        )
        if rtt.srtt:
            self._pacer.set_rate(congestion.cwnd, rtt.srtt, slow_start=congestion.slow_start)

    def _on_duplicate_ack(self, now: float) -> None:
        """A repeated acknowledgement without a selective one: a peer that has none (RFC 5681 §3.2)."""
        self._duplicate_acks += 1
        if self._duplicate_acks == DUPLICATE_ACK_THRESHOLD and not self.flight.sacked and self.flight.lose_first():
            self._on_lost(1, now, now)

    def _on_spurious(self) -> None:
        """Packets taken for lost had only been overtaken: be more patient, and take the reduction back."""
        flight = self.flight
        self._stats.spurious += flight.spurious
        self._spurious_in_recovery += flight.spurious
        flight.spurious = 0
        if flight.una >= self._multiplier_until:
            self._multiplier_until = flight.next_seq
            self._reorder_multiplier = min(self._reorder_multiplier + 1, MAX_REORDER_MULTIPLIER)
        if self._lost_in_recovery and self._spurious_in_recovery >= self._lost_in_recovery:
            self.congestion.on_undo()
            self._lost_in_recovery = 0
            self._recovery_point = flight.una

    def _check_mtu_probe(self, seq: int) -> None:
        if seq < self.flight.una or self.flight.sacked >> (seq - self.flight.una) & 1:
            self.mtu.arrived()
            self._set_segment()

    def _set_segment(self) -> None:
        segment = self.mtu.current - HEADER_BYTES
        if segment != self._segment:
            self._use_segment(segment)
            self.congestion.set_segment(segment)
        if self.mtu.raise_at is not None:
            self._timers.set(Timer.MTU_RAISE, self.mtu.raise_at)

    def _use_segment(self, segment: int) -> None:
        self._segment = segment
        self.batch_bytes = segment * self._most_packets(segment)

    # -- losses --------------------------------------------------------------------------------------------------

    @property
    def _reorder_window(self) -> float:
        """For how long a packet may be overtaken before it is lost (RFC 8985 §6.2 step 4)."""
        flight, rtt = self.flight, self.rtt
        if not flight.reordered and (self.recovering or flight.sacked.bit_count() >= DUPLICATE_ACK_THRESHOLD):
            return 0.0
        return min(self._reorder_multiplier * rtt.min_rtt * REORDER_WINDOW_FRACTION, rtt.srtt)

    def _find_losses(self, now: float) -> None:
        window = self._reorder_window
        lost, sent = self.flight.find_losses(now, window)
        if lost:
            self._on_lost(lost, sent, now)
        deadline = self.flight.next_judgement(window)
        if deadline is None:
            self._timers.clear(Timer.REORDER)
        else:
            self._timers.set(Timer.REORDER, deadline)

    def _on_lost(self, lost: int, sent: float, now: float) -> None:
        """Packets are lost, the last of which was sent at `sent`."""
        flight, count = self.flight, lost.bit_count()
        self._stats.packets_lost += count
        probe = self.mtu.probe_seq
        if probe is not None and probe >= flight.una and lost >> (probe - flight.una) & 1:
            self.mtu.lost(now)
            self._set_segment()
            if count == 1:
                self._fast_resend = True
                return  # too large, which is no congestion
        if sent >= self._recovery_start or not self.recovering:
            self._enter_recovery(now)
        self._lost_in_recovery += count

    def _enter_recovery(self, now: float) -> None:
        self._stats.congestion_events += 1
        self.congestion.on_loss(now, self.flight.in_flight)
        self._recovery_start, self._recovery_point = now, self.flight.next_seq
        self._lost_in_recovery = self._spurious_in_recovery = 0
        self._fast_resend = True

    # -- time-outs -----------------------------------------------------------------------------------------------

    def _loss_probe_delay(self) -> float:
        rtt = self.rtt
        delay = 2 * rtt.srtt
        if not delay:
            return rtt.rto
        if delay < MIN_LOSS_PROBE:
            delay = MIN_LOSS_PROBE
        if self.flight.count <= 2:
            # One or two packets may wait for company at the peer before it acknowledges them.
            config = self._config
            delay += config.ack_delay if config.tunnel else config.peer_ack_delay
        return delay if delay < rtt.rto else rtt.rto

    def _arm(self, now: float) -> None:
        """Set the time-outs after progress."""
        deadlines = self._timers.deadlines
        if not self.flight.count:
            deadlines.pop(Timer.RETRANSMIT, None)
            deadlines.pop(Timer.LOSS_PROBE, None)
            deadlines.pop(Timer.REORDER, None)
            if not self.queue.size:
                deadlines.pop(Timer.STALL, None)
            return
        deadlines[Timer.RETRANSMIT] = now + self.rtt.rto
        deadlines[Timer.LOSS_PROBE] = now + self._loss_probe_delay()
        deadlines.setdefault(Timer.STALL, self._progress + self._config.stall_timeout)

    def _arm_after_send(self, now: float) -> None:
        """The time-out counts from the first packet (RFC 6298 §5.1), the loss probe from the last (RFC 8985 §7.2)."""
        deadlines = self._timers.deadlines
        if self._backoff:
            deadlines.setdefault(Timer.RETRANSMIT, now + min(self.rtt.rto * 2**self._backoff, MAX_RTO))
        else:
            deadlines.setdefault(Timer.RETRANSMIT, now + self.rtt.rto)
            if not self._probed:
                deadlines[Timer.LOSS_PROBE] = now + self._loss_probe_delay()
        deadlines.setdefault(Timer.STALL, self._progress + self._config.stall_timeout)

    def on_timer(self, timer: Timer, now: float) -> bool:
        """A timer of ours has fired; True when the connection is to be given up."""
        if timer is Timer.LOSS_PROBE or (timer is Timer.RETRANSMIT and not self._probed and not self._backoff):
            # The first time-out is a probe in any case (RFC 8985 §7.2).
            if not self._probed:
                self._stats.loss_probes += 1
                self._probe = self._probed = True
        elif timer is Timer.RETRANSMIT:
            self._on_retransmit_timeout(now)
        elif timer is Timer.REORDER:
            self._find_losses(now)
        elif timer is Timer.PERSIST:
            self._persist = True
        elif timer is Timer.MTU_RAISE:
            self.mtu.search_again()
        elif timer is Timer.STALL:
            deadline = self._progress + self._config.stall_timeout
            if deadline <= now:
                return True
            self._timers.set(Timer.STALL, deadline)
        return False  # PACING needs no more than the call of `collect` that follows

    def _on_retransmit_timeout(self, now: float) -> None:
        flight = self.flight
        self._timers.clear(Timer.LOSS_PROBE)
        self.mtu.probe_seq = None
        self._backoff += 1
        self._stats.timeouts += 1
        # A peer whose window is shut drops what we ask it with; that is no congestion.
        if self._backoff == 1 and self.peer_window:
            self.congestion.on_timeout(now, flight.in_flight)
        if self._backoff == 2 and flight.size_of(flight.una) + HEADER_BYTES > self._config.mtu:
            self.mtu.black_hole(now)
        self._set_segment()
        self._stats.packets_lost += flight.count - flight.sacked.bit_count()
        flight.lose_all()
        self._recovery_start, self._recovery_point = now, flight.next_seq
        self._lost_in_recovery, self._spurious_in_recovery = flight.lost.bit_count(), 0
        self._fast_resend = True
        self._timers.set(Timer.RETRANSMIT, now + min(self.rtt.rto * 2**self._backoff, MAX_RTO))

    def datagram_too_big(self, size: int, now: float) -> None:
        """The carrier refused a packet of `size` bytes."""
        flight = self.flight
        self.mtu.too_big(size, now)
        self._set_segment()
        for seq in range(flight.una, flight.next_seq):
            if flight.size_of(seq) > self._segment:
                flight.lose(seq)
        self._fast_resend = True

    def restart_path(self, now: float, mtu_ceiling: int | None) -> None:
        """Another path: nothing that was learned holds any more (PROTOCOL 9)."""
        self.mtu.restart(mtu_ceiling)
        self.rtt = RttEstimator()
        self._start_path(now)
        if self.flight.count:
            self.flight.lose_all()
            self._recovery_start, self._recovery_point = now, self.flight.next_seq
            self._arm(now)

    # -- packets -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """There may be something for `collect` to send."""
        return bool(self.queue.size or self.flight.lost or self._probe or (self.closing and self.fin_seq is None))

    def send_lone(self, payload: memoryview, now: float) -> bool:
        """Send a payload, not an empty one, in a packet at once; False, and nothing done, when it is not that easy."""
        queue, flight, pacer = self.queue, self.flight, self._pacer
        size, held = len(payload), flight.held_bytes
        together = held + size
        if (
            size > self._segment
            or queue.size
            or not flight.is_plain
            or self._probe
            or together > self.peer_window
            or together > self.congestion.cwnd
            or 2 * together > self._config.send_buffer  # who sends this way does not ask for `space`
            or flight.count >= MAX_PACKETS_IN_FLIGHT
            or pacer.budget(now) < size
        ):
            return False
        if not held:
            self._progress = now
        queue.pass_by(payload)
        flight.add(size, 1, size, now)
        pacer.spend(size)
        self._stats.packets_sent += 1
        self._stats.bytes_sent += size
        self._arm_after_send(now)
        return True

    def collect(self, now: float, max_bytes: int, header: Header) -> list[Batch]:
        """Packets to send now.

        Args:
            now: the present time.
            max_bytes: about how much may be sent.
            header: that of a DATA packet; its `seq_nr` is filled in here.
        """
        batches: list[Batch] = []
        if self._probe:
            self._send_loss_probe(now, header, batches)
        if self.flight.lost:
            max_bytes -= self._send_lost(now, max_bytes, header, batches)
        if self.queue.size and not self.flight.lost and max_bytes > 0:
            self._send_new(now, max_bytes, header, batches)
        if self.closing and self.fin_seq is None and not self.queue.size:
            self.fin_seq = self.flight.next_seq
            self._append_run([b""], now, header._replace(type=PacketType.FIN), batches)
        if batches:
            self._arm_after_send(now)
        return batches

    def _allowance(self, demand: int, now: float, max_bytes: int) -> int:
        """Bytes that window and pacing let through; arms the timer when it is pacing that holds some back."""
        # The window counts in whole packets, to the nearest: rounding down would cost a tenth of a small one.
        room = min(self.congestion.cwnd + self._segment // 2 - self.flight.in_flight, demand)
        if room < demand:
            self._limited = True
            if room < self._segment:
                return max(room, 0)
        credit = self._pacer.budget(now)
        if credit >= room:
            return min(room, max_bytes)
        self._limited = True
        burst = self._pacer.burst(self._segment)
        if credit + 1 < burst:  # less than a byte is missing by rounding
            self._timers.set(Timer.PACING, now + (burst - credit) / self._pacer.rate)
            return 0
        self._timers.set(Timer.PACING, now + burst / self._pacer.rate)
        return min(int(credit) + 1, max_bytes)

    def _send_new(self, now: float, max_bytes: int, header: Header, batches: list[Batch]) -> None:
        queue, flight, segment = self.queue, self.flight, self._segment
        window = self.peer_window - flight.unreceived_bytes
        if window < min(segment, queue.size):
            self._wait_for_window(window, now, header, batches)
            return
        self._timers.clear(Timer.PERSIST)
        room = self._allowance(min(queue.size, window), now, max_bytes)
        # Not in the first flight, which sets out before anything is known of the path.
        probe = self.mtu.next_probe() if flight.rack_time >= self._path_start else None
        if probe is not None and room >= probe and queue.size >= probe and self.congestion.cwnd >= 3 * probe:
            payloads = queue.take(probe - HEADER_BYTES, 1)
            self.mtu.sent(flight.next_seq, probe)
            self._append_run(payloads, now, header, batches, probe=True)
            room -= probe - HEADER_BYTES
        # Whole packets, and the rest of the queue in a shorter one.
        count = -(-queue.size // segment) if room >= queue.size else room // segment
        count = min(count, MAX_PACKETS_IN_FLIGHT - flight.count, MAX_RUN)
        if count > 0:
            self._append_run(queue.take(segment, count), now, header, batches)

    def _wait_for_window(self, window: int, now: float, header: Header, batches: list[Batch]) -> None:
        """The peer takes less than a packet: wait for it to open, and ask now and then (RFC 9293 §3.8.6.1)."""
        if self._persist:
            self._persist = False
            payloads = self.queue.take(max(min(window, self._segment), 1), 1)
            self._append_run(payloads, now, header, batches)
        elif not self.flight.count:
            self._timers.set_if_unset(Timer.PERSIST, now + self.rtt.rto)

    def _append_run(
        self, payloads: list[Buffer], now: float, header: Header, batches: list[Batch], *, probe: bool = False
    ) -> None:
        """Send payloads for the first time."""
        seq, count = self.flight.next_seq, len(payloads)
        size, last = len(payloads[0]), len(payloads[-1])
        self.flight.add(size, count, last, now)
        headers = serialize_header_run(header, seq, count)
        step = self._most_packets(size)
        if count <= step:
            batches.append(Batch(headers, payloads, probe, is_run=True))
        else:
            for at in range(0, count, step):
                end = at + step
                own = headers[at * HEADER_BYTES : end * HEADER_BYTES]
                batches.append(Batch(own, payloads[at:end], is_run=True))
        total = size * (count - 1) + last
        self._pacer.spend(total)
        self._stats.packets_sent += count
        self._stats.bytes_sent += total

    def _send_lost(self, now: float, max_bytes: int, header: Header, batches: list[Batch]) -> int:
        """Send again what is lost, as far as window and pacing allow; returns the bytes of it."""
        flight, total = self.flight, 0
        room = self._allowance(flight.lost_bytes, now, max_bytes)
        repeated: list[tuple[int, Buffer]] = []
        while (seq := flight.next_lost) is not None:
            size = flight.size_of(seq)
            if size > room - total and not self._fast_resend and flight.in_flight:
                break
            # The first repetition is never held back: the window may be full of what is lost.
            self._fast_resend = False
            repeated.append((seq, self.queue.read(*flight.repeat(seq, now))))
            total += size
        self._repeat(repeated, header, batches)
        return total

    def _send_loss_probe(self, now: float, header: Header, batches: list[Batch]) -> None:
        """Send a packet whose acknowledgement will tell what has arrived (RFC 8985 §7.3), whatever the window says."""
        self._probe = False
        edges = self.flight.unreceived_edges()
        if edges is None:
            return
        self._timers.set(Timer.RETRANSMIT, now + self.rtt.rto)
        # The last packet tells most, the first one is what the peer waits for.
        first, last = edges
        wanted = (first, last) if first != last else (first,)
        if self.mtu.probe_seq in wanted:
            self.mtu.lost(now)  # repeated in parts, or cut by the system: its arrival would say nothing
            self._set_segment()
        self._repeat([(seq, self.queue.read(*self.flight.repeat(seq, now))) for seq in wanted], header, batches)

    def _repeat(self, packets: list[tuple[int, Buffer]], header: Header, batches: list[Batch]) -> None:
        """Make batches of packets sent again; those that the path no longer takes go in parts."""
        at = 0
        while at < len(packets):
            seq, payload = packets[at]
            self._stats.packets_resent += 1
            if len(payload) > self._segment and self._config.tunnel:
                self._repeat_in_parts(seq, payload, header, batches)
                at += 1
                continue
            end, most = at + 1, self._most_packets(len(payload))
            while end < len(packets) and len(packets[end][1]) == len(payload) and end - at < most:
                end += 1
            self._stats.packets_resent += end - at - 1
            run = packets[at:end]
            headers = b"".join(serialize_header(self._header_of(seq, header)) for seq, _ in run)
            batches.append(Batch(headers, [payload for _, payload in run]))
            self._pacer.spend(len(payload) * len(run))
            self._stats.packets_sent += len(run)
            at = end

    def _most_packets(self, body_bytes: int) -> int:
        """How many packets with bodies of that size fit one batch."""
        config = self._config
        size = HEADER_BYTES + body_bytes + config.datagram_overhead
        return max(min(config.max_batch_datagrams, MAX_BATCH_BYTES // size), 1)

    def _header_of(self, seq: int, header: Header) -> Header:
        return header._replace(seq_nr=seq, type=PacketType.FIN if seq == self.fin_seq else PacketType.DATA)

    def _repeat_in_parts(self, seq: int, payload: Buffer, header: Header, batches: list[Batch]) -> None:
        size, total = self._segment - _PART_BYTES, len(payload)
        bodies: list[Buffer] = [
            serialize_part(at, total) + bytes(payload[at : at + size]) for at in range(0, total, size)
        ]
        one = serialize_header(header._replace(seq_nr=seq, extension=Extension.PART))
        step = self._most_packets(len(bodies[0]))
        for at in range(0, len(bodies), step):
            part = bodies[at : at + step]
            batches.append(Batch(one * len(part), part))
        self._pacer.spend(total)
        self._stats.packets_sent += len(bodies)
