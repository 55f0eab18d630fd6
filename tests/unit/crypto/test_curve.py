"""Point checks and the map to Montgomery form."""

from __future__ import annotations

import random

import pytest

from crust.crypto.curve import P, check_point, maps_to, montgomery_u
from crust.crypto.keys import Identity
from crust.errors import ParseError

# The y of all points of small order (RFC 8032 has none of them as a base point): orders 1, 2, 4, 4, 8 (twice two).
SMALL_Y = [
    1,
    P - 1,
    0,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    P - 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
]
D = -121665 * pow(121666, -1, P) % P


def encoded(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def on_curve(y: int) -> bool:
    """By Euler's criterion, which the module avoids."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    return square == 0 or pow(square, (P - 1) // 2, P) == 1


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", SMALL_Y)
def test_small_order_is_refused(y: int, sign: int) -> None:
    # With y = 1 and -1 comes x = 0, whose sign bit has no meaning: refused either way.
    with pytest.raises(ParseError, match="small order"):
        check_point(encoded(y, sign))


def test_the_small_orders_are_true() -> None:
    """Doubling thrice, by the y of the sum of a point with itself: (y² + x²) / (1 - d·x²·y²)."""

    def double(y: int) -> int:
        x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        return (y * y + x2) * pow(1 - D * x2 * y * y, -1, P) % P

    for y in SMALL_Y:
        assert on_curve(y)
        assert double(double(double(y))) == 1


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", range(P, 2**255))
def test_non_canonical_is_refused(y: int, sign: int) -> None:
    with pytest.raises(ParseError, match="not canonical"):
        check_point(encoded(y, sign))


def test_off_curve_is_refused_and_on_curve_is_not() -> None:
    source = random.Random(1)
    refused = 0
    for _ in range(500):
        y = source.randrange(2, P - 1)
        if on_curve(y):
            check_point(encoded(y, source.randrange(2)))
        else:
            refused += 1
            with pytest.raises(ParseError, match="no point of the curve"):
                check_point(encoded(y, source.randrange(2)))
    assert 200 < refused < 300


@pytest.mark.parametrize("size", [0, 31, 33])
def test_wrong_length(size: int) -> None:
    with pytest.raises(ParseError, match=f"32 bytes, not {size}"):
        check_point(bytes(size))


def test_map_agrees_with_the_private_keys() -> None:
    """The map of the Ed25519 public key is the X25519 public key of the same scalar."""
    signs = set()
    for number in range(64):
        identity = Identity.from_seed(number.to_bytes(32, "big"))
        raw = identity.id.bytes()
        signs.add(raw[31] >> 7)
        assert montgomery_u(raw) == identity.dh.public
        assert maps_to(raw, identity.dh.public)
        assert not maps_to(raw, Identity.from_seed(bytes([number]) * 32).dh.public) or number == 0
    assert signs == {0, 1}


def test_map_of_the_base_points() -> None:
    """RFC 7748 §4.1: the base points of edwards25519 (y = 4/5) and curve25519 (u = 9) correspond."""
    raw = encoded(4 * pow(5, -1, P) % P)
    assert montgomery_u(raw) == encoded(9)
    assert maps_to(raw, encoded(9))


def test_maps_to_takes_canonical_coordinates_only() -> None:
    raw = encoded(4 * pow(5, -1, P) % P)
    assert not maps_to(raw, encoded(9 + P))
    assert not maps_to(raw, encoded(9, 1))
