"""Strangers, floods and silence: the node stays up, counts what came, and serves its friends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import tracemalloc
from collections.abc import Callable

import pytest

import crust
from crust.wire import frames
from tests.integration.hostile_support import assert_friend, counted, silence, stranger, under_attack
from tests.integration.node_support import (
    answering,
    eventually,
    node,
    nothing_left,
    port_of,
    soon,
    target,
)
from tests.integration.raw_peer import RawPeer

KIB = 1024

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
