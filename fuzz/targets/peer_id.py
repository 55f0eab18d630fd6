"""What people type and paste: PeerIds. Reading is strict, so each has one text."""

from __future__ import annotations

from crust.crypto.keys import Identity, PeerId
from crust.errors import ParseError
from fuzz.target import Target


def run_text(data: bytes) -> None:
    """A text becomes a PeerId with this very text, or a ParseError."""
    text = data.decode("utf-8", errors="surrogateescape")
    peer = PeerId.parse(text)
    assert str(peer) == text.strip().lower()
    assert PeerId.parse(str(peer)) == peer


def run_raw(data: bytes) -> None:
    """Bytes become a PeerId of these very bytes, or a ParseError."""
    peer = PeerId(data)
    assert peer.bytes() == data
    assert PeerId.parse(str(peer)) == peer
    assert peer.matches_static(peer.x25519)


def _identities() -> list[Identity]:
    return [Identity.from_seed(bytes((number,)) * 32) for number in range(4)]


TARGETS = (
    Target("peer-id-text", run_text, (ParseError,), lambda: [str(identity.id).encode() for identity in _identities()]),
    Target("peer-id-raw", run_raw, (ParseError,), lambda: [identity.id.bytes() for identity in _identities()]),
)
