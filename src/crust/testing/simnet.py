"""A simulated network: a fake clock, and links with rate, delay, a finite buffer, loss, reordering and duplication.

Everything follows from a seed: the same one gives the same run, to the bit.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Link", "LinkConfig", "SimNet"]

Deliver = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """What a link does to datagrams, in one direction.

    Attributes:
        delay: seconds from one end to the other.
        rate: bits a second; 0 for no limit.
        buffer_bytes: what waits before the link at most; more is dropped from the end. 0 for no limit.
        loss: share of datagrams lost at random.
        reorder: share of datagrams held up.
        reorder_delay: seconds for which these are held up at most (evenly spread).
        duplicate: share of datagrams that arrive twice.
        mtu: larger datagrams vanish.
        overhead: bytes that each datagram takes on the link beyond its own (IPv4 and UDP: 28).
    """

    delay: float
    rate: float = 0.0
    buffer_bytes: int = 0
    loss: float = 0.0
    reorder: float = 0.0
    reorder_delay: float = 0.0
    duplicate: float = 0.0
    mtu: int = 65_535
    overhead: int = 28


class SimNet:
    """Clock and agenda.

    Attributes:
        now: simulated seconds.
        random: the one source of chance.
    """

    def __init__(self, seed: int = 0, start: float = 1000.0) -> None:
        self.now = start
        self.random = random.Random(seed)  # noqa: S311 - a simulation must be repeatable
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call back at a simulated time; what is due at one time is called in the order of asking."""
        self._count += 1
        heapq.heappush(self._agenda, (max(when, self.now), self._count, callback))

    def run(self, until: float = float("inf"), done: Callable[[], bool] | None = None) -> bool:
        """Let time pass until nothing is left to do, `until` has come or `done` says so.

        Returns:
            Whether `done` did.
        """
        agenda = self._agenda
        while agenda and agenda[0][0] <= until:
            if done is not None and done():
                return True
            self.now, _, callback = heapq.heappop(agenda)
            callback()
        if until != float("inf"):
            self.now = max(self.now, until)
        return done is not None and done()


class Link:
    """One direction of a link, shared by all who send over it.

    Attributes:
        config: what it does; may be replaced at any time.
        sent: datagrams given to it.
        delivered: datagrams that arrived, copies included.
        dropped_full: datagrams that found the buffer full.
        lost: datagrams lost at random.
    """

    def __init__(self, net: SimNet, config: LinkConfig) -> None:
        self.net = net
        self.config = config
        self.sent = self.delivered = self.dropped_full = self.lost = 0
        self._free_at = net.now  # when the last byte of the queue will have left
        self._delay_sum = 0.0
        self._delay_count = 0

    @property
    def queueing_delay(self) -> float:
        """What a datagram would wait now, in seconds."""
        return max(self._free_at - self.net.now, 0.0)

    def mean_queueing_delay(self) -> float:
        """What datagrams waited on average since the last call."""
        mean = self._delay_sum / self._delay_count if self._delay_count else 0.0
        self._delay_sum, self._delay_count = 0.0, 0
        return mean

    def send(self, datagram: bytes, deliver: Deliver) -> None:
        """Carry a datagram to `deliver`, or not."""
        config, net, chance = self.config, self.net, self.net.random.random
        self.sent += 1
        if len(datagram) > config.mtu:
            self.lost += 1
            return
        leaves = net.now
        if config.rate:
            wait = self.queueing_delay
            size = len(datagram) + config.overhead
            if config.buffer_bytes and round(wait * config.rate / 8) + size > config.buffer_bytes:
                self.dropped_full += 1
                return
            self._delay_sum += wait
            self._delay_count += 1
            leaves = self._free_at = net.now + wait + size * 8 / config.rate
        if config.loss and chance() < config.loss:
            self.lost += 1
            return
        self._arrive(leaves + config.delay, datagram, deliver)
        if config.duplicate and chance() < config.duplicate:
            self._arrive(leaves + config.delay, datagram, deliver)

    def _arrive(self, when: float, datagram: bytes, deliver: Deliver) -> None:
        config, chance = self.config, self.net.random.random
        if config.reorder and chance() < config.reorder:
            when += chance() * config.reorder_delay
        self.net.call_at(when, lambda: self._deliver(datagram, deliver))

    def _deliver(self, datagram: bytes, deliver: Deliver) -> None:
        self.delivered += 1
        deliver(datagram)
