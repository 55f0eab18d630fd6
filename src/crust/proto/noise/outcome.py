"""What goes into a handshake and what comes out of it, on either side."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from crust.crypto.aead import TAG_BYTES, Suite, sha256
from crust.crypto.keys import Identity, PeerId
from crust.errors import LocalProtocolError, RemoteProtocolError
from crust.proto.noise.envelope import FIELD_BYTES, SALT_BYTES
from crust.proto.noise.ik import IkInitiator, IkResponder
from crust.proto.noise.transport import CipherKeys, first_keys
from crust.wire.handshake import HINT_BYTES, REQUEST_BYTES, RESPONSE_BYTES, VERSION, Hello

__all__ = [
    "MAX_PADDING",
    "MAX_REQUEST_SEALED",
    "MIN_HINT_SEALED",
    "MIN_REQUEST_SEALED",
    "MIN_RESPONSE_SEALED",
    "REQUEST_HEADER",
    "DiscardReason",
    "FailureReason",
    "HandshakeFailed",
    "HandshakeResult",
    "Incoming1",
    "Network",
    "Random",
    "State",
    "check_own_hello",
    "draw",
    "finish",
]

Random: TypeAlias = Callable[[int], bytes]

# With up to this much padding message 1 has 173 to 684 bytes: always one TCP segment, and one datagram of any path.
MAX_PADDING: Final = 511
# What a length field may say: the least is without padding, the most has room for what later versions add to the Hello.
MAX_REQUEST_SEALED: Final = 1024
MIN_REQUEST_SEALED: Final = REQUEST_BYTES + TAG_BYTES
MIN_RESPONSE_SEALED: Final = RESPONSE_BYTES + TAG_BYTES
MIN_HINT_SEALED: Final = HINT_BYTES + TAG_BYTES
REQUEST_HEADER: Final = SALT_BYTES + FIELD_BYTES


class FailureReason(enum.Enum):
    """Why a dial came to nothing; the value is the sentence for people."""

    NETWORK_MISMATCH = "the peer says that it belongs to another network (network_name or network_key differ)"
    REFUSED = "the peer refused this node"
    SIGNING_MISMATCH = "one side signs and the other does not: set `signing` alike on both"
    UNSUPPORTED_VERSION = "the peer says that it does not know this version of the protocol"
    BUSY = "the peer has no room for another connection at present"
    WRONG_KEY_OR_NOT_CRUST = "what answers does not hold this key: wrong key, or not Crust"
    SILENT = "closed without an answer: wrong key, or not Crust"
    HTTP = "an HTTP server answers here, not Crust"
    SSH = "an SSH server answers here, not Crust"
    TLS = "a TLS server answers here, not Crust"
    MAIL_OR_FTP = "a mail or FTP server answers here, not Crust"


class HandshakeFailed(RemoteProtocolError):
    """The end of a dial without a connection.

    Attributes:
        reason: which end. Those that are told by a hint can be forged by who knows the PeerId and sees the dial.
    """

    def __init__(self, reason: FailureReason, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.reason = reason


class DiscardReason(enum.Enum):
    """Why a responder stays silent, or has sent a hint and waits for the end; the value is the counter's name."""

    IMPLAUSIBLE_LENGTH = "implausible_length"  # a stranger, who does not know our PeerId
    OUTER_TAG = "outer_tag"  # the same
    MALFORMED = "malformed"
    UNSUPPORTED_VERSION = "unsupported_version"
    NETWORK_MISMATCH = "network_mismatch"
    LOW_ORDER_KEY = "low_order_key"
    FORGED_STATIC = "forged_static"  # somebody claims a static key without its secret
    WRONG_PEER_ID = "wrong_peer_id"  # a PeerId that does not map to the static key
    REPLAYED = "replayed"
    TRAILING_DATA = "trailing_data"  # bytes behind message 1, which its sender cannot have keys for
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Network:
    """Which network a node belongs to; nodes of different ones cannot shake hands.

    Attributes:
        network_hash: of the name and the key. A key that can be guessed can be tried out by every node that is dialled.
    """

    network_hash: bytes

    @classmethod
    def of(cls, name: str, key: str | bytes | None = None) -> Network:
        """The network of a `network_name` and a `network_key`."""
        encoded = name.encode()
        secret = key.encode() if isinstance(key, str) else key
        tail = b"\0" if secret is None else b"\1" + secret
        return cls(sha256(b"crust-v1 network" + len(encoded).to_bytes(4, "big") + encoded + tail))

    def prologue(self, suite: Suite, responder: PeerId) -> bytes:
        """The Noise prologue: all that both sides must agree on beyond the messages."""
        return b"crust-v1" + bytes((VERSION, suite.value)) + responder.bytes() + self.network_hash


@dataclass(slots=True)
class HandshakeResult:
    """A finished handshake.

    On the responder's side the peer is proved only by its first transport record: message 1 may be a replay, or forged
    by who stole our own key (PROTOCOL 2).

    Attributes:
        peer: the other side.
        hello: what it said.
        send: keys for what we send.
        receive: keys for what we receive.
        root: the secret for `transport.rekey`.
        initiator: whether we dialled.
        handshake_hash: the same on both sides, and of this handshake only.
        rest: bytes that arrived behind the handshake.
    """

    peer: PeerId
    hello: Hello
    send: CipherKeys
    receive: CipherKeys
    root: bytes
    initiator: bool
    handshake_hash: bytes
    rest: bytes = b""


@dataclass(frozen=True, slots=True)
class Incoming1:
    """A first message that opened.

    Attributes:
        hello: what the initiator says of itself; claimed only, until its first transport record.
    """

    hello: Hello


class State(enum.Enum):
    """Of either side."""

    WAITING = "waiting for the other side's message"
    DECIDING = "message 1 has opened; accept or refuse"
    DONE = "finished"
    DISCARDING = "what arrives is thrown away"
    FAILED = "failed"


def check_own_hello(identity: Identity, hello: Hello) -> None:
    """Refuse a Hello that is not ours to give."""
    if hello.peer != identity.id:
        raise LocalProtocolError("the Hello names another PeerId than the identity's")


def finish(
    noise: IkInitiator | IkResponder, suite: Suite, hello: Hello, *, initiator: bool, rest: bytes
) -> HandshakeResult:
    """The outcome, with the transport keys."""
    keys = first_keys(suite, noise.chaining_key, *noise.split(), initiator=initiator)
    return HandshakeResult(hello.peer, hello, keys.send, keys.receive, keys.root, initiator, noise.handshake_hash, rest)


def draw(random: Random, least: int, most: int) -> int:
    """A random number between two bounds (both included); the bias of 2^-16 or so does not matter for padding."""
    return least + int.from_bytes(random(4), "big") % (most - least + 1)
