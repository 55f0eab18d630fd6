"""The few rtnetlink and ctnetlink messages that a lab needs, so that it needs no `ip` and no `conntrack` program.

Every function acts on the network namespace of the calling thread and blocks for well under a millisecond.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from pathlib import Path

__all__ = [
    "add_address",
    "add_default_route",
    "add_veth",
    "delete_link",
    "flush_conntrack",
    "set_link",
    "set_sysctl",
]

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/veth.h, linux/netfilter/nfnetlink_conntrack.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NEW = _NLM_F_CREATE | _NLM_F_EXCL
_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 17, 20, 24
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO = 1, 3, 18
_IFLA_NET_NS_FD, _IFLA_GSO_MAX_SEGS = 28, 40
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RTA_OIF, _RTA_GATEWAY = 4, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 4, 0, 1
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_CTNETLINK_DELETE = (1 << 8) | 2

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def _attribute(kind: int, value: bytes | int | str) -> bytes:
    if isinstance(value, int):
        value = struct.pack("=I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _transact(family: int, kind: int, flags: int, body: bytes) -> None:
    """Send one request; raises OSError with the kernel's verdict."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as channel:
        channel.bind((0, 0))
        flags |= _NLM_F_REQUEST | _NLM_F_ACK
        channel.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        answer = channel.recv(65536)
    _, verdict, *_ = _HEADER.unpack_from(answer)
    code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
    if verdict != _NLMSG_ERROR or code:
        raise OSError(code, os.strerror(code))


def _link(flags: int = 0, change: int = 0, index: int = 0) -> bytes:
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change)


def add_veth(name: str, peer: str, peer_namespace: int, *, peer_mac: bytes, segments: int | None = None) -> None:
    """Create a veth pair: `name` here, up, and `peer` in another namespace, down. Neither end resolves addresses.

    Args:
        name: interface name in the calling thread's namespace.
        peer: interface name of the other end.
        peer_namespace: file descriptor of the namespace for the other end.
        peer_mac: hardware address of the other end, 6 bytes.
        segments: largest number of segments in one packet that the peer's kernel may leave unsplit (1: none).
    """
    limits = b"" if segments is None else _attribute(_IFLA_GSO_MAX_SEGS, segments)
    other = (
        _link(_IFF_NOARP, _IFF_NOARP)
        + _attribute(_IFLA_IFNAME, peer)
        + _attribute(_IFLA_ADDRESS, peer_mac)
        + _attribute(_IFLA_NET_NS_FD, peer_namespace)
        + limits
    )
    data = _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, other))
    info = _attribute(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, "veth") + data)
    body = _link(_IFF_UP | _IFF_NOARP, _IFF_UP | _IFF_NOARP) + _attribute(_IFLA_IFNAME, name)
    body += info
    _transact(_NETLINK_ROUTE, _RTM_NEWLINK, _NEW, body)


def set_link(name: str, *, up: bool) -> None:
    """Switch an interface on or off."""
    body = _link(_IFF_UP if up else 0, _IFF_UP, socket.if_nametoindex(name))
    _transact(_NETLINK_ROUTE, _RTM_NEWLINK, 0, body)


def delete_link(name: str) -> None:
    """Remove an interface (a veth takes its other end along); no error when there is none."""
    with contextlib.suppress(OSError):
        _transact(_NETLINK_ROUTE, _RTM_DELLINK, 0, _link(index=socket.if_nametoindex(name)))


def add_address(name: str, address: str) -> None:
    """Give an interface an address, written `ADDRESS/PREFIX`; an IPv6 one is usable at once (no DAD)."""
    interface = ipaddress.ip_interface(address)
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    body = _IFADDR.pack(family, interface.network.prefixlen, _IFA_F_NODAD, 0, socket.if_nametoindex(name))
    body += _attribute(_IFA_LOCAL, interface.packed) + _attribute(_IFA_ADDRESS, interface.packed)
    _transact(_NETLINK_ROUTE, _RTM_NEWADDR, _NEW, body)


def add_default_route(name: str, gateway: str) -> None:
    """Send all traffic through an interface, by way of a gateway."""
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    body = _RTMSG.pack(family, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0)
    body += _attribute(_RTA_OIF, socket.if_nametoindex(name))
    body += _attribute(_RTA_GATEWAY, socket.inet_pton(family, gateway))
    _transact(_NETLINK_ROUTE, _RTM_NEWROUTE, _NEW, body)


def flush_conntrack() -> None:
    """Forget every tracked connection, and so every NAT mapping, of this namespace (`conntrack -F`)."""
    for family in (socket.AF_INET, socket.AF_INET6):
        _transact(_NETLINK_NETFILTER, _CTNETLINK_DELETE, 0, struct.pack(">BBH", family, 0, 0))


def set_sysctl(key: str, value: str | int) -> None:
    """Write one setting below /proc/sys/net, named with slashes: `ipv4/ip_forward`."""
    Path("/proc/sys/net", key).write_text(str(value), encoding="ascii")
