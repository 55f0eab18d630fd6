"""Contacts and targets."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from crust.crypto.keys import Identity, PeerId
from crust.errors import LocalProtocolError, ParseError
from crust.types import Candidate
from crust.wire.contact import MAX_CANDIDATES, MAX_CONTACT_BYTES, MAX_RENDEZVOUS, Contact, parse_target
from crust.wire.text import serialize_text

ID = Identity.from_seed(bytes([1]) * 32).id
OTHER = Identity.from_seed(bytes([2]) * 32).id

FULL = Contact(
    ID,
    (
        Candidate("tcp", "192.168.1.5", 4000),
        Candidate("utp", "192.168.1.5", 4000),
        Candidate("utp", "2001:db8::1", 4001),
        Candidate("tcp", "2001:db8::1", 4001),
        Candidate("tcp", "198.51.100.7", 65535, "mapped"),
        Candidate("utp", "198.51.100.7", 1, "server-reflexive"),
        Candidate("tcp", "198.51.100.7", 2, "peer-reflexive"),
        Candidate("tcp", "198.51.100.7", 3, "predicted"),
        Candidate("utp", "198.51.100.7", 3, "relayed"),
    ),
    (Contact(OTHER, (Candidate("tcp", "203.0.113.9", 9),)), Contact(ID)),
)


def text_of(data: bytes) -> str:
    """A contact line around any bytes, with a right checksum."""
    return serialize_text("crust", b"crust-v1 contact", data)


def part(kind: int, value: bytes) -> bytes:
    return bytes((kind, len(value))) + value


class TestContact:
    @pytest.mark.parametrize("contact", [FULL, Contact(ID), Contact(ID, FULL.candidates[:3])])
    def test_round_trip(self, contact: Contact) -> None:
        line = str(contact)
        assert line.startswith("crust:")
        assert "\n" not in line
        assert Contact.parse(line) == contact
        assert Contact.parse(line.upper()) == contact
        assert Contact.parse(f" {line}\n") == contact
        assert Contact.from_bytes(bytes(contact)) == contact
        assert parse_target(line) == contact

    def test_bytes_on_the_wire(self) -> None:
        contact = Contact(ID, FULL.candidates[:2], (Contact(OTHER),))
        assert bytes(contact) == (
            b"\1" + bytes(ID) + b"\1\7" + b"\x03" + (4000).to_bytes(2, "big") + bytes([192, 168, 1, 5])
            + b"\2\x20" + bytes(OTHER)
        )  # fmt: skip

    def test_a_usual_contact_fits_a_small_qr_code(self) -> None:
        both = [Candidate(t, h, 40000) for h in ("192.168.178.20", "2001:db8:1:2:3:4:5:6") for t in ("tcp", "utp")]
        assert len(str(Contact(ID, both))) < 154  # QR version 6 with error correction L, alphanumeric: 195; M: 154

    def test_lists_become_tuples(self) -> None:
        contact = Contact(ID, list(FULL.candidates), list(FULL.rendezvous))  # type: ignore[arg-type]
        assert contact == FULL
        assert hash(contact) == hash(FULL)
        with pytest.raises(dataclasses.FrozenInstanceError):
            contact.id = OTHER  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("host", "canonical"),
        [("2001:DB8:0::0001", "2001:db8::1"), ("::ffff:198.51.100.7", "198.51.100.7"), ("::1", "::1")],
    )
    def test_addresses_become_canonical(self, host: str, canonical: str) -> None:
        contact = Contact(ID, (Candidate("tcp", host, 1, "mapped"),))
        assert contact.candidates == (Candidate("tcp", canonical, 1, "mapped"),)
        assert Contact.parse(str(contact)) == contact

    @pytest.mark.parametrize(
        "host", ["0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "239.255.255.250", "ff02::1", "::ffff:224.0.0.1"]
    )
    def test_addresses_nobody_has(self, host: str) -> None:
        with pytest.raises(ParseError, match="no address that can be dialled"):
            Contact(ID, (Candidate("tcp", host, 1),))

    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "10.1.2.3", "100.64.0.1", "192.0.2.1", "fe80::1", "2001:db8::1", "fd00::1"]
    )
    def test_registry_classes_do_not_matter(self, host: str) -> None:
        contact = Contact(ID, (Candidate("utp", host, 1),))
        assert Contact.parse(str(contact)) == contact

    @pytest.mark.parametrize("port", [0, -1, 65536])
    def test_port_range(self, port: int) -> None:
        with pytest.raises(ParseError, match="1 to 65535"):
            Contact(ID, (Candidate("tcp", "10.0.0.1", port),))

    @pytest.mark.parametrize("field", ["transport", "kind"])
    def test_unknown_words(self, field: str) -> None:
        candidate = dataclasses.replace(Candidate("tcp", "10.0.0.1", 1), **{field: "carrier pigeon"})  # type: ignore[arg-type]
        with pytest.raises(ParseError, match="unknown transport or kind"):
            Contact(ID, (candidate,))

    @pytest.mark.parametrize("host", ["example.org", "fe80::1%eth0", "", "1.2.3", "1.2.3.4.5", "::1::"])
    def test_names_are_not_given_away(self, host: str) -> None:
        with pytest.raises(ParseError, match="no numeric address"):
            Contact(ID, (Candidate("tcp", host, 1),))
        with pytest.raises(ParseError, match="numeric addresses"):
            Contact(ID, (), (parse_target(f"{OTHER}@example.org:1"),))

    def test_caps(self) -> None:
        many = tuple(Candidate("tcp", f"2001:db8::{n:x}", 1) for n in range(MAX_CANDIDATES))
        node = Contact(OTHER, many)
        largest = Contact(ID, many, (node,) * MAX_RENDEZVOUS)
        assert Contact.parse(str(largest)) == largest
        assert len(bytes(largest)) <= MAX_CONTACT_BYTES
        with pytest.raises(ParseError, match="at most 64"):
            Contact(ID, (*many, many[0]))
        with pytest.raises(ParseError, match="at most 8"):
            Contact(ID, (), (node,) * (MAX_RENDEZVOUS + 1))

    def test_rendezvous_do_not_nest(self) -> None:
        with pytest.raises(ParseError, match="no rendezvous of its own"):
            Contact(ID, (), (Contact(OTHER, (), (Contact(ID),)),))


class TestParse:
    HEAD = b"\1" + bytes(ID)
    ADDRESS = b"\x0f\xa0\x0a\0\0\1"  # port 4000, 10.0.0.1

    def test_unknown_parts_are_skipped(self) -> None:
        data = self.HEAD + part(77, b"later") + part(1, b"\1" + self.ADDRESS) + part(255, b"")
        assert Contact.parse(text_of(data)) == Contact(ID, (Candidate("tcp", "10.0.0.1", 4000),))

    @pytest.mark.parametrize("first", [0x00, 0x04, 0x61, 0xF1])
    def test_unknown_transports_and_kinds_are_skipped(self, first: int) -> None:
        assert Contact.parse(text_of(self.HEAD + part(1, bytes([first]) + self.ADDRESS))) == Contact(ID)

    def test_known_beside_unknown_transports(self) -> None:
        contact = Contact.parse(text_of(self.HEAD + part(1, b"\x3e" + self.ADDRESS)))
        assert contact.candidates == (Candidate("utp", "10.0.0.1", 4000, "mapped"),)

    def test_rendezvous_inside_a_rendezvous_is_skipped(self) -> None:
        inner = bytes(OTHER) + part(2, bytes(ID)) + part(9, b"x")
        assert Contact.parse(text_of(self.HEAD + part(2, inner))) == Contact(ID, (), (Contact(OTHER),))

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"\2" + bytes(ID), "version 2; this Crust reads version 1"),
            (b"\1", "too short for its PeerId"),
            (b"\1" + bytes(ID)[:-1], "too short for its PeerId"),
            (b"\1" + bytes(32), "small order"),
            (HEAD + b"\1", "cut off"),
            (HEAD + b"\1\7\1", "cut off"),
            (HEAD + b"\1\x80", "malformed length"),
            (HEAD + b"\1\x80\x01", "malformed length"),
            (HEAD + b"\1\x81\x01", "cut off"),
            (HEAD + part(1, b"\1\0\1" + bytes(5)), "an address of 5 bytes"),
            (HEAD + part(1, b""), "an address of -3 bytes"),
            (HEAD + part(1, b"\1\0\0\x0a\0\0\1"), "0 is no port"),
            (HEAD + part(1, b"\1\0\1\0\0\0\0"), "no address that can be dialled"),
            (HEAD + part(1, b"\3" + ADDRESS) * 33, "too many"),
            (HEAD + part(2, bytes(OTHER)) * 9, "too many"),
            (HEAD + part(2, b"x"), "too short for its PeerId"),
            (HEAD + part(2, bytes(32)), "small order"),
        ],
    )
    def test_broken(self, data: bytes, message: str) -> None:
        with pytest.raises(ParseError, match=message) as caught:
            Contact.parse(text_of(data))
        assert str(caught.value).startswith("not a contact: ")
        with pytest.raises(ParseError, match=message):
            Contact.from_bytes(data)

    def test_empty_and_oversized_bytes(self) -> None:
        with pytest.raises(ParseError, match="empty"):
            Contact.from_bytes(b"")
        with pytest.raises(ParseError, match="too long"):
            Contact.from_bytes(self.HEAD + bytes(MAX_CONTACT_BYTES))
        with pytest.raises(ParseError, match="too long"):
            Contact.parse("crust:" + "a" * 30_000)

    @pytest.mark.parametrize(
        ("text", "message"),
        [("crust:", "too short"), (str(FULL)[:-9], "cut off|checksum"), (str(ID), 'does not begin with "crust:"')],
    )
    def test_text(self, text: str, message: str) -> None:
        with pytest.raises(ParseError, match=message):
            Contact.parse(text)


class TestTarget:
    def test_peer_id(self) -> None:
        for text in (str(ID), str(ID).upper(), f"  {ID} \n"):
            assert parse_target(text) == Contact(ID)

    @pytest.mark.parametrize(
        ("address", "host"),
        [
            ("192.0.2.1:4000", "192.0.2.1"),
            ("[2001:DB8::1]:4000", "2001:db8::1"),
            ("[fe80::1%eth0]:4000", "fe80::1%eth0"),
            ("example.org:4000", "example.org"),
            ("EXAMPLE.org.:4000", "example.org."),
            ("localhost:4000", "localhost"),
            ("my_host-1:4000", "my_host-1"),
            ("bücher.example:4000", "xn--bcher-kva.example"),
            (" 192.0.2.1:4000 ", "192.0.2.1"),
        ],
    )
    def test_address(self, address: str, host: str) -> None:
        contact = parse_target(f"{ID}@{address}")
        assert contact.id == ID
        assert contact.candidates == (Candidate("tcp", host, 4000), Candidate("utp", host, 4000))
        assert parse_target(str(contact)) == contact

    def test_in_upper_case(self) -> None:
        assert parse_target(f"{ID}@[2001:db8::1]:4000".upper()) == parse_target(f"{ID}@[2001:db8::1]:4000")

    def test_a_name_is_written_as_it_was_typed(self) -> None:
        contact = parse_target(f"{ID}@example.org:4000")
        assert str(contact) == f"{ID}@example.org:4000"
        with pytest.raises(LocalProtocolError):
            bytes(contact)

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("", "the port is missing"),
            ("192.0.2.1", "the port is missing"),
            ("[::1]", "the port is missing"),
            ("192.0.2.1:", "'' is no port"),
            ("192.0.2.1:0", "'0' is no port"),
            ("192.0.2.1:65536", "no port"),
            ("192.0.2.1:999999", "no port"),
            ("192.0.2.1:-1", "no port"),
            ("192.0.2.1:4²", "no port"),
            ("192.0.2.1:http", "'http' is no port; ports go from 1 to 65535"),
            (":4000", "'' is no host name"),
            ("::1:4000", "stands in brackets"),
            ("[x]:4000", "'x' is no IPv6 address"),
            ("[192.0.2.1]:4000", "no IPv6 address"),
            ("[]:4000", "no IPv6 address"),
            ("192.0.2:4000", "'192.0.2' is no IPv4 address"),
            ("192.0.2.256:4000", "no IPv4 address"),
            ("0.0.0.0:4000", "no address that can be dialled"),
            ("a b:4000", "no host name"),
            ("-a:4000", "no host name"),
            ("a..b:4000", "no host name"),
            ("a@b:4000", "no host name"),
            ("a" * 64 + ":4000", "no host name"),
            ("a." * 130 + ":4000", "at most 253 characters"),
            ("ü" * 63 + ":4000", "no host name"),
        ],
    )
    def test_address_errors(self, address: str, message: str) -> None:
        with pytest.raises(ParseError, match=message):
            parse_target(f"{ID}@{address}")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "nothing there"),
            ("example.org:4000", 'does not begin with "crust"'),
            ("@192.0.2.1:4000", "nothing there"),
            (f"{str(ID)[:-1]}@192.0.2.1:4000", "too short"),
            ("crust:zzz", "not a contact"),
        ],
    )
    def test_other_errors(self, text: str, message: str) -> None:
        with pytest.raises(ParseError, match=message):
            parse_target(text)

    def test_result_is_what_its_parts_say(self) -> None:
        target: Any = parse_target(str(FULL))
        assert isinstance(target, Contact)
        assert isinstance(target.id, PeerId)


@pytest.mark.parametrize(
    "text",
    [
        "crust:" + "a" * 1_000_000,
        "crust" + "a" * 1_000_000,
        " " * 1_000_000,
        "@" * 1_000_000,
        "crust:\x1b]0;title\x07",
        f"{ID}@" + "a" * 1_000_000 + ":1",
        f"{ID}@1.2.3.4:" + "1" * 1_000_000,
        f"{ID}@[" + ":" * 1_000_000 + "]:5",
        f"{ID}@[fe80::1%" + "x" * 1000 + "]:5",
        f"{ID}@\x1b[31mhost:55",
    ],
)
def test_what_somebody_may_have_one_paste(text: str) -> None:
    """One short sentence, soon, in which nothing steers a terminal."""
    with pytest.raises(ParseError) as found:
        parse_target(text)
    assert len(str(found.value)) < 200
    assert str(found.value).isprintable()
