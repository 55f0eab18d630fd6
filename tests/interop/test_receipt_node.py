"""Receipts verified by a program in another language, examples/verify_receipt.mjs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "receipts.json").read_text())
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")


def run(tmp_path: Path, receipt: bytes, data: bytes) -> subprocess.CompletedProcess[str]:
    (tmp_path / "receipt").write_bytes(receipt)
    (tmp_path / "data").write_bytes(data)
    command = [str(NODE), str(ROOT / "examples" / "verify_receipt.mjs"), tmp_path / "receipt", tmp_path / "data"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def unit(batch: int, number: int) -> dict[str, Any]:
    found: dict[str, Any] = VECTORS["batches"][batch]["units"][number]
    return found


def content_of(unit: dict[str, Any]) -> bytes:
    length = unit.get("pattern", 0)
    return bytes.fromhex(unit["content"]) if "content" in unit else (bytes(range(251)) * (length // 251 + 1))[:length]


@pytest.mark.parametrize(("batch", "number"), [(0, 0), (0, 4), (0, 6), (1, 0), (3, 2), (3, 3)])
@pytest.mark.parametrize("form", ["receipt", "text"])
def test_it_verifies_the_vectors(batch: int, number: int, form: str, tmp_path: Path) -> None:
    vector = unit(batch, number)
    receipt = bytes.fromhex(vector[form]) if form == "receipt" else vector[form].encode()
    done = run(tmp_path, receipt, content_of(vector))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == VECTORS["sender"]["key"]


# It leaves it to its Ed25519 to refuse what is no key.
REFUSED = [case for case in VECTORS["refused"] if "signer" not in case["why"]]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["why"])
def test_it_refuses_what_must_be_refused(case: dict[str, str], tmp_path: Path) -> None:
    done = run(tmp_path, bytes.fromhex(case["receipt"]), bytes.fromhex(case["data"]))
    assert done.returncode == 4
    assert done.stderr.startswith("refused: ")
