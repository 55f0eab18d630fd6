"""The file that holds a node's secret key.

A few lines of text: a first line with format and version, comments, and `name: value` lines.

    crust-identity-v1
    # Whoever has this file is this node. Keep it, show it to nobody.
    id: crust…
    seed: <base32 of the 32-byte Ed25519 seed>

The id lets a reader tell a damaged seed from a good one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

from crust.crypto import base32
from crust.errors import IdentityError, ParseError

__all__ = ["create", "read"]

_MAGIC: Final = "crust-identity-v"
_VERSION: Final = "1"
_MAX_BYTES: Final = 4096
_COMMENT: Final = "# Whoever has this file is this node. Keep it, show it to nobody."
_CHECKS_MODE: Final = os.name == "posix"  # elsewhere the mode bits say nothing about who may read


def read(path: Path) -> tuple[bytes, str]:
    """The seed in a key file and the id that stands beside it.

    Raises:
        FileNotFoundError: there is no such file.
        IdentityError: the file cannot be read, is open to others, or is not a whole key file.
    """
    lines = _read_text(path).splitlines()
    magic = lines[0].strip() if lines else ""
    if not magic.startswith(_MAGIC):
        raise IdentityError(f"{path}: not a Crust key file" if magic else f"{path}: the key file is empty")
    if magic != _MAGIC + _VERSION:
        raise IdentityError(f"{path}: key file of version {magic[len(_MAGIC) :]!r}; this Crust reads version 1")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            fields[name.strip()] = value.strip()
    if "id" not in fields or "seed" not in fields:
        raise IdentityError(f"{path}: the key file is truncated")
    try:
        seed = base32.decode(fields["seed"].lower())
    except ParseError as error:
        raise IdentityError(f"{path}: the key file is damaged") from error
    if len(seed) != 32:
        raise IdentityError(f"{path}: the key file is truncated")
    return seed, fields["id"].lower()


def _read_text(path: Path) -> str:
    """The text of a private file."""
    try:
        # Not blocking: a FIFO in this place must not hang the program.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _cannot("read", path, error) from error
    try:
        status = os.fstat(descriptor)  # of the open file, so that nobody swaps it between check and use
        if stat.S_ISDIR(status.st_mode):
            raise IdentityError(f"{path}: a directory, not a key file")
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(f"{path}: not a regular file")
        mode = stat.S_IMODE(status.st_mode)
        if _CHECKS_MODE and mode & 0o077:
            raise IdentityError(f"{path}: others can read the secret key (mode {mode:04o}); run: chmod 600 {path}")
        data = os.read(descriptor, _MAX_BYTES + 1)
    except OSError as error:
        raise _cannot("read", path, error) from error
    finally:
        os.close(descriptor)
    if len(data) > _MAX_BYTES:
        raise IdentityError(f"{path}: not a Crust key file")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise IdentityError(f"{path}: not a Crust key file") from error


def create(path: Path, seed: bytes, identifier: str, temporary: str) -> bool:
    """Write a new key file with mode 0600, whole or not at all.

    Args:
        path: of the file.
        seed: what it keeps.
        identifier: the text of the PeerId.
        temporary: a random name for the unfinished file.

    Returns:
        False when the file exists by now: of concurrent creators one wins, and the others read what it wrote.

    Raises:
        IdentityError: the file or its directory cannot be written.
    """
    text = f"{_MAGIC}{_VERSION}\n{_COMMENT}\nid: {identifier}\nseed: {base32.encode(seed)}\n"
    unfinished = path.with_name(f".{path.name}.{temporary}")
    try:
        _make_private_directory(path.parent)
        try:
            _write(unfinished, text.encode("ascii"))
            return _publish(unfinished, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()
    except OSError as error:
        raise _cannot("write", path, error) from error


def _make_private_directory(directory: Path) -> None:
    """Create a directory and its missing parents, all with mode 0700 (`mkdir(parents=True)` leaves parents open)."""
    if directory.is_dir():
        return
    _make_private_directory(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Write a new private file through to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if _CHECKS_MODE:
            os.fchmod(descriptor, 0o600)  # whatever the umask took away
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _publish(temporary: Path, path: Path) -> bool:
    """Give a finished file its name unless the name is taken: `link` fails where `rename` would replace."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
            raise
        # A file system without hard links (FAT, some network mounts): exclusive creation keeps two creators apart,
        # but a reader at this very moment may find the file still empty, and says so.
        try:
            _write(path, temporary.read_bytes())
        except FileExistsError:
            return False
    with contextlib.suppress(OSError):  # the name outlives a power cut where directories can be synced
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return True


def _cannot(verb: str, path: Path, error: OSError) -> IdentityError:
    """The error for a failed system call."""
    return IdentityError(f"{path}: cannot {verb} the key file: {error.strerror or error}")
