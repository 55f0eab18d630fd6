"""PeerIds, identities and signatures."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crust.crypto.curve import P
from crust.crypto.keys import Identity, PeerId, verify
from crust.errors import CrustError, IdentityError, LocalProtocolError, ParseError

# RFC 8032 §7.1, test 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
TEXT = str(PeerId(PUBLIC))


class TestPeerId:
    def test_text_form(self) -> None:
        # Never change: people have written such texts down.
        assert TEXT == "crust25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkenphpcv"
        assert len(TEXT) == 61

    def test_round_trip(self) -> None:
        peer = PeerId.parse(TEXT)
        assert peer.bytes() == bytes(peer) == PUBLIC
        assert str(peer) == TEXT

    @pytest.mark.parametrize("text", [TEXT.upper(), f"  {TEXT}\n", TEXT[:30].upper() + TEXT[30:]])
    def test_case_and_blanks_do_not_matter(self, text: str) -> None:
        assert PeerId.parse(text) == PeerId(PUBLIC)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "nothing there"),
            ("   ", "nothing there"),
            (TEXT[1:], 'does not begin with "crust"'),
            ("http://example.org", 'does not begin with "crust"'),
            ("crust:abc", "a contact"),
            (TEXT[:20] + "0" + TEXT[21:], "character '0' at position 21 cannot occur; perhaps 'o'"),
            (TEXT[:20] + "1" + TEXT[21:], "perhaps 'l'"),
            (TEXT[:20] + " " + TEXT[21:], "character ' ' at position 21"),
            (TEXT[:-1], "too short: 60 characters, a PeerId has 61"),
            ("crust", "too short: 5 characters"),
            (TEXT + "a", "too long: 62 characters, a PeerId has 61"),
            (TEXT + " " + TEXT, "too long: 123 characters"),
            (TEXT[:20] + ("a" if TEXT[20] != "a" else "b") + TEXT[21:], "mistyped: the checksum does not match"),
            (TEXT[:20] + TEXT[21] + TEXT[20] + TEXT[22:], "mistyped: the checksum does not match"),
        ],
    )
    def test_each_way_to_mistype(self, text: str, message: str) -> None:
        with pytest.raises(ParseError, match=message) as caught:
            PeerId.parse(text)
        assert "PeerId" in str(caught.value)

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (bytes(32), "small order"),
            ((1).to_bytes(32, "little"), "small order"),
            ((1 | 1 << 255).to_bytes(32, "little"), "small order"),
            (P.to_bytes(32, "little"), "not canonical"),
            (b"\xff" * 32, "not canonical"),
            ((2).to_bytes(32, "little"), "no point of the curve"),
            (PUBLIC[:31], "32 bytes"),
            (PUBLIC + b"\0", "32 bytes"),
        ],
    )
    def test_bytes_that_are_no_key(self, raw: bytes, message: str) -> None:
        with pytest.raises(ParseError, match=message):
            PeerId(raw)

    def test_text_of_a_key_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a right checksum."""
        with monkeypatch.context() as patch:
            patch.setattr("crust.crypto.keys.curve.check_point", lambda raw: None)
            text = str(PeerId(bytes(32)))
        with pytest.raises(ParseError, match="small order"):
            PeerId.parse(text)

    def test_takes_any_kind_of_bytes(self) -> None:
        raw = bytearray(PUBLIC)
        peer = PeerId(raw)
        raw[0] ^= 1
        assert peer.bytes() == PUBLIC
        assert PeerId(memoryview(PUBLIC)) == peer  # type: ignore[arg-type]

    def test_immutable(self) -> None:
        peer: Any = PeerId(PUBLIC)
        for name in ("_raw", "x25519", "more"):
            with pytest.raises(AttributeError):
                setattr(peer, name, b"")
        with pytest.raises(AttributeError):
            del peer._raw
        assert peer.bytes() == PUBLIC

    def test_copies(self) -> None:
        peer = PeerId(PUBLIC)
        assert copy.copy(peer) is peer
        assert copy.deepcopy([peer])[0] is peer
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(peer, protocol)) == peer

    def test_order_equality_and_hash(self) -> None:
        peers = [Identity.from_seed(bytes([n]) * 32).id for n in range(10)]
        assert [bytes(p) for p in sorted(peers)] == sorted(bytes(p) for p in peers)
        low, high = sorted(peers)[:2]
        assert low < high <= high
        assert high > low >= low
        assert len({*peers, *(PeerId(bytes(p)) for p in peers)}) == 10
        assert low != high
        assert PeerId(PUBLIC) != PUBLIC
        assert PeerId(PUBLIC) != TEXT
        with pytest.raises(TypeError):
            _ = low < b""  # type: ignore[operator]

    def test_repr_can_be_typed(self) -> None:
        peer = PeerId(PUBLIC)
        assert eval(repr(peer), {"PeerId": PeerId}) == peer

    def test_negative_is_another_id_with_the_same_static_key(self) -> None:
        peer = PeerId(PUBLIC)
        negative = PeerId(PUBLIC[:31] + bytes([PUBLIC[31] ^ 0x80]))
        assert negative != peer
        assert str(negative) != str(peer)
        assert negative.x25519 == peer.x25519
        assert negative.matches_static(peer.x25519)


