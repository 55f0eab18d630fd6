"""Identities: the secret key of a node, its public PeerId, and signatures that say what they are for."""

from __future__ import annotations

import hashlib
import os
import secrets
from functools import total_ordering
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from crust.crypto import base32, curve, keyfile
from crust.crypto.dh import DhKey
from crust.errors import IdentityError, LocalProtocolError, ParseError

__all__ = ["SIGNATURE_BYTES", "Identity", "PeerId", "verify"]

SIGNATURE_BYTES: Final = 64

# Inside PeerId the name `bytes` is that of its method.
_Bytes: TypeAlias = bytes

_PREFIX: Final = "crust"
_CHECKSUM_LABEL: Final = b"crust-v1 peer-id"
_KEY_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 3
_TEXT_CHARACTERS: Final = len(_PREFIX) + (_KEY_BYTES + _CHECKSUM_BYTES) * 8 // 5  # 61; 35 bytes leave no odd bits


@total_ordering
class PeerId:
    """The public key by which a peer is known and dialled: an Ed25519 point in canonical encoding.

    Immutable, hashable, ordered by its bytes. Its text is "crust", then 56 characters of base32 for the key and a
    checksum; reading it ignores case and surrounding blanks.

    Args:
        raw: the 32 bytes of the key.

    Raises:
        ParseError: not a canonical encoding of a point of the curve, or a point of small order (PROTOCOL 1).
    """

    __slots__ = ("_raw",)

    _raw: _Bytes

    def __init__(self, raw: _Bytes) -> None:
        raw = bytes(raw)
        curve.check_point(raw)
        object.__setattr__(self, "_raw", raw)

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Read the text form.

        Raises:
            ParseError: saying what is wrong: the beginning, a character and where, the length, the checksum, or a
                key that is none.
        """
        text = text.strip().lower()
        if text.startswith(_PREFIX + ":"):
            raise ParseError('a contact ("crust:…"), where a PeerId ("crust…") is asked for')
        if not text.startswith(_PREFIX):
            raise ParseError('not a PeerId: it does not begin with "crust"' if text else "not a PeerId: nothing there")
        body = text[len(_PREFIX) :]
        try:
            base32.check_characters(body[: _TEXT_CHARACTERS - len(_PREFIX)], offset=len(_PREFIX))
            if len(text) != _TEXT_CHARACTERS:
                kind = "short" if len(text) < _TEXT_CHARACTERS else "long"
                raise ParseError(f"too {kind}: {len(text)} characters, a PeerId has {_TEXT_CHARACTERS}")
            data = base32.decode(body, offset=len(_PREFIX))
            raw, checksum = data[:_KEY_BYTES], data[_KEY_BYTES:]
            if checksum != _checksum(raw):
                raise ParseError("mistyped: the checksum does not match")
            return cls(raw)
        except ParseError as error:
            raise ParseError(f"not a PeerId: {error}") from error

    def bytes(self) -> _Bytes:
        """The 32 bytes of the key."""
        return self._raw

    @property
    def x25519(self) -> _Bytes:
        """The Noise static key that belongs to this id: its RFC 7748 map, which forgets the point's sign."""
        return curve.montgomery_u(self._raw)

    def matches_static(self, static: _Bytes) -> bool:
        """Whether `static` is `x25519`; cheaper than asking for it."""
        return curve.maps_to(self._raw, static)

    def __bytes__(self) -> _Bytes:
        return self._raw

    def __str__(self) -> str:
        return _PREFIX + base32.encode(self._raw + _checksum(self._raw))

    def __repr__(self) -> str:
        return f"PeerId.parse({str(self)!r})"

    def __hash__(self) -> int:
        return hash(self._raw)

    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, PeerId) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self._raw < other._raw if isinstance(other, PeerId) else NotImplemented

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a PeerId cannot be changed ({name})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a PeerId cannot be changed ({name})")

    def __copy__(self) -> PeerId:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PeerId:
        return self

    def __reduce__(self) -> tuple[type[PeerId], tuple[Any]]:
        return PeerId, (self._raw,)


