"""A TCP proxy that lets so many bytes through and then holds the rest: a transfer that is under way stays so."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

from crust.wire.contact import Contact

PASSES = 30 << 20


class Gate:
    """Stands before a peer that listens on loopback, for whoever dials it over TCP.

    Args:
        contact: of the peer.
        passes: bytes towards the peer before the gate closes.

    Attributes:
        target: what to dial instead of the contact.
    """

    def __init__(self, contact: str, passes: int = PASSES) -> None:
        peer = Contact.parse(contact)
        self._upstream = next((each.host, each.port) for each in peer.candidates if each.transport == "tcp")
        self._left = passes
        self._held, self._open = threading.Event(), threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._server]
        self._threads: list[threading.Thread] = []
        self.target = f"{peer.id}@127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Gate:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Reset all connections."""
        self.open()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()

    def wait_until_held(self, seconds: float = 40) -> None:
        """Wait until as much has passed as may."""
        assert self._held.wait(seconds), "not so much is sent"

    def open(self) -> None:
        """Let everything pass from now on."""
        self._open.set()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self._sockets.append(near)
                try:
                    far = socket.create_connection(self._upstream)
                except OSError:
                    near.shutdown(socket.SHUT_RDWR)
                    continue
                self._sockets.append(far)
                self._start(self._carry, near, far, True)
                self._start(self._carry, far, near, False)

    def _carry(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if counted:
                    self._count(len(data))
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            self._held.set()
            self._open.wait()
