"""Files and folders over a connection: resumed after an interruption, checked by hash, never half-written.

source = await run_in_thread(scan, ["folder", "file.bin"])          # the sender
result = await send_files(connection, source)

async for stream in connection.streams():                           # the receiver
    if stream.name == STREAM_NAME:
        result = await receive_files(connection, stream, "incoming")
"""

from __future__ import annotations

from crust.node.transfer.claims import ClaimHandler, ReceiptFolder, await_signatures
from crust.node.transfer.digest import CLAIM_PREFIX, claim
from crust.node.transfer.endpoint import STREAM_NAME
from crust.node.transfer.error import (
    SourceError,
    TransferConflictError,
    TransferError,
    TransferInterruptedError,
    TransferRefusedError,
)
from crust.node.transfer.progress import TransferProgress, TransferResult
from crust.node.transfer.receiver import receive_files, refuse_files
from crust.node.transfer.sender import send_files
from crust.node.transfer.source import Source, scan
from crust.node.transfer.worker import run_in_thread

__all__ = [
    "CLAIM_PREFIX",
    "STREAM_NAME",
    "ClaimHandler",
    "ReceiptFolder",
    "Source",
    "SourceError",
    "TransferConflictError",
    "TransferError",
    "TransferInterruptedError",
    "TransferProgress",
    "TransferRefusedError",
    "TransferResult",
    "await_signatures",
    "claim",
    "receive_files",
    "refuse_files",
    "run_in_thread",
    "scan",
    "send_files",
]
