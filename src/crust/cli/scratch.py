"""A folder for the files of one command, which is removed however the command ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["scratch_folder"]

# Its standard input ends when we do, and nobody else has the other end.
_REMOVE = 'cat; exec rm -rf -- "$0"'


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder; on Linux a process of its own removes it even where we are killed.

    Args:
        prefix: of its name.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as place:
        if not sys.platform.startswith("linux"):
            yield Path(place)
            return
        with subprocess.Popen(  # noqa: S603 - a path that we have made
            ["/bin/sh", "-c", _REMOVE, place],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends us and our group must not end it
        ):
            yield Path(place)
