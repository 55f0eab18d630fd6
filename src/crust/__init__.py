"""Crust: reliable, encrypted peer-to-peer connections by public key.

async with crust.Node() as node:
    conn = await node.connect(target)
    await conn.send(b"hello")
    message = await conn.receive()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crust.config import Config
    from crust.crypto.keys import Identity, PeerId
    from crust.errors import (
        ConfigError,
        ConnectError,
        ConnectionClosed,
        CrustError,
        ParseError,
        PeerLost,
        ReceiptError,
        ReceiptUnavailable,
    )
    from crust.node.connection import Connection
    from crust.node.events import BootstrapFailed, DuplicateIdentity, PathChanged, PeerClosed, PeerConnected
    from crust.node.incoming import Incoming
    from crust.node.message import Message
    from crust.node.node import Node
    from crust.node.stream import Stream
    from crust.types import Candidate, Path, Priority, Report
    from crust.wire.contact import Contact
    from crust.wire.receipt import Receipt

__all__ = [
    "BootstrapFailed",
    "Candidate",
    "Config",
    "ConfigError",
    "ConnectError",
    "Connection",
    "ConnectionClosed",
    "Contact",
    "CrustError",
    "DuplicateIdentity",
    "Identity",
    "Incoming",
    "Message",
    "Node",
    "ParseError",
    "Path",
    "PathChanged",
    "PeerClosed",
    "PeerConnected",
    "PeerId",
    "PeerLost",
    "Priority",
    "Receipt",
    "ReceiptError",
    "ReceiptUnavailable",
    "Report",
    "Stream",
]

# Whose names these are. A module is imported when one of its names is first asked for (PEP 562): a command that needs
# an error or an identity does not wait for all that a node is made of.
_NAMES = {
    "crust.config": ("Config",),
    "crust.crypto.keys": ("Identity", "PeerId"),
    "crust.errors": (
        "ConfigError",
        "ConnectError",
        "ConnectionClosed",
        "CrustError",
        "ParseError",
        "PeerLost",
        "ReceiptError",
        "ReceiptUnavailable",
    ),
    "crust.node.connection": ("Connection",),
    "crust.node.events": ("BootstrapFailed", "DuplicateIdentity", "PathChanged", "PeerClosed", "PeerConnected"),
    "crust.node.incoming": ("Incoming",),
    "crust.node.message": ("Message",),
    "crust.node.node": ("Node",),
    "crust.node.stream": ("Stream",),
    "crust.types": ("Candidate", "Path", "Priority", "Report"),
    "crust.wire.contact": ("Contact",),
    "crust.wire.receipt": ("Receipt",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_PACKAGES = frozenset({"config", "crypto", "errors", "net", "node", "proto", "types", "wire"})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value: Any = getattr(import_module(_HOMES[name]), name)
    elif name in _PACKAGES:
        value = import_module(f"crust.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_PACKAGES})
