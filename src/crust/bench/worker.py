"""One of the two processes between which the benchmark measures: `python -m crust.bench.worker`."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from typing import TYPE_CHECKING, Any

from crust.bench.process import loop_name, run, serve

if TYPE_CHECKING:
    from crust.bench.rows import Row

__all__ = ["main", "raise_file_limit", "usage"]


def _row(name: str) -> Row:
    """The row of that name; each imports only what it needs, so that a baseline's memory is its own."""
    if name in ("raw_tcp", "tls"):
        from crust.bench.raw import TcpRow

        return TcpRow(tls=name == "tls")
    if name == "raw_udp_gso":
        from crust.bench.udp import UdpRow

        return UdpRow()
    from crust.bench.node import CrustRow

    if name == "tcp":
        return CrustRow("tcp")
    if name == "tcp_unsigned":
        return CrustRow("tcp", signing="off")
    if name == "utp":
        return CrustRow("utp")
    if name == "utp_1500":
        return CrustRow("utp", max_datagram_bytes=1500)
    raise ValueError(f"no row {name!r}")


class _Worker:
    """Does what it is told, one thing after the other."""

    def __init__(self) -> None:
        self._row: Row | None = None

    async def do(self, what: str, arguments: dict[str, Any]) -> Any:
        if what == "usage":
            return usage()
        if what == "packets":
            return None if self._row is None else self._row.packets
        if what == "limit":
            return raise_file_limit()
        if what == "row":
            self._row = _row(**arguments)
            return loop_name()
        if self._row is None or what not in ("serve", "bulk", "messages", "rtt", "connect", "hold", "close"):
            raise ValueError(f"cannot do {what!r}")
        return await getattr(self._row, what)(**arguments)


def usage() -> dict[str, float]:
    """CPU seconds so far (user and system, all threads) and resident bytes after a full garbage collection."""
    cpu = time.process_time()
    gc.collect()
    return {"cpu_s": cpu, "rss": _resident_bytes()}


def _resident_bytes() -> int:
    try:
        with open("/proc/self/smaps_rollup") as file:  # exact, whereas statm lags behind by up to 64 pages a CPU
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def raise_file_limit() -> int:
    """Allow as many open files as this user may have; return how many these are."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > 65536:
        hard = max(soft, 65536)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def main() -> None:
    """Run until standard input ends."""
    run(serve(_Worker().do))


if __name__ == "__main__":
    main()
