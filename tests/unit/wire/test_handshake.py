"""The bodies of handshake messages."""

from __future__ import annotations

import pytest

from crust.crypto.aead import Suite
from crust.crypto.keys import Identity
from crust.errors import RemoteProtocolError
from crust.wire.handshake import (
    HELLO_BYTES,
    REQUEST_BYTES,
    RESPONSE_BYTES,
    Hello,
    Hint,
    Request,
    Role,
    Signing,
    UnsupportedVersionError,
    parse_hello,
    parse_hint,
    parse_request,
    parse_response,
    serialize_hello,
    serialize_hint,
    serialize_request,
    serialize_response,
)

ID = Identity.from_seed(bytes([1]) * 32).id
NOISE_1 = bytes(REQUEST_BYTES - 4)
NOISE_2 = bytes(RESPONSE_BYTES - 2)


class TestHello:
    HELLO = Hello(ID, Role.CLIENT, Signing.STRICT, hashes=3, features=0x01020304)

    def test_bytes(self) -> None:
        data = serialize_hello(self.HELLO)
        assert data == bytes(ID) + b"\1\2\3\1\2\3\4"
        assert len(data) == HELLO_BYTES
        assert parse_hello(data) == self.HELLO

    def test_later_fields_are_skipped(self) -> None:
        assert parse_hello(serialize_hello(self.HELLO) + b"more") == self.HELLO

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "too short"),
            (bytes(ID) + b"\0\0\1\0\0\0", "too short"),
            (bytes(32) + b"\0\0\1\0\0\0\0", "small order"),
            (bytes(ID) + b"\2\0\1\0\0\0\0", "Role"),
            (bytes(ID) + b"\0\3\1\0\0\0\0", "Signing"),
        ],
    )
    def test_broken(self, data: bytes, message: str) -> None:
        with pytest.raises(RemoteProtocolError, match=message):
            parse_hello(data)

    def test_signing_is_off_only_where_both_say_so(self) -> None:
        for ours in Signing:
            for theirs in Signing:
                assert ours.agrees_with(theirs) is ((ours == 0) == (theirs == 0))


class TestRequest:
    @pytest.mark.parametrize("suite", list(Suite))
    @pytest.mark.parametrize("padding", [0, 1, 500])
    def test_round_trip(self, suite: Suite, padding: int) -> None:
        body = serialize_request(Request(suite, NOISE_1), padding)
        assert len(body) == REQUEST_BYTES + padding
        assert body[0] == 1
        assert parse_request(body) == Request(suite, NOISE_1)

    @pytest.mark.parametrize(
        "body", [b"", b"\1\1\0", b"\1\1\0\x87", b"\1\1\0\x86" + bytes(0x86), b"\1\1\0\xff" + NOISE_1]
    )
    def test_broken(self, body: bytes) -> None:
        with pytest.raises(RemoteProtocolError):
            parse_request(body)

    @pytest.mark.parametrize("head", [b"\0\1", b"\2\1", b"\1\0", b"\1\3"])
    def test_other_versions_and_suites(self, head: bytes) -> None:
        with pytest.raises(UnsupportedVersionError):
            parse_request(head + len(NOISE_1).to_bytes(2, "big") + NOISE_1)


class TestResponse:
    @pytest.mark.parametrize("padding", [0, 1, 500])
    def test_round_trip(self, padding: int) -> None:
        body = serialize_response(NOISE_2, padding)
        assert len(body) == RESPONSE_BYTES + padding
        assert parse_response(body) == NOISE_2

    @pytest.mark.parametrize("body", [b"", b"\0", b"\0\x56" + bytes(0x56), b"\0\xff" + NOISE_2])
    def test_broken(self, body: bytes) -> None:
        with pytest.raises(RemoteProtocolError):
            parse_response(body)


class TestHint:
    @pytest.mark.parametrize("hint", list(Hint))
    def test_round_trip(self, hint: Hint) -> None:
        assert parse_hint(serialize_hint(hint, 9)) is hint

    def test_unknown_is_a_refusal(self) -> None:
        assert parse_hint(b"\xee") is Hint.REFUSED

    def test_empty(self) -> None:
        with pytest.raises(RemoteProtocolError):
            parse_hint(b"")
