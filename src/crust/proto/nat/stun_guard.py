"""A STUN server for strangers: what it answers is limited, so that it is of no use against others.

A request can be sent in somebody else's name (UDP), and the reply goes to that one. Two limits make this pointless:

- no reply is larger than `AMPLIFICATION` times the request, both counted as IP packets. A plain reply always fits: 60
  bytes for 48 over IPv4. The address of the second host (RFC 5780) is left out where it does not; a request that is
  padded, or has CHANGE-REQUEST in it, as those of clients that want to know have, gets it.
- each source gets so many replies per second, and all sources together so many.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Final

from crust.proto.nat.stun import StunReply, StunServer
from crust.wire.stun import Address

__all__ = ["StunGuard"]

AMPLIFICATION: Final = 2
"""QUIC allows three before an address is validated (RFC 9000 §8.1)."""

_HEADERS: Final = {4: 28, 6: 48}  # IP and UDP
_SOURCE_RATE, _SOURCE_BURST = 10.0, 40.0  # a client asks a few times, several clients share one NAT
_TOTAL_RATE, _TOTAL_BURST = 2000.0, 4000.0  # what one core answers beside other work
_SOURCES: Final = 8192


class _Bucket:
    """A token bucket."""

    __slots__ = ("at", "tokens")

    def __init__(self, tokens: float, now: float) -> None:
        self.tokens = tokens
        self.at = now

    def take(self, rate: float, burst: float, now: float) -> bool:
        self.tokens = min(burst, self.tokens + max(now - self.at, 0.0) * rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class StunGuard:
    """Answers binding requests within limits.

    Args:
        endpoints: the server's addresses, as for `StunServer`; None for a server with one.
        now: the time.
    """

    def __init__(self, endpoints: Mapping[tuple[int, int], Address] | None, now: float) -> None:
        self._server = StunServer(endpoints)
        self._brief = StunServer()
        self._total = _Bucket(_TOTAL_BURST, now)
        self._sources: OrderedDict[object, _Bucket] = OrderedDict()
        self.refused: Counter[str] = Counter()
        """Requests that got no reply because of a limit, by reason."""

    @property
    def ignored(self) -> Counter[str]:
        """What got no reply because it was no request, by reason."""
        return self._server.ignored

    def respond(
        self, data: bytes, source: Address, now: float, *, endpoint: tuple[int, int] = (0, 0), stream: bool = False
    ) -> StunReply | None:
        """The reply to one datagram, or to one message of a stream; None where nothing is to be sent.

        Args:
            data: what came in.
            source: where from.
            now: the time.
            endpoint: on which of `endpoints` it came in.
            stream: it came over TCP.
        """
        reply = self._server.respond(data, source, endpoint=endpoint, stream=stream)
        if reply is not None and not stream and not self._fits(reply.data, data, source):
            reply = self._brief.respond(data, source, endpoint=endpoint)
            if reply is not None and not self._fits(reply.data, data, source):
                self.refused["size"] += 1
                return None
        if reply is None:
            return None
        # Last: what is no request does not use up the share of an address that it may not come from.
        if not self._bucket(source, now).take(_SOURCE_RATE, _SOURCE_BURST, now):
            self.refused["source"] += 1
            return None
        if not self._total.take(_TOTAL_RATE, _TOTAL_BURST, now):
            self.refused["total"] += 1
            return None
        return reply

    @staticmethod
    def _fits(reply: bytes, request: bytes, source: Address) -> bool:
        headers = _HEADERS[6 if ":" in source[0] else 4]
        return len(reply) + headers <= AMPLIFICATION * (len(request) + headers)

    def _bucket(self, source: Address, now: float) -> _Bucket:
        """Of a host, or of an IPv6 /64, which is one household. The longest unheard makes room."""
        host = ipaddress.ip_address(source[0].partition("%")[0])
        key: object = host if host.version == 4 else host.packed[:8]
        bucket = self._sources.pop(key, None) or _Bucket(_SOURCE_BURST, now)
        self._sources[key] = bucket
        while len(self._sources) > _SOURCES:
            self._sources.popitem(last=False)
        return bucket
