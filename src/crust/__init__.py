"""Crust: reliable, encrypted peer-to-peer connections by public key.

async with crust.Node() as node:
    conn = await node.connect(target)
    await conn.send(b"hello")
    message = await conn.receive()
"""

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
