"""The messages of a handshake over datagrams, one by one."""

from __future__ import annotations

import random as stdlib_random
from dataclasses import dataclass, field

import pytest

from crust.crypto.aead import Suite
from crust.crypto.keys import PeerId
from crust.proto.noise.envelope import outer_secret
from crust.proto.noise.outcome import DiscardReason, FailureReason, HandshakeFailed, Network
from crust.proto.tunnel.constants import ANSWERS_KEPT, MAX_REQUEST
from crust.proto.tunnel.cookie import prove
from crust.proto.tunnel.handshake import (
    SMALLEST_REQUEST,
    Discarded,
    OpenedRequest,
    SaltMark,
    TunnelInitiator,
    TunnelResponder,
    mask_datagram,
    open_request,
    seal_cookie,
    seal_hint,
)
from crust.proto.tunnel.header import HeaderMask
from crust.wire.handshake import Hello, Hint, Signing
from crust.wire.tunnel import Introduction
from tests.unit.proto.noise.support import ALICE, BOB, MALLORY, NETWORK, negative

ALICE_MASK, BOB_MASK = HeaderMask(b"a" * 16), HeaderMask(b"b" * 16)


@dataclass
class Sides:
    """A dial from Alice to Bob, under control."""

    seed: int = 0
    suite: Suite = Suite.AESGCM
    network: Network = NETWORK
    remote: PeerId = BOB.id
    alice: Hello = field(default_factory=lambda: Hello(ALICE.id))
    bob: Hello = field(default_factory=lambda: Hello(BOB.id))
    secret: bytes = field(default_factory=lambda: outer_secret(BOB.id))

    def __post_init__(self) -> None:
        self.random = stdlib_random.Random(self.seed).randbytes
        self.initiator = TunnelInitiator(
            ALICE,
            self.remote,
            self.network,
            Introduction(7, b"a" * 16, self.alice),
            outer_secret(self.remote),
            random=self.random,
            suite=self.suite,
        )

    def responder(self, datagram: bytes) -> tuple[OpenedRequest, TunnelResponder]:
        opened = open_request(self.secret, datagram)
        assert opened is not None
        return opened, TunnelResponder(BOB, NETWORK, opened.request)

    def answer(self, datagram: bytes) -> tuple[TunnelResponder, bytes]:
        opened, responder = self.responder(datagram)
        responder.accept(Introduction(9, b"b" * 16, self.bob), self.random)
        return responder, responder.response(opened.tag, opened.size, self.random)


def unmasked(datagram: bytes) -> tuple[bytes, bytes]:
    return ALICE_MASK.apply_one(datagram[:32], datagram[32:48]), datagram[32:]


@pytest.mark.parametrize("suite", list(Suite))
def test_both_sides_agree(suite: Suite) -> None:
    sides = Sides(suite=suite)
    responder, response = sides.answer(sides.initiator.request())
    header, sealed = unmasked(response)
    assert header[:4] == (7).to_bytes(4, "big")
    ours = sides.initiator.receive_response(header, sealed)
    theirs = responder.keys
    assert ours is not None
    assert theirs is not None
    assert (ours.send_key, ours.receive_key) == (theirs.receive_key, theirs.send_key)
    assert ours.send_key != ours.receive_key
    assert ours.handshake_hash == theirs.handshake_hash
    assert (ours.peer, ours.index, ours.header_key, ours.initiator) == (BOB.id, 9, b"b" * 16, True)
    assert (theirs.peer, theirs.index, theirs.header_key, theirs.initiator) == (ALICE.id, 7, b"a" * 16, False)
    assert ours.suite is theirs.suite is suite


def test_no_answer_is_longer_than_its_request() -> None:
    for seed in range(60):
        sides = Sides(seed=seed)
        request = sides.initiator.request()
        assert SMALLEST_REQUEST <= len(request) <= MAX_REQUEST
        _, response = sides.answer(request)
        assert len(response) <= len(request)
        assert len(seal_hint(sides.secret, request, Hint.REFUSED, sides.random)) < len(request)
        assert len(seal_cookie(sides.secret, request, b"c" * 16, sides.random)) < len(request)


