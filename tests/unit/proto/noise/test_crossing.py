"""Both sides have connected at the same time, and both begin."""

from __future__ import annotations

import random

import pytest

from crust.crypto.keys import Identity
from crust.errors import LocalProtocolError
from crust.proto.noise.crossing import Crossed, CrossingHandshake
from crust.proto.noise.handshake import (
    EphemeralCache,
    FailureReason,
    HandshakeFailed,
    HandshakeResult,
    Hello,
    InitiatorHandshake,
    ResponderHandshake,
)
from tests.unit.proto.noise.support import ALICE, BOB, NETWORK

LARGER, SMALLER = (ALICE, BOB) if ALICE.id > BOB.id else (BOB, ALICE)


def crossing(own: Identity, other: Identity, seed: int = 1) -> CrossingHandshake:
    return CrossingHandshake(
        own,
        other.id,
        NETWORK,
        Hello(own.id),
        random=random.Random(f"{own.id} {seed}").randbytes,
        seen=EphemeralCache(),
    )


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
def test_larger_stays_initiator(pieces: int) -> None:
    larger, smaller = crossing(LARGER, SMALLER), crossing(SMALLER, LARGER)
    to_smaller, to_larger = larger.data_to_send(), smaller.data_to_send()
    crossed = None
    for at in range(0, len(to_smaller), pieces):
        crossed = smaller.receive_data(to_smaller[at : at + pieces], 0.0)
    assert isinstance(crossed, Crossed)
    assert crossed.first.hello == Hello(LARGER.id)
    message_2, at_smaller = crossed.responder.accept(Hello(SMALLER.id))
    to_larger += message_2 + b"record"
    at_larger, rest = None, b""
    for at in range(0, len(to_larger), pieces):
        if at_larger is None:
            at_larger = larger.receive_data(to_larger[at : at + pieces], 0.0)
            rest = to_larger[at + pieces :]
    assert isinstance(at_larger, HandshakeResult)
    assert at_larger.initiator
    assert not at_smaller.initiator
    assert at_larger.handshake_hash == at_smaller.handshake_hash
    assert at_larger.rest + rest == b"record"


@pytest.mark.parametrize("own", [LARGER, SMALLER], ids=["larger", "smaller"])
def test_ordinary_answer(own: Identity) -> None:
    other = SMALLER if own is LARGER else LARGER
    for seed in range(40):  # message 2 is taken at once, whatever it would mean as a message 1
        ours = crossing(own, other, seed)
        responder = ResponderHandshake(other, NETWORK, random=random.Random(seed).randbytes, seen=EphemeralCache())
        assert responder.receive_data(ours.data_to_send(), 0.0) is not None
        message_2, result = responder.accept(Hello(other.id))
        found = ours.receive_data(message_2, 0.0)
        assert isinstance(found, HandshakeResult)
        assert found.root == result.root


def test_another_peer_has_connected() -> None:
    stranger = Identity.from_seed(bytes(range(32)))
    ours = crossing(LARGER, SMALLER)
    theirs = InitiatorHandshake(stranger, LARGER.id, NETWORK, Hello(stranger.id), random=random.Random(5).randbytes)
    with pytest.raises(HandshakeFailed, match="another peer"):
        ours.receive_data(theirs.data_to_send(), 0.0)


def test_banner_fails_at_once() -> None:
    ours = crossing(LARGER, SMALLER)
    with pytest.raises(HandshakeFailed) as failure:
        ours.receive_data(b"SSH-2.0-OpenSSH\r\n", 0.0)
    assert failure.value.reason is FailureReason.SSH


@pytest.mark.parametrize("own", [LARGER, SMALLER], ids=["larger", "smaller"])
def test_noise_fails_in_the_end(own: Identity) -> None:
    other = SMALLER if own is LARGER else LARGER
    for seed in range(20):
        ours = crossing(own, other, seed)
        ours.data_to_send()
        with pytest.raises(HandshakeFailed) as failure:
            ours.receive_data(random.Random(seed).randbytes(4096), 0.0)
        assert failure.value.reason is FailureReason.WRONG_KEY_OR_NOT_CRUST


def test_reflected_message_1_is_no_message_1_for_us() -> None:
    ours = crossing(LARGER, SMALLER)
    with pytest.raises(HandshakeFailed):
        ours.receive_data(ours.data_to_send() + bytes(2000), 0.0)


def test_end_of_stream() -> None:
    assert crossing(LARGER, SMALLER).receive_eof().reason is FailureReason.SILENT


def test_rewinding_a_finished_handshake() -> None:
    initiator = InitiatorHandshake(ALICE, BOB.id, NETWORK, Hello(ALICE.id), random=random.Random(1).randbytes)
    responder = ResponderHandshake(BOB, NETWORK, random=random.Random(2).randbytes, seen=EphemeralCache())
    responder.receive_data(initiator.data_to_send(), 0.0)
    assert responder.missing == 0
    initiator.receive_data(responder.accept(Hello(BOB.id))[0])
    with pytest.raises(LocalProtocolError):
        initiator.rewind()
