"""The list of what a transfer carries, as records and as bytes.

An entry has a single name and the number of its folder, never a path: a way out of the folder cannot be written down.
Everything here is fed by strangers; `parse_manifest` raises RemoteProtocolError and nothing else.

    count u32 | count x (flags u8, folder u32, size u64, mtime i64, name length u8) | the names, UTF-8, end to end

Numbers are big-endian. flags: 1 folder, 2 executable. `folder` is 0 for the top, else 1 + the number of an earlier
entry. `mtime` is in nanoseconds since 1970. A folder's size is 0.
"""

from __future__ import annotations

import re
import struct
import sys
import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple

from crust.errors import RemoteProtocolError

__all__ = [
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "MAX_MANIFEST_BYTES",
    "MAX_NAME_BYTES",
    "MAX_PATH_BYTES",
    "STAGING_NAME",
    "TOP",
    "Entry",
    "Manifest",
    "ManifestBuilder",
    "NameRefusedError",
    "parse_manifest",
    "shown",
]

# What one peer may make the other hold in memory: about 150 bytes for each entry.
MAX_ENTRIES: Final = 500_000
MAX_MANIFEST_BYTES: Final = 64 << 20
# The most that common filesystems take for a name (ext4, NTFS, APFS) ...
MAX_NAME_BYTES: Final = 255
# ... and for a path (Linux: 4096), less room for the destination.
MAX_PATH_BYTES: Final = 3072
MAX_DEPTH: Final = 100
MAX_FILE_BYTES: Final = 1 << 60

TOP: Final = -1
"""The `folder` of an entry that lies in no folder of the transfer."""

STAGING_NAME: Final = ".crust-partial"
"""The hidden folder in the destination that holds what has not arrived in whole."""

_RECORD: Final = struct.Struct(">BIQqB")
_COUNT: Final = struct.Struct(">I")
_FOLDER: Final = 1
_EXECUTABLE: Final = 2

# Names that mean a device on Windows, whatever follows the first dot.
_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
    | {f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789¹²³"}
)
# Embeddings, overrides and isolates of text direction: they can make "exe.txt" of "txt.exe".
_BIDI: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DRIVE: Final = re.compile(r"[A-Za-z]:")
# "a:b" would be a second content of the file "a" there, and "a." is "a".
_NOT_ON_WINDOWS: Final = re.compile(r'[<>:"|?*]|[ .]$')
_WINDOWS: Final = ("win32", "cygwin")
_IGNORE_CASE: Final = (*_WINDOWS, "darwin")


class NameRefusedError(ValueError):
    """A name that could do harm, or that some system cannot store; the text says why."""


class Entry(NamedTuple):
    """A file or folder of a transfer.

    Attributes:
        name: within its folder.
        folder: number of the folder's own entry, or `TOP`.
        is_folder: False for a file.
        size: in bytes.
        mtime_ns: time of last change.
        executable: the one mode bit that is kept.
    """

    name: str
    folder: int
    is_folder: bool
    size: int
    mtime_ns: int
    executable: bool


def shown(text: str) -> str:
    """A stranger's text without anything that could steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _check_name(name: str, system: str) -> bytes:
    """The name in UTF-8, if a system can store it and it does no harm there."""
    try:
        data = name.encode()
    except UnicodeEncodeError:
        raise NameRefusedError("it is not UTF-8") from None
    if not name or name in (".", ".."):
        raise NameRefusedError("it is no name")
    if len(data) > MAX_NAME_BYTES:
        raise NameRefusedError(f"it is longer than {MAX_NAME_BYTES} bytes")
    if "/" in name or "\\" in name:
        raise NameRefusedError("it holds a path separator")
    # Asks for the category only where something is unusual: nearly every name is printable.
    if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI for c in name):
        raise NameRefusedError("it holds control characters")
    if system in _WINDOWS:
        if name.partition(".")[0].rstrip(" ").lower() in _DEVICES:
            raise NameRefusedError("it names a device on Windows")
        if _NOT_ON_WINDOWS.search(name):
            raise NameRefusedError("Windows cannot store it")
    return data


def _fold(name: str) -> str:
    """What case-insensitive, normalising filesystems take for the same name."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


