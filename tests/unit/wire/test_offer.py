"""Offers: what they carry, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crust.crypto.keys import Identity
from crust.errors import RemoteProtocolError
from crust.types import Candidate
from crust.wire.contact import Contact
from crust.wire.offer import MEETINGS_MOST, NatRecord, Offer, PortForecast, parse_offer, serialize_offer

ALICE, BOB, ROSE = (Identity.from_seed(bytes([number]) * 32).id for number in (1, 2, 3))
CONTACT = Contact(ALICE, (Candidate("utp", "192.0.2.1", 4000),))
FORECAST = PortForecast("203.0.113.1", 5000, 20, 130)
NAT = NatRecord(1, True, 3, 3, 2, -2, 67, FORECAST, (5024, 5048))


def offer(**changes: Any) -> Offer:
    settings: dict[str, Any] = {
        "dial_id": bytes(16),
        "answers": b"",
        "contact": CONTACT,
        "receiver": BOB,
        "rendezvous": ROSE,
        "nats": (NAT, NatRecord(0, False, 0, 0, 0)),
    }
    return Offer(**{**settings, **changes})


def items(**changes: Any) -> bytes:
    """An offer in which one field is another."""
    fields = msgspec.msgpack.decode(serialize_offer(offer()))
    names = ["version", "dial_id", "answers", "receiver", "rendezvous", "lifetime", "contact", "nats"]
    for name, value in changes.items():
        fields[names.index(name)] = value
    return msgspec.msgpack.encode(fields)


def test_round_trip() -> None:
    for each in (offer(), offer(nats=()), offer(answers=bytes(32))):
        assert parse_offer(serialize_offer(each)) == each


def test_it_is_small() -> None:
    both = offer(nats=(NAT, msgspec.structs.replace(NAT, transport=0)))
    assert len(serialize_offer(both)) - len(serialize_offer(offer(nats=()))) < 100


def test_one_without_nats_is_understood() -> None:
    """As nodes wrote it before."""
    fields = msgspec.msgpack.decode(serialize_offer(offer()))
    assert parse_offer(msgspec.msgpack.encode(fields[:-1])).nats == ()


def test_what_a_later_version_adds_is_passed_over() -> None:
    fields = msgspec.msgpack.decode(serialize_offer(offer()))
    assert parse_offer(msgspec.msgpack.encode([*fields, "more"])) == offer()


def record(**changes: Any) -> list[Any]:
    fields = msgspec.to_builtins(NAT)
    for name, value in changes.items():
        fields[NatRecord.__struct_fields__.index(name)] = value
    return list(fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"transport": 2},
        {"transport": -1},
        {"mapping": 4},
        {"filtering": "open"},
        {"allocation": -1},
        {"step": 1 << 20},
        {"certain": 101},
        {"forecast": ["203.0.113.1", 0, 20, 130]},
        {"forecast": ["203.0.113.1", 65536, 20, 130]},
        {"forecast": ["203.0.113.1", 5000, -1, 130]},
        {"forecast": ["203.0.113.1", 5000, 20, 1 << 30]},
        {"forecast": ["a" * 100, 5000, 20, 130]},
        {"meeting": [0]},
        {"meeting": [70_000]},
        {"meeting": [5000] * (MEETINGS_MOST + 1)},
    ],
)
def test_impossible_records_are_refused(changes: dict[str, Any]) -> None:
    assert parse_offer(items(nats=[record()])).nats == (NAT,)
    with pytest.raises(RemoteProtocolError):
        parse_offer(items(nats=[record(**changes)]))


def test_too_many_records_are_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        parse_offer(items(nats=[record()] * 5))


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"dial_id": b"short"}, {"receiver": bytes(32)}, {"lifetime": 61}, {"contact": b"?"}]
)
def test_other_mistakes(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_offer(items(**changes))


def test_noise() -> None:
    for data in (b"", b"\xc1", bytes(100), serialize_offer(offer())[:-1]):
        with pytest.raises(RemoteProtocolError):
            parse_offer(data)
