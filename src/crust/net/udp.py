"""UDP sockets that send and receive whole batches: UDP_SEGMENT and UDP_GRO where the kernel has them, else one by one.

asyncio's datagram transport makes a task of each datagram; here one callback of the event loop empties the socket into
one buffer. Which way a socket works is found out at run time.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import itertools
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from crust.net.clock import monotonic

if TYPE_CHECKING:
    from crust.net.many import ManyReader

__all__ = [
    "Features",
    "RouteInfo",
    "SendOutcome",
    "Sources",
    "UdpConsumer",
    "UdpSocket",
    "bind_udp",
    "route_info",
    "sockaddr",
]

# <linux/udp.h>, <linux/in.h>, <linux/in6.h>, <asm-generic/socket.h>: the socket module has no names for most of them.
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SO_RCVBUFFORCE: Final = 33
_SO_SNDBUFFORCE: Final = 32
_IP_MTU_DISCOVER: Final = 10
_IP_MTU: Final = 14
_IP_RECVERR: Final = 11
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_MTU: Final = 24
_IPV6_RECVERR: Final = 25
_PMTUDISC_PROBE: Final = 3
_MSG_ERRQUEUE: Final = 0x2000

_RECEIVE_BUFFER_BYTES: Final = 16 << 20
"""What one connection may have on its way: nothing is lost while the event loop is busy, or the process has to wait."""

_SEND_BUFFER_BYTES: Final = 1 << 20
_BYTES_PER_TURN: Final = 1 << 20
_RECEIVES_PER_TURN: Final = 64
_SECONDS_PER_TURN: Final = 0.005
"""Before others get their turn of the event loop; the time counts where each datagram is a handshake."""

_APART: Final = 50e-6
_MANY_AFTER: Final = 8
"""Small single datagrams in a turn, after which the next are read in one call: that takes a third of the time."""

_MANY_BYTES: Final = 4096
"""Larger ones are data of a peer: each is read into the memory from where it is opened, which stays in the cache."""

_ERRORS_PER_TURN: Final = 64
_SENT_AGAIN: Final = 3
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4) if hasattr(socket, "CMSG_SPACE") else 0
_ERROR_BYTES: Final = 256
_DEFAULT_MTU: Final = 1500
_EXTENDED_ERROR: Final = struct.Struct("=IBBBB")  # <linux/errqueue.h>: errno, origin, type, code, padding


class Features(NamedTuple):
    """What may be used; the tests switch things off.

    Attributes:
        segment: UDP_SEGMENT, one call for many datagrams.
        gro: UDP_GRO, one call for many datagrams of one source.
        reader: the event loop tells when a socket is readable; else asyncio's datagram transport is used.
        many: recvmmsg, one call for many datagrams of many sources.
    """

    segment: bool = True
    gro: bool = True
    reader: bool = True
    many: bool = True


class SendOutcome(enum.Enum):
    """What became of a send."""

    SENT = "handed to the kernel"
    BLOCKED = "the kernel takes no more at present; `udp_writable` follows"
    TOO_BIG = "a datagram is larger than the interface takes"
    FAILED = "not sent, as if lost on the way"


class Sources(NamedTuple):
    """From where many datagrams came: made only for those for which it matters.

    Attributes:
        address: of the n-th, as sockets give it.
        host: of the n-th: the IPv4 address, or the first half of the IPv6 one, for less than the whole costs.
    """

    address: Callable[[int], tuple[Any, ...]]
    host: Callable[[int], bytes]


class UdpConsumer(Protocol):
    """Who reads sockets and is told when it may write."""

    @property
    def receive_buffer(self) -> memoryview:
        """To receive into."""

    def udp_received(self, number: int, data: memoryview, size: int, address: tuple[Any, ...]) -> None:
        """Datagrams of `size` bytes each (the last may be shorter); the memory is used again after the call."""

    def udp_received_many(self, number: int, datagrams: Sequence[memoryview], sources: Sources) -> None:
        """Single datagrams of many sources; the memory is used again after the call."""

    def udp_drained(self) -> None:
        """Everything that waited has been given out: time to answer."""

    def udp_writable(self, number: int) -> None:
        """The kernel takes more."""

    def udp_refused(self, number: int, address: tuple[Any, ...], error: OSError) -> None:
        """Whoever is in charge of that address says that nobody is there (ICMP, which anybody could have forged)."""


class UdpSocket:
    """A bound socket in the event loop.

    Args:
        loop: the event loop.
        sock: bound and non-blocking; owned from now on.
        number: told to the consumer with each call.
        consumer: who reads.
        features: what may be used.

    Attributes:
        number: see above.
        features: what is used, as far as the kernel has shown yet.
        local: host and port.
    """

    __slots__ = (
        "_consumer",
        "_loop",
        "_many",
        "_read_at",
        "_segment",
        "_sock",
        "_transport",
        "_watching",
        "_writing",
        "family",
        "features",
        "local",
        "number",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        number: int,
        consumer: UdpConsumer,
        features: Features = Features(),  # noqa: B008 - immutable
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._consumer = consumer
        self._read_at = 0.0
        self._many: ManyReader | None = None
        self._segment = 0  # what UDP_SEGMENT is set to
        self._writing = self._watching = False
        self._transport: asyncio.DatagramTransport | None = None
        self.number: Final = number
        self.family: Final = sock.family
        self.local: Final[tuple[str, int]] = sock.getsockname()[:2]
        linux = sys.platform == "linux"
        self.features = Features(
            features.segment and linux,
            features.gro and linux and _switch_on(sock, _SOL_UDP, _UDP_GRO),
            features.reader and _has_readers(loop),
            features.many and linux,
        )
        _tune(sock)

    async def start(self) -> None:
        """Begin to receive."""
        if self.start_now():
            return
        self.features = self.features._replace(gro=False)
        await self._loop.create_datagram_endpoint(lambda: _Protocol(self), sock=self._sock)

    def start_now(self) -> bool:
        """Begin to receive, where the event loop does not have to be waited for; else False."""
        assert self._sock is not None
        if self.features.reader:
            self._loop.add_reader(self._sock, self._readable)
        return self.features.reader

    def close(self) -> None:
        """Stop, at once."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._transport is not None:
            self._transport.close()
            return
        if self.features.reader:
            self._loop.remove_reader(sock)
            if self._writing:
                self._loop.remove_writer(sock)
        sock.close()

    # --- receiving -----------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Called by the event loop."""
        sock, consumer = self._sock, self._consumer
        if sock is None:
            return
        broken = False
        receive = self._receive_batch if self.features.gro else self._receive_single
        buffer = consumer.receive_buffer
        # Who was asked to read a while ago and finds one datagram expects no other: the question would cost as much as
        # what it asks for. Should there be one, the event loop says so at once.
        began = monotonic()
        alone = began - self._read_at > _APART
        try:
            read = small = 0
            for _ in range(_RECEIVES_PER_TURN):
                count, lone = receive(sock, buffer)
                read += count
                if self._sock is None:
                    return
                if (alone and lone) or read >= _BYTES_PER_TURN or monotonic() - began > _SECONDS_PER_TURN:
                    break
                small += lone and count <= _MANY_BYTES
                if small == _MANY_AFTER and self._can_read_many(sock):
                    receive = self._receive_many
        except BlockingIOError:
            pass
        except OSError:
            broken = True  # an ICMP error of an earlier send; it says nothing about who sends to us
        if self._watching:
            broken = self._read_errors(sock) or broken
        if broken:
            self._register_again(sock)
        consumer.udp_drained()
        self._read_at = monotonic()

    def _receive_batch(self, sock: socket.socket, buffer: memoryview) -> tuple[int, bool]:
        """Read once; how many bytes, and whether it was a single datagram."""
        count, ancillary, _, address = sock.recvmsg_into((buffer,), _ANCILLARY_BYTES)
        size = count
        for level, kind, data in ancillary:
            if level == _SOL_UDP and kind == _UDP_GRO:
                size = int.from_bytes(data[:4], sys.byteorder)
        self._consumer.udp_received(self.number, buffer[:count], size, address)
        return count, size == count

    def _can_read_many(self, sock: socket.socket) -> bool:
        """Prepare to read many datagrams in one call, where that is possible."""
        if self._many is None and self.features.many:
            try:
                from crust.net.many import ManyReader

                self._many = ManyReader(sock)
            except (ImportError, AttributeError):
                self.features = self.features._replace(many=False)
        return self._many is not None

    def _receive_many(self, sock: socket.socket, buffer: memoryview) -> tuple[int, bool]:
        """Read once, as many single datagrams as wait, and what was joined between them."""
        many, consumer = self._many, self._consumer
        assert many is not None
        count = many.read()
        start = 0
        for at in itertools.compress(range(count), many.joined):
            self._hand_out(many, start, at)
            start = at + 1
            if self._sock is None:
                return 0, True
            joined = buffer[: many.sizes[at]]
            joined[:] = many.datagram(at)  # what lies there is opened fastest
            consumer.udp_received(self.number, joined, many.segment(at), many.address(at))
        if self._sock is not None:
            self._hand_out(many, start, count)
        return sum(many.sizes), True

    def _hand_out(self, many: ManyReader, start: int, end: int) -> None:
        """Give the consumer single datagrams that came one after the other."""
        if start < end:
            sources = Sources(lambda at: many.address(start + at), lambda at: many.host(start + at))
            self._consumer.udp_received_many(self.number, [many.datagram(at) for at in range(start, end)], sources)

    def _receive_single(self, sock: socket.socket, buffer: memoryview) -> tuple[int, bool]:
        count, address = sock.recvfrom_into(buffer)
        self._consumer.udp_received(self.number, buffer[:count], count, address)
        return count, True

    def received(self, data: bytes, address: tuple[Any, ...]) -> None:
        """For the transport of event loops without readers."""
        if self._sock is not None:
            self._consumer.udp_received(self.number, memoryview(data), len(data), address)
            self._consumer.udp_drained()

    # --- errors that come back -----------------------------------------------------------------------------------

    def watch_refusals(self, on: bool) -> None:
        """Have the kernel keep ICMP errors, to be told by `udp_refused`; only while somebody waits for an answer.

        An unconnected socket hears of them by its error queue only, and some event loops (uvloop) stop watching a
        socket that has something there: hence not always, and the new registration after each.
        """
        sock = self._sock
        if sock is None or on == self._watching or sys.platform != "linux" or not self.features.reader:
            return
        self._watching = on
        six = self.family == socket.AF_INET6
        level, option = (socket.IPPROTO_IPV6, _IPV6_RECVERR) if six else (socket.IPPROTO_IP, _IP_RECVERR)
        with contextlib.suppress(OSError):
            sock.setsockopt(level, option, int(on))
        if not on:
            self._register_again(sock)

    def _read_errors(self, sock: socket.socket) -> bool:
        found = False
        for _ in range(_ERRORS_PER_TURN):
            try:
                _, ancillary, _, address = sock.recvmsg(1, _ERROR_BYTES, _MSG_ERRQUEUE)
            except OSError:
                break
            found = True
            for _, kind, data in ancillary:
                if kind in (_IP_RECVERR, _IPV6_RECVERR) and len(data) >= _EXTENDED_ERROR.size and address:
                    code = _EXTENDED_ERROR.unpack_from(data)[0]
                    if code != errno.EMSGSIZE:
                        self._consumer.udp_refused(self.number, address, OSError(code, _describe(code)))
        return found

    def _register_again(self, sock: socket.socket) -> None:
        if self.features.reader and self._sock is sock:
            self._loop.remove_reader(sock)
            self._loop.add_reader(sock, self._readable)

    # --- sending -------------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview, size: int, address: tuple[Any, ...]) -> SendOutcome:
        """Send datagrams of `size` bytes each, the last perhaps shorter, to one address."""
        sock = self._sock
        if sock is None:
            return SendOutcome.FAILED
        if self._transport is not None:
            for at in range(0, len(data), size):
                self._transport.sendto(bytes(data[at : at + size]), address)
            return SendOutcome.SENT
        try:
            if len(data) <= size:
                if self._segment and size > self._segment:
                    self._set_segment(sock, 0)
                sock.sendto(data, address)
            elif self.features.segment:
                if self._segment != size:
                    self._set_segment(sock, size)
                sock.sendto(data, address)
            else:
                for at in range(0, len(data), size):
                    sock.sendto(data[at : at + size], address)
        except BlockingIOError:
            self._wait_writable(sock)
            return SendOutcome.BLOCKED
        except OSError as error:
            if self._watching and error.errno in _EARLIER and len(data) <= size:
                return self._send_again(sock, data, address)
            return self._failed(error, data, size, address)
        return SendOutcome.SENT

    @staticmethod
    def _send_again(sock: socket.socket, data: bytes | memoryview, address: tuple[Any, ...]) -> SendOutcome:
        """What the kernel has to tell of an earlier datagram comes as the outcome of this one, which was not sent."""
        for _ in range(_SENT_AGAIN):
            try:
                sock.sendto(data, address)
            except OSError as error:
                if error.errno not in _EARLIER:
                    return SendOutcome.FAILED
            else:
                return SendOutcome.SENT
        return SendOutcome.FAILED

    def send_low(self, data: bytes | memoryview, address: tuple[Any, ...], ttl: int) -> None:
        """Send one datagram that only has to get out of our own network; where that cannot be said, do not send it."""
        sock = self._sock
        if sock is None or self._transport is not None:
            return
        six = self.family == socket.AF_INET6
        level, option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if six else (socket.IPPROTO_IP, socket.IP_TTL)
        with contextlib.suppress(OSError):
            if self._segment:
                self._set_segment(sock, 0)
            usual = sock.getsockopt(level, option)
            sock.setsockopt(level, option, ttl)
            try:
                self._send_again(sock, data, address)
            finally:
                sock.setsockopt(level, option, usual)

    def _set_segment(self, sock: socket.socket, size: int) -> None:
        sock.setsockopt(_SOL_UDP, _UDP_SEGMENT, size)
        self._segment = size

    def _failed(self, error: OSError, data: bytes | memoryview, size: int, address: tuple[Any, ...]) -> SendOutcome:
        if error.errno == errno.EMSGSIZE:
            return SendOutcome.TOO_BIG
        if self.features.segment and len(data) > size and error.errno in _NO_SEGMENTATION:
            # Either the datagrams are too large, which kernels before 6.2 call an invalid argument, or the kernel or
            # the interface has no segmentation. One by one they tell.
            outcome = SendOutcome.SENT
            with contextlib.suppress(OSError):
                self._set_segment(self._sock, 0)  # type: ignore[arg-type]
            segment = self.features.segment
            self.features = self.features._replace(segment=False)
            outcome = self.send(data, size, address)
            if outcome is SendOutcome.TOO_BIG:
                self.features = self.features._replace(segment=segment)
            return outcome
        return SendOutcome.FAILED

    def _wait_writable(self, sock: socket.socket) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(sock, self._on_writable)

    def _on_writable(self) -> None:
        """Called by the event loop."""
        if self._sock is not None and self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)
            self._consumer.udp_writable(self.number)


