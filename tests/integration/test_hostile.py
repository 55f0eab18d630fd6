"""Strangers, liars, floods and silence: the node stays up, counts what came, and serves its friends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest

import crust
from crust.crypto.hashing import HashId
from crust.proto.noise import transport
from crust.proto.noise.handshake import Signing
from crust.proto.session.signing import Signer
from crust.wire import frames
from crust.wire.receipt import Kind
from crust.wire.service import AskChallenge, Forward, ServiceMessage, serialize_service_message
from tests.integration.node_support import (
    answering,
    elapsed_below,
    eventually,
    node,
    nothing_left,
    open_descriptors,
    port_of,
    soon,
    target,
)
from tests.integration.raw_peer import RawPeer

KIB = 1024
MIB = 1024 * KIB


async def assert_friend(bob: crust.Node) -> None:
    """A friend still gets its connection, and soon."""
    async with node(listen=[], signing="off") as friend:
        contact = await bob.contact()
        with elapsed_below(1.0):
            ours = await soon(friend.connect(contact))
            await soon(ours.ping())
        theirs = await soon(anext(bob))
        await ours.send(b"hello")
        assert (await soon(theirs.receive())).data == b"hello"
        await soon(ours.close())


@contextlib.asynccontextmanager
async def under_attack(**settings: object) -> AsyncIterator[crust.Node]:
    """A node that must be as well afterwards as it was before."""
    async with nothing_left(), node(**{"signing": "off", "handshake_timeout": 1, **settings}) as bob:
        yield bob


async def counted(bob: crust.Node, name: str, times: int = 1) -> None:
    await eventually(lambda: bob.stats[name] >= times)
    assert bob.stats[name] == times


@contextlib.asynccontextmanager
async def stranger(bob: crust.Node) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bob))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def silence(reader: asyncio.StreamReader) -> None:
    """Nothing comes back, and the connection ends."""
    with contextlib.suppress(OSError):
        assert await soon(reader.read()) == b""


PROTOCOLS = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(32) + b"\x20" + bytes(32) + b"\0\2\x13\1\1\0",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "SMTP": b"EHLO example.com\r\n",
    "SOCKS 5": b"\5\1\0\5\1\0\1\x7f\0\0\1\0\x50",
    "SOCKS 4": b"\4\1\0\x50\x7f\0\0\1\0",
    "BitTorrent": b"\x13BitTorrent protocol" + bytes(8) + bytes(40),
    "RDP": bytes.fromhex("0300001300e000000000000100080003000000"),
    "DNS": b"\0\x1d\x12\x34\1\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "PostgreSQL": b"\0\0\0\x08\x04\xd2\x16\x2f",
    "SMB": b"\0\0\0\x2f\xffSMBr" + bytes(40),
    "PROXY": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
    "STUN": b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12),
}
STRANGERS = ("outer_tag", "implausible_length", "timed_out", "hung_up")


class TestFirstMessage:
    async def test_random_bytes(self) -> None:
        source = random.Random(1)
        async with under_attack() as bob:
            total = 40
            for _ in range(total):
                async with stranger(bob) as (_, writer):
                    writer.write(source.randbytes(source.randrange(1200, 3000)))
                    before = bob.stats["handshake.outer_tag"] + bob.stats["handshake.implausible_length"]
                    await eventually(
                        lambda: bob.stats["handshake.outer_tag"] + bob.stats["handshake.implausible_length"] > before  # noqa: B023
                    )
            assert bob.stats["handshake.outer_tag"] + bob.stats["handshake.implausible_length"] == total
            await assert_friend(bob)

    async def test_a_stranger_hears_nothing_until_a_random_moment(self) -> None:
        async with under_attack() as bob, stranger(bob) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(1200))
            loop = asyncio.get_running_loop()
            start = loop.time()
            await silence(reader)
            assert 0.25 < loop.time() - start < 3

    async def test_every_byte_altered(self) -> None:
        async with under_attack(max_half_open=2000) as bob:
            first = RawPeer(bob.id, 0).first
            for at in range(0, len(first), 7):
                async with stranger(bob) as (_, writer):
                    writer.write(first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :])
                    await eventually(lambda: bob.stats["handshake.half_open"])
            stats = bob.stats
            assert not stats["handshake.malformed"]
            assert not bob.connections
            await assert_friend(bob)

    async def test_cut_short(self) -> None:
        async with under_attack() as bob:
            first = RawPeer(bob.id, 0).first
            for size in (0, 1, 17, 18, len(first) - 1):
                async with stranger(bob) as (_, writer):
                    writer.write(first[:size])
                    writer.write_eof()
                    await eventually(lambda: not bob.stats["handshake.half_open"])
            await counted(bob, "handshake.hung_up", 5)

    async def test_never_finished(self) -> None:
        async with under_attack(handshake_timeout=0.3) as bob, stranger(bob) as (reader, writer):
            writer.write(RawPeer(bob.id, 0).first[:100])
            await silence(reader)
            await counted(bob, "handshake.timed_out")

    async def test_replayed(self) -> None:
        async with under_attack() as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            async with stranger(bob) as (reader, writer):
                writer.write(peer.first)
                await counted(bob, "handshake.replayed")
                await silence(reader)
            assert len(bob.connections) == 1
            peer.close()

    async def test_with_bytes_behind_it(self) -> None:
        async with under_attack() as bob:
            peer = RawPeer(bob.id, 0)
            async with stranger(bob) as (reader, writer):
                writer.write(peer.first + b"!")
                await counted(bob, "handshake.trailing_data")
                await silence(reader)

    async def test_for_another_node(self) -> None:
        async with under_attack() as bob, stranger(bob) as (reader, writer):
            writer.write(RawPeer(crust.Identity.generate().id, 0).first + bytes(1200))
            await silence(reader)
            assert bob.stats["handshake.outer_tag"] + bob.stats["handshake.implausible_length"] == 1

    @pytest.mark.parametrize("name", PROTOCOLS)
    async def test_other_protocols(self, name: str) -> None:
        """No answer, not even a hang-up before a random moment, to whoever speaks another language."""
        async with under_attack() as bob:
            for more in (b"", bytes(1200)):
                async with stranger(bob) as (reader, writer):
                    loop = asyncio.get_running_loop()
                    start = loop.time()
                    writer.write(PROTOCOLS[name] + more)
                    await silence(reader)
                    assert loop.time() - start > 0.25
            assert sum(bob.stats[f"handshake.{why}"] for why in STRANGERS) == 2
            assert not bob.connections

    async def test_replayed_after_a_restart_of_the_node(self) -> None:
        """The cache of recent keys is gone, and still nothing comes of it: only its sender can open the answer."""
        identity = crust.Identity.generate()
        async with node(identity, signing="off") as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            peer.say(frames.serialize_messages(0, 4, [b"once"]))
            theirs = await soon(anext(bob))
            assert (await soon(theirs.receive())).data == b"once"
            theirs.abort()
            record = peer.seal(peer.hello())
            peer.close()
        async with nothing_left(), node(identity, signing="off", handshake_timeout=0.5) as bob:
            events = bob.events()
            async with stranger(bob) as (reader, writer):
                writer.write(peer.first)
                assert await soon(reader.read(1))  # it cannot be told from a new one
                writer.write(record)
                with contextlib.suppress(OSError):
                    while await soon(reader.read(65536)):
                        pass
            async with stranger(bob) as (reader, writer):
                writer.write(peer.first)
                await silence(reader)
            await eventually(lambda: bob.stats["handshake.never_proved"] + bob.stats["handshake.bad_first_record"])
            assert bob.stats["handshake.replayed"] == 1
            assert not bob.connections
            assert not events._queue
            await assert_friend(bob)

    async def test_our_own_words_come_back(self) -> None:
        """Reflection: a port that sends back what it hears, and a stranger who sends us what we sent."""
        sent: list[bytes] = []

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                sent.append(data)
                writer.write(data)

        async with under_attack() as bob, answering(echo) as port:
            other = crust.Identity.generate().id
            with pytest.raises(crust.ConnectError):
                await soon(bob.connect(target(other, port), timeout=2))
            async with stranger(bob) as (reader, writer):
                writer.write(b"".join(sent))
                await silence(reader)
            assert sum(bob.stats[f"handshake.{why}"] for why in STRANGERS) == 1
            assert not bob.connections
            await assert_friend(bob)

    async def test_one_byte_at_a_time(self) -> None:
        """Slow, but in time."""
        async with under_attack(handshake_timeout=20) as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            first, peer.first = peer.first, b""
            for at in range(len(first)):
                peer.writer.write(first[at : at + 1])
                await peer.writer.drain()
                await asyncio.sleep(0)
            await soon(peer.join())
            hello = peer.seal(frames.serialize_messages(0, 4, [b"slow"]))
            for at in range(len(hello)):
                peer.writer.write(hello[at : at + 1])
                await asyncio.sleep(0)
            theirs = await soon(anext(bob))
            assert (await soon(theirs.receive())).data == b"slow"
            theirs.abort()
            await soon(peer.ended())
            peer.close()


class TestFirstRecord:
    async def test_never_sent(self) -> None:
        async with under_attack(handshake_timeout=0.3) as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            events = bob.events()
            await soon(peer.shake())
            await soon(peer.ended())
            await counted(bob, "handshake.never_proved")
            assert not bob.connections
            assert not events._queue
            peer.close()

    @pytest.mark.parametrize(
        "what",
        [
            lambda peer: bytes(70_000),
            lambda peer: random.Random(2).randbytes(70_000),
            lambda peer: peer.seal(frames.serialize_ping(1)),
            lambda peer: peer.seal(),
            lambda peer: peer.seal(b"\xee"),
            lambda peer: peer.seal(peer.hello()[:-1]),
            lambda peer: peer.seal(b"", payloads=[b"x"]),
            lambda peer: peer.seal(peer.hello())[:-1] + b"!",
        ],
    )
    async def test_not_what_it_should_be(self, what: Callable[[RawPeer], bytes]) -> None:
        async with under_attack() as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.shake())
            peer.writer.write(what(peer))
            await counted(bob, "handshake.bad_first_record")
            await soon(peer.ended())
            peer.close()
            assert not bob.connections
            await assert_friend(bob)

    async def test_names_a_session_that_never_was(self) -> None:
        async with under_attack() as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.shake())
            peer.say(peer.hello(your_nonce=b"q" * 16))
            found = await soon(peer.listen())
            assert found == [frames.Gone(b"q" * 16, 0)]
            await counted(bob, "handshake.session_gone")
            await soon(peer.ended())
            peer.close()


class TestSession:
    @pytest.mark.parametrize(
        ("pieces", "payloads"),
        [
            ([b"\xee"], []),
            ([b"\x10"], []),
            ([frames.serialize_ack(999)], []),
            ([frames.serialize_messages(0, 7, [b"x"])[:-1]], []),
            ([frames.serialize_fragment(0, 4, 1 << 31, 1, False) + b"x"], []),
            ([frames.serialize_fragment(0, 4, 10, 10, True)], []),
            ([frames.serialize_stream_data(0, 9, 1, False) + b"x"], []),
            ([frames.serialize_seed(0, bytes(32))], []),
            ([], [b"nobody's payload"]),
        ],
    )
    async def test_violations_end_the_connection_and_are_counted(
        self, pieces: list[bytes], payloads: list[bytes]
    ) -> None:
        async with under_attack() as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            peer.say(*pieces, payloads=payloads)
            with pytest.raises(crust.PeerLost, match="broke the protocol"):
                await soon(theirs.receive())
            assert bob.stats["protocol_error"] == 1
            await soon(peer.ended())
            peer.close()

    async def test_a_tampered_record_ends_the_path_only(self) -> None:
        async with under_attack(resume_timeout=60) as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            record = bytearray(peer.seal(frames.serialize_ping(1)))
            record[-1] ^= 1
            peer.writer.write(record)
            await soon(peer.ended())
            await eventually(lambda: theirs.path is None)
            assert not theirs.closed
            again = RawPeer(bob.id, port_of(bob), identity=peer.identity)
            again.nonce = peer.nonce
            await again.open()
            await soon(again.shake())
            again.say(again.hello(your_nonce=peer.their_nonce))
            again.say(frames.serialize_messages(0, 4, [b"still here"]))
            assert (await soon(theirs.receive())).data == b"still here"
            theirs.abort()
            for one in (peer, again):
                one.close()

    async def test_paths_without_end(self) -> None:
        """The larger PeerId is to close surplus paths; one that does not holds a bounded number."""
        async with under_attack(max_half_open=200) as bob:
            identity = crust.Identity.generate()
            while identity.id < bob.id:
                identity = crust.Identity.generate()
            peer = await RawPeer(bob.id, port_of(bob), identity=identity).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            before = open_descriptors()
            others = []
            for _ in range(40):
                other = RawPeer(bob.id, port_of(bob), identity=identity)
                other.nonce = peer.nonce
                others.append(await other.open())
                await soon(other.shake())
                other.say(other.hello(your_nonce=peer.their_nonce))
                await soon(other.listen())
            await eventually(lambda: open_descriptors() - before <= 40 + 16)
            assert theirs.stats["paths"] <= 16
            # The one that carries data stays, and so does the newest.
            others[-1].say(frames.serialize_messages(0, 4, [b"newest"]))
            assert (await soon(theirs.receive())).data == b"newest"
            theirs.abort()
            for each in (peer, *others):
                each.close()

    async def test_a_flood_of_pings_that_reads_nothing(self) -> None:
        async with under_attack() as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            peer.writer.transport.pause_reading()
            pings = [frames.serialize_ping(n) for n in range(5000)]
            tracemalloc.start()
            try:
                base = tracemalloc.get_traced_memory()[0]
                for _ in range(6):
                    peer.say(*pings)
                    await soon(peer.writer.drain())
                assert tracemalloc.get_traced_memory()[0] - base < 2 * MIB
            finally:
                tracemalloc.stop()
            await assert_friend(bob)
            theirs.abort()
            peer.close()

    @pytest.mark.parametrize("question", [AskChallenge(), Forward(bytes(16), bytes(32), bytes(100))])
    async def test_a_flood_of_questions_that_reads_no_answer(self, question: ServiceMessage) -> None:
        """What nodes tell each other has no credit, so what waits is counted."""
        async with under_attack(retention_bytes=512 * KIB) as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            peer.writer.transport.pause_reading()
            body = serialize_service_message(question)
            tracemalloc.start()
            try:
                base = tracemalloc.get_traced_memory()[0]
                for start in range(0, 60_000, 300):
                    peer.say(*(frames.serialize_service(n, body) for n in range(start, start + 300)))
                    await soon(peer.writer.drain())
                assert tracemalloc.get_traced_memory()[0] - base < 6 * MIB
            finally:
                tracemalloc.stop()
            await eventually(lambda: bob.stats["service.dropped"] > 1000)
            await assert_friend(bob)
            theirs.abort()
            peer.close()

    async def test_messages_that_nobody_reads_are_bounded_by_the_credit(self) -> None:
        async with under_attack(receive_window_bytes=256 * KIB, max_message_bytes=1 * MIB) as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            for n in range(10):
                peer.say(frames.serialize_messages(n, 4, [bytes(60_000)]))
            await eventually(lambda: theirs.closed)
            assert theirs.stats["unread_bytes"] <= 256 * KIB
            for _ in range(theirs.stats["messages_received"]):
                await soon(theirs.receive())
            with pytest.raises(crust.PeerLost, match="credit"):
                await soon(theirs.receive())
            peer.close()

    async def test_streams_are_bounded(self) -> None:
        async with under_attack(max_streams=10) as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            side = 0 if peer.identity.id < bob.id else 1
            peer.say(*(frames.serialize_stream_open(n, 2 * n + side, 4, b"s") for n in range(11)))
            with pytest.raises(crust.PeerLost, match="streams"):
                await soon(theirs.receive())
            peer.close()

    async def test_a_peer_that_does_not_renew_the_keys_loses_the_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with under_attack() as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            monkeypatch.setattr(transport, "MAX_RECORDS", 50)
            for n in range(100):
                await soon(theirs.send(b"%d" % n))
                await asyncio.sleep(0)
            await eventually(lambda: theirs.path is None)
            assert bob.stats["protocol_error"] == 1
            assert not theirs.closed
            theirs.abort()
            peer.close()

    async def test_a_peer_that_reads_nothing_holds_up_neither_the_node_nor_its_end(self) -> None:
        async with under_attack(close_timeout=0.5, send_queue_bytes=64 * KIB, retention_bytes=512 * KIB) as bob:
            peer = await RawPeer(bob.id, port_of(bob)).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            peer.writer.transport.pause_reading()
            sends = [asyncio.create_task(theirs.send(bytes(500 * KIB))) for _ in range(20)]
            await eventually(lambda: theirs.stats["unacknowledged_bytes"] and theirs.stats["queued_bytes"])
            await assert_friend(bob)
            descriptors = open_descriptors()
            with elapsed_below(4):
                await soon(theirs.close())
            assert isinstance(theirs.session.ended, crust.PeerLost)
            await soon(asyncio.gather(*sends, return_exceptions=True))
            # Its socket is not kept because the peer does not take what was written.
            await eventually(lambda: open_descriptors() < descriptors)
            peer.close()


class TestSignatures:
    @staticmethod
    def signer(peer: RawPeer, identity: crust.Identity | None = None) -> Signer:
        return Signer(identity or peer.identity, peer.remote, HashId.SHA256, b"s" * 32, None)

    async def joined(self, bob: crust.Node) -> tuple[RawPeer, crust.Connection, Signer]:
        peer = await RawPeer(bob.id, port_of(bob), signing=Signing.ON).open()
        await soon(peer.join())
        theirs = await soon(anext(bob))
        signer = self.signer(peer)
        signer.set_session_id(theirs.session.outbox.signer.direction.session)  # type: ignore[union-attr]
        peer.say(frames.serialize_seed(0, b"s" * 32))
        return peer, theirs, signer

    async def test_true_ones(self) -> None:
        async with under_attack(signing="on") as bob:
            peer, theirs, signer = await self.joined(bob)
            signer.add_batch(Kind.MESSAGE, 4, [b"a", b"b"], 0.0)
            peer.say(frames.serialize_messages(1, 4, [b"a", b"b"]), frames.serialize_signature(2, signer.sign(1.0)))
            message = await soon(theirs.receive())
            receipt = await soon(message.receipt())
            assert receipt.verify(b"a") == peer.identity.id
            theirs.abort()
            peer.close()

    async def test_over_something_else(self) -> None:
        """What the peer did sign is handed to the application."""
        async with under_attack(signing="on") as bob:
            events = bob.events()
            peer, theirs, signer = await self.joined(bob)
            signer.add_batch(Kind.MESSAGE, 4, [b"lie"], 0.0)
            peer.say(frames.serialize_messages(1, 4, [b"truth"]), frames.serialize_signature(2, signer.sign(1.0)))
            assert (await soon(theirs.receive())).data == b"truth"
            with pytest.raises(crust.PeerLost) as caught:
                await soon(theirs.receive())
            assert len(caught.value.proof) == 1
            assert caught.value.proof[0].is_genuine()
            while not isinstance(event := await soon(anext(events)), crust.PeerLost):
                pass
            assert event.proof == caught.value.proof
            assert event.peer == peer.identity.id
            peer.close()

    async def test_by_another_key(self) -> None:
        async with under_attack(signing="on") as bob:
            peer, theirs, _ = await self.joined(bob)
            other = self.signer(peer, crust.Identity.generate())
            other.set_session_id(theirs.session.outbox.signer.direction.session)  # type: ignore[union-attr]
            other.add_batch(Kind.MESSAGE, 4, [b"x"], 0.0)
            peer.say(frames.serialize_messages(1, 4, [b"x"]), frames.serialize_signature(2, other.sign(1.0)))
            await eventually(lambda: theirs.closed)
            assert isinstance(theirs.session.ended, crust.PeerLost)
            assert theirs.session.ended.proof == ()
            peer.close()

    async def test_withheld(self) -> None:
        async with under_attack(signing="on") as bob:
            peer, theirs, _ = await self.joined(bob)
            peer.say(frames.serialize_messages(1, 4, [b""] * 30_000))
            peer.say(frames.serialize_messages(2, 4, [b""] * 30_000))
            peer.say(frames.serialize_messages(3, 4, [b""] * 10_000))
            await eventually(lambda: theirs.closed)
            assert "withheld" in str(theirs.session.ended)
            peer.close()

    async def test_strict_shows_nothing_that_is_not_verified(self) -> None:
        async with under_attack(signing="strict") as bob:
            peer = await RawPeer(bob.id, port_of(bob), signing=Signing.ON).open()
            await soon(peer.join())
            theirs = await soon(anext(bob))
            peer.say(frames.serialize_seed(0, b"s" * 32), frames.serialize_messages(1, 4, [b"unsigned"]))
            await eventually(lambda: theirs.session.inbox.expected == 2)
            assert not theirs.session.inbox.has_message
            signer = self.signer(peer)
            signer.set_session_id(theirs.session.outbox.signer.direction.session)  # type: ignore[union-attr]
            signer.add_batch(Kind.MESSAGE, 4, [b"unsigned"], 0.0)
            peer.say(frames.serialize_signature(2, signer.sign(1.0)))
            assert (await soon(theirs.receive())).data == b"unsigned"
            theirs.abort()
            peer.close()


async def flood(bob: crust.Node, count: int) -> list[asyncio.StreamWriter]:
    """Connections that say nothing."""
    writers = []
    for n in range(0, count, 100):
        opened = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", port_of(bob)) for _ in range(min(100, count - n)))
        )
        writers += [writer for _, writer in opened]
    return writers


class TestFloods:
    @pytest.mark.parametrize("count", [600, pytest.param(9000, marks=pytest.mark.slow)])
    async def test_half_open_connections(self, count: int) -> None:
        async with under_attack(max_half_open=200, handshake_timeout=30) as bob:
            await assert_friend(bob)
            writers = await soon(flood(bob, count), 60)
            try:
                await eventually(lambda: bob.stats["handshake.evicted"] >= count - 200)
                assert bob.stats["handshake.half_open"] == 200
                await assert_friend(bob)
                assert bob.stats["handshake.half_open"] <= 200
            finally:
                for writer in writers:
                    writer.transport.abort()
            await eventually(lambda: not bob.stats["handshake.half_open"])

    async def test_friends_get_through_while_it_lasts(self) -> None:
        async with under_attack(max_half_open=50, handshake_timeout=30) as bob:
            stop = False

            async def attack() -> None:
                while not stop:
                    for writer in await flood(bob, 20):
                        writer.transport.abort()

            attacking = asyncio.create_task(attack())
            for _ in range(5):
                await assert_friend(bob)
            stop = True
            await soon(attacking)
            await eventually(lambda: not bob.stats["handshake.half_open"])

    async def test_memory_of_half_open_connections(self) -> None:
        async with under_attack(max_half_open=500, handshake_timeout=30) as bob:
            await assert_friend(bob)
            gc.collect()
            tracemalloc.start()
            try:
                writers = await soon(flood(bob, 500))
                await eventually(lambda: bob.stats["handshake.half_open"] == 500)
                gc.collect()
                # Both ends live in this process.
                assert tracemalloc.get_traced_memory()[0] < 500 * 24 * KIB
            finally:
                tracemalloc.stop()
                for writer in writers:
                    writer.transport.abort()

    async def test_vanishing_peers(self) -> None:
        """At every stage, many times: nothing stays."""
        async with under_attack(resume_timeout=0.1) as bob:
            source = random.Random(3)
            for n in range(40):
                peer = await RawPeer(bob.id, port_of(bob)).open()
                stage = n % 4
                if stage == 1:
                    peer.writer.write(peer.first[: source.randrange(len(peer.first))])
                elif stage == 2:
                    await soon(peer.shake())
                elif stage == 3:
                    await soon(peer.join())
                    peer.writer.write(peer.seal(frames.serialize_messages(0, 4, [bytes(1000)]))[:500])
                peer.close()
            await eventually(lambda: not bob.stats["handshake.half_open"] and not bob.connections)
            assert bob.stats["connections.lost"] == 10

    async def test_random_sessions(self) -> None:
        """Well-formed frames in any order, from peers with any identity."""
        source = random.Random(4)

        def number() -> int:
            return source.choice([0, 1, 2, 3, source.randrange(1 << 16), source.getrandbits(64)])

        def frame() -> bytes:
            data = source.randbytes(source.randrange(1, 50))
            return source.choice(
                [
                    lambda: frames.serialize_ack(number()),
                    lambda: frames.serialize_credit(source.randrange(8), number()),
                    lambda: frames.serialize_stream_credit(number(), number()),
                    lambda: frames.serialize_ping(number()),
                    lambda: frames.serialize_pong(number()),
                    lambda: frames.serialize_gone(source.randbytes(16), source.randrange(4)),
                    lambda: frames.serialize_datagram(data),
                    lambda: frames.serialize_messages(number(), source.randrange(8), [data, b""]),
                    lambda: (
                        frames.serialize_fragment(number(), source.randrange(8), number() % (1 << 32), len(data), False)
                        + data
                    ),
                    lambda: frames.serialize_abort(number(), source.randrange(8)),
                    lambda: frames.serialize_stream_open(number(), number(), source.randrange(8), b"n"),
                    lambda: frames.serialize_stream_data(number(), number(), len(data), False) + data,
                    lambda: frames.serialize_stream_fin(number(), number()),
                    lambda: frames.serialize_stream_reset(number(), number(), 0),
                    lambda: frames.serialize_stream_stop(number(), number(), 0),
                    lambda: frames.serialize_close(number(), 0),
                    lambda: frames.serialize_seed(number(), bytes(32)),
                    lambda: frames.serialize_signature(number(), source.randbytes(136)),
                    lambda: frames.serialize_service(number(), data),
                    lambda: frames.serialize_path_service(data),
                    lambda: frames.serialize_path_close(),
                ]
            )()

        async with under_attack(resume_timeout=0.1, close_timeout=0.3) as bob:
            failures: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
            for _ in range(60):
                peer = await RawPeer(bob.id, port_of(bob)).open()
                await soon(peer.join())
                await soon(anext(bob))
                for _ in range(source.randrange(1, 12)):
                    peer.say(*(frame() for _ in range(source.randrange(1, 4))))
                await peer.writer.drain()
                peer.writer.write_eof()
                await soon(peer.ended())
                peer.close()
            await eventually(lambda: not bob.connections)
            assert not failures
            await assert_friend(bob)


def test_the_first_flight_looks_random() -> None:
    """No two first messages of one node have a common byte at more places than chance would give."""
    peer = crust.Identity.generate().id
    flights = [RawPeer(peer, 0).first for _ in range(60)]
    for at in range(min(map(len, flights))):
        assert len({flight[at] for flight in flights}) > 30
    assert len({len(flight) for flight in flights}) > 20
    assert len({hashlib.sha256(flight).digest() for flight in flights}) == 60
