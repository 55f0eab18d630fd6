"""Signed sessions: delivery at once or when verified, signatures in time, liars cut off with the proof of it."""

from __future__ import annotations

import pytest

from crust.config import Config
from crust.crypto.hashing import HashId
from crust.errors import ConnectionClosed, PeerLost, RemoteProtocolError
from crust.proto.session.events import SessionEnded
from crust.proto.session.signing import SIGNATURE_DELAY, Signer
from crust.testing.pair import Link, Pair, Parcel, Peer
from crust.types import Priority
from crust.wire import frames
from crust.wire.receipt import Kind, Receipt
from crust.wire.statement import conflict

KIB = 1024
MIB = 1024 * KIB


def joined(*, strict: tuple[bool, bool] = (False, False), delay: float = 0.001, **settings: int) -> tuple[Pair, Link]:
    pair = Pair(Config(**settings), signing=True, strict=strict)  # type: ignore[arg-type]
    link = pair.add_path(delay=delay)
    pair.run(1)
    return pair, link


def receipts(peer: Peer) -> list[tuple[bytes, Receipt | None]]:
    found = []
    while (message := peer.session.next_message()) is not None:
        data, _, mark = message
        segment, number = mark
        found.append((data, segment.receipt(number)))
    return found


class TestReceipts:
    def test_for_every_message(self) -> None:
        pair, _ = joined()
        contents = [b"", b"x", bytes(5000), bytes(100_000), bytes(3 * MIB)] * 3
        for n, data in enumerate(contents):
            pair.a.send(data, Priority(n % 8))
        pair.settle()
        pair.run(0.1)
        found = receipts(pair.b)
        assert len(found) == len(contents)
        for data, receipt in found:
            assert receipt is not None
            assert receipt.verify(data) == pair.identities[0].id

    def test_behind_streams_and_aborted_messages(self) -> None:
        pair = Pair(signing=True)
        pair.add_path(rate=1e6, capacity=64 * KIB)
        stream = pair.a.session.streams.open("s", Priority.HIGH)
        pair.a.session.streams.write(stream, memoryview(bytes(300_000)))
        pair.a.send(bytes(4 * MIB), expires_in=1.0)
        pair.a.send(b"behind")
        pair.run(20)
        assert pair.a.session.outbox.expired == 1
        [(data, receipt)] = receipts(pair.b)
        assert data == b"behind"
        assert receipt is not None
        assert receipt.verify(data) == pair.identities[0].id
        assert not pair.b.broken

    def test_across_paths(self) -> None:
        pair, link = joined()
        for n in range(10):
            pair.a.send(bytes([n]) * 50_000)
            pair.run(0.003)
            pair.kill(link)
            link = pair.add_path(delay=0.001)
        pair.settle()
        pair.run(0.1)
        assert all(receipt is not None for _, receipt in receipts(pair.b))


class TestTiming:
    def signed_after(self, pair: Pair) -> float:
        before = pair.b.session.delivery.signatures
        start = pair.clock.now
        assert pair.run(5, until=lambda: pair.b.session.delivery.signatures > before)
        return pair.clock.now - start

    def test_twenty_milliseconds(self) -> None:
        pair, _ = joined()
        pair.a.send(b"x")
        assert self.signed_after(pair) == pytest.approx(SIGNATURE_DELAY + 0.001, abs=0.002)

    def test_data_do_not_wait_for_it(self) -> None:
        pair, _ = joined()
        pair.a.send(b"x")
        pair.run(0.005)
        assert pair.b.read() == b"x"

    def test_many_messages_share_one(self) -> None:
        pair, _ = joined()
        before = pair.a.session.outbox.signatures
        for _ in range(10):
            pair.a.send(b"x")
            pair.run(0.001)
        pair.run(0.1)
        assert pair.a.session.outbox.signatures - before == 1

    def test_no_signature_without_data(self) -> None:
        pair, _ = joined()
        before = pair.a.session.outbox.signatures
        pair.run(600)
        assert pair.a.session.outbox.signatures == before

    def test_after_eight_mebibytes_at_the_latest(self) -> None:
        pair = Pair(signing=True)
        pair.add_path(capacity=300 * KIB, delay=1e-5)
        pair.run(0.1)
        unsigned = 0
        for _ in range(20):
            pair.a.send(bytes(2 * MIB))
        while pair.run(0.001, until=lambda: pair.b.session.inbox.has_message) or pair.a.session.outbox.queued_total:
            pair.b.read_all()
            verifier = pair.b.session.delivery.verifier
            assert verifier is not None
            unsigned = max(unsigned, verifier._bytes)
        assert unsigned <= 12 * MIB
        assert not pair.b.broken

    def test_none_before_both_nonces_are_known(self) -> None:
        pair = Pair(signing=True)
        link = pair.add_path()
        link.lanes[1].held = True
        pair.a.send(b"x")
        pair.run(0.3)
        assert pair.a.session.outbox.signatures == 0
        link.hold(held=False)
        pair.run(0.3)
        assert pair.a.session.outbox.signatures == 1


