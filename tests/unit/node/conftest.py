"""Folders to send from and to receive into."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from crust.node.transfer.frame import SMALL_FILE_BYTES
from tests.unit.node.transfer_support import LARGE


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    top = tmp_path / "top"
    (top / "empty").mkdir(parents=True)
    (top / "sub").mkdir()
    (top / "small").write_text("small")
    (top / "nothing").write_bytes(b"")
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o700)
    (top / "sub" / "large").write_bytes(random.Random(1).randbytes(LARGE))
    (top / "sub" / "edge").write_bytes(bytes(SMALL_FILE_BYTES))
    for path in (top / "small", top / "sub" / "large", top / "sub"):
        os.utime(path, ns=(5, 1_500_000_000_123_456_789))
    return top


@pytest.fixture
def into(tmp_path: Path) -> Path:
    into = tmp_path / "into"
    into.mkdir()
    return into