class ManifestBuilder:
    """Collects entries and lets in only those that a system can store; the parser uses it as well.

    What only some systems refuse is the receiver's to say: whoever sends cannot know where to.

    Args:
        system: whose rules hold, as in `sys.platform`; "" for those of every system.
    """

    def __init__(self, system: str = "") -> None:
        self._system = system
        self.entries: list[Entry] = []
        self._names_bytes = 0
        self._taken: set[tuple[int, str]] = set()
        # Entry number of a folder -> (depth, bytes of its path).
        self._folders: dict[int, tuple[int, int]] = {TOP: (0, 0)}

    def add(self, entry: Entry) -> int:
        """Append an entry and return its number.

        Raises:
            NameRefusedError: the text begins with "it", which stands for the name.
        """
        data = _check_name(entry.name, self._system)
        if entry.folder not in self._folders:
            raise NameRefusedError("it lies in something that is no folder")
        if entry.folder == TOP:
            if _DRIVE.match(entry.name):
                raise NameRefusedError("it begins with a drive letter")
            if _fold(entry.name).rstrip(". ") == STAGING_NAME:  # Windows drops dots and blanks at the end
                raise NameRefusedError("it is where unfinished files are kept")
        depth, path_bytes = self._folders[entry.folder]
        if depth >= MAX_DEPTH:
            raise NameRefusedError(f"it lies more than {MAX_DEPTH} folders deep")
        path_bytes += len(data) + 1
        if path_bytes > MAX_PATH_BYTES:
            raise NameRefusedError(f"its path is longer than {MAX_PATH_BYTES} bytes")
        ignores_case = self._system in _IGNORE_CASE
        key = (entry.folder, _fold(entry.name) if ignores_case else entry.name)
        if key in self._taken:
            why = ", as this system ignores case" if ignores_case else ""
            raise NameRefusedError(f"it stands twice in its folder{why}")
        if not 0 <= entry.size <= MAX_FILE_BYTES or (entry.is_folder and entry.size):
            raise NameRefusedError(f"its size cannot be {entry.size}")
        self._names_bytes += len(data)
        if len(self.entries) >= MAX_ENTRIES:
            raise NameRefusedError(f"it is one more than the {MAX_ENTRIES:,} that a transfer can have")
        if _COUNT.size + (len(self.entries) + 1) * _RECORD.size + self._names_bytes > MAX_MANIFEST_BYTES:
            raise NameRefusedError(f"with it the list of names is longer than {MAX_MANIFEST_BYTES >> 20} MiB")
        self._taken.add(key)
        number = len(self.entries)
        if entry.is_folder:
            self._folders[number] = (depth + 1, path_bytes)
        self.entries.append(entry)
        return number

    def build(self) -> Manifest:
        """The manifest of what was added."""
        return Manifest(self.entries)


class Manifest:
    """The entries of a transfer; folders come before what they hold."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> Entry:
        return self.entries[number]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def path(self, number: int) -> str:
        """The path of an entry from the top, with "/" between names."""
        parts = []
        while number != TOP:
            entry = self.entries[number]
            parts.append(entry.name)
            number = entry.folder
        return "/".join(reversed(parts))

    @property
    def files(self) -> int:
        """How many entries are files."""
        return sum(not entry.is_folder for entry in self.entries)

    @property
    def bytes(self) -> int:
        """What the files hold together."""
        return sum(entry.size for entry in self.entries)

    def serialize(self) -> bytearray:
        """The bytes that `parse_manifest` reads."""
        names = [entry.name.encode() for entry in self.entries]
        data = bytearray(_COUNT.pack(len(self.entries)))
        for entry, name in zip(self.entries, names, strict=True):
            flags = (_FOLDER if entry.is_folder else 0) | (_EXECUTABLE if entry.executable else 0)
            data += _RECORD.pack(flags, entry.folder + 1, entry.size, entry.mtime_ns, len(name))
        for name in names:
            data += name
        return data


def parse_manifest(data: bytes, system: str = sys.platform) -> Manifest:
    """Read what a stranger offers.

    Args:
        data: what came.
        system: whose rules for names hold, as in `sys.platform`.

    Raises:
        RemoteProtocolError: it is malformed, too large, or has a name that could do harm.
    """
    if not _COUNT.size <= len(data) <= MAX_MANIFEST_BYTES:
        raise RemoteProtocolError("the list of files is truncated or too long")
    (count,) = _COUNT.unpack_from(data)
    at = _COUNT.size + count * _RECORD.size
    if count > MAX_ENTRIES or at > len(data):
        raise RemoteProtocolError("the list of files is truncated or too long")
    builder = ManifestBuilder(system)
    for flags, folder, size, mtime_ns, length in _RECORD.iter_unpack(memoryview(data)[_COUNT.size : at]):
        raw = data[at : at + length]
        at += length
        try:
            if len(raw) != length or flags > _FOLDER | _EXECUTABLE:
                raise NameRefusedError("it is truncated")
            builder.add(
                Entry(raw.decode(), folder - 1, bool(flags & _FOLDER), size, mtime_ns, bool(flags & _EXECUTABLE))
            )
        except UnicodeDecodeError:
            raise RemoteProtocolError(f"the name {shown(repr(raw)[1:])} is refused: it is not UTF-8") from None
        except NameRefusedError as error:
            name = shown(raw[:MAX_NAME_BYTES].decode(errors="replace"))
            raise RemoteProtocolError(f"the name {name!r} is refused: {error}") from None
    if at != len(data):
        raise RemoteProtocolError("the list of files has something behind its end")
    return builder.build()
