"""The dialled side: silence, hints, and whose PeerId a handshake carries."""

from __future__ import annotations

import hashlib
import random

import pytest

from crust.crypto.aead import Suite
from crust.crypto.dh import DhKey
from crust.crypto.keys import Identity, PeerId, verify
from crust.errors import LocalProtocolError
from crust.proto.noise.envelope import Envelope, outer_secret
from crust.proto.noise.handshake import (
    DiscardReason,
    EphemeralCache,
    FailureReason,
    HandshakeFailed,
    Hello,
    Hint,
    Network,
    ResponderHandshake,
    Signing,
)
from crust.proto.noise.ik import IkInitiator
from crust.wire.handshake import REQUEST_BYTES, Request, serialize_hello, serialize_request
from tests.unit.proto.noise.support import ALICE, BOB, MALLORY, NETWORK, Sides, negative

SALT = bytes(range(16))


def sealed(body: bytes, *, to: PeerId = BOB.id) -> bytes:
    """Any body in a true envelope."""
    return Envelope(outer_secret(to), SALT).request().seal(body)


def crafted(
    payload: bytes,
    *,
    static: DhKey = MALLORY.dh,
    ephemeral: DhKey | None = None,
    network: Network = NETWORK,
    to: PeerId = BOB.id,
) -> bytes:
    """Message 1 by somebody who breaks the rules."""
    noise = IkInitiator(
        Suite.AESGCM, network.prologue(Suite.AESGCM, to), static, ephemeral or DhKey(bytes([7]) * 32), to.x25519
    )
    return sealed(serialize_request(Request(Suite.AESGCM, noise.write_message_1(payload)), 0), to=to)


class Claims(DhKey):
    """A key pair that shows another public key than its own."""

    def __init__(self, private: bytes, public: bytes) -> None:
        super().__init__(private)
        object.__setattr__(self, "public", public)


def discarded(data: bytes, *, chunk: int = 0) -> tuple[DiscardReason, ResponderHandshake]:
    """Feed a new responder; it must go silent."""
    responder = ResponderHandshake(BOB, NETWORK, random=random.Random(1).randbytes, seen=EphemeralCache())
    for start in range(0, len(data), chunk or len(data)):
        assert responder.receive_data(data[start : start + (chunk or len(data))], 0.0) is None
    assert responder.discarding
    assert responder.reason is not None
    return responder.reason, responder


def silent(data: bytes, reason: DiscardReason) -> None:
    """It goes silent, for that reason, and says nothing at all."""
    for chunk in (0, 1):
        found, responder = discarded(data, chunk=chunk)
        assert found is reason
        assert responder.hint is None
        assert responder.receive_data(b"more", 0.0) is None
        with pytest.raises(LocalProtocolError):
            responder.accept(Hello(BOB.id))
        with pytest.raises(LocalProtocolError):
            responder.refuse()


class TestStrangers:
    def test_random_bytes(self) -> None:
        source = random.Random(3)
        reasons = {discarded(source.randbytes(2000))[0] for _ in range(300)}
        assert reasons == {DiscardReason.IMPLAUSIBLE_LENGTH, DiscardReason.OUTER_TAG}

    @pytest.mark.parametrize("size", range(18))
    def test_waits_for_a_header(self, size: int) -> None:
        responder = Sides().responder
        assert responder.receive_data(bytes(size), 0.0) is None
        assert not responder.discarding
        assert responder.reason is None

    def test_other_peer_id(self) -> None:
        """A dial to Mallory, or to Bob's negative, at Bob's address: to Bob even the length is noise."""
        for remote in (MALLORY.id, negative(BOB.id)):
            for seed in range(20):
                sides = Sides(seed, remote=remote)
                data = sides.message_1 + bytes(2000)
                assert discarded(data)[0] in {DiscardReason.IMPLAUSIBLE_LENGTH, DiscardReason.OUTER_TAG}
                assert discarded(data)[1].hint is None

    @pytest.mark.parametrize("position", [18, 100, -1])
    def test_wrong_tag(self, position: int) -> None:
        data = bytearray(Sides().message_1)
        data[position] ^= 1
        silent(bytes(data), DiscardReason.OUTER_TAG)

    @pytest.mark.parametrize("size", [0, REQUEST_BYTES - 1, 1024 - 16 + 1, 65535 - 16])
    def test_implausible_lengths(self, size: int) -> None:
        silent(sealed(bytes(size)), DiscardReason.IMPLAUSIBLE_LENGTH)

    def test_greatest_length(self) -> None:
        sides = Sides()
        noise = IkInitiator(
            Suite.AESGCM, NETWORK.prologue(Suite.AESGCM, BOB.id), ALICE.dh, DhKey(bytes([7]) * 32), BOB.dh.public
        )
        # Later versions may say more in their Hello.
        request = Request(Suite.AESGCM, noise.write_message_1(serialize_hello(Hello(ALICE.id)) + bytes(300)))
        body = serialize_request(request, 0)
        data = sealed(body + bytes(1024 - 16 - len(body)))
        assert sides.responder.receive_data(data, 0.0) is not None
        message_2, _ = sides.responder.accept(Hello(BOB.id))
        assert len(message_2) <= 684