class TestRetransmission:
    def test_the_same_message_in_new_clothes(self) -> None:
        sides = Sides()
        first, second = sides.initiator.request(), sides.initiator.request()
        one, two = open_request(sides.secret, first), open_request(sides.secret, second)
        assert one is not None
        assert two is not None
        assert one.request.noise == two.request.noise
        assert one.ephemeral == two.ephemeral
        assert one.salt != two.salt
        assert one.tag != two.tag

    def test_any_answer_to_any_request_will_do(self) -> None:
        for which in range(3):
            sides = Sides()
            requests = [sides.initiator.request() for _ in range(3)]
            _, response = sides.answer(requests[which])
            assert sides.initiator.receive_response(*unmasked(response)) is not None

    def test_answers_differ_as_their_requests_do(self) -> None:
        sides = Sides()
        requests = [sides.initiator.request() for _ in range(2)]
        responder, response = sides.answer(requests[0])
        other = open_request(sides.secret, requests[1])
        assert other is not None
        again = responder.response(other.tag, other.size, sides.random)
        assert again[:32] != response[:32]
        assert again[32:80] != response[32:80]
        # A copy of a request gets a copy: two answers under one key would share a nonce.
        assert responder.response(other.tag, other.size, sides.random) == again

    def test_answers_are_bounded(self) -> None:
        sides = Sides()
        responder, _ = sides.answer(sides.initiator.request())
        found = {responder.response(bytes([number]) * 16, 400, sides.random) for number in range(50)}
        assert len(found) == ANSWERS_KEPT

    def test_an_answer_to_somebody_else(self) -> None:
        sides, others = Sides(), Sides(seed=1)
        sides.initiator.request()
        _, response = others.answer(others.initiator.request())
        assert sides.initiator.receive_response(*unmasked(response)) is None


class TestStrangers:
    def test_random_bytes(self) -> None:
        sides = Sides()
        for size in (0, 1, 47, SMALLEST_REQUEST - 1, SMALLEST_REQUEST, 500, MAX_REQUEST, MAX_REQUEST + 1, 9000):
            assert open_request(sides.secret, sides.random(size)) is None

    def test_who_was_meant_somebody_else(self) -> None:
        request = Sides(remote=MALLORY.id).initiator.request()
        assert open_request(outer_secret(BOB.id), request) is None

    def test_every_byte_of_a_request_counts(self) -> None:
        sides = Sides()
        request = sides.initiator.request()
        for at in range(0, len(request), 5):
            broken = bytearray(request)
            broken[at] ^= 1
            assert open_request(sides.secret, bytes(broken)) is None

    def test_another_network(self) -> None:
        sides = Sides(network=Network.of("elsewhere"))
        request = sides.initiator.request()
        with pytest.raises(Discarded) as caught:
            sides.responder(request)
        assert caught.value.reason is DiscardReason.NETWORK_MISMATCH
        assert caught.value.hint is Hint.NETWORK_MISMATCH
        with pytest.raises(HandshakeFailed) as failed:
            sides.initiator.receive_reply(seal_hint(sides.secret, request, Hint.NETWORK_MISMATCH, sides.random))
        assert failed.value.reason is FailureReason.NETWORK_MISMATCH

    def test_the_other_point_with_that_key(self) -> None:
        """-P has P's static key: the envelope tells them apart, and the prologue, and the Hello."""
        sides = Sides(remote=negative(BOB.id))
        request = sides.initiator.request()
        assert open_request(outer_secret(BOB.id), request) is None
        opened = open_request(outer_secret(negative(BOB.id)), request)
        assert opened is not None
        with pytest.raises(Discarded) as caught:
            TunnelResponder(BOB, NETWORK, opened.request)
        assert caught.value.reason is DiscardReason.NETWORK_MISMATCH

    def test_an_identity_that_is_not_theirs(self) -> None:
        sides = Sides()
        sides.initiator = TunnelInitiator(
            ALICE, BOB.id, NETWORK, Introduction(7, bytes(16), Hello(ALICE.id)), sides.secret, random=sides.random
        )
        with pytest.raises(Exception, match="another PeerId"):
            TunnelInitiator(
                ALICE, BOB.id, NETWORK, Introduction(7, bytes(16), Hello(BOB.id)), sides.secret, random=sides.random
            )


