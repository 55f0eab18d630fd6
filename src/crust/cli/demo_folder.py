"""What `crust demo` sends: the running interpreter's standard library, and how the two copies are compared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crust.cli.output import CommandError
from crust.node.transfer import TransferError, scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["standard_library", "tree_hash"]

# Below the standard library's folder, but not of it; thousands of megabytes on some machines.
_NOT_STANDARD: Final = frozenset({"site-packages", "dist-packages"})


def standard_library(most_bytes: int) -> tuple[list[Path], int, int]:
    """The top-level entries of the running interpreter's standard library, with the number and size of their files.

    Parts are left out, largest first, until what is left is no more than `most_bytes`.

    Raises:
        CommandError: this interpreter's library is not a readable folder (it may come as a zip file).
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts = []
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        if entry.name in _NOT_STANDARD or entry.is_symlink():
            continue
        with contextlib.suppress(TransferError):  # what this user may not read
            manifest = scan([entry]).manifest
            if manifest.files:
                parts.append((manifest.bytes, manifest.files, entry))
    parts.sort()
    while parts and sum(size for size, _, _ in parts) > most_bytes:
        parts.pop()
    if not parts:
        raise CommandError(f"there is nothing to send: {root} is no folder that can be read, or the disk is full")
    entries = sorted(entry for _, _, entry in parts)
    return entries, sum(files for _, files, _ in parts), sum(size for size, _, _ in parts)


def tree_hash(root: Path, names: Sequence[str]) -> str:
    """SHA-256 over the names and contents of all files of these entries, read from the disk."""
    total = hashlib.sha256()
    for name in sorted(names):
        top = root / name
        for path in sorted(_files(top)) if top.is_dir() else [top]:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            relative = path.relative_to(root).as_posix().encode()
            total.update(len(relative).to_bytes(4, "big") + relative + content)
    return total.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.is_file() and not path.is_symlink():  # a transfer carries no links
                yield path
