"""A peer that has shaken hands and then breaks the protocol, floods, lies or falls silent."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

import crust
from crust.crypto.hashing import HashId
from crust.proto.noise import transport
from crust.proto.noise.handshake import Signing
from crust.proto.session.signing import Signer
from crust.wire import frames
from crust.wire.receipt import Kind
from crust.wire.service import AskChallenge, Forward, ServiceMessage, serialize_service_message
from tests.integration.hostile_support import assert_friend, under_attack
from tests.integration.node_support import (
    elapsed_below,
    eventually,
    open_descriptors,
    port_of,
    soon,
)
from tests.integration.raw_peer import RawPeer

KIB = 1024
MIB = 1024 * KIB


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
