"""Which outside port comes next: sequential NATs are predicted, random ones searched.

Counting is where such code goes wrong unseen (on loopback every prediction is right), so here is the rule once: `last`
is the newest port that was *seen*; the next mapping of any host behind the NAT gets `last + step`, the one after that
`last + 2 * step`. `index` counts from 1: index 1 is `last + step`.

Two sequential NATs meet in this way. Each side says: "I shall try to obtain this port of mine" (`meeting_port`), some
way ahead. Each then sends from a number of fresh sockets, in a row, to the other's meeting port. Whatever other hosts
use up in between, one of these sockets gets exactly the port that was announced, and its packets go to the port that
the other side announced and obtained in the same way.

Random ports of a NAT that is dependent are found by the birthday paradox: one side opens many sockets towards one
address of the other, which probes random ports. With 256 open ones of 64,512, 1,024 probes succeed in 98 % of cases,
1,750 in 99.9 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from crust.proto.nat.behaviour import AllocationSample
from crust.proto.nat.draw import permutation

__all__ = [
    "FIRST_PORT",
    "LAST_PORT",
    "Prediction",
    "birthday_ports",
    "birthday_success",
    "predict",
]

FIRST_PORT, LAST_PORT = 1024, 65535
"""The range in which NATs allocate (RFC 4787 REQ-3 leaves the well-known ports alone)."""

_RECENT_SECONDS = 120.0
_MAX_RATE = 2000.0
_SMALL_STEP = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where a sequential NAT stands.

    Attributes:
        host: its outside host.
        last: the newest port that was seen.
        seen_at: when the mapping with that port was made.
        step: between two ports; may be negative.
        rate: ports per second that others behind the NAT use up.
    """

    host: str
    last: int
    seen_at: float
    step: int
    rate: float = 0.0

    def port(self, index: int) -> int:
        """The port of the `index`-th new mapping after `last`, counted from 1; the range wraps."""
        return self._at(self.step * index)

    def _at(self, distance: int) -> int:
        return FIRST_PORT + (self.last + distance - FIRST_PORT) % (LAST_PORT - FIRST_PORT + 1)

    def drift(self, at: float) -> float:
        """How many ports others are expected to have used up by then."""
        return self.rate * max(at - self.seen_at, 0.0)

    def ports(self, count: int, at: float) -> list[int]:
        """The ports that the first new mapping of ours may get at a time, likeliest first.

        With a small step every port of the range is named, which is right also when others' mappings made the step look
        larger than it is. A large step is believed for half of the ports only.

        Args:
            count: how many.
            at: when the mapping will be made.
        """
        believed = abs(self.step)
        single = replace(self, step=1 if self.step > 0 else -1, rate=self.rate * believed)
        if believed <= _SMALL_STEP:
            return single._ports(count, at)
        both = zip(self._ports(count, at), single._ports(count, at), strict=True)
        return list(dict.fromkeys(port for pair in both for port in pair))[:count]

    def _ports(self, count: int, at: float) -> list[int]:
        expected = self.drift(at)
        # Others' packets only ever move it on, never back: from none of theirs to twice what is expected, and more.
        spread = 2 * math.sqrt(expected)
        first = max(1, 1 + math.floor(expected - spread)) if expected + spread > count else 1
        indices = sorted(range(first, first + count), key=lambda index: abs(index - 1 - expected))
        return [self.port(index) for index in indices]

    def meeting_port(self, sockets: int, at: float, round_: int = 0) -> int:
        """The port that we shall try to obtain with that many fresh sockets.

        The first socket gets a port past what others used up until then, which is uncertain; the meeting port lies so
        far ahead that one of ours passes over it both when nobody else sends and when others send as expected. Its
        distance is a multiple of twelve: then the row passes over it, sooner or later, also when the step is another
        small number than it seemed.

        Args:
            sockets: that will send, one after the other.
            at: when they will.
            round_: rounds before this one used up `sockets` mappings each.
        """
        believed = abs(self.step)
        step = 1 if believed <= _SMALL_STEP else believed
        foreign = self.drift(at) * believed
        # Between two small steps, rounds take turns.
        own = round_ * sockets * (believed if round_ % 2 == 0 else step)
        least = sockets * step if foreign < sockets * step / 2 else sockets * step / 2 + foreign
        distance = math.ceil((least + own) / 12) * 12
        return self._at(distance if self.step > 0 else -distance)


def predict(samples: Sequence[AllocationSample], step: int, now: float) -> Prediction | None:
    """Where the NAT stands, from the new mappings that were seen.

    Args:
        samples: of `NatBehaviour`, in the order in which they were made.
        step: of the verdict.
        now: the time.

    Returns:
        None where nothing recent is known, or the step is 0.
    """
    recent = [sample for sample in samples if now - sample.at <= _RECENT_SECONDS]
    if not recent or step == 0:
        return None
    newest = recent[-1]
    span = LAST_PORT - FIRST_PORT + 1
    foreign, seconds = 0.0, 0.0
    for one, other in pairwise(recent):
        advance = ((other.outside[1] - one.outside[1]) * (1 if step > 0 else -1)) % span
        if one.outside[0] == other.outside[0] == newest.outside[0] and advance < span / 2:
            foreign += max(advance / abs(step) - 1, 0.0)
            seconds += other.at - one.at
    # A hundredth of a second of silence proves no silence: without enough time, the rate is not known.
    rate = min(foreign / seconds, _MAX_RATE) if seconds > 0.05 else 0.0
    return Prediction(newest.outside[0], newest.outside[1], newest.at, step, rate)


def birthday_success(open_ports: int, probes: int, *, ports: int = LAST_PORT - FIRST_PORT + 1) -> float:
    """The chance that at least one of `probes` different ports is one of `open_ports`.

    Ports are not tried twice, so this is 1 - C(ports - open, probes) / C(ports, probes): slightly better than
    1 - (1 - open / ports) ** probes.
    """
    if open_ports + probes > ports:
        return 1.0
    miss = 0.0
    for index in range(probes):
        miss += math.log1p(-open_ports / (ports - index))
    return -math.expm1(miss)


def birthday_ports(random: Callable[[int], bytes], count: int, seen: Sequence[int] = ()) -> Iterator[int]:
    """Ports to probe, each once, in random order.

    Args:
        random: returns that many random bytes.
        count: how many at most.
        seen: outside ports of the NAT that were observed. Where several lie in one block of a few thousand, as
            carriers allot them to a subscriber (RFC 7422), that block is searched first.
    """
    done: set[int] = set()
    block = _block(seen)
    if block is not None:
        for port in permutation(random, *block):
            if len(done) >= count:
                return
            done.add(port)
            yield port
    for port in permutation(random, FIRST_PORT, LAST_PORT):
        if len(done) >= count:
            return
        if port not in done:
            done.add(port)
            yield port


def _block(seen: Sequence[int]) -> tuple[int, int] | None:
    """The block of ports that a carrier allotted, if the observations point to one."""
    ports = set(seen)
    if len(ports) < 4:
        return None
    low, high, size = min(ports), max(ports), 256
    while low // size != high // size:
        size *= 2
    if size > 4096:  # four random ports lie in one such block in one of four thousand cases
        return None
    first = low - low % size
    return max(first, FIRST_PORT), first + size - 1
