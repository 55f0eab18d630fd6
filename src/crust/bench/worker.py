"""One of the two processes between which the benchmark measures: `python -m crust.bench.worker`.

Standard input brings one JSON object per line, `{"do": NAME, ...}`; standard output takes one answer to each,
`{"ok": RESULT}`, `{"unsupported": TEXT}` or `{"error": TEXT}`. The end of standard input ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from crust.bench.rows import Row, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["loop_name", "main"]

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


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

    async def do(self, command: dict[str, Any]) -> Any:
        what = command.pop("do")
        if what == "usage":
            return usage()
        if what == "limit":
            return raise_file_limit()
        if what == "row":
            self._row = _row(**command)
            return loop_name()
        if self._row is None or what not in ("serve", "bulk", "messages", "rtt", "connect", "hold", "close"):
            raise ValueError(f"cannot do {what!r}")
        return await getattr(self._row, what)(**command)


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


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def loop_name() -> str:
    """ "uvloop" or "asyncio"."""
    return "uvloop" if _loop_factory() else "asyncio"


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, however busy it is; Linux only."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _serve(output: Any) -> None:
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(commands.put_nowait, line)
        os._exit(0)  # the parent is gone: nothing here is worth an orderly end

    threading.Thread(target=read, daemon=True).start()
    worker = _Worker()
    while True:
        command = json.loads(await commands.get())
        try:
            answer = {"ok": await worker.do(command)}
        except UnsupportedError as error:
            answer = {"unsupported": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        output.write(json.dumps(answer) + "\n")
        output.flush()


def main() -> None:
    """Run until standard input ends."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this ends
    with open(os.dup(1), "w") as output:
        os.dup2(2, 1)  # whatever prints must not mix with the answers
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(output))


if __name__ == "__main__":
    main()
