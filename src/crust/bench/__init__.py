"""How fast Crust is, beside raw sockets and TLS in the same run: the measuring code of `crust bench`.

A *row* is one way to carry bytes between two processes over loopback. Both are *workers* (`crust.bench.worker`): one
accepts, one dials, and a third process tells them over pipes what to do (`crust.bench.control`) and reports. The
workers of every row run the same event loop: uvloop when it is installed. Each measure gets a listener of its own, so
that no row needs a header that says what comes. Rounds are interleaved (every row once, then every row again), so that
a machine that grows slower meanwhile slows all rows alike; figures are medians over the rounds.

What is measured, and why so, is told in `docs/explanation/performance.md`.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BULK_MESSAGE_BYTES", "COLUMNS", "LABELS", "MEASURES", "PING_BYTES", "ROWS", "SMALL_MESSAGE_BYTES"]

LABELS: Final = {
    "raw_tcp": "raw TCP",
    "tls": "mutual TLS 1.3",
    "raw_udp_gso": "raw UDP, GSO/GRO",
    "tcp": "Crust, TCP",
    "tcp_unsigned": "Crust, TCP, unsigned",
    "utp": "Crust, µTP",
    "utp_1500": "Crust, µTP, 1500 B",
}
"""The rows, in the order of every table, and what people read."""

ROWS: Final = tuple(LABELS)
COLUMNS: Final = {
    "bulk_mb_s": ("bulk MB/s", "{:,.0f}"),
    "messages_per_s": ("100 B msg/s", "{:,.0f}"),
    "rtt_us": ("64 B rtt µs", "{:.0f}"),
    "connect_ms": ("connect ms", "{:.2f}"),
    "idle_kib": ("idle KiB", "{:.1f}"),
    "cpu_s_per_gib": ("CPU s/GiB", "{:.2f}"),
}
"""The figures: what people read, and how they are written."""

MEASURES: Final = ("bulk", "messages", "rtt", "connect", "idle")

BULK_MESSAGE_BYTES: Final = 65536
SMALL_MESSAGE_BYTES: Final = 100
PING_BYTES: Final = 64
