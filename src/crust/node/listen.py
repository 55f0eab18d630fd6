"""Opening what a node listens on: TCP and UDP on one port of each address."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Final

from crust.config import parse_listen
from crust.errors import ConfigError
from crust.net.tcp import share_port
from crust.net.udp import bind_udp
from crust.types import Transport

__all__ = ["open_listeners"]

_PORT_TRIES: Final = 32

Opened = dict[Transport, socket.socket]
"""The sockets on one address and port."""


def open_listeners(entries: Sequence[str] | None, transports: Sequence[Transport]) -> list[Opened]:
    """Open the configured addresses.

    Args:
        entries: "ADDR:PORT" each; None for every interface on one random port.
        transports: which sockets to open.

    Raises:
        ConfigError: an address cannot be listened on; the text says which and why.
    """
    if entries is None:
        return _open_everywhere(transports)
    opened: list[Opened] = []
    for entry in entries:
        host, port = parse_listen(entry)
        try:
            opened.append(_open(host, port, transports))
        except OSError as error:
            _close(opened)
            raise ConfigError(f"cannot listen on {entry}: {error.strerror or error}") from error
    return opened


def _open_everywhere(transports: Sequence[Transport]) -> list[Opened]:
    """One random port, the same for IPv4 and IPv6, TCP and UDP."""
    last: OSError | None = None
    for _ in range(_PORT_TRIES):
        opened: list[Opened] = []
        port = 0
        for host in ("0.0.0.0", "::"):  # noqa: S104
            try:
                opened.append(_open(host, port, transports))
            except OSError as error:
                last = error
                if error.errno == errno.EADDRINUSE:
                    _close(opened)
                    opened = []
                    break
            else:
                port = next(iter(opened[0].values())).getsockname()[1]
        if opened:
            return opened
    raise ConfigError(f"cannot listen on a random port: {last}")


def _open(host: str, port: int, transports: Sequence[Transport]) -> Opened:
    """The sockets on one address; a random port is one that is free for all of them.

    Raises:
        OSError: the address cannot be used.
    """
    for left in reversed(range(1 if port else _PORT_TRIES)):
        opened: Opened = {}
        found = port
        try:
            for transport in sorted(transports):
                sock = opened[transport] = _BINDERS[transport](host, found)
                found = sock.getsockname()[1]
        except OSError as error:
            _close([opened])
            if not left or error.errno != errno.EADDRINUSE:
                raise
        else:
            return opened
    raise AssertionError("unreachable")


def _close(opened: list[Opened]) -> None:
    for sockets in opened:
        for sock in sockets.values():
            sock.close()


def _bind_tcp(host: str, port: int) -> socket.socket:
    """A TCP socket on an address; IPv6 ones leave IPv4 alone.

    Raises:
        OSError: the address cannot be used.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(found[0], socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if found[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(found[4])
        # Only now: another listener on this port is refused, but our own outgoing connections may come from it.
        share_port(sock)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


_BINDERS: Final[dict[Transport, Callable[[str, int], socket.socket]]] = {"tcp": _bind_tcp, "utp": bind_udp}
