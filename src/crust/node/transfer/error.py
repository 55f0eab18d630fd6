"""What can go wrong with a transfer, beside the loss of the connection."""

from __future__ import annotations

import enum

from crust.errors import CrustError

__all__ = [
    "FailureKind",
    "SourceError",
    "TransferConflictError",
    "TransferError",
    "TransferInterruptedError",
    "TransferRefusedError",
    "file_error",
]


class FailureKind(enum.IntEnum):
    """Why one side gives a transfer up, as the other side is told."""

    FAILED = 1  # the disk is full, a file vanished or changed, ...
    REFUSED = 2  # a hostile name, an existing file, a transfer under way
    INTERRUPTED = 3  # the user stopped it


class TransferError(CrustError):
    """A transfer that could not be completed.

    Attributes:
        kind: what the other side is told beside the text.
        public: the text for the other side; it names no path outside of what is transferred.
        remote: True if the other side gave up and the text is its own.
    """

    kind = FailureKind.FAILED

    def __init__(self, message: str, *, public: str | None = None, remote: bool = False) -> None:
        super().__init__(message)
        self.public = message if public is None else public
        self.remote = remote


class TransferRefusedError(TransferError):
    """One side does not want this transfer: nothing of it is kept."""

    kind = FailureKind.REFUSED


class TransferConflictError(TransferRefusedError):
    """Files exist in the destination with other content.

    Attributes:
        paths: which, relative to the destination.
    """

    def __init__(self, message: str, paths: list[str]) -> None:
        super().__init__(message)
        self.paths = paths


class TransferInterruptedError(TransferError):
    """The user of the other side stopped it."""

    kind = FailureKind.INTERRUPTED


class SourceError(TransferError):
    """What shall be sent is not there, cannot be read, or has a name that cannot be stored everywhere."""


def file_error(error: OSError, relative: str, action: str) -> TransferError:
    """An operating system's error as a sentence: "sub/a.txt cannot be written: No space left on device"."""
    reason = error.strerror or str(error) or type(error).__name__
    return TransferError(f"{relative} cannot be {action}: {reason}")
