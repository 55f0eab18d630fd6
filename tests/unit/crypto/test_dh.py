"""X25519 and its bad keys."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from crust.crypto.curve import P
from crust.crypto.dh import DhKey, Ephemerals, LowOrderKeyError, public_key

# All u of low order on curve and twist, and what below 2^255 reduces to them (cr.yp.to/ecdh.html, "validate").
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


def test_rfc_7748_vector() -> None:
    """RFC 7748 §6.1."""
    bob = DhKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    alice = public_key(bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"))
    assert bob.exchange(alice).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


@pytest.mark.parametrize("high_bit", [0, 1])
@pytest.mark.parametrize("u", LOW_ORDER)
def test_low_order_is_refused(u: int, high_bit: int) -> None:
    key = DhKey(bytes(range(32)))
    with pytest.raises(LowOrderKeyError):
        key.exchange(public_key((u | high_bit << 255).to_bytes(32, "little")))


def test_repr_hides_the_secret() -> None:
    private = bytes(range(32))
    key = DhKey(private)
    assert key.public.hex()[:8] in repr(key)
    assert private.hex()[:8] not in repr(key)


def test_the_secret_of_a_key_that_is_met_again_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = DhKey(bytes(range(32)))
    theirs = [DhKey(bytes([number]) * 32).public for number in range(70)]
    exchange, made = DhKey.exchange, []

    def counted(self: DhKey, remote: X25519PublicKey) -> bytes:
        made.append(remote)
        return exchange(self, remote)

    monkeypatch.setattr(DhKey, "exchange", counted)
    secrets = [ours.exchange_again(raw, public_key(raw)) for raw in theirs]
    assert secrets == [exchange(ours, public_key(raw)) for raw in theirs]
    assert len(made) == 70
    assert [ours.exchange_again(raw, public_key(raw)) for raw in theirs[6:]] == secrets[6:]
    assert len(made) == 70
    assert ours.exchange_again(theirs[0], public_key(theirs[0])) == secrets[0]
    assert len(made) == 71  # of many the oldest was forgotten


def test_a_secret_of_low_order_is_refused_each_time() -> None:
    ours = DhKey(bytes(range(32)))
    for _ in range(2):
        with pytest.raises(LowOrderKeyError):
            ours.exchange_again(bytes(32), public_key(bytes(32)))


def test_an_ephemeral_key_is_used_once() -> None:
    numbers = iter(range(256))
    keys = Ephemerals(lambda size: bytes([next(numbers)]) * size)
    found = [keys.take(0.0).public]
    for _ in range(3):
        keys.prepare(0.0)
        keys.prepare(0.0)  # there is one
        found += [keys.take(0.0).public, keys.take(0.0).public]
    assert found == [DhKey(bytes([number]) * 32).public for number in range(7)]


def test_an_ephemeral_key_does_not_wait_for_long() -> None:
    numbers = iter(range(256))
    keys = Ephemerals(lambda size: bytes([next(numbers)]) * size)
    keys.prepare(100.0)
    assert keys.take(110.0).public == DhKey(bytes(32)).public
    keys.prepare(120.0)
    assert keys.take(130.1).public == DhKey(bytes([2]) * 32).public
