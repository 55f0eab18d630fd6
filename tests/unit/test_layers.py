"""The layer contracts of pyproject.toml hold, and would notice when they did not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the project in `directory`, over the package in its `src`."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("proto/timers.py", "import time", "crust.proto.timers -> time"),
        ("wire/frames/layout.py", "import asyncio", "crust.wire.frames.layout -> asyncio"),
        ("crypto/curve.py", "from crust.wire import frames", "crust.crypto.curve -> crust.wire.frames"),
    ],
)
def test_contracts_notice(copy: Path, module: str, planted: str, broken: str) -> None:
    path = copy / "src" / "crust" / module
    path.write_text(path.read_text() + f"\n{planted}\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    assert broken in done.stdout
