"""Both sides of a transfer without a connection."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from crust.crypto.hashing import HashId
from crust.node.transfer import TransferProgress
from crust.node.transfer.destination import Destination
from crust.node.transfer.digest import DIGEST_BYTES
from crust.node.transfer.frame import SMALL_FILE_BYTES, Plan
from crust.node.transfer.intake import Intake
from crust.node.transfer.outflow import Outflow
from crust.node.transfer.source import Source

HASH = HashId.SHA256
LARGE = SMALL_FILE_BYTES * 3 + 17


class Transfer:
    """Both sides in one thread."""

    def __init__(self, source: Source, into: Path, *, overwrite: bool = False, peer: str = "peer") -> None:
        self.progress = TransferProgress()
        self.outflow = Outflow(source, TransferProgress(), threading.Event())
        self.stop = threading.Event()
        self.destination = Destination(
            str(into), peer, source.manifest, overwrite=overwrite, progress=self.progress, stop=self.stop
        )
        self.plan: Plan | None = None

    def agree(self) -> None:
        self.plan = Plan(HASH, True, tuple(self.destination.plan()))
        self.destination.hash_found(HASH)
        proofs = self.outflow.proofs(self.plan)
        parts = [proofs[at : at + DIGEST_BYTES] for at in range(0, len(proofs), DIGEST_BYTES)]
        self.outflow.keep(self.plan, self.destination.accept(HASH, parts))

    def stream(self) -> bytes:
        assert self.plan is not None
        return b"".join(piece for block in self.outflow.blocks(self.plan) for piece in block.pieces)

    def run(self, cut: Iterator[int] | None = None) -> bytes:
        """Everything; the stream is cut where `cut` says."""
        try:
            self.agree()
            intake = Intake(self.destination)
            data = self.stream()
            at = 0
            while at < len(data):
                size = next(cut) if cut else len(data)
                intake.feed(data[at : at + size])
                at += size
            return intake.done()
        finally:
            self.destination.release()


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def failing(number: int) -> object:
    """A system call that fails with an error number."""

    def fail(*_args: object, **_named: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail
