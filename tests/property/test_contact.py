"""PeerIds, contacts, targets and key files from any text or bytes."""

from __future__ import annotations

import ipaddress
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crust.crypto import base32
from crust.crypto.keys import Identity, PeerId
from crust.errors import IdentityError, ParseError
from crust.types import Candidate
from crust.wire.contact import Contact, parse_target
from crust.wire.text import parse_text, serialize_text

PEERS = [Identity.from_seed(bytes([n]) * 32).id for n in range(6)]

addresses = (st.ip_addresses(v=4) | st.ip_addresses(v=6)).filter(
    lambda a: (
        not (a.is_multicast or a.is_unspecified or a == ipaddress.ip_address("255.255.255.255"))
        and not (isinstance(a, ipaddress.IPv6Address) and a.ipv4_mapped)
    )
)
candidates = st.builds(
    Candidate,
    st.sampled_from(["tcp", "utp"]),
    addresses.map(str),
    st.integers(1, 65535),
    st.sampled_from(["host", "server-reflexive", "peer-reflexive", "mapped", "predicted", "relayed"]),
)
# Few addresses, so that TCP and µTP on one of them stand side by side in every order.
few = st.builds(Candidate, st.sampled_from(["tcp", "utp"]), st.sampled_from(["10.0.0.1", "::1"]), st.just(1))
nodes = st.builds(Contact, st.sampled_from(PEERS), st.lists(candidates, max_size=3).map(tuple))
contacts = st.builds(
    Contact,
    st.sampled_from(PEERS),
    st.lists(candidates | few, max_size=12).map(tuple),
    st.lists(nodes, max_size=3).map(tuple),
)
base32_text = st.text("abcdefghijklmnopqrstuvwxyz234567", max_size=120)


@given(contacts)
def test_contact_round_trip(contact: Contact) -> None:
    line = str(contact)
    assert Contact.parse(line) == parse_target(line.upper()) == Contact.from_bytes(bytes(contact)) == contact


@given(st.lists(few, max_size=30))
def test_order_of_candidates_is_kept(items: list[Candidate]) -> None:
    contact = Contact(PEERS[0], tuple(items))
    assert Contact.from_bytes(bytes(contact)).candidates == tuple(items)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\1" + bytes(PEERS[0]) + tail))
def test_any_bytes_as_contact(data: bytes) -> None:
    try:
        contact = Contact.from_bytes(data)
    except ParseError:
        return
    assert Contact.from_bytes(bytes(contact)) == contact


@given(st.text() | base32_text.map("crust:{}".format) | base32_text.map("crust{}".format))
def test_any_text(text: str) -> None:
    for parse in (parse_target, Contact.parse, PeerId.parse):
        try:
            value = parse(text)
        except ParseError:
            continue
        assert parse(str(value)) == value


@given(st.text(max_size=60) | st.text(string.ascii_letters + string.digits + "[]:.%-", max_size=60))
def test_any_address(address: str) -> None:
    try:
        target = parse_target(f"{PEERS[0]}@{address}")
    except ParseError:
        return
    assert parse_target(str(target)) == target
    assert all(1 <= candidate.port <= 65535 for candidate in target.candidates)


@given(st.sampled_from(PEERS), st.integers(0, 60), st.sampled_from(string.ascii_lowercase + "234567"))
def test_one_wrong_character_is_noticed(peer: PeerId, position: int, character: str) -> None:
    text = str(peer)
    if text[position] == character:
        return
    with pytest.raises(ParseError):
        PeerId.parse(text[:position] + character + text[position + 1 :])


@given(contacts, st.integers(0, 10_000), st.sampled_from(string.ascii_lowercase + "234567"))
def test_one_wrong_character_in_a_contact_is_noticed(contact: Contact, position: int, character: str) -> None:
    line = str(contact)
    position %= len(line)
    if line[position] == character:
        return
    with pytest.raises(ParseError):
        Contact.parse(line[:position] + character + line[position + 1 :])


@given(st.binary(max_size=200))
def test_base32_round_trip(data: bytes) -> None:
    assert base32.decode(base32.encode(data)) == data
    assert parse_text("kind", b"", serialize_text("kind", b"", data + b"x"), max_bytes=201) == data + b"x"


@given(st.text(max_size=60) | base32_text)
def test_base32_has_one_text_for_a_value(text: str) -> None:
    try:
        data = base32.decode(text)
    except ParseError:
        return
    assert base32.encode(data) == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300)
    | st.text(max_size=200).map(lambda text: ("crust-identity-v1\n" + text).encode())
    | base32_text.map(lambda seed: f"crust-identity-v1\nid: {PEERS[0]}\nseed: {seed}\n".encode())
)
def test_any_key_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "identity"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(IdentityError):
        Identity.load_or_create(path)
    assert path.read_bytes() == data