class Identity:
    """The secret key of a node.

    One Ed25519 key signs; its scalar serves as the X25519 static key of the handshake (joint use: Thormarker 2021).

    Attributes:
        id: the public PeerId.
        dh: the X25519 key pair of the handshake.
    """

    __slots__ = ("_key", "_seed", "dh", "id")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != _KEY_BYTES:
            raise IdentityError(f"the seed of a key has 32 bytes, not {len(seed)}")
        self._seed = bytes(seed)
        self._key = Ed25519PrivateKey.from_private_bytes(self._seed)
        self.id: Final = PeerId(self._key.public_key().public_bytes_raw())
        self.dh: Final = DhKey(self.x25519_private)

    @classmethod
    def generate(cls) -> Identity:
        """A new identity from the system's randomness, kept nowhere."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte Ed25519 seed (RFC 8032 §5.1.5).

        Raises:
            IdentityError: the seed has another length.
        """
        return cls(seed)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Read a key file.

        Raises:
            IdentityError: there is none, it can be read by others, or it is not a whole key file.
        """
        try:
            return cls._read(Path(path))
        except FileNotFoundError as error:
            raise IdentityError(f"{path}: there is no such key file") from error

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """Read a key file, or create it (mode 0600, in a directory made with mode 0700) with a new identity.

        Several processes may do so at once: all come back with the same identity.

        Raises:
            IdentityError: the file cannot be read, trusted or written.
        """
        path = Path(path)
        try:
            return cls._read(path)
        except FileNotFoundError:
            created = cls.generate()
        if keyfile.create(path, created._seed, str(created.id), secrets.token_hex(8)):
            return created
        return cls.load(path)

    @classmethod
    def _read(cls, path: Path) -> Identity:
        """Read a key file, checking that seed and id belong together."""
        seed, identifier = keyfile.read(path)
        identity = cls(seed)
        if str(identity.id) != identifier:
            raise IdentityError(f"{path}: the key file is damaged: its seed is not that of its id")
        return identity

    @property
    def x25519_private(self) -> bytes:
        """The X25519 private key: the lower half of SHA-512(seed), clamped (RFC 8032 §5.1.5, RFC 7748 §5)."""
        scalar = bytearray(hashlib.sha512(self._seed).digest()[:32])
        scalar[0] &= 248
        scalar[31] &= 127
        scalar[31] |= 64
        return bytes(scalar)

    def sign(self, purpose: str, data: bytes) -> bytes:
        """Sign `data` for one purpose (PROTOCOL 17): no signature serves for another, whatever the data.

        Returns:
            The 64 bytes of Ed25519("crust-v1 <purpose>\\0" ‖ data).

        Raises:
            LocalProtocolError: the purpose is empty or not plain ASCII.
        """
        return self._key.sign(_signed(purpose, data))

    def __repr__(self) -> str:
        return f"<Identity {self.id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Identity holds a secret key and is not pickled or copied; pass the path of its file")


def verify(peer_id: PeerId, purpose: str, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is the peer's over `data` for this purpose.

    Returns:
        False for anything else, whatever the bytes.

    Raises:
        LocalProtocolError: the purpose is empty or not plain ASCII.
    """
    message = _signed(purpose, data)
    try:
        Ed25519PublicKey.from_public_bytes(peer_id.bytes()).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(purpose: str, data: bytes) -> bytes:
    """What is really signed: the purpose, ended by a zero byte, comes first."""
    if not purpose or not purpose.isascii() or not purpose.isprintable():
        raise LocalProtocolError(f"a signature's purpose is plain text, not {purpose!r}")
    return b"crust-v1 " + purpose.encode("ascii") + b"\0" + data


def _checksum(raw: bytes) -> bytes:
    """Three bytes that tell a mistyped PeerId: one in 16 million slips through."""
    return hashlib.sha256(_CHECKSUM_LABEL + raw).digest()[:_CHECKSUM_BYTES]
