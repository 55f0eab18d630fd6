"""Path MTU search (RFC 8899) with data packets as probes, as libutp and libtorrent do.

A probe is a packet of data larger than the rest. If it arrives, packets become that large; if it is lost while its
neighbours arrive, it is sent again in parts (inside the tunnel) or left to be fragmented (bare), and no congestion is
concluded.
"""

from __future__ import annotations

from crust.proto.utp.constants import MTU_MAX_PROBES, MTU_RAISE_INTERVAL

__all__ = ["MtuSearch"]

# Sizes of UDP payload that paths really have: IPv6's least, tunnels and PPPoE in Ethernet, Ethernet (IPv6, IPv4), jumbo
# frames, and the largest datagram (loopback). Searching among them takes fewer probes than searching every number.
_PLATEAUS = (1232, 1350, 1392, 1412, 1444, 1452, 1472, 4048, 8952, 8972, 16_000, 32_000, 65_507)
# A gain below this is not worth a lost probe.
_LEAST_GAIN = 8


class MtuSearch:
    """What size packets have, and which one to try next.

    Attributes:
        current: size that is known to arrive.
        ceiling: largest size to try.
        probe_seq: the packet that is the probe, or None.
        raise_at: when to search again after the path took less than the ceiling.
    """

    __slots__ = (
        "_failures",
        "_floor",
        "_limit",
        "_overhead",
        "ceiling",
        "current",
        "probe_seq",
        "probe_size",
        "raise_at",
    )

    def __init__(self, floor: int, ceiling: int, overhead: int) -> None:
        self._floor = floor
        self._overhead = overhead
        self.current = floor
        self.ceiling = ceiling
        self._limit = ceiling  # sizes above it have been lost
        self._failures = 0
        self.probe_seq: int | None = None
        self.probe_size = 0
        self.raise_at: float | None = None

    def next_probe(self) -> int | None:
        """The size to try, or None while a probe is under way or when the search is over."""
        if self.probe_seq is not None or self._limit - self.current < _LEAST_GAIN:
            return None
        if self._limit == self.ceiling:
            return self._limit  # most paths take what the interface takes
        sizes = [size - self._overhead for size in _PLATEAUS]
        between = [size for size in sizes if self.current + _LEAST_GAIN <= size <= self._limit]
        if not between:
            return None
        return between[len(between) // 2]

    def sent(self, seq: int, size: int) -> None:
        """A probe is under way."""
        self.probe_seq, self.probe_size = seq, size

    def arrived(self) -> None:
        """The probe arrived: packets may be that large."""
        self.current = self.probe_size
        self.probe_seq, self._failures = None, 0

    def lost(self, now: float) -> None:
        """The probe is lost: try again, in case it was chance, then less."""
        self.probe_seq = None
        self._failures += 1
        if self._failures >= MTU_MAX_PROBES:
            self._refuse(self.probe_size, now)

    def too_big(self, size: int, now: float) -> None:
        """The carrier refused a packet of that size (EMSGSIZE)."""
        self.probe_seq = None
        self._refuse(size, now)

    def _refuse(self, size: int, now: float) -> None:
        self._failures = 0
        self._limit = max(min(self._limit, size - 1), self._floor)
        if self.current > self._limit:
            self.current = self._floor
        self.raise_at = now + MTU_RAISE_INTERVAL

    def black_hole(self, now: float) -> bool:
        """Nothing of the present size arrives any more; True when that changes the size."""
        self.probe_seq = None
        if self.current == self._floor:
            return False
        self._refuse(self.current, now)
        self.current = self._floor
        return True

    def search_again(self) -> None:
        """Time has passed: the path may take more by now."""
        self._limit, self._failures = self.ceiling, 0
        self.raise_at = None

    def restart(self, ceiling: int | None = None) -> None:
        """The path has changed: begin with what every path takes."""
        if ceiling is not None:
            self.ceiling = max(ceiling, self._floor)
        self.current = self._floor
        self.probe_seq = None
        self.search_again()
