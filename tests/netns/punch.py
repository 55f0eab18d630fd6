"""A plain hole puncher for UDP and TCP, without any of Crust: what the matrix driver is tried with.

    punch.py rendezvous ADDRESS...
    punch.py listener NAME TRANSPORT RENDEZVOUS [LATE]
    punch.py dialler NAME TRANSPORT RENDEZVOUS PEER [LATE]

It does what textbooks say and no more: no prediction, no relay, no LAN addresses. Both sides punch as soon as the
rendezvous tells them of each other, or LATE seconds after.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import time
from typing import Any

PORT = 443
PUNCH_SECONDS = 1.0
INTERVAL_SECONDS = 0.02

Endpoint = tuple[str, int]


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def bound(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(family_of(address), kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((address, port))
    return made


class Rendezvous:
    """Remembers where names come from, and tells a dialler and a listener of each other."""

    def __init__(self, addresses: list[str]) -> None:
        self.selector = selectors.DefaultSelector()
        self.known: dict[str, tuple[Endpoint, Any]] = {}
        for address in addresses:
            datagrams = bound(address, PORT, socket.SOCK_DGRAM)
            self.selector.register(datagrams, selectors.EVENT_READ, self.datagram)
            listener = bound(address, PORT, socket.SOCK_STREAM)
            listener.listen(16)
            self.selector.register(listener, selectors.EVENT_READ, self.accept)

    def datagram(self, sock: socket.socket) -> None:
        data, sender = sock.recvfrom(2048)
        self.handle(json.loads(data), sender[:2], lambda answer: sock.sendto(answer, sender))

    def accept(self, sock: socket.socket) -> None:
        stream, _ = sock.accept()
        self.selector.register(stream, selectors.EVENT_READ, self.stream)

    def stream(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(2048)
        except ConnectionError:
            data = b""
        if not data:
            self.selector.unregister(sock)
            sock.close()
            return
        self.handle(json.loads(data), sock.getpeername()[:2], sock.sendall)

    def handle(self, request: dict[str, str], sender: Endpoint, answer: Any) -> None:
        self.known[request["name"]] = (sender, answer)
        wanted = self.known.get(request.get("want", ""))
        if wanted is None:
            answer(json.dumps({"you": sender}).encode())
            return
        endpoint, tell = wanted
        answer(json.dumps({"peer": endpoint}).encode())
        with contextlib.suppress(OSError):
            tell(json.dumps({"peer": sender}).encode())

    def run(self) -> None:
        say(contact=sys.argv[2:])
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)


def own_address(rendezvous: str) -> str:
    with socket.socket(family_of(rendezvous), socket.SOCK_DGRAM) as probe:
        probe.connect((rendezvous, PORT))
        address: str = probe.getsockname()[0]
        return address


class Udp:
    def __init__(self, name: str, rendezvous: str, want: str | None) -> None:
        self.dials = want is not None
        self.sock = bound(own_address(rendezvous), 0, socket.SOCK_DGRAM)
        self.rendezvous = (rendezvous, PORT)
        self.request = json.dumps({"name": name} | ({"want": want} if want else {})).encode()

    def ask(self) -> None:
        self.sock.sendto(self.request, self.rendezvous)

    def answers(self) -> dict[str, Any]:
        self.sock.settimeout(5)
        answer: dict[str, Any] = json.loads(self.sock.recv(2048))
        return answer

    def punch(self, peer: Endpoint) -> bool:
        """Probe until an acknowledgement comes; whoever was dialled goes on answering until time is up."""
        until, done = time.monotonic() + PUNCH_SECONDS, False
        self.sock.settimeout(INTERVAL_SECONDS)
        while time.monotonic() < until and not done:
            self.sock.sendto(b"probe", peer)
            try:
                data, sender = self.sock.recvfrom(2048)
            except (TimeoutError, ConnectionRefusedError):
                continue
            if data == b"probe":
                # Where a probe comes from is where answers get through (a peer-reflexive candidate).
                peer = sender
                self.sock.sendto(b"acknowledgement", sender)
            done = data == b"acknowledgement" and self.dials
        return done


class Tcp:
    def __init__(self, name: str, rendezvous: str, want: str | None) -> None:
        self.address = own_address(rendezvous)
        self.line = bound(self.address, 0, socket.SOCK_STREAM)
        self.line.connect((rendezvous, PORT))
        self.listener = bound(self.address, self.line.getsockname()[1], socket.SOCK_STREAM)
        self.listener.listen(4)
        self.listener.setblocking(False)
        self.request = json.dumps({"name": name} | ({"want": want} if want else {})).encode()

    def ask(self) -> None:
        self.line.sendall(self.request)

    def answers(self) -> dict[str, Any]:
        self.line.settimeout(5)
        answer: dict[str, Any] = json.loads(self.line.recv(2048))
        return answer

    def punch(self, peer: Endpoint) -> bool:
        """Open from the one port, and accept at it, until either works."""
        until = time.monotonic() + PUNCH_SECONDS
        while time.monotonic() < until:
            opener = bound(self.address, self.listener.getsockname()[1], socket.SOCK_STREAM)
            opener.setblocking(False)
            try:
                opener.connect(peer)
            except BlockingIOError:
                pass
            except OSError:
                # EADDRNOTAVAIL: the accepted connection has this five-tuple already.
                opener.close()
            if self.wait(opener, until):
                return True
            opener.close()
            time.sleep(INTERVAL_SECONDS)
        return False

    def wait(self, opener: socket.socket, until: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            if opener.fileno() >= 0:
                selector.register(opener, selectors.EVENT_WRITE)
            # Linux sends a SYN again only after a second; a stray RST or a dropped SYN needs a new one sooner.
            for key, _ in selector.select(min(0.25, max(0.0, until - time.monotonic()))):
                if key.fileobj is self.listener:
                    stream, _ = self.listener.accept()
                else:
                    stream = opener
                    if opener.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        return False
                stream.settimeout(1)
                try:
                    stream.sendall(b"echo")
                    return stream.recv(4) == b"echo"
                except OSError:
                    return False
        return False


def peer_main(role: str, name: str, transport: str, rendezvous: str, want: str | None, late: float) -> None:
    side = (Udp if transport == "utp" else Tcp)(name, rendezvous, want)
    begin = time.monotonic()
    side.ask()
    told = False
    while True:
        answer = side.answers()
        if "peer" in answer:
            break
        if not told and role == "listener":
            say(name=name)
            told = True
        begin = time.monotonic()
    time.sleep(late)
    if side.punch((answer["peer"][0], answer["peer"][1])):
        say(connect_ms=(time.monotonic() - begin) * 1000, path={"kind": "punched", "transport": transport})
    else:
        say(error="no hole")


def main() -> None:
    role = sys.argv[1]
    if role == "rendezvous":
        Rendezvous(sys.argv[2:]).run()
    elif role == "listener":
        name, transport, rendezvous, late = sys.argv[2:6]
        while True:
            try:
                peer_main(role, name, transport, rendezvous, None, float(late))
            except TimeoutError:
                continue
            return
    else:
        name, transport, rendezvous, want, late = sys.argv[2:7]
        peer_main(role, name, transport, rendezvous, want, float(late))


if __name__ == "__main__":
    main()
