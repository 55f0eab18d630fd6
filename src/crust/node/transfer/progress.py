"""How far a transfer is: counters that its thread updates and that a user interface looks at when it likes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TransferProgress", "TransferResult"]


@dataclass(slots=True)
class TransferProgress:
    """A live view of one transfer; only the transfer writes to it.

    Attributes:
        phase: "waiting", "checking" (what is there already), "transferring", "finishing" or "done".
        files: how many there are.
        files_done: how many have arrived, those that were there already included.
        bytes: what all files hold.
        bytes_done: what has arrived, or was there already and is the same.
        bytes_kept: the part of it that was there already.
        check_bytes: what has to be read to compare what is there already.
        check_done: the part of it that was read.
        name: the file at hand, as a path within the transfer.
    """

    phase: str = "waiting"
    files: int = 0
    files_done: int = 0
    bytes: int = 0
    bytes_done: int = 0
    bytes_kept: int = 0
    check_bytes: int = 0
    check_done: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class TransferResult:
    """A completed transfer, as both sides see it.

    Attributes:
        files: how many files were offered; all of them are there now.
        bytes: what they hold.
        transferred_bytes: the part of it that went over the connection.
        kept_files: files that were complete before.
        resumed_files: files that were continued.
        seconds: from the offer to the receiver's last word.
        hashes_equal: the hashes that both sides computed over every file are the same.
        hash_name: of the hash function.
        claims: files for which the sender stood with a message of its own, which has a receipt if signing is on.
    """

    files: int
    bytes: int
    transferred_bytes: int
    kept_files: int
    resumed_files: int
    seconds: float
    hashes_equal: bool
    hash_name: str
    claims: int = 0

    @property
    def mb_s(self) -> float:
        """Megabytes (10^6) that went over the connection in a second."""
        return self.transferred_bytes / 1e6 / self.seconds if self.seconds > 0 else 0.0
