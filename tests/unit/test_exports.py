"""The public face is small, and changes only on purpose."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(code: str) -> str:
    """What the code prints in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_public_names() -> None:
    assert crust.__all__ == PUBLIC
    assert all(hasattr(crust, name) for name in PUBLIC)


def test_each_name_is_what_type_checkers_take_it_for() -> None:
    """They read the imports under TYPE_CHECKING; at run time the names come from the modules of `_NAMES`."""
    (block,) = [node for node in ast.parse(Path(crust.__file__).read_text()).body if isinstance(node, ast.If)]
    declared = {
        (statement.module, name.name)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }
    assert declared == {(module, name) for module, names in crust._NAMES.items() for name in names}
    assert {name for _, name in declared} == set(PUBLIC)


def test_package_lists_its_names_before_they_are_asked_for() -> None:
    code = "import crust; print(*dir(crust)); from crust import *; print(Node.__module__, crust.errors.__name__)"
    names, modules = run(code).splitlines()
    assert set(PUBLIC) <= set(names.split())
    assert modules == "crust.node.node crust.errors"


def test_other_names_are_missing_as_in_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'crust' has no attribute 'Nod'"):
        _ = crust.Nod


def test_errors_can_be_pickled_before_anything_else_is_loaded() -> None:
    blob = pickle.dumps(crust.ConfigError("no"))
    assert (
        run(f"import pickle; error = pickle.loads({blob!r}); print(type(error).__name__, error)") == "ConfigError no\n"
    )


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
    code = "import sys, crust; from crust import *; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    loaded = set(run(code).split())
    assert not loaded & {"rich", "cyclopts", "segno", "watchfiles", "platformdirs", "redis", "libtorrent", "uvloop"}


def test_commands_that_need_no_node_load_none() -> None:
    """Each start of `crust` pays for what it imports, and scripts start it often."""
    code = "import sys, crust.cli.app, crust.cli.id; print(*sys.modules)"
    loaded = set(run(code).split())
    assert not {name for name in loaded if name.startswith(("crust.node", "crust.net", "crust.proto"))}
    assert not loaded & {"asyncio", "msgspec", "cryptography", "rich"}