class TestReplies:
    def test_cookie(self) -> None:
        sides = Sides()
        request = sides.initiator.request()
        mark = SaltMark(sides.secret)
        assert mark.read(request, len(request)) is False
        reply = seal_cookie(sides.secret, request, b"c" * 16, sides.random)
        assert sides.initiator.receive_reply(reply) is True
        assert sides.initiator.receive_reply(reply) is False
        request = sides.initiator.request()
        assert mark.read(request, len(request)) is True
        assert request[16:32] == prove(b"c" * 16, request[:16])
        sides.responder(request)

    @pytest.mark.parametrize("hint", list(Hint))
    def test_hints(self, hint: Hint) -> None:
        sides = Sides()
        reply = seal_hint(sides.secret, sides.initiator.request(), hint, sides.random)
        with pytest.raises(HandshakeFailed) as caught:
            sides.initiator.receive_reply(reply)
        assert caught.value.reason.name.startswith(hint.name[:4])

    def test_a_reply_fits_its_request_only(self) -> None:
        sides, others = Sides(), Sides(seed=1)
        sides.initiator.request()
        foreign = others.initiator.request()
        assert sides.initiator.receive_reply(seal_hint(sides.secret, foreign, Hint.REFUSED, sides.random)) is None
        assert sides.initiator.receive_reply(seal_cookie(sides.secret, foreign, b"c" * 16, sides.random)) is None

    def test_who_does_not_know_the_peer_cannot_reply(self) -> None:
        sides = Sides()
        request = sides.initiator.request()
        reply = seal_hint(outer_secret(MALLORY.id), request, Hint.REFUSED, sides.random)
        assert sides.initiator.receive_reply(reply) is None


class TestAnswers:
    def test_signing_disagrees(self) -> None:
        sides = Sides(alice=Hello(ALICE.id, signing=Signing.ON))
        _, response = sides.answer(sides.initiator.request())
        with pytest.raises(HandshakeFailed) as caught:
            sides.initiator.receive_response(*unmasked(response))
        assert caught.value.reason is FailureReason.SIGNING_MISMATCH

    def test_somebody_else_with_the_same_key(self) -> None:
        sides = Sides(bob=Hello(negative(BOB.id)))
        _, response = sides.answer(sides.initiator.request())
        with pytest.raises(HandshakeFailed) as caught:
            sides.initiator.receive_response(*unmasked(response))
        assert caught.value.reason is FailureReason.WRONG_KEY_OR_NOT_CRUST

    def test_every_byte_of_an_answer_counts(self) -> None:
        sides = Sides()
        _, response = sides.answer(sides.initiator.request())
        for at in range(0, len(response), 5):
            broken = bytearray(response)
            broken[at] ^= 1
            assert sides.initiator.receive_response(*unmasked(bytes(broken))) is None
        assert sides.initiator.receive_response(*unmasked(response)) is not None


def test_masked_datagram() -> None:
    header, sealed = bytes(range(32)), bytes(range(100, 180))
    masked = mask_datagram(ALICE_MASK, header, sealed)
    assert masked[32:] == sealed
    assert ALICE_MASK.apply_one(masked[:32], masked[32:48]) == header


class TestRenewal:
    def test_bound_to_the_old_keys(self) -> None:
        random = stdlib_random.Random(1).randbytes
        for theirs, fits in ((b"hash", True), (b"another", False), (b"", False)):
            initiator = TunnelInitiator(
                ALICE,
                BOB.id,
                NETWORK,
                Introduction(7, bytes(16), Hello(ALICE.id)),
                b"",
                random=random,
                suite=Suite.AESGCM,
                renews=b"hash",
            )
            request = open_request_from(initiator.message)
            if not fits:
                with pytest.raises(Discarded):
                    TunnelResponder(BOB, NETWORK, request, renews=theirs)
                continue
            responder = TunnelResponder(BOB, NETWORK, request, renews=theirs)
            keys = responder.accept(Introduction(9, bytes(16), Hello(BOB.id)), random)
            assert initiator.receive_message(responder.message).send_key == keys.receive_key


def open_request_from(message: bytes):  # type: ignore[no-untyped-def]
    from crust.wire.tunnel import TunnelRequest

    return TunnelRequest(Suite(message[0]), message[1:])
