"""A generator of datagrams at a given rate, in a process of its own: `python -m crust.testing.flood HOST:PORT`.

Standard input brings what to send, one JSON object: `{"rate": 50000, "seconds": 5, "datagrams": [HEX, ...]}` with

- `"sources"`: addresses to send from in turn, "HOST:PORT". Without `"raw"` they are bound (on loopback all of
  127.0.0.0/8 can be); with it they are written into the packet, which needs CAP_NET_RAW, and need not be ours;
- `"gso"`: batches for UDP_SEGMENT, from one port for each size;
- `"after"`: seconds to wait before the first.

Standard output takes `{"sent": N, "seconds": S}` at the end. Linux only: it calls `sendmmsg`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import struct
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, TextIO

from crust.net.many import IoVec, MMsgHdr

__all__ = ["Flood", "flood"]

_MOST_AT_ONCE: Final = 64
_TICK: Final = 0.001
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_MSG_DONTWAIT: Final = 0x40
_LARGEST_BATCH: Final = 65_000


class _Burst:
    """Packets that one call sends from one socket."""

    def __init__(self, sock: socket.socket, packets: Sequence[bytes], target: tuple[str, int], count: int) -> None:
        self.sock = sock
        self.count = count  # datagrams in it
        self._size = len(packets)
        # All of this must live as long as the burst.
        self._name = ctypes.create_string_buffer(
            struct.pack("=HH4s8x", socket.AF_INET, socket.htons(target[1]), socket.inet_aton(target[0])), 16
        )
        self._buffers = [ctypes.create_string_buffer(packet, len(packet)) for packet in packets]
        self._vectors = (IoVec * self._size)(*(IoVec(ctypes.addressof(b), len(b)) for b in self._buffers))
        self._headers = (MMsgHdr * self._size)()
        for at, header in enumerate(self._headers):
            header.header.name = ctypes.addressof(self._name)
            header.header.name_size = 16
            header.header.iov = ctypes.pointer(self._vectors[at])
            header.header.iov_count = 1

    def send(self, sendmmsg: Any) -> int:
        """Send it; how many datagrams went out."""
        sent: int = sendmmsg(self.sock.fileno(), self._headers, self._size, _MSG_DONTWAIT)
        return self.count * max(sent, 0) // self._size


def _packet(source: tuple[str, int], target: tuple[str, int], datagram: bytes) -> bytes:
    """An IPv4 packet (the kernel fills in length, identification and checksum); UDP without a checksum."""
    udp = struct.pack(">HHHH", source[1], target[1], 8 + len(datagram), 0)
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, socket.inet_aton(source[0]), socket.inet_aton(target[0])
    )
    return ip + udp + datagram


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


class Flood:
    """Datagrams ready to be sent.

    Args:
        target: whereto.
        datagrams: what, over and over again.
        sources: from where, in turn; none: one port of any kind.
        raw: sources are written into the packets.
        gso: batches for UDP_SEGMENT.
    """

    def __init__(
        self,
        target: tuple[str, int],
        datagrams: Sequence[bytes],
        *,
        sources: Sequence[tuple[str, int]] = (),
        raw: bool = False,
        gso: bool = False,
    ) -> None:
        self._sockets: list[socket.socket] = []
        self._bursts: list[_Burst] = []
        if raw:
            sock = self._open(socket.SOCK_RAW, socket.IPPROTO_RAW)
            packets = [_packet(sources[at % len(sources)], target, datagram) for at, datagram in enumerate(datagrams)]
            self._add(sock, packets, target)
            return
        if gso:
            for size, run in groupby(sorted(datagrams, key=len), len):
                self._add_segmented(list(run), size, target)
            return
        bound = [self._bind(source) for source in sources] or [self._open(socket.SOCK_DGRAM)]
        for at, sock in enumerate(bound):
            self._add(sock, datagrams[at :: len(bound)], target)

    def _open(self, kind: int, protocol: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind, protocol)
        self._sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        return sock

    def _bind(self, source: tuple[str, int]) -> socket.socket:
        sock = self._open(socket.SOCK_DGRAM)
        sock.bind(source)
        return sock

    def _add(self, sock: socket.socket, packets: Sequence[bytes], target: tuple[str, int]) -> None:
        for at in range(0, len(packets), _MOST_AT_ONCE):
            some = packets[at : at + _MOST_AT_ONCE]
            self._bursts.append(_Burst(sock, some, target, len(some)))

    def _add_segmented(self, run: list[bytes], size: int, target: tuple[str, int]) -> None:
        sock = self._open(socket.SOCK_DGRAM)  # the size is an option of the socket
        sock.setsockopt(_SOL_UDP, _UDP_SEGMENT, size)
        most = max(1, min(_MOST_AT_ONCE, _LARGEST_BATCH // max(size, 1)))
        for at in range(0, len(run), most):
            some = run[at : at + most]
            self._bursts.append(_Burst(sock, [b"".join(some)], target, len(some)))

    def run(self, rate: float, seconds: float) -> tuple[int, float]:
        """Send at a rate for a time; returns how many were sent, and in what time."""
        sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
        began = time.monotonic()
        sent = at = 0
        while (passed := time.monotonic() - began) < seconds:
            while sent < rate * passed:
                burst = self._bursts[at % len(self._bursts)]
                at += 1
                sent += burst.send(sendmmsg)
                if at % 64 == 0 and time.monotonic() - began > seconds:
                    break
            time.sleep(_TICK)
        return sent, time.monotonic() - began

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets:
            sock.close()


def flood(order: dict[str, Any], target: tuple[str, int]) -> dict[str, float]:
    """Do what standard input said."""
    made = Flood(
        target,
        [bytes.fromhex(text) for text in order["datagrams"]],
        sources=[_address(text) for text in order.get("sources", ())],
        raw=order.get("raw", False),
        gso=order.get("gso", False),
    )
    with contextlib.closing(made):
        time.sleep(order.get("after", 0.0))
        sent, seconds = made.run(order["rate"], order["seconds"])
    return {"sent": sent, "seconds": seconds}


def main(arguments: list[str], order: TextIO, out: TextIO) -> None:
    """The program."""
    out.write(json.dumps(flood(json.load(order), _address(arguments[0]))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:], sys.stdin, sys.stdout)
