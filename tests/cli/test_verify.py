"""`crust verify`: proves or refutes, whatever it is given, and needs nothing but the two files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crust.cli import main
from crust.crypto.hashing import HashId, hasher
from crust.wire.receipt import Receipt, file_claim
from tests.signing_pair import ALICE, BOB, WALL_TIME, SigningPair, pattern, receipts_for

CONTENT = pattern(5_000_000)


@pytest.fixture(params=list(HashId), ids=lambda h: h.name)
def receipt(request: pytest.FixtureRequest) -> Receipt:
    hash_id: HashId = request.param
    return receipts_for([b"other", file_claim(hash_id, len(CONTENT), hasher(hash_id)(CONTENT).digest())], hash_id)[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def verify(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["verify", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def verify_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code, out, _ = verify(capsys, "--json", *arguments)
    [line] = out.splitlines()
    return code, json.loads(line)


@pytest.mark.parametrize("form", ["bytes", "text", "text with line ends", "argument"])
def test_proves(form: str, receipt: Receipt, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    text = str(receipt)
    kept.write_bytes(
        {
            "bytes": bytes(receipt),
            "text": text.encode(),
            "text with line ends": b"\n" + b"\r\n".join(text[at : at + 60].encode() for at in range(0, len(text), 60)),
            "argument": b"",
        }[form]
    )
    code, record = verify_json(capsys, text if form == "argument" else kept, file)
    assert code == 0
    assert record == {
        "signer": str(ALICE.id),
        "receiver": str(BOB.id),
        "number": 1,
        "priority": "normal",
        "time": "2027-01-15T08:00:00.250Z",
        "session": receipt.claims.session.hex(),
        "kind": "message",
        "verified": True,
        "error": None,
    }


def test_text_for_people(receipt: Receipt, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = verify(capsys, str(receipt), file)
    assert code == 0
    assert not err
    assert str(ALICE.id) in out
    assert str(BOB.id) in out
    assert "2027-01-15T08:00:00.250Z, the sender's claim" in out


def test_a_file_that_holds_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "order").write_bytes(b"100 tonnes of wheat")
    [receipt] = receipts_for([b"100 tonnes of wheat"])
    assert verify(capsys, str(receipt), tmp_path / "order")[0] == 0


def test_the_last_moment_that_a_receipt_can_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    pair = SigningPair()
    pair.add([b""])
    pair.sign(wall_time=WALL_TIME * 1e6)
    code, record = verify_json(capsys, str(pair.receipt(0)), tmp_path / "file")
    assert code == 0
    assert record["time"].startswith("9999-12-31T23:59:59")


def test_standard_input(receipt: Receipt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CONTENT)))
    assert verify(capsys, str(receipt), "-")[0] == 0


def damaged(receipt: Receipt, at: int) -> bytes:
    raw = bytearray(bytes(receipt))
    raw[at] ^= 1
    return bytes(raw)


def refuted(capsys: pytest.CaptureFixture[str], kept: str | Path, file: Path) -> str:
    code, record = verify_json(capsys, kept, file)
    assert code == 4
    assert record["verified"] is False
    assert {name for name, value in record.items() if value is not None} == {"verified", "error"}
    error: str = record["error"]
    return error


def test_refutes_another_content(receipt: Receipt, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(CONTENT[:-1] + b"!")
    assert "does not match" in refuted(capsys, str(receipt), file)
    code, out, err = verify(capsys, str(receipt), file)
    assert (code, out) == (4, "")
    assert err.startswith("crust: refuted: ")
    assert len(err.splitlines()) == 1


# Signer, receiver, session, batch, first, time, signature, priority, salt, number, path.
@pytest.mark.parametrize("at", [16, 48, 80, 118, 126, 142, 200, 209, 220, 238, 250])
def test_refutes_an_altered_receipt(
    at: int, receipt: Receipt, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(damaged(receipt, at))
    assert refuted(capsys, kept, file)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"crust-receipt",
        b"crust-receipt:",
        b"crust-receipt:\xff",
        "crust-receipt:é".encode(),
        bytes(1 << 20),
    ],
    ids=["nothing", "zero", "magic", "prefix", "no UTF-8", "no base64", "a MiB"],
)
def test_refutes_what_is_no_receipt(
    data: bytes, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(data)
    assert "receipt" in refuted(capsys, kept, file)


def test_what_cannot_be_read(receipt: Receipt, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, name in (
        ((tmp_path / "absent", file), "absent"),
        ((str(receipt), tmp_path / "absent"), "absent"),
        ((str(receipt), tmp_path), tmp_path.name),
        ((tmp_path, file), tmp_path.name),
    ):
        code, out, err = verify(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("crust: ")
        assert name in err
        assert len(err.splitlines()) == 1
    assert verify(capsys, str(receipt))[0] == 2


def test_needs_no_home_and_leaves_nothing(receipt: Receipt, file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from crust.cli import main; sys.exit(main())",
            "verify",
            str(receipt),
            file,
        ],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(ALICE.id) in done.stdout
    assert list(home.iterdir()) == []
