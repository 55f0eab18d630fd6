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

__all__ = ["BULK_MESSAGE_BYTES", "MEASURES", "PING_BYTES", "ROWS", "SMALL_MESSAGE_BYTES"]

ROWS: Final = ("raw_tcp", "tls", "raw_udp_gso", "tcp", "tcp_unsigned", "utp", "utp_1500")
MEASURES: Final = ("bulk", "messages", "rtt", "connect", "idle")

BULK_MESSAGE_BYTES: Final = 65536
SMALL_MESSAGE_BYTES: Final = 100
PING_BYTES: Final = 64
