"""Send files and folders to a peer that runs `crust receive`.

After an interruption start the same command again: it goes on where it was, after a comparison by hash.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from crust.cli.options import add_node_options, make_node, timeout
from crust.cli.output import CommandError, Output, format_bytes
from crust.cli.progress import Bars, summary
from crust.errors import CrustError
from crust.node.transfer import Source, TransferProgress, TransferResult, run_in_thread, scan, send_files
from crust.types import Path

if TYPE_CHECKING:
    from crust.crypto.keys import PeerId

_NOTES_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust send` takes."""
    parser.add_argument("target", metavar="TARGET", help="the contact that `crust receive` printed")
    parser.add_argument("files", metavar="FILE", nargs="+", help="a file or folder")
    add_node_options(parser)


async def run(args: argparse.Namespace, out: Output) -> int:
    """Find the files, dial, send."""
    from crust.wire.contact import parse_target

    parse_target(args.target)  # mistyped: say so before the disk is searched
    source = await run_in_thread(scan, args.files)
    _tell_notes(source, out)
    progress = TransferProgress()
    async with make_node(args) as node:
        connection = await node.connect(args.target, timeout=timeout(args))
        count = source.manifest.files
        size = format_bytes(source.manifest.bytes)
        out.say(f"Sending {count:,} file{'' if count == 1 else 's'}, {size}, over {connection.path}")
        try:
            async with Bars(out, "Sending").show(progress):
                result = await send_files(connection, source, progress=progress)
        except CrustError as error:
            await connection.close()
            raise error
        path = connection.path
        await connection.close()
    out.say(summary("Sent", result))
    signer = node.id if connection.signed and result.claims else None
    if signer is not None:
        out.say(f"Each file is signed by this machine's key, {signer}: the receiver can prove who sent it")
    out.record(end_record(result, connection.peer, path, signer, result.claims if signer else 0))
    if not result.hashes_equal:
        raise CommandError("the receiver computed other hashes than this side", code=4)
    return 0


def _tell_notes(source: Source, out: Output) -> None:
    for note in source.notes[:_NOTES_SHOWN]:
        out.say(note)
    if len(source.notes) > _NOTES_SHOWN:
        out.say(f"... and {len(source.notes) - _NOTES_SHOWN:,} more")


def end_record(
    result: TransferResult, peer: PeerId, path: Path | None, signer: PeerId | None, receipts: int
) -> dict[str, Any]:
    """The JSON object that ends `send` and `receive`.

    Args:
        result: of the transfer.
        peer: at the other end.
        path: over which it went.
        signer: who signed each file, the sender; None when signing is off.
        receipts: at the receiver, kept in files; at the sender, files for which the receiver can have one.
    """
    return {
        "files": result.files,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 6),
        "mb_s": round(result.mb_s, 3),
        "hashes_equal": result.hashes_equal,
        "peer": peer,
        "path": path,
        "signer": signer,
        "receipts": receipts,
        "hash": result.hash_name,
        "transferred_bytes": result.transferred_bytes,
        "kept_files": result.kept_files,
        "resumed_files": result.resumed_files,
    }
