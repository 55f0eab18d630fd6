"""The receiver's disk: compares what is there with what is offered, then writes. Everything here blocks.

Nothing is created before `accept`, nothing is visible under its name before it is whole, no path goes through a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
from dataclasses import dataclass
from typing import Final

from crust.errors import RemoteProtocolError
from crust.node.transfer.digest import Hasher, HashId, digest, new_hasher
from crust.node.transfer.error import TransferConflictError, TransferError, TransferRefusedError, file_error
from crust.node.transfer.frame import SMALL_FILE_BYTES, PlanItem
from crust.node.transfer.manifest import TOP, Entry, Manifest, shown
from crust.node.transfer.progress import TransferProgress
from crust.node.transfer.source import hash_prefix
from crust.node.transfer.staging import Staging, partial_name

__all__ = ["Destination", "TransferStopped"]

_FLAGS: Final = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_SHOWN_CONFLICTS: Final = 3
# Filesystems need some room for themselves (directories, journals).
_SPARE_BYTES: Final = 1 << 20


class TransferStopped(Exception):
    """The other thread has given the transfer up."""


@dataclass(slots=True)
class _Found:
    """Something of a file that is there already."""

    number: int
    have: int
    location: str
    whole: bool  # stands under its final name
    hasher: Hasher | None = None
    digest: bytes = b""


@dataclass(slots=True)
class _Open:
    """The file that is being written."""

    number: int
    descriptor: int
    name: str
    hasher: Hasher
    left: int


class Destination:
    """Where the files of one transfer go.

    Args:
        directory: an existing folder.
        peer: text of the sender's id.
        manifest: what is offered.
        overwrite: replace files that differ.
        progress: kept up to date.
        stop: set by another thread to end long work with TransferStopped.
    """

    def __init__(
        self,
        directory: str,
        peer: str,
        manifest: Manifest,
        *,
        overwrite: bool,
        progress: TransferProgress,
        stop: threading.Event,
    ) -> None:
        self.manifest = manifest
        self.kept_files = 0
        self.resumed_files = 0
        self.transferred_bytes = 0
        self.digests: list[bytes | None] = [None] * len(manifest)
        self.completed: list[int] = []  # files in the order in which they were complete
        self._directory = os.path.realpath(directory)
        self._overwrite = overwrite
        self._progress = progress
        self._stop = stop
        self._hash_id = HashId.SHA256
        self._folders: dict[int, str] = {TOP: self._directory}
        self._new_folders: list[int] = []
        self._found: dict[int, _Found] = {}
        self._offsets: dict[int, _Found] = {}  # accepted parts, to be continued
        self._open: _Open | None = None
        self._waiting = manifest.files
        self._staging = Staging(self._directory, peer)

    # -- before anything is sent ------------------------------------------------------------------------------------

    def plan(self) -> list[PlanItem]:
        """Look at what is there.

        Raises:
            TransferRefusedError: something is in the way, or files exist with another size.
            TransferError: the disk has no room, or fails.
        """
        self._spare_settings()
        try:
            self._look()
        except OSError as error:
            raise file_error(error, "the destination", "read") from error
        self._check_room()
        progress = self._progress
        progress.files, progress.bytes = self.manifest.files, self.manifest.bytes
        progress.check_bytes = sum(found.have for found in self._found.values())
        return [PlanItem(found.number, found.have) for found in self._found.values()]

    def _spare_settings(self) -> None:
        """In the home folder hidden names say what programs do, when the user logs in for one."""
        if self._directory == os.path.realpath(os.path.expanduser("~")):
            for entry in self.manifest:
                if entry.folder == TOP and entry.name.startswith("."):
                    text = f"{shown(entry.name)} belongs to the settings in the home folder"
                    raise TransferRefusedError(f"{text}: receive into another folder")

    def _look(self) -> None:
        partials = self._staging.list()
        by_path: dict[str, str] = {name.partition("-")[0]: name for name in partials}
        conflicts: list[str] = []
        missing: set[int] = set()
        for number, entry in enumerate(self.manifest):
            location = f"{self._folders[entry.folder]}{os.sep}{entry.name}"
            if entry.is_folder:
                self._folders[number] = location
            status = None if entry.folder in missing else _lstat(location)
            if entry.is_folder:
                if status is None:
                    missing.add(number)
                    self._new_folders.append(number)
                elif not stat.S_ISDIR(status.st_mode):
                    raise self._in_the_way(number, status)
            elif status is not None:
                if not stat.S_ISREG(status.st_mode):
                    raise self._in_the_way(number, status)
                if status.st_size == entry.size:
                    self._found[number] = _Found(number, entry.size, location, whole=True)
                elif not self._overwrite:
                    conflicts.append(self.manifest.path(number))
            if partials and not entry.is_folder and number not in self._found and entry.size > SMALL_FILE_BYTES:
                self._look_for_partial(number, partials, by_path)
        if conflicts:
            raise _conflict(conflicts)

    def _look_for_partial(self, number: int, partials: dict[str, int], by_path: dict[str, str]) -> None:
        entry = self.manifest[number]
        name = partial_name(self.manifest.path(number), entry)
        have = partials.get(name)
        if have is None:
            stale = by_path.get(name.partition("-")[0])
            if stale is not None:  # of a version that the sender has no more
                self._staging.remove(stale)
        elif 0 < have <= entry.size:
            self._found[number] = _Found(number, have, self._staging.location(name), whole=False)
        else:
            self._staging.remove(name)

    def _in_the_way(self, number: int, status: os.stat_result) -> TransferRefusedError:
        path = self._shown(number)
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "something else"
        wanted = "folder" if self.manifest[number].is_folder else "file"
        return TransferRefusedError(f"the {wanted} {path} exists in the destination as {kind}")

    def _check_room(self) -> None:
        needed = self.manifest.bytes - sum(found.have for found in self._found.values())
        try:
            free = shutil.disk_usage(self._directory).free
        except OSError:  # some network filesystems do not tell
            return
        if needed and needed + _SPARE_BYTES > free:
            raise TransferError(f"not enough room in the destination: {needed:,} bytes needed, {free:,} free")

    def hash_found(self, hash_id: HashId) -> None:
        """Compute the hashes of what is there already.

        Raises:
            TransferError: something cannot be read.
            TransferStopped: the transfer was given up meanwhile.
        """
        for found in self._found.values():
            path = self._shown(found.number)
            hasher = new_hasher(hash_id)
            read = 0
            try:
                descriptor = os.open(found.location, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
                try:
                    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                        raise TransferRefusedError(f"{path} in the destination is no file")
                    for count in hash_prefix(descriptor, found.have, hasher):
                        read += count
                        self._progress.check_done += count
                        if self._stop.is_set():
                            raise TransferStopped
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise file_error(error, path, "read") from error
            found.digest = hasher.digest() if read == found.have else b""
            found.hasher = hasher

    def accept(self, hash_id: HashId, proofs: list[bytes]) -> bytes:
        """Compare with the sender's hashes and make the folders; returns a byte for each item: 1 if it is the same.

        Raises:
            TransferConflictError: files exist with other content.
            TransferError: the disk fails.
        """
        self._hash_id = hash_id
        conflicts: list[str] = []
        verdict = bytearray()
        for found, proof in zip(self._found.values(), proofs, strict=True):
            same = found.digest == proof
            verdict.append(int(same))
            if found.whole and not same and not self._overwrite:
                conflicts.append(self.manifest.path(found.number))
        if conflicts:
            raise _conflict(conflicts)
        self._make_folders()
        for found, kept in zip(self._found.values(), verdict, strict=True):
            if kept:
                self._keep(found)
            elif not found.whole:
                self._staging.remove(os.path.basename(found.location))
        self._found.clear()
        return bytes(verdict)

    def _make_folders(self) -> None:
        for number in self._new_folders:
            try:
                os.mkdir(self._folders[number])
            except OSError as error:
                raise file_error(error, self._shown(number), "created") from error

    def _keep(self, found: _Found) -> None:
        """Count what is there already."""
        entry = self.manifest[found.number]
        self._progress.bytes_kept += found.have
        self._progress.bytes_done += found.have
        if found.have < entry.size:
            self._offsets[found.number] = found
            return
        if not found.whole:  # everything had arrived but for the last step
            self._publish(found.number, found.location)
        self.kept_files += 1
        self._complete(found.number, found.digest)

    # -- while it is sent -------------------------------------------------------------------------------------------

    def write_whole(self, number: int, expected: bytes, data: memoryview) -> None:
        """Write a small file in one go.

        Raises:
            RemoteProtocolError: it is none, or of another size than was offered.
            TransferError: the disk fails, or the content is not that of the hash.
        """
        entry = self._expect(number)
        if len(data) != entry.size:
            raise RemoteProtocolError("a file of another size than was offered")
        if digest(self._hash_id, data) != expected:
            raise self._damaged(number)
        name = ".new"
        location = self._staging.location(name)
        self._progress.name = entry.name
        try:
            descriptor = self._create(location, executable=entry.executable)
            try:
                _write_all(descriptor, data)
                _set_time(descriptor, location, entry.mtime_ns)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._staging.remove(name)
            raise file_error(error, self._shown(number), "written") from error
        self._publish(number, location)
        self._arrived(len(data))
        self._complete(number, expected)

    def begin(self, number: int, offset: int) -> None:
        """Start or continue a file.

        Raises:
            RemoteProtocolError: it is none, or the offset is not that which was agreed on.
            TransferError: the disk fails.
        """
        entry = self._expect(number)
        part = self._offsets.pop(number, None)
        if offset != (part.have if part else 0):
            raise RemoteProtocolError("a file from an offset that was not agreed on")
        path = self.manifest.path(number)
        name = partial_name(path, entry)
        location = self._staging.location(name)
        self._progress.name = path
        try:
            if part is not None and part.hasher is not None:
                descriptor = os.open(location, os.O_WRONLY | _FLAGS)
                os.lseek(descriptor, offset, os.SEEK_SET)
                hasher = part.hasher
                self.resumed_files += 1
            else:
                descriptor = self._create(location, executable=entry.executable)
                hasher = new_hasher(self._hash_id)
        except OSError as error:
            raise file_error(error, shown(path), "written") from error
        self._open = _Open(number, descriptor, name, hasher, entry.size - offset)

    def write(self, data: memoryview) -> None:
        """Append to the file at hand.

        Raises:
            RemoteProtocolError: there is none, or it would grow over its size.
            TransferError: the disk fails.
        """
        file = self._open
        if file is None or len(data) > file.left:
            raise RemoteProtocolError("more data than the file that was offered has")
        try:
            _write_all(file.descriptor, data)
        except OSError as error:
            raise file_error(error, self._shown(file.number), "written") from error
        file.hasher.update(data)
        file.left -= len(data)
        self._arrived(len(data))

    def end(self, expected: bytes) -> None:
        """Finish the file at hand and show it under its name.

        Raises:
            RemoteProtocolError: there is none, or something is missing.
            TransferError: the disk fails, or the content is not that of the hash.
        """
        file = self._open
        if file is None or file.left:
            raise RemoteProtocolError("a file ended before its end")
        if file.hasher.digest() != expected:
            self.discard_open()
            raise self._damaged(file.number)
        location = self._staging.location(file.name)
        try:
            _set_time(file.descriptor, location, self.manifest[file.number].mtime_ns)
            # Some filesystems tell only here that the disk is full.
            self._open = None
            os.close(file.descriptor)
        except OSError as error:
            raise file_error(error, self._shown(file.number), "written") from error
        self._publish(file.number, location)
        self._complete(file.number, expected)

    def done(self) -> bytes:
        """Check that every file is there, date the new folders; returns the hash over all hashes.

        Raises:
            RemoteProtocolError: files are missing.
        """
        if self._waiting or self._open is not None:
            raise RemoteProtocolError("the sender ended before all files were sent")
        for number in reversed(self._new_folders):
            with contextlib.suppress(OSError, OverflowError):
                time_ns = self.manifest[number].mtime_ns
                os.utime(self._folders[number], ns=(time_ns, time_ns))
        return digest(self._hash_id, b"".join(d for d in self.digests if d is not None))

    def discard_open(self) -> None:
        """Remove the file at hand: it will never be wanted."""
        file = self._open
        self.close()
        if file is not None:
            self._staging.remove(file.name)

    def close(self) -> None:
        """Close the file at hand; what it holds is kept, to be continued some day."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                os.close(self._open.descriptor)
            self._open = None

    def release(self) -> None:
        """Give up the folder for unfinished files."""
        self.close()
        self._staging.close()

    # -- small steps ------------------------------------------------------------------------------------------------

    def _expect(self, number: int) -> Entry:
        if self._open is not None:
            raise RemoteProtocolError("a file inside of another")
        if number >= len(self.manifest) or self.manifest[number].is_folder or self.digests[number] is not None:
            raise RemoteProtocolError("a file that was not offered, or came already")
        return self.manifest[number]

    def _create(self, location: str, *, executable: bool) -> int:
        """Make a new file with its final mode: nobody else can look into the folder that it grows in."""
        mode = 0o777 if executable else 0o666
        try:
            return os.open(location, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, mode)
        except FileExistsError:  # left over from an earlier transfer
            os.unlink(location)
            return os.open(location, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, mode)

    def _publish(self, number: int, location: str) -> None:
        """Move a whole file to its name."""
        entry = self.manifest[number]
        target = f"{self._folders[entry.folder]}{os.sep}{entry.name}"
        try:
            status = _lstat(target)
            if status is not None and not (self._overwrite and stat.S_ISREG(status.st_mode)):
                raise TransferRefusedError(f"{self._shown(number)} has appeared in the destination meanwhile")
            os.replace(location, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                text = f"{self._shown(number)} lies on another disk than the destination: receive into its folder"
                raise TransferError(text) from error
            raise file_error(error, self._shown(number), "written") from error

    def _shown(self, number: int) -> str:
        """The path of an entry, for people."""
        return shown(self.manifest.path(number))

    def _arrived(self, count: int) -> None:
        self.transferred_bytes += count
        self._progress.bytes_done += count

    def _complete(self, number: int, file_digest: bytes) -> None:
        self.digests[number] = file_digest
        self.completed.append(number)
        self._waiting -= 1
        self._progress.files_done += 1

    def _damaged(self, number: int) -> TransferError:
        return TransferError(f"{self._shown(number)} has another content than its hash says")


def _conflict(paths: list[str]) -> TransferConflictError:
    names = ", ".join(shown(path) for path in paths[:_SHOWN_CONFLICTS])
    more = len(paths) - _SHOWN_CONFLICTS
    rest = f" and {more:,} more" if more > 0 else ""
    verb = "exists" if len(paths) == 1 else "exist"
    return TransferConflictError(f"{names}{rest} {verb} in the destination with other content", paths)


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _set_time(descriptor: int, location: str, mtime_ns: int) -> None:
    target: int | str = descriptor if os.utime in os.supports_fd else location
    with contextlib.suppress(OverflowError, OSError):  # a time that this filesystem cannot hold
        os.utime(target, ns=(mtime_ns, mtime_ns))
