"""The baselines on TCP: raw asyncio TCP, and mutual TLS 1.3 on the same loop with the same code.

This is what simple and fast asyncio code looks like without a library: a `BufferedProtocol` that receives into one
buffer, one write for each message (a 4-byte length and the data), and a sender that waits while the transport is over
its high-water mark.
"""

from __future__ import annotations

import asyncio
import datetime
import ssl
import struct
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from crust.bench import BULK_MESSAGE_BYTES
from crust.bench.rows import DONE, Role, Row

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TcpRow"]

_BUFFER_BYTES = 256 * 1024
_LENGTH = struct.Struct(">I")


class TcpRow(Row):
    """Raw TCP, or mutual TLS 1.3 over it."""

    def __init__(self, *, tls: bool = False) -> None:
        super().__init__()
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._context: tuple[str, ssl.SSLContext] | None = None  # of the dialling side, by certificate

    async def serve(self, role: Role, *, count: int, listeners: int) -> list[Any]:
        """Open listeners on the loopback interface."""
        factories: dict[Role, Callable[[], asyncio.BaseProtocol]] = {
            "bulk": partial(_ByteSink, count * BULK_MESSAGE_BYTES),
            "messages": partial(_MessageSink, count),
            "echo": _Echo,
            "hold": partial(_Holder, self.held),
        }
        context, ours, theirs = None, "", ""
        if self._tls:
            ours, theirs = _make_certificate(), _make_certificate()
            context = _context(ssl.PROTOCOL_TLS_SERVER, ours, theirs)
        loop = asyncio.get_running_loop()
        addresses = []
        for _ in range(listeners):
            server = await loop.create_server(factories[role], "127.0.0.1", 0, ssl=context, backlog=1024)
            self._servers.append(server)
            addresses.append([server.sockets[0].getsockname()[1], ours, theirs])
        return addresses

    async def dial(self, address: Any, *, framed: bool = False) -> _Link:
        """Connect."""
        port, theirs, ours = address
        context = None
        if self._tls:
            if self._context is None or self._context[0] != ours:
                self._context = ours, _context(ssl.PROTOCOL_TLS_CLIENT, ours, theirs)
            context = self._context[1]
        factory = _FramedLink if framed else _Link
        loop = asyncio.get_running_loop()
        name = "localhost" if context else None
        return (await loop.create_connection(factory, "127.0.0.1", port, ssl=context, server_hostname=name))[1]

    async def close(self) -> None:
        """Close listeners and connections."""
        for server in self._servers:
            server.close()
        for held in self.held:
            cast("_Link | _Holder", held).transport.abort()
        self._servers.clear()
        self.held.clear()


class _Link(asyncio.Protocol):
    """The dialling side: writes with flow control, and one waiter for what comes back."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._resumed: asyncio.Future[None] | None = None
        self._reply: asyncio.Future[bytes] | None = None
        self._closed = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set_result(None)
        for waiter in (self._resumed, self._reply):
            if waiter is not None and not waiter.done():
                waiter.set_exception(exc or ConnectionResetError("closed by the far side"))

    def pause_writing(self) -> None:
        self._resumed = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._resumed is not None:
            self._resumed.set_result(None)
            self._resumed = None

    def data_received(self, data: bytes) -> None:
        if self._reply is not None:
            self._reply.set_result(data)
            self._reply = None

    async def send(self, data: bytes) -> None:
        self.transport.write(data)
        if self._resumed is not None:
            await self._resumed

    async def receive(self) -> bytes:
        self._reply = self._loop.create_future()
        return await self._reply

    async def close(self) -> None:
        self.transport.close()
        await self._closed


class _FramedLink(_Link):
    """The same with a length in front of each message."""

    async def send(self, data: bytes) -> None:
        self.transport.write(_LENGTH.pack(len(data)) + data)
        if self._resumed is not None:
            await self._resumed


class _ByteSink(asyncio.BufferedProtocol):
    """Counts bytes."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._buffer = bytearray(_BUFFER_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left <= 0:
            self._transport.write(DONE)


class _MessageSink(asyncio.BufferedProtocol):
    """Takes length-prefixed messages apart, each into bytes of its own, and counts them."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._kept = 0  # bytes at the start of the buffer: a message that has not arrived wholly

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._kept :]

    def buffer_updated(self, nbytes: int) -> None:
        end = self._kept + nbytes
        start = 0
        while end - start >= _LENGTH.size:
            stop = start + _LENGTH.size + _LENGTH.unpack_from(self._buffer, start)[0]
            if stop > end:
                break
            self.message_received(bytes(self._view[start + _LENGTH.size : stop]))
            start = stop
        self._kept = end - start
        self._buffer[: self._kept] = self._buffer[start:end]

    def message_received(self, data: bytes) -> None:
        self._left -= 1
        if not self._left:
            self._transport.write(DONE)


class _Echo(asyncio.Protocol):
    """Sends back what comes, from within the callback: nothing is faster."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Holder(asyncio.Protocol):
    """Keeps its connection."""

    transport: asyncio.Transport

    def __init__(self, held: list[object]) -> None:
        self._held = held

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._held.append(self)


def _make_certificate() -> str:
    """A fresh P-256 key and a certificate for "localhost" signed by itself, in one PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (private + certificate.public_bytes(serialization.Encoding.PEM)).decode()


def _context(purpose: int, ours: str, theirs: str) -> ssl.SSLContext:
    """TLS 1.3, our certificate shown, exactly the peer's certificate accepted."""
    context = ssl.SSLContext(purpose)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=theirs[theirs.index("-----BEGIN CERTIFICATE") :])
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # the module takes our own key from a file only
        file.write(ours)
        file.flush()
        context.load_cert_chain(file.name)
    return context
