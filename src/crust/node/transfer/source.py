"""The files on the sender's disk: finds them before the transfer, reads them during it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from crust.node.transfer.digest import Hasher
from crust.node.transfer.error import SourceError, TransferError, file_error
from crust.node.transfer.manifest import TOP, Entry, Manifest, ManifestBuilder, NameRefusedError, shown

__all__ = ["Source", "hash_prefix", "scan"]

# O_NONBLOCK: a FIFO that took the place of a file must not hang us. O_NOFOLLOW: nor a link lead us elsewhere.
_OPEN_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
)
_HASH_CHUNK: Final = 1 << 20


class Source:
    """What is to be sent.

    Attributes:
        manifest: the list of it.
        notes: what was left out, and why, a line each.
    """

    def __init__(self, manifest: Manifest, folders: dict[int, str], tops: dict[int, str], notes: list[str]) -> None:
        self.manifest = manifest
        self.notes = notes
        self._folders = folders
        self._tops = tops

    def location(self, number: int) -> str:
        """Where an entry lies on the disk."""
        entry = self.manifest[number]
        if entry.folder == TOP:
            return self._tops[number]
        return os.path.join(self._folders[entry.folder], entry.name)

    @contextmanager
    def open(self, number: int) -> Iterator[int]:
        """Open a file that is still what the scan saw; yields its descriptor.

        Raises:
            TransferError: it vanished, changed, or cannot be read.
        """
        entry = self.manifest[number]
        try:
            descriptor = os.open(self.location(number), _OPEN_FLAGS)
        except FileNotFoundError:
            raise self.changed(number, "has vanished") from None
        except OSError as error:
            raise file_error(error, shown(self.manifest.path(number)), "read") from error
        try:
            status = os.fstat(descriptor)
            if not _same(status, entry):
                raise self.changed(number, "has changed")
            yield descriptor
        except OSError as error:
            raise file_error(error, shown(self.manifest.path(number)), "read") from error
        finally:
            os.close(descriptor)

    def check_unchanged(self, number: int, descriptor: int) -> None:
        """Look at an open file again.

        Raises:
            TransferError: it changed while it was read.
        """
        if not _same(os.fstat(descriptor), self.manifest[number]):
            raise self.changed(number, "has changed")

    def changed(self, number: int, what: str) -> TransferError:
        """The error for a file that is not what it was."""
        return TransferError(f"{shown(self.manifest.path(number))} {what} while it was being sent")


def _same(status: os.stat_result, entry: Entry) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size == entry.size and status.st_mtime_ns == entry.mtime_ns


def hash_prefix(descriptor: int, length: int, hasher: Hasher) -> Iterator[int]:
    """Feed the first bytes of a file to a hash object; yields how much came with each step, may end too early."""
    buffer = memoryview(bytearray(min(_HASH_CHUNK, max(length, 1))))
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
        file.seek(0)
        while length:
            count = file.readinto(buffer[: min(length, len(buffer))])
            if not count:
                return
            hasher.update(buffer[:count])
            length -= count
            yield count


def scan(paths: Iterable[str | os.PathLike[str]]) -> Source:
    """Find the files and folders to send; blocks on the disk.

    A link that is named here is followed, links inside of folders are left out with a note, as are sockets, devices and
    the like: nothing outside of what was named is ever sent.

    Raises:
        SourceError: something is not there, cannot be read, or has a name that not every system can store.
    """
    scanner = _Scanner()
    for path in paths:
        scanner.add_top(Path(path))
    source = Source(scanner.builder.build(), scanner.folders, scanner.tops, scanner.notes)
    if not source.manifest:
        raise SourceError("there is nothing to send" + (f": {source.notes[0]}" if source.notes else ""))
    return source


def _status(child: os.DirEntry[str]) -> os.stat_result | None:
    """What lies in a folder; None if it has gone while the folder was read, as other programs' temporary files do."""
    try:
        return child.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


class _Scanner:
    def __init__(self) -> None:
        self.builder = ManifestBuilder()
        self.folders: dict[int, str] = {}
        self.tops: dict[int, str] = {}
        self.notes: list[str] = []

    def add_top(self, path: Path) -> None:
        try:
            location = os.path.realpath(path, strict=True)
            status = os.stat(location)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SourceError(f"{path}: {reason}") from error
        # ".", ".." and "x/.." have no name of their own; a link is sent under the name it was given by.
        name = path.name if path.name not in ("", "..") else os.path.basename(location)
        if not name:
            raise SourceError(f"{path}: the whole disk cannot be sent; name the folders in it")
        number = self._add(name, TOP, status, location)
        if number is None:
            return
        self.tops[number] = location
        if stat.S_ISDIR(status.st_mode):
            self._add_tree(number, location)

    def _add_tree(self, top: int, location: str) -> None:
        self.folders[top] = location
        pending = [top]
        while pending:
            folder = pending.pop()
            location = self.folders[folder]
            try:
                with os.scandir(location) as listing:
                    children = sorted(listing, key=lambda child: child.name)
                found = [(child, status) for child in children if (status := _status(child)) is not None]
            except OSError as error:
                raise SourceError(f"{error.filename or location}: {error.strerror or error}") from error
            below = []
            for child, status in found:
                number = self._add(child.name, folder, status, child.path)
                if number is not None and stat.S_ISDIR(status.st_mode):
                    self.folders[number] = child.path
                    below.append(number)
            pending.extend(reversed(below))

    def _add(self, name: str, folder: int, status: os.stat_result, location: str) -> int | None:
        """Add an entry; None if it is of a kind that is not sent."""
        mode = status.st_mode
        is_folder = stat.S_ISDIR(mode)
        if not is_folder and not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "no file or folder"
            self.notes.append(f"{shown(location)} is left out: it is {kind}")
            return None
        if not os.access(location, os.R_OK | (os.X_OK if is_folder else 0)):
            raise SourceError(f"{shown(location)}: Permission denied")
        executable = not is_folder and bool(mode & stat.S_IXUSR)
        size = 0 if is_folder else status.st_size
        try:
            return self.builder.add(Entry(name, folder, is_folder, size, status.st_mtime_ns, executable))
        except NameRefusedError as error:
            raise SourceError(f"{shown(location)} cannot be sent: its name is refused: {error}") from None
