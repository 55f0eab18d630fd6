"""Prove or refute that a file was signed by its sender.

RECEIPT is a file with a receipt, in bytes or as text, or the text itself (crust-receipt:…); FILE is what it is said to
be for: a file that came by `crust send`, or one that holds a message; - is standard input. It is read once, however
large. No identity, network or configuration is needed. Exit code 0: proved; 4: refuted; 2: something cannot be read.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from crust.cli.app import EXIT_REFUSED, EXIT_USAGE
from crust.cli.output import CommandError, Output
from crust.errors import ReceiptError
from crust.types import Priority
from crust.wire.receipt import Receipt

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["add_arguments", "run"]

_TEXT_PREFIX: Final = "crust-receipt:"
_MOST_BYTES: Final = 1 << 16  # several times the longest receipt
_LAST_SECOND: Final = 253_402_300_799  # of the year 9999; rounding must not lead beyond it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust verify` takes."""
    parser.add_argument("receipt", metavar="RECEIPT", help="a file with the receipt, or its text (crust-receipt:…)")
    parser.add_argument("file", metavar="FILE", help="what it is said to be for; - is standard input")


def run(args: argparse.Namespace, out: Output) -> int:
    """Read both and say what is proved.

    Raises:
        CommandError: it is refuted, or something cannot be read.
    """
    try:
        receipt = _receipt(args.receipt)
        with _opened(args.file) as file:
            receipt.verify_file(file)
            size = file.tell() if file.seekable() else None
    except ReceiptError as error:
        raise CommandError(f"refuted: {error}", code=EXIT_REFUSED, record=_record(None, str(error))) from error
    except OSError as error:
        # Standard input and some errors of reading have no name with them.
        raise CommandError(f"{error.filename or args.file}: {error.strerror or error}", code=EXIT_USAGE) from error
    record = _record(receipt, None)
    out.data(_text(receipt, record, size), record)
    return 0


def _receipt(text: str) -> Receipt:
    if text.lstrip().startswith(_TEXT_PREFIX):
        return Receipt.from_text(text)
    with open(text, "rb") as file:
        data = file.read(_MOST_BYTES)
    if data.lstrip().startswith(_TEXT_PREFIX.encode()):
        return Receipt.from_text(data.decode("utf-8", errors="replace"))
    return Receipt.from_bytes(data)


def _opened(path: str) -> AbstractContextManager[BinaryIO]:
    if path == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    return open(path, "rb")


def _record(receipt: Receipt | None, error: str | None) -> dict[str, Any]:
    """What `--json` prints. Of a receipt that proves nothing, nothing is repeated: somebody might believe it."""
    claims = None if receipt is None else receipt.claims
    return {
        "signer": claims and claims.signer,
        "receiver": claims and claims.receiver,
        "number": claims and claims.number,
        "priority": claims and Priority(claims.priority),
        "time": claims and _iso(claims.time),
        "session": claims and claims.session,
        "kind": claims and claims.kind,
        "verified": claims is not None,
        "error": error,
    }


def _iso(seconds: float) -> str:
    time = datetime.fromtimestamp(min(seconds, _LAST_SECOND), UTC)
    return time.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _text(receipt: Receipt, record: dict[str, Any], size: int | None) -> str:
    claims = receipt.claims
    kind = claims.kind.name.lower().replace("_", " ")
    if size not in (None, claims.length):
        kind = f"{kind} that stands for the whole file by its hash, itself"
    return "\n".join(
        (
            "Proved: the signer signed exactly this content.",
            f"  signer    {claims.signer}",
            f"  receiver  {claims.receiver}",
            f"  number    {claims.number} of what the signer sent in the session, counted from 0",
            f"  kind      {kind} of {claims.length} bytes, priority {Priority(claims.priority).name.lower()}",
            f"  time      {record['time']}, the sender's claim: nobody else attests it",
            f"  session   {claims.session.hex()}",
            "That it was delivered, and who holds the signer's key, is not proved by a receipt.",
        )
    )
