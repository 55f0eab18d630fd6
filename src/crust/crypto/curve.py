"""Ed25519 point checks and the map from Edwards to Montgomery form, on plain integers.

Only public values pass through here, so nothing needs to take constant time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from crust.errors import ParseError

__all__ = ["check_point", "maps_to", "montgomery_u"]

P: Final = 2**255 - 19
D: Final = -121665 * pow(121666, -1, P) % P  # RFC 8032 §5.1

# y of a point of order 8 (RFC 7748 §7 and RFC 8032 leave it to the reader): of its doubling's y = 0 follows
# x² = -y², with the curve equation d·y⁴ + 2y² - 1 = 0. Negation flips the sign of x, adding (0, -1) that of y.
_Y8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y: Final = frozenset({0, 1, P - 1, _Y8, P - _Y8})

# Validated keys and mapped keys are asked for again and again (a peer reconnects, a contact is dialled over several
# candidates); an entry takes about 200 bytes.
_CACHE_ENTRIES: Final = 2048


def _is_residue(value: int) -> bool:
    """Whether `value` is a square modulo p: the Jacobi symbol, half the price of Euler's criterion by `pow`."""
    a, n, sign = value % P, P, False
    while a:
        zeros = (a & -a).bit_length() - 1
        if zeros:
            a >>= zeros
            if zeros & 1 and n & 7 in (3, 5):
                sign = not sign
        if a & n & 3 == 3:
            sign = not sign
        a, n = n % a, a
    return n == 1 and not sign


@lru_cache(maxsize=_CACHE_ENTRIES)
def check_point(raw: bytes) -> None:
    """Refuse whatever is not a canonical encoding of a curve point of large order (PROTOCOL 1).

    A point with a small-order component besides a large one passes: it is nobody else's key, and finding out costs a
    scalar multiplication.

    Raises:
        ParseError: wrong length, y ≥ p, not on the curve, or small order. The points with x = 0, whose sign bit has
            no meaning, are of small order with either sign.
    """
    if len(raw) != 32:
        raise ParseError(f"a public key has 32 bytes, not {len(raw)}")
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    if y >= P:
        raise ParseError("not a public key: its encoding is not canonical")
    if y in _SMALL_ORDER_Y:
        raise ParseError("not a public key: a point of small order")
    # x² = (y² - 1) / (d·y² + 1) is a square exactly when numerator · denominator is; the denominator is never 0,
    # as -1/d is no square.
    y2 = y * y % P
    if not _is_residue((y2 - 1) * (D * y2 + 1)):
        raise ParseError("not a public key: no point of the curve")


@lru_cache(maxsize=_CACHE_ENTRIES)
def montgomery_u(raw: bytes) -> bytes:
    """The X25519 public key of a checked Ed25519 point: u = (1 + y) / (1 - y) (RFC 7748 §4.1). It forgets the sign."""
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    return ((1 + y) * pow(1 - y, -1, P) % P).to_bytes(32, "little")


def maps_to(raw: bytes, u: bytes) -> bool:
    """Whether `montgomery_u(raw) == u`, without the division."""
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    value = int.from_bytes(u, "little")
    return value < P and (value * (1 - y) - 1 - y) % P == 0
