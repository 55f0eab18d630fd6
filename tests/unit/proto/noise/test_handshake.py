"""Both sides of the handshake together, and what an onlooker sees of it."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from crust.crypto.aead import Suite, best_suite
from crust.crypto.keys import Identity
from crust.proto.noise.handshake import (
    FailureReason,
    HandshakeFailed,
    Hello,
    Hint,
    InitiatorHandshake,
    Network,
    Role,
    Signing,
)
from crust.proto.noise.transport import CipherKeys
from tests.unit.proto.noise.support import ALICE, BOB, NETWORK, Sides, signing


def in_step(send: CipherKeys, receive: CipherKeys) -> None:
    n = send.next_nonce()
    assert n == receive.next_nonce()
    assert receive.aead.decrypt(n, send.aead.encrypt(n, b"record", b""), b"") == b"record"
    assert [send.next_mask() for _ in range(100)] == [receive.next_mask() for _ in range(100)]


@pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.name)
def test_connects(suite: Suite) -> None:
    hello = Hello(BOB.id, Role.CLIENT, Signing.STRICT, hashes=3, features=7)
    sides = Sides(suite=suite, initiator_hello=Hello(ALICE.id, signing=Signing.ON), responder_hello=hello)
    at_initiator, at_responder = sides.run(rest=b"first record")
    assert at_initiator.peer == BOB.id
    assert at_initiator.hello == hello
    assert at_responder.peer == ALICE.id
    assert at_responder.hello == Hello(ALICE.id, signing=Signing.ON)
    assert at_initiator.handshake_hash == at_responder.handshake_hash
    assert at_initiator.root == at_responder.root
    assert (at_initiator.initiator, at_responder.initiator) == (True, False)
    assert (at_initiator.rest, at_responder.rest) == (b"first record", b"")
    assert at_initiator.send.suite is at_responder.send.suite is suite
    in_step(at_initiator.send, at_responder.receive)
    in_step(at_responder.send, at_initiator.receive)


def test_suite_is_chosen_by_speed() -> None:
    sides = Sides()
    handshake = InitiatorHandshake(ALICE, BOB.id, NETWORK, Hello(ALICE.id), random=sides.random)
    assert sides.responder.receive_data(handshake.data_to_send(), 0.0) is not None
    message_2, result = sides.responder.accept(Hello(BOB.id))
    assert handshake.receive_data(message_2) is not None
    assert result.send.suite is best_suite()


def test_handshakes_differ() -> None:
    hashes = {Sides(seed).run()[0].handshake_hash for seed in range(20)}
    roots = {Sides(seed).run()[0].root for seed in range(20)}
    assert len(hashes) == len(roots) == 20


def test_any_pair_of_keys() -> None:
    """Both signs on both sides."""
    signs = set()
    for number in range(10, 40):
        a, b = Identity.from_seed(bytes([number]) * 32), Identity.from_seed(bytes([number + 100]) * 32)
        signs.add((bytes(a.id)[31] >> 7, bytes(b.id)[31] >> 7))
        sides = Sides()
        dial = InitiatorHandshake(a, b.id, NETWORK, Hello(a.id), random=sides.random)
        answer = type(sides.responder)(b, NETWORK, random=sides.random, seen=sides.seen)
        incoming = answer.receive_data(dial.data_to_send(), 0.0)
        assert incoming is not None
        assert incoming.hello.peer == a.id
        result = dial.receive_data(answer.accept(Hello(b.id))[0])
        assert result is not None
        assert result.peer == b.id
    assert len(signs) == 4


@pytest.mark.parametrize("mode", list(Signing))
def test_agreeing_signing_modes(mode: Signing) -> None:
    Sides(**signing(mode)).run()  # type: ignore[arg-type]


def test_network_names_and_keys() -> None:
    networks = [
        Network.of("crust"),
        Network.of("crust2"),
        Network.of(""),
        Network.of("crust", ""),
        Network.of("crust", "key"),
        Network.of("crust", b"\0"),
        Network.of("crust\0", None),
        Network.of("crus", "t"),
    ]
    assert len({network.network_hash for network in networks}) == len(networks)
    assert Network.of("é", "ü") == Network.of("é", "ü".encode())


@pytest.mark.parametrize(
    "network", [Network.of("other"), Network.of("crust", "a key"), Network.of("crust", b"another key")]
)
def test_other_network(network: Network) -> None:
    sides = Sides(network=network)
    assert sides.responder.receive_data(sides.message_1, 0.0) is None
    hint = sides.responder.hint
    assert hint is not None
    assert len(hint) < len(sides.message_1)
    with pytest.raises(HandshakeFailed) as caught:
        sides.initiator.receive_data(hint)
    assert caught.value.reason is FailureReason.NETWORK_MISMATCH


@cache
def observed_flights() -> dict[str, list[bytes]]:
    """What 200 dials put on the wire, by kind."""
    flights: dict[str, list[bytes]] = {"message 1": [], "message 2": [], "hint": [], "refusal": []}
    for seed in range(200):
        sides = Sides(seed)
        sides.run()
        flights["message 1"].append(sides.message_1)
        flights["message 2"].append(sides.message_2)
        sides = Sides(seed, network=Network.of("other"))
        sides.responder.receive_data(sides.message_1, 0.0)
        assert sides.responder.hint is not None
        flights["hint"].append(sides.responder.hint)
        sides = Sides(seed)
        sides.responder.receive_data(sides.message_1, 0.0)
        flights["refusal"].append(sides.responder.refuse(Hint.REFUSED))
    return flights


@pytest.fixture
def flights() -> dict[str, list[bytes]]:
    return observed_flights()


class TestOnTheWire:
    """From the first byte on, nothing is constant or recognisable without the responder's public key."""

    @pytest.mark.parametrize("flight", ["message 1", "message 2", "hint", "refusal"])
    def test_bytes_look_random(self, flights: dict[str, list[bytes]], flight: str) -> None:
        messages = flights[flight]
        shortest = min(len(m) for m in messages)
        assert shortest >= 107
        for position in range(shortest):
            values = Counter(m[position] for m in messages)
            # 200 draws out of 256 show 139 ± 6 values, the commonest 3 to 6 times.
            assert len(values) > 105
            assert max(values.values()) <= 9
            for bit in range(8):
                assert 60 < sum(m[position] >> bit & 1 for m in messages) < 140
        for position in range(1, 17):
            assert len({m[-position] for m in messages}) > 105

    @pytest.mark.parametrize("flight", ["message 1", "message 2", "hint", "refusal"])
    def test_lengths_vary(self, flights: dict[str, list[bytes]], flight: str) -> None:
        lengths = Counter(len(m) for m in flights[flight])
        assert len(lengths) > 100
        assert max(lengths.values()) <= 8

    def test_answers_are_not_longer_than_the_request(self, flights: dict[str, list[bytes]]) -> None:
        for request, response, hint, refusal in zip(*flights.values(), strict=True):
            assert len(response) <= len(request)
            assert len(hint) < len(request)
            assert len(refusal) < len(request)

    def test_one_datagram_each(self, flights: dict[str, list[bytes]]) -> None:
        assert max(len(m) for messages in flights.values() for m in messages) <= 684

    def test_no_repeated_pieces(self, flights: dict[str, list[bytes]]) -> None:
        """No 8 bytes occur twice in all that was sent: no key, no nonce, no padding shows."""
        seen: set[bytes] = set()
        total = 0
        for messages in (flights["message 1"], flights["message 2"]):
            for message in messages:
                pieces = {message[i : i + 8] for i in range(len(message) - 7)}
                total += len(message) - 7
                seen |= pieces
        assert len(seen) == total

    def test_ephemeral_keys_do_not_show(self, flights: dict[str, list[bytes]]) -> None:
        """Bit 255 of an X25519 key is always 0: `test_bytes_look_random` would see one that is not sealed."""
        for message in flights["message 2"]:
            assert bytes(ALICE.id) not in message
            assert BOB.dh.public not in message
