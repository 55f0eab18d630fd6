"""The hidden folder in which files of a transfer grow until they are whole.

    DESTINATION/.crust-partial/.PEER/.PATHTAG-STATETAG

PATHTAG stands for the file's path in the transfer, STATETAG for its size, time and mode at the sender: what is left of
an earlier transfer is continued only if both are the same, and only after its bytes were compared by hash. One transfer
at a time holds a peer's folder, by a lock that ends with the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import time
from typing import Final

from crust.node.transfer.error import TransferError, TransferRefusedError
from crust.node.transfer.manifest import STAGING_NAME, Entry

if sys.platform != "win32":
    import fcntl

__all__ = ["Staging", "partial_name"]

# What nobody came back for.
_FORGET_SECONDS: Final = 30 * 86400
_LOCK_TRIES: Final = 10


def partial_name(path: str, entry: Entry) -> str:
    """The name of a file while it grows."""
    state = f"{entry.size} {entry.mtime_ns} {entry.executable:d}"
    return f".{_tag(path)}-{_tag(state)}"


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Staging:
    """A peer's folder for unfinished files, locked for this transfer. Blocks on the disk.

    Args:
        directory: the destination.
        peer: whose files; text that is harmless as a name.

    Raises:
        TransferRefusedError: another transfer holds it.
        TransferError: it cannot be made.
    """

    def __init__(self, directory: str, peer: str) -> None:
        self.root = os.path.join(directory, STAGING_NAME)
        self.path = os.path.join(self.root, f".{peer}")
        self._lock: int | None = None
        try:
            self._open()
        except OSError as error:
            raise TransferError(
                f"{error.filename or self.path}: {error.strerror or error}",
                public=f"the destination cannot be written: {error.strerror or error}",
            ) from error

    def _open(self) -> None:
        for _try in range(_LOCK_TRIES):
            for path in (self.root, self.path):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    raise TransferRefusedError(f"{path} is no folder", public="the destination cannot be used")
            if self._try_lock():
                return
        raise TransferRefusedError("other transfers of the same peer keep starting")

    def _try_lock(self) -> bool:
        """Take the lock; False if the folder was removed by who had it before."""
        if sys.platform != "win32":  # an open file cannot be replaced on Windows: a second transfer fails by itself
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._unlock()
                raise TransferRefusedError("another transfer of the same peer is under way") from None
            try:
                same = os.path.samestat(os.stat(self.path), os.fstat(self._lock))
            except FileNotFoundError:
                same = False
            if not same:
                self._unlock()
            return same
        else:  # noqa: RET505 - for mypy, which looks at one platform at a time
            return True

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def list(self) -> dict[str, int]:
        """Name and size of each file that is there; old ones are removed."""
        found: dict[str, int] = {}
        oldest = time.time() - _FORGET_SECONDS
        with os.scandir(self.path) as listing:
            for item in listing:
                status = item.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    continue
                # Not its mtime, which may be the sender's already.
                if status.st_ctime < oldest:
                    self.remove(item.name)
                else:
                    found[item.name] = status.st_size
        return found

    def location(self, name: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.path, name)

    def remove(self, name: str) -> None:
        """Remove one of its files, if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(self.location(name))

    def close(self) -> None:
        """Give the lock back, and remove the folders if nothing is in them."""
        for path in (self.path, self.root):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        self._unlock()
