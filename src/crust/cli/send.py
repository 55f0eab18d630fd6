"""Send files and folders to a peer that runs `crust receive`.

After an interruption start the same command again: it goes on where it was, after a comparison by hash.
"""

from __future__ import annotations

import argparse
from typing import Any

from crust.cli.options import add_node_options, make_node, timeout
from crust.cli.output import CommandError, Output, format_bytes
from crust.cli.progress import Bars, summary
from crust.errors import CrustError
from crust.node.transfer import Source, TransferProgress, TransferResult, run_in_thread, scan, send_files
from crust.types import Path

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
    out.record(end_record(result, connection.peer, path))
    if not result.hashes_equal:
        raise CommandError("the receiver computed other hashes than this side", code=4)
    return 0


def _tell_notes(source: Source, out: Output) -> None:
    for note in source.notes[:_NOTES_SHOWN]:
        out.say(note)
    if len(source.notes) > _NOTES_SHOWN:
        out.say(f"... and {len(source.notes) - _NOTES_SHOWN:,} more")


def end_record(result: TransferResult, peer: Any, path: Path | None) -> dict[str, Any]:
    """The JSON object that ends `send` and `receive`."""
    return {
        "files": result.files,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 6),
        "mb_s": round(result.mb_s, 3),
        "hashes_equal": result.hashes_equal,
        "peer": peer,
        "path": path,
        "hash": result.hash_name,
        "transferred_bytes": result.transferred_bytes,
        "kept_files": result.kept_files,
        "resumed_files": result.resumed_files,
    }