class TestIdentity:
    def test_rfc_8032(self) -> None:
        assert Identity.from_seed(SEED).id == PeerId(PUBLIC)

    def test_static_key_belongs_to_the_id(self) -> None:
        for number in range(16):
            identity = Identity.from_seed(bytes([number]) * 32)
            assert identity.dh.public == identity.id.x25519
            private = identity.x25519_private
            assert (private[0] & 7, private[31] & 0xC0) == (0, 0x40)

    def test_generate_differs(self) -> None:
        assert Identity.generate().id != Identity.generate().id

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_seed_of_another_length(self, size: int) -> None:
        with pytest.raises(IdentityError, match=f"not {size}"):
            Identity.from_seed(bytes(size))

    def test_secret_does_not_leak(self) -> None:
        identity = Identity.from_seed(SEED)
        assert str(identity.id) in repr(identity)
        assert SEED.hex()[:8] not in repr(identity)
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="secret key"):
                duplicate(identity)


class TestSignatures:
    def test_sign_and_verify(self) -> None:
        identity = Identity.from_seed(SEED)
        signature = identity.sign("receipt", b"data")
        assert len(signature) == 64
        assert verify(identity.id, "receipt", signature, b"data")

    def test_what_is_signed_begins_with_the_purpose(self) -> None:
        """PROTOCOL 17, as another implementation would do it."""
        key = Ed25519PrivateKey.from_private_bytes(SEED)
        assert Identity.from_seed(SEED).sign("receipt", b"data") == key.sign(b"crust-v1 receipt\0data")

    def test_forgeries(self) -> None:
        identity = Identity.from_seed(SEED)
        signature = identity.sign("receipt", b"data")
        assert not verify(identity.id, "beacon", signature, b"data")
        assert not verify(identity.id, "receipt", signature, b"dat")
        assert not verify(Identity.from_seed(PUBLIC).id, "receipt", signature, b"data")
        assert not verify(identity.id, "receipt", bytes(64), b"data")
        assert not verify(identity.id, "receipt", b"", b"data")
        assert not verify(identity.id, "receipt", signature + b"\0", b"data")
        # S + L is the same number modulo the group order, and must not pass as a second signature (RFC 8032 §5.1.7).
        order = 2**252 + 27742317777372353535851937790883648493
        malleable = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
        assert not verify(identity.id, "receipt", malleable, b"data")

    @pytest.mark.parametrize("purpose", ["", "a\0b", "é", "a\nb"])
    def test_purpose_is_plain_text(self, purpose: str) -> None:
        identity = Identity.from_seed(SEED)
        with pytest.raises(LocalProtocolError):
            identity.sign(purpose, b"")
        with pytest.raises(CrustError):
            verify(identity.id, purpose, bytes(64), b"")
