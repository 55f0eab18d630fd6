"""Many datagrams of many sources in one system call: recvmmsg, which Linux has and Python does not give.

UDP_GRO joins what comes from one source. A flood comes from ever new ones, and there a call for each datagram, with the
objects that Python makes of it, costs more than all that follows.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from typing import Any, Final

__all__ = ["MANY", "IoVec", "MMsgHdr", "ManyReader", "MsgHdr"]

MANY: Final = 64
_SLOT_BYTES: Final = 65_536
_NAME_BYTES: Final = 28  # sockaddr_in6
_CONTROL_BYTES: Final = 64
_MSG_DONTWAIT: Final = 0x40
_SOL_UDP: Final = 17
_UDP_GRO: Final = 104
_NATIVE: Final = sys.byteorder


# <sys/socket.h>: cmsg_len, cmsg_level, cmsg_type, and the size of a segment.
_CONTROL: Final = struct.Struct("@Nii4s")


class IoVec(ctypes.Structure):
    """struct iovec of <sys/uio.h>."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class MsgHdr(ctypes.Structure):
    """struct msghdr of <sys/socket.h> on Linux."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("iov", ctypes.POINTER(IoVec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class MMsgHdr(ctypes.Structure):
    """struct mmsghdr of <sys/socket.h> on Linux."""

    _fields_ = (("header", MsgHdr), ("size", ctypes.c_uint))


_STRIDE: Final = ctypes.sizeof(MMsgHdr)
_SIZE: Final = slice(MMsgHdr.size.offset // 4, None, _STRIDE // 4)
_WORD: Final = ctypes.sizeof(ctypes.c_void_p)  # as large as size_t, and memoryview knows it
_CONTROL_SIZE: Final = slice(MsgHdr.control_size.offset // _WORD, None, _STRIDE // _WORD)


class ManyReader:
    """Reads up to `MANY` datagrams at once, each into a place of its own.

    Args:
        sock: a UDP socket.

    Attributes:
        sizes: of what was read last.
        joined: whether each of them was joined by the kernel of several of one source.
    """

    __slots__ = (
        "_call",
        "_control",
        "_headers",
        "_keep",
        "_memory",
        "_names",
        "_pointer",
        "_six",
        "_sock",
        "_template",
        "joined",
        "sizes",
    )

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._six = sock.family == socket.AF_INET6
        self._call = ctypes.CDLL(None, use_errno=True).recvmmsg
        self._call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
        memory, names, control = (bytearray(MANY * size) for size in (_SLOT_BYTES, _NAME_BYTES, _CONTROL_BYTES))
        self._memory, self._names, self._control = memoryview(memory), names, control
        places = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (memory, names, control)]
        vectors = (IoVec * MANY)(*(IoVec(places[0] + at * _SLOT_BYTES, _SLOT_BYTES) for at in range(MANY)))
        headers = (MMsgHdr * MANY)()
        for at, each in enumerate(headers):
            header = each.header
            header.name, header.name_size = places[1] + at * _NAME_BYTES, _NAME_BYTES
            header.iov, header.iov_count = ctypes.pointer(vectors[at]), 1
            header.control, header.control_size = places[2] + at * _CONTROL_BYTES, _CONTROL_BYTES
        self._keep = (vectors, headers)  # what the kernel is pointed to must live as long
        self._pointer = ctypes.addressof(headers)
        self._headers = memoryview(headers).cast("B")
        self._template = bytes(self._headers)
        self.sizes: list[int] = []
        self.joined: list[int] = []

    def read(self) -> int:
        """Read what waits; how many datagrams.

        Raises:
            OSError: nothing waits (`BlockingIOError`), or an ICMP error of an earlier send.
        """
        self._headers[:] = self._template  # the kernel has written into it
        count: int = self._call(self._sock.fileno(), self._pointer, MANY, _MSG_DONTWAIT, None)
        if count < 0:
            raise OSError(ctypes.get_errno(), "recvmmsg")
        self.sizes = self._headers.cast("I")[_SIZE].tolist()[:count]
        self.joined = self._headers.cast("P")[_CONTROL_SIZE].tolist()[:count]
        return count

    def datagram(self, at: int) -> memoryview:
        """One of those that were read last, until the next are."""
        start = at * _SLOT_BYTES
        return self._memory[start : start + self.sizes[at]]

    def segment(self, at: int) -> int:
        """The size of the datagrams that the kernel has joined."""
        if self.joined[at]:
            _, level, kind, data = _CONTROL.unpack_from(self._control, at * _CONTROL_BYTES)
            if level == _SOL_UDP and kind == _UDP_GRO:
                return int.from_bytes(data, _NATIVE)
        return self.sizes[at]

    def host(self, at: int) -> bytes:
        """Its host: the IPv4 address, or the first half of the IPv6 one, which is the network's part."""
        start = at * _NAME_BYTES + (8 if self._six else 4)
        return bytes(self._names[start : start + (8 if self._six else 4)])

    def address(self, at: int) -> tuple[Any, ...]:
        """From where one of them came, as the socket module gives it."""
        start = at * _NAME_BYTES
        name = self._names[start : start + _NAME_BYTES]
        port = int.from_bytes(name[2:4], "big")
        if not self._six:
            return socket.inet_ntop(socket.AF_INET, name[4:8]), port
        flow, scope = int.from_bytes(name[4:8], "big"), int.from_bytes(name[24:28], _NATIVE)
        return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope
