"""IP packets made by hand, for tests of the lab's engines."""

from __future__ import annotations

import struct

from crust.testing.natlab.fabric.packet import ICMP, TCP, UDP, checksum, ip_header, pseudo_sum

A, B, C = bytes([192, 168, 1, 2]), bytes([11, 0, 1, 1]), bytes([11, 0, 2, 1])


def udp(source: bytes, sport: int, target: bytes, dport: int, data: bytes = b"hello") -> bytes:
    """A UDP packet."""
    body = struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data
    total = (checksum(body, pseudo_sum(source, target, UDP, len(body))) ^ 0xFFFF) or 0xFFFF
    return ip_header(source, target, UDP, len(body)) + body[:6] + total.to_bytes(2, "big") + body[8:]


def tcp(
    source: bytes,
    sport: int,
    target: bytes,
    dport: int,
    flags: int,
    data: bytes = b"",
    *,
    sequence: int = 1000,
    acknowledged: int = 0,
) -> bytes:
    """A TCP segment."""
    body = struct.pack(">HHIIBBHHH", sport, dport, sequence, acknowledged, 0x50, flags, 65535, 0, 0) + data
    total = checksum(body, pseudo_sum(source, target, TCP, len(body))) ^ 0xFFFF
    return ip_header(source, target, TCP, len(body)) + body[:16] + total.to_bytes(2, "big") + body[18:]


def ping(source: bytes, identifier: int, target: bytes, *, kind: int = 8) -> bytes:
    """An ICMP echo request, or a reply with kind 0."""
    body = struct.pack(">BBHHH", kind, 0, 0, identifier, 1) + b"data" * 10
    return (
        ip_header(source, target, ICMP, len(body)) + body[:2] + (checksum(body) ^ 0xFFFF).to_bytes(2, "big") + body[4:]
    )


def fragments(whole: bytes, size: int) -> list[bytes]:
    """Cut an IPv4 packet into fragments of at most `size` bytes of payload."""
    parts = []
    for at in range(20, len(whole), size):
        more = 0x2000 if at + size < len(whole) else 0
        body = whole[at : at + size]
        header = bytearray(whole[:20])
        header[2:4] = (20 + len(body)).to_bytes(2, "big")
        header[6:8] = (more | (at - 20) // 8).to_bytes(2, "big")
        header[10:12] = b"\0\0"
        header[10:12] = (checksum(header) ^ 0xFFFF).to_bytes(2, "big")
        parts.append(bytes(header) + body)
    return parts
