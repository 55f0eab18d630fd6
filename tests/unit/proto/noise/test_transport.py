"""Transport keys."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crust.crypto.aead import Suite, nonce
from crust.errors import RemoteProtocolError
from crust.proto.noise import transport
from crust.proto.noise.transport import CipherKeys, KeyPair, first_keys, rekey

EACH_SUITE = pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.name)


def both(suite: Suite = Suite.AESGCM) -> tuple[KeyPair, KeyPair]:
    """The keys of initiator and responder."""
    keys = (b"c" * 32, b"i" * 32, b"r" * 32)
    return first_keys(suite, *keys, initiator=True), first_keys(suite, *keys, initiator=False)


def in_step(send: CipherKeys, receive: CipherKeys, records: int = 5) -> None:
    for number in range(records):
        n = send.next_nonce()
        assert n == receive.next_nonce()
        sealed = send.aead.encrypt(n, bytes([number]), b"")
        assert receive.aead.decrypt(n, sealed, b"") == bytes([number])
        assert send.next_mask() == receive.next_mask()


@EACH_SUITE
def test_both_sides_agree(suite: Suite) -> None:
    initiator, responder = both(suite)
    assert initiator.root == responder.root
    in_step(initiator.send, responder.receive)
    in_step(responder.send, initiator.receive)


@EACH_SUITE
def test_nonces_count_up(suite: Suite) -> None:
    keys = CipherKeys(suite, bytes(32), bytes(32))
    assert [keys.next_nonce() for _ in range(1000)] == [nonce(suite, n) for n in range(1000)]
    assert keys.records == 1000
    assert repr(keys) == f"<CipherKeys {suite.name} 1000 records>"


@EACH_SUITE
def test_nonces_end(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    assert transport.MAX_RECORDS == 2**22
    monkeypatch.setattr(transport, "MAX_RECORDS", 10)
    keys = CipherKeys(suite, bytes(32), bytes(32))
    seen = {keys.next_nonce() for _ in range(10)}
    assert len(seen) == 10
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match="did not renew"):
            keys.next_nonce()
    assert keys.records == 10


@EACH_SUITE
def test_masks_are_keystream(suite: Suite) -> None:
    """As documented: blocks of 64 masks, big-endian, a nonce for each block."""
    keys = CipherKeys(suite, b"k" * 32, b"m" * 32)
    cipher = CipherKeys(suite, b"m" * 32, b"").aead
    stream = b"".join(cipher.encrypt(nonce(suite, n), bytes(128), None)[:128] for n in range(4))
    expected = [int.from_bytes(stream[i : i + 2], "big") for i in range(0, len(stream), 2)]
    assert [keys.next_mask() for _ in range(256)] == expected


def test_masks_look_random() -> None:
    keys = CipherKeys(Suite.AESGCM, b"k" * 32, b"m" * 32)
    masks = [keys.next_mask() for _ in range(20_000)]
    assert all(0 <= mask <= 0xFFFF for mask in masks)
    for bit in range(16):
        assert 9_600 < sum(mask >> bit & 1 for mask in masks) < 10_400
    assert len(set(masks)) > 16_000


def test_no_key_serves_twice() -> None:
    """Directions, masks and roots all differ."""
    initiator, _ = both()
    renewed = rekey(Suite.AESGCM, initiator.root, bytes(32), initiator=True)
    pairs = [initiator, renewed]
    ciphertexts = {k.aead.encrypt(bytes(12), bytes(16), None) for p in pairs for k in (p.send, p.receive)}
    masks = {tuple(k.next_mask() for _ in range(8)) for p in pairs for k in (p.send, p.receive)}
    assert len(ciphertexts) == len(masks) == 4
    assert initiator.root != renewed.root


def test_first_keys_are_noise_s() -> None:
    initiator, _ = both()
    assert initiator.send.aead.encrypt(bytes(12), b"x", None) == AESGCM(b"i" * 32).encrypt(bytes(12), b"x", None)
    assert initiator.root == hmac.digest(b"c" * 32, b"crust-v1 root", "sha256")


@EACH_SUITE
def test_rekey(suite: Suite) -> None:
    initiator, responder = both(suite)
    in_step(initiator.send, responder.receive, 100)
    for shared in (b"x" * 32, b"y" * 32):
        initiator = rekey(suite, initiator.root, shared, initiator=True)
        responder = rekey(suite, responder.root, shared, initiator=False)
        assert initiator.send.records == 0
        in_step(initiator.send, responder.receive)
        in_step(responder.send, initiator.receive)


def test_rekey_depends_on_root_and_shared_secret() -> None:
    roots = {
        rekey(Suite.AESGCM, root, shared, initiator=True).root
        for root in (b"a" * 32, b"b" * 32)
        for shared in (b"x" * 32, b"y" * 32)
    }
    assert len(roots) == 4


def test_release_keeps_nonces_and_masks() -> None:
    initiator, responder = both()
    in_step(initiator.send, responder.receive)
    initiator.send.release()
    responder.receive.release()
    in_step(initiator.send, responder.receive)
    assert initiator.send.records == 10