class TestInside:
    """Whoever knows our PeerId."""

    def test_malformed(self) -> None:
        silent(sealed(b"\1\1\0\1" + bytes(REQUEST_BYTES)), DiscardReason.MALFORMED)
        silent(crafted(bytes(5) + bytes(34)), DiscardReason.MALFORMED)
        silent(crafted(serialize_hello(Hello(MALLORY.id))[:32] + b"\x09" * 7), DiscardReason.MALFORMED)

    @pytest.mark.parametrize("head", [b"\2\1\0\x87", b"\1\3\0\x87", b"\0\0\0\0"])
    def test_unsupported_version(self, head: bytes) -> None:
        data = sealed(head + bytes(REQUEST_BYTES))
        reason, responder = discarded(data)
        assert reason is DiscardReason.UNSUPPORTED_VERSION
        assert responder.hint is not None
        assert len(responder.hint) < len(data)
        hint = Envelope(outer_secret(BOB.id), SALT).hint(data[-16:]).open(responder.hint)
        assert hint[0] == Hint.UNSUPPORTED_VERSION

    def test_network_mismatch(self) -> None:
        data = crafted(serialize_hello(Hello(MALLORY.id)), network=Network.of("other"))
        reason, responder = discarded(data)
        assert reason is DiscardReason.NETWORK_MISMATCH
        assert responder.hint is not None
        assert len(responder.hint) < len(data)

    @pytest.mark.parametrize("u", [0, 1, 2**255 - 20, 2**255 - 19])
    def test_low_order_keys(self, u: int) -> None:
        raw = u.to_bytes(32, "little")
        hello = serialize_hello(Hello(MALLORY.id))
        silent(crafted(hello, static=Claims(MALLORY.x25519_private, raw)), DiscardReason.LOW_ORDER_KEY)
        noise = raw + bytes(REQUEST_BYTES - 4 - 32)
        silent(sealed(serialize_request(Request(Suite.AESGCM, noise), 0)), DiscardReason.LOW_ORDER_KEY)

    @pytest.mark.parametrize(
        "raw", [bytes(32), b"\xff" * 32, (2).to_bytes(32, "little"), (1 << 255 | 1).to_bytes(32, "little")]
    )
    def test_impossible_peer_ids(self, raw: bytes) -> None:
        silent(crafted(raw + bytes(7)), DiscardReason.MALFORMED)

    @pytest.mark.parametrize("claimed", [ALICE.id, negative(ALICE.id), BOB.id, negative(BOB.id)])
    def test_claiming_anothers_peer_id(self, claimed: PeerId) -> None:
        hello = serialize_hello(Hello(claimed))
        # With the own static key, the PeerId does not map to it; with the other's, the DH fails.
        silent(crafted(hello), DiscardReason.WRONG_PEER_ID)
        silent(crafted(hello, static=Claims(MALLORY.x25519_private, claimed.x25519)), DiscardReason.FORGED_STATIC)

    def test_who_owns_a_key_owns_its_negative(self) -> None:
        """It takes nothing from others, and is a PeerId of its own: Mallory's is not reached by it."""
        sides = Sides()
        incoming = sides.responder.receive_data(crafted(serialize_hello(Hello(negative(MALLORY.id)))), 0.0)
        assert incoming is not None
        assert incoming.hello.peer == negative(MALLORY.id) != MALLORY.id

    def test_who_owns_a_key_can_sign_as_its_negative(self) -> None:
        """Why a signature in the handshake would not tell P and -P apart: L - a makes signatures that verify as -P."""
        order = 2**252 + 27742317777372353535851937790883648493
        nonce_identity = Identity.from_seed(bytes([77]) * 32)  # its scalar and public key serve as r and R
        r, commitment = int.from_bytes(nonce_identity.x25519_private, "little"), bytes(nonce_identity.id)
        scalar = order - int.from_bytes(MALLORY.x25519_private, "little") % order
        peer = negative(MALLORY.id)
        message = b"crust-v1 receipt\0data"
        challenge = int.from_bytes(hashlib.sha512(commitment + bytes(peer) + message).digest(), "little")
        signature = commitment + ((r + challenge * scalar) % order).to_bytes(32, "little")
        assert verify(peer, "receipt", signature, b"data")
        assert not verify(MALLORY.id, "receipt", signature, b"data")

    def test_static_key_in_another_encoding(self) -> None:
        """The high bit of a u coordinate is ignored by X25519; the PeerId's map has it clear."""
        static = bytearray(MALLORY.dh.public)
        static[31] |= 0x80
        data = crafted(serialize_hello(Hello(MALLORY.id)), static=Claims(MALLORY.x25519_private, bytes(static)))
        silent(data, DiscardReason.WRONG_PEER_ID)

    def test_bytes_behind_message_1(self) -> None:
        data = Sides().message_1
        reason, responder = discarded(data + b"x")
        assert (reason, responder.hint) == (DiscardReason.TRAILING_DATA, None)
        sides = Sides()
        assert sides.responder.receive_data(data, 0.0) is not None
        assert sides.responder.receive_data(b"", 0.0) is None
        assert not sides.responder.discarding
        assert sides.responder.receive_data(b"x", 0.0) is None
        assert sides.responder.reason is DiscardReason.TRAILING_DATA


