"""Every error that Crust raises, as one tree.

CrustError
├── ConfigError                 a setting that cannot be used
├── IdentityError               a key file that cannot be read, written or trusted
├── ParseError (ValueError)     a mistyped PeerId, contact or target
├── LocalProtocolError          this program used the API in a way that cannot work
│   └── MessageTooLarge
├── RemoteProtocolError         the peer broke the protocol
│   └── BadSignatureError       it does not sign what it sends, or signs something else; `.proof`
├── ConnectError                a dial that failed; `.report` tells how
│   ├── NoPathError             nothing answered
│   ├── NotAuthenticError       something answered, but not this key: wrong key, or not Crust
│   ├── NetworkMismatchError    the peer belongs to another network
│   ├── RefusedError            the peer does not want us
│   │   └── SigningMismatchError    one side signs and the other does not
│   └── SelfDialError           the target is this very node
├── ConnectionClosed            orderly end of a connection
├── PeerLost                    the peer is gone and did not come back (also an event)
├── StreamResetError            the peer gave a stream up
├── TransferError               a file or folder that did not get across (`crust.node.transfer`)
│   ├── TransferRefusedError    one side does not want it
│   │   └── TransferConflictError   something else is in its place
│   ├── TransferInterruptedError    stopped half-way, to be continued
│   └── SourceError             what was to be sent cannot be
└── ReceiptError                a receipt that proves nothing
    └── ReceiptUnavailable      lost before it was signed
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crust.crypto.keys import PeerId
    from crust.types import Report

__all__ = [
    "BadSignatureError",
    "ConfigError",
    "ConnectError",
    "ConnectionClosed",
    "CrustError",
    "IdentityError",
    "LocalProtocolError",
    "MessageTooLarge",
    "NetworkMismatchError",
    "NoPathError",
    "NotAuthenticError",
    "ParseError",
    "PeerLost",
    "ReceiptError",
    "ReceiptUnavailable",
    "RefusedError",
    "RemoteProtocolError",
    "SelfDialError",
    "SigningMismatchError",
    "StreamResetError",
]


class CrustError(Exception):
    """Base of every error that Crust raises."""


class ConfigError(CrustError):
    """A setting that cannot be used; the text names the setting and what it takes."""


class IdentityError(CrustError):
    """A key file that cannot be read, written or trusted."""


class ParseError(CrustError, ValueError):
    """A text or bytes that is not the PeerId, contact or target it should be."""


class LocalProtocolError(CrustError):
    """This program asked for something that cannot work in the present state."""


class MessageTooLarge(LocalProtocolError):
    """A message over `Config.max_message_bytes`; nothing of it was sent."""


class RemoteProtocolError(CrustError):
    """The peer sent something that the protocol forbids."""


class BadSignatureError(RemoteProtocolError):
    """The peer's signature is missing, forged, over something else than what it sent, or contradicts another.

    Raised inside; an application finds it as the cause of the `PeerLost` that ends the connection, which has the proof
    as well.

    Attributes:
        proof: what the peer did sign: one statement over something else than it sent; or two that contradict each
            other, which `crust.wire.statement.conflict` proves to anyone. Empty if it signed nothing.
    """

    def __init__(self, message: str, proof: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.proof = proof


class ConnectError(CrustError):
    """A dial that failed.

    Attributes:
        report: what was tried, when, and what came back.
    """

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class NoPathError(ConnectError):
    """No candidate answered."""


class NotAuthenticError(ConnectError):
    """Something answered, but did not prove the key that was dialled."""


class NetworkMismatchError(ConnectError):
    """The peer has the right key but another `network_name` or `network_key`."""


class RefusedError(ConnectError):
    """The peer refused this node."""


class SigningMismatchError(RefusedError):
    """One side signs what it sends and the other has signing switched off; see `Config.signing`."""


class SelfDialError(ConnectError):
    """The target is the dialling node itself."""


class ConnectionClosed(CrustError):
    """The connection has ended in an orderly way, by either side."""


class PeerLost(CrustError):
    """The peer is gone and did not come back in time; raised by waiters, and an event of the node.

    Attributes:
        peer: who was lost.
        reason: why, in a few words.
        proof: what the peer signed, where it is lost because its signatures contradict what it sent, or each other:
            statements that convince a third party (`crust.wire.statement.Statement`).
    """

    def __init__(self, peer: PeerId | None, reason: str, proof: tuple[Any, ...] = ()) -> None:
        super().__init__(reason)
        self.peer = peer
        self.reason = reason
        self.proof = proof


class StreamResetError(CrustError):
    """The peer gave up a stream before its end."""


class ReceiptError(CrustError):
    """A receipt, or what it is said to prove, is not genuine."""


class ReceiptUnavailable(ReceiptError):
    """The connection was lost before the signature over a message arrived."""