class TestPaceOfTheReceiver:
    """Who has too much to check asks for fewer signatures."""

    def overwork(self, pair: Pair) -> None:
        """B has many other peers."""
        terms = pair.b.session.delivery._terms
        assert terms is not None
        for _ in range(5):
            pair.clock.advance(0.3)
            for _ in range(6000):
                terms.pace.verified(pair.clock.now)

    def signatures(self, pair: Pair, seconds: float) -> int:
        """How many A makes while it sends all the time."""
        before = pair.a.session.outbox.signatures
        for _ in range(round(seconds * 50)):
            pair.a.send(b"x")
            pair.run(0.02)
        return pair.a.session.outbox.signatures - before

    def test_a_sender_slows_down_and_recovers(self) -> None:
        pair, _ = joined()
        assert self.signatures(pair, 2) > 40
        self.overwork(pair)
        pair.a.send(b"x")
        pair.run(0.1)
        assert self.signatures(pair, 2) < 10
        assert self.signatures(pair, 20) > 200
        assert not pair.b.broken

    def test_not_in_strict_mode(self) -> None:
        pair, _ = joined(strict=(False, True))
        self.overwork(pair)
        assert self.signatures(pair, 2) > 40

    def test_it_is_said_again_over_another_path(self) -> None:
        pair, link = joined()
        standby = pair.add_path(delay=0.001)
        pair.run(1)
        self.overwork(pair)
        link.lanes[1].lossy = True
        pair.a.send(b"x")
        pair.run(0.1)
        assert self.signatures(pair, 0.4) > 5
        pair.kill(link)
        pair.run(0.1)
        assert pair.b.session.active_path == standby.id
        pair.a.send(b"x")
        pair.run(0.1)
        assert self.signatures(pair, 1) < 10

    def test_nobody_is_asked_for_more_than_a_second(self) -> None:
        pair, link = joined()
        pair.a.session.receive_group(link.id, b"\0" + frames.serialize_signature_delay(65_535), [], pair.clock.now)
        pair.a.send(b"x")
        pair.run(0.1)
        start = pair.b.session.delivery.signatures
        pair.a.send(b"y")
        pair.run(1.1)
        assert pair.b.session.delivery.signatures == start + 1


class TestStrict:
    def test_holds_until_verified(self) -> None:
        pair, _ = joined(strict=(False, True))
        pair.a.send(b"x")
        pair.run(0.015)
        assert pair.b.read() is None
        pair.run(0.02)
        assert pair.b.read() == b"x"

    def test_keeps_everything_in_order(self) -> None:
        pair, _ = joined(strict=(True, True))
        stream = pair.a.session.streams.open("s", Priority.NORMAL)
        sent = []
        for n in range(30):
            data = bytes([n]) * (n * 5000)
            sent.append(data)
            pair.a.send(data)
            pair.a.session.streams.write(stream, memoryview(bytes([n])))
            pair.run(0.004)
        pair.a.session.streams.end(stream)
        pair.settle()
        pair.run(0.2)
        assert pair.b.read_all() == sent
        [state] = pair.b.session.streams.opened
        assert b"".join(state.chunks) == bytes(range(30))

    def test_is_one_sides_own_choice(self) -> None:
        pair, _ = joined(strict=(True, False))
        pair.b.send(b"to the strict one")
        pair.a.send(b"to the other")
        pair.run(0.01)
        assert pair.b.read() == b"to the other"
        assert pair.a.read() is None
        pair.run(0.1)
        assert pair.a.read() == b"to the strict one"

    def test_close_delivers_what_is_held(self) -> None:
        pair, _ = joined(strict=(True, True))
        pair.a.send(b"last words")
        pair.a.close()
        pair.run(1)
        assert pair.b.read_all() == [b"last words"]
        assert isinstance(pair.b.ended, ConnectionClosed)

    def test_what_is_held_is_bounded(self) -> None:
        """What is no unit does not count towards the limits of what is unsigned."""
        pair, link = joined(strict=(False, True))
        link.lanes[0].lossy = True
        number = pair.b.session.inbox.expected

        def say(*pieces: bytes) -> None:
            pair.b.session.receive_group(link.id, b"\0" + b"".join(pieces), [], pair.clock.now)

        say(frames.serialize_messages(number, 4, [b"x"]))
        stops = [frames.serialize_stream_stop(n, 0, 0) for n in range(number + 1, number + 65_540)]
        for at in range(0, 65_000, 1000):
            say(*stops[at : at + 1000])
        with pytest.raises(RemoteProtocolError, match="65,536 frames wait"):
            say(*stops[65_000:])

    def test_what_is_held_is_lost_with_a_liar(self) -> None:
        pair, _ = joined(strict=(False, True))

        def forge(link: Link, sender: int, parcel: Parcel) -> None:
            if sender == 0:
                parcel.control = parcel.control.replace(b"truth", b"a lie")
            deliver(link, sender, parcel)

        deliver = pair.deliver
        pair.deliver = forge  # type: ignore[method-assign]
        pair.a.send(b"truth")
        pair.run(1)
        assert pair.b.read_all() == []
        assert isinstance(pair.b.ended, PeerLost)