_EARLIER: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
_NO_SEGMENTATION: Final = (errno.EINVAL, errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP)


class _Protocol(asyncio.DatagramProtocol):
    """For event loops that have no readers (Windows)."""

    def __init__(self, owner: UdpSocket) -> None:
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._owner._transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Called by the event loop."""
        self._owner.received(data, addr)

    def error_received(self, exc: Exception) -> None:
        """An ICMP error of an earlier send; it says nothing about who sends to us."""


def bind_udp(host: str, port: int) -> socket.socket:
    """A UDP socket on an address; IPv6 ones leave IPv4 alone.

    Raises:
        OSError: the address cannot be used.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def sockaddr(host: str, port: int) -> tuple[Any, ...]:
    """A numeric address as sockets give and take it.

    Raises:
        OSError: not numeric.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    address: tuple[Any, ...] = found[0][4]
    return address


class RouteInfo(NamedTuple):
    """What the system says about the way to an address.

    Attributes:
        local: our address on that way; "" when there is none.
        mtu: largest IP packet that the way takes, as far as the system knows.
    """

    local: str
    mtu: int


def route_info(address: tuple[Any, ...], family: int) -> RouteInfo:
    """Ask the system about the way to an address, without sending anything."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(address)
            local = str(sock.getsockname()[0])
            if sys.platform != "linux":
                return RouteInfo(local, _DEFAULT_MTU)
            six = family == socket.AF_INET6
            level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if six else (socket.IPPROTO_IP, _IP_MTU)
            return RouteInfo(local, sock.getsockopt(level, option))
        except OSError:
            return RouteInfo("", _DEFAULT_MTU)


def _switch_on(sock: socket.socket, level: int, option: int) -> bool:
    try:
        sock.setsockopt(level, option, 1)
    except OSError:
        return False
    return True


def _has_readers(loop: asyncio.AbstractEventLoop) -> bool:
    return type(loop).__name__ != "ProactorEventLoop"


def _tune(sock: socket.socket) -> None:
    """Buffers as large as allowed (the forced kind is for root), and datagrams that are never fragmented."""
    for option, forced, size in (
        (socket.SO_RCVBUF, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES),
        (socket.SO_SNDBUF, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES),
    ):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, size)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, forced, size)
    if sys.platform == "linux":
        # Our own search finds what the path takes; what ICMP says about it can be forged.
        with contextlib.suppress(OSError):
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)


def _describe(code: int) -> str:
    return "nothing listens there" if code == errno.ECONNREFUSED else errno.errorcode.get(code, str(code))
