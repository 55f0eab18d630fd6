"""The public face is small, and changes only on purpose."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import crust

PUBLIC = [
    "BootstrapFailed",
    "Candidate",
    "Config",
    "ConfigError",
    "ConnectError",
    "Connection",
    "ConnectionClosed",
    "Contact",
    "CrustError",
    "DuplicateIdentity",
    "Identity",
    "Incoming",
    "Message",
    "Node",
    "ParseError",
    "Path",
    "PathChanged",
    "PeerClosed",
    "PeerConnected",
    "PeerId",
    "PeerLost",
    "Priority",
    "Receipt",
    "ReceiptError",
    "ReceiptUnavailable",
    "Report",
    "Stream",
]


def test_public_names() -> None:
    assert crust.__all__ == PUBLIC
    assert all(hasattr(crust, name) for name in PUBLIC)


def test_public_names_are_documented() -> None:
    for name in PUBLIC:
        assert getattr(crust, name).__doc__, name


def test_errors_are_one_tree() -> None:
    for name in PUBLIC:
        value = getattr(crust, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, crust.CrustError)


def test_package_says_that_it_is_typed() -> None:
    assert (Path(crust.__file__).parent / "py.typed").exists()


def test_import_brings_no_extra_and_is_quick() -> None:
    """`import crust` works with the three dependencies alone, and loads no command."""
    code = "import sys, crust; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"rich", "cyclopts", "segno", "watchfiles", "platformdirs", "redis", "libtorrent", "uvloop"}