class TestReplay:
    def again(self, sides: Sides) -> ResponderHandshake:
        return ResponderHandshake(BOB, NETWORK, random=sides.random, seen=sides.seen)

    def test_copies_are_dropped_for_a_while(self) -> None:
        sides = Sides()
        assert sides.responder.receive_data(sides.message_1, 0.0) is not None
        copy = self.again(sides)
        assert copy.receive_data(sides.message_1, 1.0) is None
        assert (copy.reason, copy.hint) == (DiscardReason.REPLAYED, None)
        late = self.again(sides)
        assert late.receive_data(sides.message_1, 1000.0) is not None

    def test_new_envelope_is_still_a_copy(self) -> None:
        """The salt does not matter: somebody who knows our PeerId can seal a seen message anew."""
        sides = Sides()
        body = Envelope(outer_secret(BOB.id), sides.message_1[:16]).request().open(sides.message_1[16:])
        assert sides.responder.receive_data(sides.message_1, 0.0) is not None
        copy = self.again(sides)
        assert copy.receive_data(sealed(body), 1.0) is None
        assert copy.reason is DiscardReason.REPLAYED

    def test_a_broken_copy_does_not_keep_the_true_one_out(self) -> None:
        sides = Sides()
        body = bytearray(Envelope(outer_secret(BOB.id), sides.message_1[:16]).request().open(sides.message_1[16:]))
        body[100] ^= 1
        broken = self.again(sides)
        assert broken.receive_data(sealed(bytes(body)), 0.0) is None
        assert broken.discarding
        assert sides.responder.receive_data(sides.message_1, 0.0) is not None

    def test_a_replay_gains_nothing(self) -> None:
        """A copied message 1 makes a responder answer, but to use its keys takes the ephemeral secret."""
        sides = Sides()
        first = sides.run()[1]
        replayed = ResponderHandshake(BOB, NETWORK, random=sides.random, seen=EphemeralCache())
        assert replayed.receive_data(sides.message_1, 0.0) is not None
        second = replayed.accept(Hello(BOB.id))[1]
        assert second.root != first.root


class TestDecision:
    def test_nothing_to_decide_yet(self) -> None:
        responder = Sides().responder
        with pytest.raises(LocalProtocolError):
            responder.accept(Hello(BOB.id))
        with pytest.raises(LocalProtocolError):
            responder.refuse()

    def test_decided_once(self) -> None:
        sides = Sides()
        sides.run()
        with pytest.raises(LocalProtocolError):
            sides.responder.accept(Hello(BOB.id))
        with pytest.raises(LocalProtocolError):
            sides.responder.refuse()
        with pytest.raises(LocalProtocolError):
            sides.responder.receive_data(b"", 0.0)
        assert not sides.responder.discarding

    def test_refused(self) -> None:
        sides = Sides()
        sides.responder.receive_data(sides.message_1, 0.0)
        hint = sides.responder.refuse(Hint.BUSY)
        assert sides.responder.discarding
        assert sides.responder.reason is DiscardReason.REFUSED
        assert sides.responder.receive_data(b"x", 0.0) is None
        with pytest.raises(HandshakeFailed) as caught:
            sides.initiator.receive_data(hint)
        assert caught.value.reason is FailureReason.BUSY

    def test_hello_must_be_our_own(self) -> None:
        sides = Sides()
        sides.responder.receive_data(sides.message_1, 0.0)
        for peer in (ALICE.id, negative(BOB.id)):
            with pytest.raises(LocalProtocolError, match="another PeerId"):
                sides.responder.accept(Hello(peer))
        sides.responder.accept(Hello(BOB.id))

    @pytest.mark.parametrize(("theirs", "ours"), [(Signing.OFF, Signing.ON), (Signing.STRICT, Signing.OFF)])
    def test_signing_modes_that_disagree_are_refused(self, theirs: Signing, ours: Signing) -> None:
        sides = Sides(initiator_hello=Hello(ALICE.id, signing=theirs))
        sides.responder.receive_data(sides.message_1, 0.0)
        with pytest.raises(LocalProtocolError, match="signing"):
            sides.responder.accept(Hello(BOB.id, signing=ours))
        with pytest.raises(HandshakeFailed) as caught:
            sides.initiator.receive_data(sides.responder.refuse(Hint.SIGNING_MISMATCH))
        assert caught.value.reason is FailureReason.SIGNING_MISMATCH
