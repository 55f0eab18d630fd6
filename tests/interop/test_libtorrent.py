"""Our µTP against libtorrent's: a BitTorrent handshake and every piece of a torrent, hash-checked, in both roles."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.events import DropReason, EndReason
from crust.testing.bare_utp import Address, BareConnection, BareEndpoint

lt = pytest.importorskip("libtorrent", reason="libtorrent has no wheel for this platform (extra `dht`)")

MIB = 1 << 20
BLOCK = 16_384
PIECE = 256 << 10
PIPELINE = 256
CHOKE, UNCHOKE, INTERESTED, NOT_INTERESTED, HAVE, BITFIELD, REQUEST, PIECE_MESSAGE = range(8)

# What a lossy path makes of correct packets; anything else would be a misunderstanding between the two.
EXPECTED_DROPS = {DropReason.DUPLICATE, DropReason.OUT_OF_WINDOW}

# Loopback only, µTP only, and nothing that looks for other peers.
SETTINGS: dict[str, Any] = {
    "listen_interfaces": "127.0.0.1:0",
    "outgoing_interfaces": "127.0.0.1",
    "enable_incoming_tcp": False,
    "enable_outgoing_tcp": False,
    "enable_incoming_utp": True,
    "enable_outgoing_utp": True,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "allow_multiple_connections_per_ip": True,
    "in_enc_policy": lt.enc_policy.pe_disabled.real,  # we speak plain BitTorrent
    "out_enc_policy": lt.enc_policy.pe_disabled.real,
    "min_reconnect_time": 1,
    "peer_connect_timeout": 5,
    "max_failcount": 20,
    # libtorrent gives a connection up, and does not tell, when one packet was lost three times: at 2 % that is one in
    # 125,000, or every third torrent of 64 MiB.
    "utp_num_resends": 20,
    "alert_mask": 0,
}


class Torrent:
    """A file of random bytes and its torrent."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.data = random.Random(size).randbytes(size)
        (folder / "file").write_bytes(self.data)
        hashes = [hashlib.sha1(self.data[at : at + PIECE]).digest() for at in range(0, size, PIECE)]
        self.pieces = len(hashes)
        info = lt.bencode({b"length": size, b"name": b"file", b"piece length": PIECE, b"pieces": b"".join(hashes)})
        self.hash = hashlib.sha1(info).digest()
        self.file = b"d4:info" + info + b"e"

    def block(self, piece: int, begin: int, length: int) -> bytes:
        at = piece * PIECE + begin
        return self.data[at : at + length] if length <= BLOCK else b""

    def blocks(self) -> list[tuple[int, int, int]]:
        size = len(self.data)
        return [(at // PIECE, at % PIECE, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]


class LibtorrentPeer:
    """A libtorrent session with one torrent."""

    def __init__(self, torrent: Torrent, folder: Path, *, seed: bool) -> None:
        self.session = lt.session(SETTINGS)
        parameters = lt.load_torrent_buffer(torrent.file)
        parameters.save_path = str(folder)
        parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
        if seed:
            parameters.flags |= lt.torrent_flags.seed_mode
        self.handle = self.session.add_torrent(parameters)

    @property
    def address(self) -> Address:
        return "127.0.0.1", self.session.listen_port()

    async def until(self, ready: Callable[[], object]) -> None:
        while not ready():
            await asyncio.sleep(0.05)

    def close(self) -> None:
        self.session.remove_torrent(self.handle)
        self.session.pause()
        del self.handle, self.session


class Relay:
    """A UDP relay that loses and reorders datagrams, seeded."""

    def __init__(self, target: Address, *, loss: float, reorder: float, seed: int = 1) -> None:
        self.target, self.loss, self.reorder = target, loss, reorder
        self.random = random.Random(seed)
        self.lost = self.carried = 0
        self.loop = asyncio.get_running_loop()
        self.front = self._socket()
        self.address: Address = self.front.getsockname()
        self.backs: dict[Address, socket.socket] = {}
        self.loop.add_reader(self.front, self._from_client)

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            made.setsockopt(socket.SOL_SOCKET, option, 4 * MIB)
        made.bind(("127.0.0.1", 0))
        return made

    def _from_client(self) -> None:
        for datagram, client in self._read(self.front):
            back = self.backs.get(client)
            if back is None:
                back = self.backs[client] = self._socket()
                self.loop.add_reader(back, self._from_target, back, client)
            self._carry(back, datagram, self.target)

    def _from_target(self, back: socket.socket, client: Address) -> None:
        for datagram, _ in self._read(back):
            self._carry(self.front, datagram, client)

    def _read(self, source: socket.socket) -> list[tuple[bytes, Address]]:
        found = []
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            for _ in range(64):
                found.append(source.recvfrom(65_535))  # noqa: PERF401 - what was read before the end counts
        return found

    def _carry(self, out: socket.socket, datagram: bytes, to: Address) -> None:
        self.carried += 1
        if self.random.random() < self.loss:
            self.lost += 1
        elif self.random.random() < self.reorder:
            self.loop.call_later(self.random.uniform(0.0005, 0.003), self._put, out, datagram, to)
        else:
            self._put(out, datagram, to)

    def _put(self, out: socket.socket, datagram: bytes, to: Address) -> None:
        with contextlib.suppress(OSError):
            out.sendto(datagram, to)

    def close(self) -> None:
        for one in (self.front, *self.backs.values()):
            self.loop.remove_reader(one)
            one.close()


class BitTorrent:
    """As much of the BitTorrent protocol as two peers need for one torrent."""

    def __init__(self, connection: BareConnection, torrent: Torrent) -> None:
        self.connection, self.torrent = connection, torrent

    async def shake_hands(self) -> bool:
        """Exchange greetings; False when libtorrent hangs up instead."""
        ours = b"\x13BitTorrent protocol" + bytes(8) + self.torrent.hash + b"-CR0001-" + bytes(range(12))
        await self.connection.write(ours)
        theirs = await self.connection.read(68)
        if not theirs:
            return False
        assert theirs[:20] == ours[:20], theirs
        assert theirs[28:48] == self.torrent.hash
        return True

    async def send(self, kind: int, body: bytes = b"") -> None:
        await self.connection.write(struct.pack(">IB", 1 + len(body), kind) + body)

    async def receive(self) -> tuple[int, bytes] | None:
        while True:
            head = await self.connection.read(4)
            if len(head) < 4:
                return None
            length = int.from_bytes(head)
            if length:
                message = await self.connection.read(length)
                return message[0], message[1:]

    async def download(self) -> bytes:
        """Every block, asked for in order; returns the file."""
        data = bytearray(len(self.torrent.data))
        wanted = self.torrent.blocks()
        asked = got = 0
        await self.send(INTERESTED)
        choked = True
        while got < len(wanted):
            message = await self.receive()
            assert message is not None, f"libtorrent hung up after {got} of {len(wanted)} blocks"
            kind, body = message
            if kind in (UNCHOKE, CHOKE):
                choked = kind == CHOKE
                if choked:
                    asked = got  # what was asked for and not answered is forgotten
            elif kind == PIECE_MESSAGE:
                piece, begin = struct.unpack_from(">II", body)
                data[piece * PIECE + begin : piece * PIECE + begin + len(body) - 8] = body[8:]
                got += 1
            if not choked and asked - got < PIPELINE // 2:
                batch = wanted[asked : asked + PIPELINE]
                asked += len(batch)
                await self.connection.write(b"".join(struct.pack(">IBIII", 13, REQUEST, *block) for block in batch))
        return bytes(data)

    async def serve(self) -> None:
        """Answer requests until the peer hangs up."""
        pieces = self.torrent.pieces
        bits = ((1 << pieces) - 1) << (-pieces % 8)
        await self.send(BITFIELD, bits.to_bytes((pieces + 7) // 8))
        while (message := await self.receive()) is not None:
            kind, body = message
            if kind == INTERESTED:
                await self.send(UNCHOKE)
            elif kind == REQUEST:
                piece, begin, length = struct.unpack(">III", body)
                await self.send(PIECE_MESSAGE, body[:8] + self.torrent.block(piece, begin, length))


async def persist(dial: Callable[[], Awaitable[BareConnection]]) -> BareConnection:
    """Dial until it works: libtorrent answers a SYN once, so the loss of its answer is the end of that attempt."""
    while True:
        with contextlib.suppress(ConnectionError):
            return await dial()


async def greet(endpoint: BareEndpoint, address: Address, torrent: Torrent) -> tuple[BareConnection, BitTorrent]:
    """Dial until libtorrent answers the greeting: while it begins to seed it hangs up on some."""
    for _ in range(10):
        connection = await persist(lambda: endpoint.connect(address))
        wire = BitTorrent(connection, torrent)
        if await wire.shake_hands():
            return connection, wire
        connection.close()
        await connection.closed()
    raise AssertionError("libtorrent hangs up on every greeting")


@contextlib.asynccontextmanager
async def path_to(address: Address, loss: float, reorder: float) -> AsyncIterator[Address]:
    """The address itself, or that of a lossy relay before it."""
    if not loss and not reorder:
        yield address
        return
    relay = Relay(address, loss=loss, reorder=reorder)
    try:
        yield relay.address
        assert relay.lost or not loss
    finally:
        relay.close()


async def we_download(torrent: Torrent, loss: float, reorder: float) -> None:
    """libtorrent has the file; we dial it and fetch all of it."""
    peer = LibtorrentPeer(torrent, torrent.folder, seed=True)
    await peer.until(lambda: peer.session.listen_port() and peer.handle.status().is_seeding)
    endpoint = BareEndpoint(UtpConfig())
    try:
        async with path_to(peer.address, loss, reorder) as address:
            connection, wire = await greet(endpoint, address, torrent)
            begun = time.monotonic()
            data = await wire.download()
            print(
                f"from libtorrent: {len(data) / MIB / (time.monotonic() - begun):.1f} MiB/s {connection.engine.stats}"
            )
            assert hashlib.sha256(data).digest() == hashlib.sha256(torrent.data).digest()
            connection.close()
            assert (await connection.closed()).reason is EndReason.CLOSED
            assert not connection.engine.stats.dropped.keys() - EXPECTED_DROPS
    finally:
        endpoint.close()
        peer.close()
        await asyncio.sleep(0)  # the loop closes the sockets in its next turn


async def libtorrent_downloads(torrent: Torrent, folder: Path, loss: float, reorder: float) -> None:
    """We have the file; libtorrent dials us and fetches all of it."""
    endpoint = BareEndpoint(UtpConfig())
    peer = LibtorrentPeer(torrent, folder, seed=False)
    serving: set[asyncio.Task[None]] = set()

    async def serve(connection: BareConnection) -> None:
        wire = BitTorrent(connection, torrent)
        with contextlib.suppress(ConnectionError):
            if not await wire.shake_hands():
                return
            await wire.serve()

    async def accept() -> None:
        while True:
            connection = await endpoint.accepted.get()
            connections.append(connection)
            serving.add(asyncio.create_task(serve(connection)))

    connections: list[BareConnection] = []
    acceptor = asyncio.create_task(accept())
    try:
        async with path_to(endpoint.address, loss, reorder) as address:
            await peer.until(lambda: peer.handle.status().state == lt.torrent_status.downloading)
            begun = time.monotonic()
            peer.handle.connect_peer(address)
            await peer.until(lambda: peer.handle.status().is_seeding)
            print(
                f"to libtorrent: {len(torrent.data) / MIB / (time.monotonic() - begun):.1f} MiB/s "
                f"{connections[-1].engine.stats}"
            )
        assert (folder / "file").read_bytes() == torrent.data
        assert not peer.handle.status().total_failed_bytes
        for connection in connections:
            assert not connection.engine.stats.dropped.keys() - EXPECTED_DROPS
    finally:
        for task in (acceptor, *serving):
            task.cancel()
        await asyncio.gather(acceptor, *serving, return_exceptions=True)
        endpoint.close()
        peer.close()


@pytest.fixture(scope="module")
def torrent(tmp_path_factory: pytest.TempPathFactory) -> Torrent:
    return Torrent(tmp_path_factory.mktemp("seed"), 64 * MIB)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("loss", "reorder"), [(0.0, 0.0), pytest.param(0.02, 0.05, marks=pytest.mark.slow)], ids=["clean", "lossy"]
)
async def test_we_download_from_libtorrent(torrent: Torrent, loss: float, reorder: float) -> None:
    async with asyncio.timeout(170):
        await we_download(torrent, loss, reorder)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("loss", "reorder"), [(0.0, 0.0), pytest.param(0.02, 0.05, marks=pytest.mark.slow)], ids=["clean", "lossy"]
)
async def test_libtorrent_downloads_from_us(torrent: Torrent, tmp_path: Path, loss: float, reorder: float) -> None:
    async with asyncio.timeout(170):
        await libtorrent_downloads(torrent, tmp_path, loss, reorder)


@pytest.mark.timeout(60)
async def test_the_end_is_told_to_libtorrent(torrent: Torrent) -> None:
    """A connection without a torrent in common: libtorrent hangs up, and both ends know why."""
    peer = LibtorrentPeer(torrent, torrent.folder, seed=True)
    endpoint = BareEndpoint(UtpConfig())
    try:
        await peer.until(lambda: peer.session.listen_port() and peer.handle.status().is_seeding)
        connection = await persist(lambda: endpoint.connect(peer.address))
        await connection.write(b"\x13BitTorrent protocol" + bytes(8) + bytes(20) + b"-CR0001-" + bytes(range(12)))
        assert await connection.read(1) == b""
        connection.close()
        async with asyncio.timeout(30):
            assert (await connection.closed()).reason is EndReason.CLOSED
    finally:
        endpoint.close()
        peer.close()
        await asyncio.sleep(0)  # the loop closes the sockets in its next turn
