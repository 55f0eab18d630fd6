"""The handshake under any bytes: mutated, truncated, split, joined, repeated."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from crust.crypto.aead import Suite
from crust.crypto.keys import PeerId
from crust.errors import ParseError, RemoteProtocolError
from crust.proto.noise import banner
from crust.proto.noise.envelope import Envelope, outer_secret
from crust.proto.noise.handshake import (
    DiscardReason,
    EphemeralCache,
    FailureReason,
    HandshakeFailed,
    HandshakeResult,
    Hello,
    Hint,
    Incoming1,
    InitiatorHandshake,
    ResponderHandshake,
    Role,
    Signing,
)
from crust.wire.handshake import (
    REQUEST_BYTES,
    RESPONSE_BYTES,
    Request,
    parse_hello,
    parse_hint,
    parse_request,
    parse_response,
    serialize_hello,
    serialize_request,
    serialize_response,
)
from tests.unit.proto.noise.support import ALICE, BOB, MALLORY, NETWORK, Sides

seeds = st.integers(0, 1000)
cuts = st.lists(st.integers(0, 700), max_size=12)
hellos = st.builds(
    Hello,
    st.sampled_from([ALICE.id, BOB.id, MALLORY.id]),
    st.sampled_from(Role),
    st.sampled_from(Signing),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    """`data` cut at these places; some pieces are empty."""
    edges = [0, *sorted(min(cut, len(data)) for cut in at), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def respond(responder: ResponderHandshake, data: bytes, at: list[int]) -> Incoming1 | None:
    """Feed a responder in pieces."""
    outcome = None
    for piece in pieces(data, at):
        outcome = responder.receive_data(piece, 0.0) or outcome
    return outcome


def outcome(initiator: InitiatorHandshake, data: bytes, at: list[int]) -> HandshakeFailed | None:
    """Feed an initiator in pieces with something that is no answer; None while it waits for more."""
    try:
        for piece in pieces(data, at):
            assert initiator.receive_data(piece) is None
    except HandshakeFailed as failure:
        return failure
    return None


class TestParsers:
    @given(st.binary(max_size=80))
    def test_any_hello(self, data: bytes) -> None:
        try:
            hello = parse_hello(data)
        except RemoteProtocolError:
            return
        assert data.startswith(serialize_hello(hello))

    @given(st.binary(max_size=8).flatmap(lambda tail: st.just(bytes(ALICE.id) + tail)))
    def test_any_hello_of_a_true_peer(self, data: bytes) -> None:
        self.test_any_hello.hypothesis.inner_test(self, data)  # type: ignore[attr-defined]

    @given(hellos, st.binary(max_size=20))
    def test_hello_round_trip(self, hello: Hello, later: bytes) -> None:
        assert parse_hello(serialize_hello(hello) + later) == hello

    @given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\1\1\0" + tail))
    def test_any_request(self, data: bytes) -> None:
        try:
            request = parse_request(data)
        except RemoteProtocolError:
            return
        assert data.startswith(serialize_request(request, 0))

    @given(st.sampled_from(Suite), st.binary(min_size=REQUEST_BYTES - 4, max_size=600), st.integers(0, 600))
    def test_request_round_trip(self, suite: Suite, noise: bytes, padding: int) -> None:
        assert parse_request(serialize_request(Request(suite, noise), padding)) == Request(suite, noise)

    @given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\0" + tail))
    def test_any_response(self, data: bytes) -> None:
        try:
            noise = parse_response(data)
        except RemoteProtocolError:
            return
        assert data.startswith(serialize_response(noise, 0))

    @given(st.binary(min_size=RESPONSE_BYTES - 2, max_size=600), st.integers(0, 600))
    def test_response_round_trip(self, noise: bytes, padding: int) -> None:
        assert parse_response(serialize_response(noise, padding)) == noise

    @given(st.binary(max_size=20))
    def test_any_hint(self, data: bytes) -> None:
        if data:
            assert parse_hint(data) in Hint

    @given(st.binary(min_size=32, max_size=32))
    def test_any_peer_id(self, raw: bytes) -> None:
        try:
            peer = PeerId(raw)
        except ParseError:
            return
        assert PeerId.parse(str(peer)).bytes() == raw
        assert peer.matches_static(peer.x25519)

    @given(st.binary(max_size=40))
    def test_any_banner(self, data: bytes) -> None:
        found = banner.recognise(data)
        assert found is None or found[1].isprintable()
        banner.may_become_banner(data)


class TestResponder:
    @given(st.binary(max_size=1500), cuts, seeds)
    def test_any_bytes(self, data: bytes, at: list[int], seed: int) -> None:
        responder = Sides(seed).responder
        assert respond(responder, data, at) is None
        assert responder.hint is None
        assert len(data) < 18 or responder.discarding or responder.reason is None

    @given(st.binary(max_size=1020), cuts)
    def test_any_body_in_a_true_envelope(self, body: bytes, at: list[int]) -> None:
        """What somebody can send who has our PeerId."""
        data = Envelope(outer_secret(BOB.id), bytes(16)).request().seal(body)
        responder = Sides().responder
        assert respond(responder, data, at) is None
        assert responder.discarding
        assert responder.hint is None or len(responder.hint) < len(data)

    @given(st.binary(min_size=REQUEST_BYTES - 4, max_size=400), st.sampled_from(Suite))
    def test_any_noise_message(self, noise: bytes, suite: Suite) -> None:
        data = Envelope(outer_secret(BOB.id), bytes(16)).request().seal(serialize_request(Request(suite, noise), 0))
        responder = Sides().responder
        assert respond(responder, data, []) is None
        assert responder.reason in {DiscardReason.NETWORK_MISMATCH, DiscardReason.LOW_ORDER_KEY}

    @given(seeds, cuts)
    def test_split_anyhow(self, seed: int, at: list[int]) -> None:
        sides = Sides(seed)
        assert respond(sides.responder, sides.message_1, at) == Incoming1(Hello(ALICE.id))

    @given(seeds, st.integers(0, 10_000), st.integers(1, 255), cuts)
    def test_mutated(self, seed: int, position: int, change: int, at: list[int]) -> None:
        sides = Sides(seed)
        data = bytearray(sides.message_1)
        data[position % len(data)] ^= change
        assert respond(sides.responder, bytes(data), at) is None
        assert sides.responder.hint is None
        with_more = respond(sides.responder, bytes(1100), [])
        assert with_more is None
        assert sides.responder.reason in {DiscardReason.IMPLAUSIBLE_LENGTH, DiscardReason.OUTER_TAG}

    @given(seeds, st.integers(0, 700))
    def test_truncated(self, seed: int, size: int) -> None:
        sides = Sides(seed)
        size %= len(sides.message_1)
        assert respond(sides.responder, sides.message_1[:size], []) is None
        assert not sides.responder.discarding
        assert respond(sides.responder, sides.message_1[size:], []) is not None

    @given(seeds, st.binary(min_size=1, max_size=200), cuts, st.booleans())
    def test_joined(self, seed: int, behind: bytes, at: list[int], twice: bool) -> None:
        sides = Sides(seed)
        respond(sides.responder, sides.message_1 + (sides.message_1 if twice else behind), at)
        assert sides.responder.reason is DiscardReason.TRAILING_DATA
        assert sides.responder.hint is None

    @given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 300)), max_size=30))
    def test_copies(self, deliveries: list[tuple[int, float]]) -> None:
        """Of each message one passes, until the cache has forgotten it."""
        seen = EphemeralCache(lifetime=120.0)
        messages = [Sides(seed).message_1 for seed in range(5)]
        accepted: dict[int, float] = {}
        now = 0.0
        for index, delay in deliveries:
            now += delay
            responder = ResponderHandshake(BOB, NETWORK, random=random.Random(0).randbytes, seen=seen)
            passed = responder.receive_data(messages[index], now) is not None
            assert passed is (index not in accepted or now - accepted[index] >= 120.0)
            if passed:
                accepted[index] = now


class TestInitiator:
    @given(st.binary(max_size=1500), cuts, seeds)
    def test_any_bytes(self, data: bytes, at: list[int], seed: int) -> None:
        initiator = Sides(seed).initiator
        failure = outcome(initiator, data, at)
        if failure is None:
            assert len(data) < 700
        else:
            assert initiator.receive_eof() is failure

    @given(seeds, cuts, st.binary(max_size=100))
    def test_split_and_joined_anyhow(self, seed: int, at: list[int], rest: bytes) -> None:
        sides = Sides(seed)
        sides.responder.receive_data(sides.message_1, 0.0)
        message_2, _ = sides.responder.accept(Hello(BOB.id))
        result: HandshakeResult | None = None
        unread = b""
        for piece in pieces(message_2 + rest, at):
            if result is None:
                result = sides.initiator.receive_data(piece)
            else:
                unread += piece
        assert result is not None
        assert result.rest + unread == rest

    @given(seeds, st.integers(0, 10_000), st.integers(1, 255), cuts, st.booleans())
    def test_mutated(self, seed: int, position: int, change: int, at: list[int], hint: bool) -> None:
        """A changed answer never connects, and is never taken for a hint."""
        sides = Sides(seed)
        sides.responder.receive_data(sides.message_1, 0.0)
        data = bytearray(sides.responder.refuse() if hint else sides.responder.accept(Hello(BOB.id))[0])
        data[position % len(data)] ^= change
        failure = outcome(sides.initiator, bytes(data) + bytes(700), at)
        assert failure is not None
        assert failure.reason is FailureReason.WRONG_KEY_OR_NOT_CRUST

    @given(seeds, st.integers(0, 700))
    def test_truncated(self, seed: int, size: int) -> None:
        sides = Sides(seed)
        sides.responder.receive_data(sides.message_1, 0.0)
        message_2, _ = sides.responder.accept(Hello(BOB.id))
        size %= len(message_2)
        assert sides.initiator.receive_data(message_2[:size]) is None
        assert sides.initiator.receive_data(message_2[size:]) is not None