class TestLiars:
    def ledger(self, pair: Pair) -> Signer:
        """A signer of its own for what A says, in the same session."""
        signer = Signer(pair.identities[0], pair.identities[1].id, HashId.SHA256, b"s" * 32)
        assert pair.a.session.outbox.signer is not None
        signer.set_session_id(pair.a.session.outbox.signer.direction.session)
        return signer

    def liar(self) -> tuple[Pair, Link, Signer]:
        """B hears a peer that speaks frames of our making, from SEED on."""
        pair = Pair(signing=True)
        link = pair.add_path()
        pair.run(0)
        link.lanes[0].lossy = True
        link.lanes[0].clear()
        signer = self.ledger(pair)
        number = pair.b.session.inbox.expected
        assert number == 1
        assert pair.b.session.delivery.verifier is not None
        signer._seed = pair.b.session.delivery.verifier._seed
        return pair, link, signer

    def say(self, pair: Pair, link: Link, *pieces: bytes) -> None:
        pair.b.session.receive_group(link.id, b"\0" + b"".join(pieces), [], pair.clock.now)

    def test_the_truth_is_accepted(self) -> None:
        pair, link, signer = self.liar()
        signer.add_batch(Kind.MESSAGE, 4, [b"x"], 0.0)
        self.say(pair, link, frames.serialize_messages(1, 4, [b"x"]), frames.serialize_signature(2, signer.sign(1.0)))
        [(data, receipt)] = receipts(pair.b)
        assert receipt is not None
        assert receipt.verify(data) == pair.identities[0].id

    @pytest.mark.parametrize("said", [b"y", b""])
    def test_signed_something_else(self, said: bytes) -> None:
        pair, link, signer = self.liar()
        signer.add_batch(Kind.MESSAGE, 4, [b"x"], 0.0)
        signature = frames.serialize_signature(2, signer.sign(1.0))
        with pytest.raises(RemoteProtocolError, match="something else"):
            self.say(pair, link, frames.serialize_messages(1, 4, [said]), signature)

    def test_the_proof_is_in_the_event(self) -> None:
        pair, link, signer = self.liar()
        signer.add_batch(Kind.MESSAGE, 4, [b"x"], 0.0)
        with pytest.raises(RemoteProtocolError, match="something else"):
            self.say(
                pair, link, frames.serialize_messages(1, 4, [b"y"]), frames.serialize_signature(2, signer.sign(1.0))
            )
        pair.run(0.1)
        [event] = [event for event in pair.b.events if isinstance(event, SessionEnded)]
        assert isinstance(event.error, PeerLost)
        [statement] = event.error.proof
        assert statement.is_genuine()
        assert statement.direction.sender == pair.identities[0].id

    def test_signed_twice_differently(self) -> None:
        pair, link, signer = self.liar()
        signer.add_batch(Kind.MESSAGE, 4, [b"x"], 0.0)
        other = self.ledger(pair)
        other._seed = signer._seed
        other.add_batch(Kind.MESSAGE, 4, [b"z"], 0.0)
        self.say(pair, link, frames.serialize_messages(1, 4, [b"x"]), frames.serialize_signature(2, signer.sign(1.0)))
        with pytest.raises(RemoteProtocolError, match="twice"):
            self.say(pair, link, frames.serialize_signature(3, other.sign(2.0)))
        assert isinstance(pair.b.ended, PeerLost)
        assert conflict(*pair.b.ended.proof) == pair.identities[0].id

    def test_a_repeated_signature_is_harmless(self) -> None:
        pair, link, signer = self.liar()
        signer.add_batch(Kind.MESSAGE, 4, [b"x"], 0.0)
        body = signer.sign(1.0)
        self.say(pair, link, frames.serialize_messages(1, 4, [b"x"]), frames.serialize_signature(2, body))
        self.say(pair, link, frames.serialize_signature(3, body))
        assert pair.b.ended is None

    def test_a_signature_over_nothing(self) -> None:
        pair, link, signer = self.liar()
        signer.add_batch(Kind.MESSAGE, 4, [b"x"], 0.0)
        with pytest.raises(RemoteProtocolError):
            self.say(pair, link, frames.serialize_signature(1, signer.sign(1.0)))

    def test_withheld_for_five_seconds_while_frames_keep_coming(self) -> None:
        pair, link, _ = self.liar()
        self.say(pair, link, frames.serialize_ack(1))
        for n in range(1, 50):
            self.say(pair, link, frames.serialize_messages(n, 4, [b"x"]))
            pair.clock.advance(0.1)
        pair.clock.advance(0.2)
        with pytest.raises(RemoteProtocolError, match="withheld"):
            self.say(pair, link, frames.serialize_messages(50, 4, [b"x"]))

    def test_a_peer_that_may_not_have_heard_us_has_more_time(self) -> None:
        """Its signature names the session, and so our nonce; on a path that is one-way it cannot know that yet."""
        pair, link, _ = self.liar()
        for n in range(1, 120):
            self.say(pair, link, frames.serialize_messages(n, 4, [b"x"]))
            pair.clock.advance(1.0)
        self.say(pair, link, frames.serialize_ack(1))
        for n in range(120, 125):
            self.say(pair, link, frames.serialize_messages(n, 4, [b"x"]))
            pair.clock.advance(1.0)
        with pytest.raises(RemoteProtocolError, match="withheld"):
            self.say(pair, link, frames.serialize_messages(125, 4, [b"x"]))

    def test_a_peer_that_claims_not_to_hear_us_does_not_have_it_for_ever(self) -> None:
        pair, link, _ = self.liar()
        for n in range(1, 127):
            self.say(pair, link, frames.serialize_messages(n, 4, [b"x"]))
            pair.clock.advance(1.0)
        with pytest.raises(RemoteProtocolError, match="withheld"):
            self.say(pair, link, frames.serialize_messages(127, 4, [b"x"]))

    def test_withheld_for_65536_messages(self) -> None:
        pair, link, _ = self.liar()
        for n in range(1, 4):
            self.say(pair, link, frames.serialize_messages(n, 4, [b""] * 21_845))
        self.say(pair, link, frames.serialize_messages(4, 4, [b""]))
        with pytest.raises(RemoteProtocolError, match="withheld"):
            self.say(pair, link, frames.serialize_messages(5, 4, [b""]))

    def test_withheld_before_the_end(self) -> None:
        pair, link, _ = self.liar()
        with pytest.raises(RemoteProtocolError, match="without signing"):
            self.say(pair, link, frames.serialize_messages(1, 4, [b"x"]), frames.serialize_close(2, 0))

    def test_a_second_seed(self) -> None:
        pair, link, _ = self.liar()
        with pytest.raises(RemoteProtocolError, match="seed"):
            self.say(pair, link, frames.serialize_seed(1, bytes(32)))

    @pytest.mark.parametrize(
        "piece",
        [
            frames.serialize_messages(0, 4, [b"x"]),
            frames.serialize_fragment(0, 4, 10, 10, False) + bytes(10),
            frames.serialize_abort(0, 4),
        ],
    )
    def test_data_before_the_seed(self, piece: bytes) -> None:
        pair = Pair(signing=True)
        link = pair.add_path()
        hello = frames.serialize_hello(frames.Hello(b"n" * 16, bytes(16), 0, 1 << 20, 1 << 20, 1 << 20))
        with pytest.raises(RemoteProtocolError, match="seed does not come first"):
            pair.a.session.receive_group(link.id, b"\0" + hello + piece, [], pair.clock.now)

    def test_signatures_of_no_form(self) -> None:
        pair, link, _ = self.liar()
        with pytest.raises(RemoteProtocolError):
            self.say(pair, link, frames.serialize_signature(1, b"short"))


def test_a_fast_path_and_then_a_slow_one() -> None:
    """What was written within one signature's time takes far longer over the path that comes after."""
    pair, link = joined(receive_window_bytes=64 * MIB)
    link.lanes[0].lossy = True
    for _ in range(100):
        pair.a.send(bytes(60_000))
    pair.run(0.015)
    pair.kill(link)
    pair.add_path(rate=500_000, capacity=64 * KIB, delay=0.05)
    pair.settle(60)
    assert not pair.b.broken
    assert len(pair.b.read_all()) == 100


@pytest.mark.parametrize("rate", [20_000, 100_000])
def test_a_slow_path_with_a_large_buffer(rate: int) -> None:
    """What the network takes at once it delivers in minutes; the signatures must not all stand at its end."""
    pair = Pair(signing=True)
    pair.add_path(rate=rate, delay=0.05)
    for _ in range(3):
        pair.a.send(bytes(300_000))
    pair.run(120, until=lambda: pair.b.session.inbox.messages_received == 3)
    pair.run(20)
    assert not pair.b.broken
    assert len(pair.b.read_all()) == 3
