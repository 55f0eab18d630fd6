"""Who signed what, as `crust send`, `receive` and `pipe` say it; receipts from one command to the other."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commands import CRUST

LOCAL = ["--listen", "127.0.0.1:0", "--no-lan", "--no-port-mapping", "--timeout", "30"]


class Machine:
    """A home of its own."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home = home
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        self.environment = {**environment, "HOME": str(home)}

    def run(self, *arguments: str | Path, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*CRUST, *arguments],
            cwd=self.home,
            env=self.environment,
            input=input,
            capture_output=True,
            timeout=50,
            check=False,
        )

    @contextmanager
    def start(self, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(
            [*CRUST, *arguments],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def configure(self, text: str) -> None:
        (self.home / "crust.toml").write_text(text)


@pytest.fixture
def ada(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "ada")


@pytest.fixture
def ben(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "ben")


def send(ada: Machine, ben: Machine, *options: str, files: tuple[str, ...] = ("album",)) -> tuple[Any, Any, str, str]:
    """Send something from Ada to Ben; the last objects that both print, and their talk."""
    with ben.start("receive", "--json", *options, *LOCAL) as process:
        assert process.stdout is not None
        contact = json.loads(process.stdout.readline())["contact"]
        sent = ada.run("send", "--json", *options[: 2 * ("--config" in options)], *LOCAL, contact, *files)
        out, talk = process.communicate(timeout=30)
        assert sent.returncode == 0, sent.stderr
        assert process.returncode == 0, talk
    return json.loads(sent.stdout), json.loads(out), sent.stderr.decode(), talk.decode()


def test_receipts_prove_who_sent_a_file(ada: Machine, ben: Machine, tmp_path: Path) -> None:
    (ada.home / "album" / "deep").mkdir(parents=True)
    (ada.home / "album" / "deep" / "picture").write_bytes(os.urandom(2_000_000))
    (ada.home / "album" / "note").write_bytes(b"hello")
    sent, received, said_by_ada, said_by_ben = send(ada, ben, "--into", "in", "--receipts", "proof")
    sender = json.loads(ada.run("id", "--json").stdout)["id"]
    for record in (sent, received):
        assert record["signer"] == sender
        assert record["receipts"] == 2
    for talk in (said_by_ada, said_by_ben):
        assert f"signed by {sender}" in talk.replace("this machine's key, ", "")

    stranger = Machine(tmp_path / "stranger")
    proof, got = ben.home / "proof" / "album", ben.home / "in" / "album"
    done = stranger.run("verify", "--json", proof / "deep" / "picture.receipt", got / "deep" / "picture")
    assert done.returncode == 0
    assert json.loads(done.stdout)["signer"] == sender
    assert stranger.run("verify", proof / "note.receipt", got / "deep" / "picture").returncode == 4
    shown = stranger.run("verify", proof / "deep" / "picture.receipt", got / "deep" / "picture").stdout.decode()
    assert "stands for the whole file" in shown
    assert list(stranger.home.iterdir()) == []

    # What is there already gets a receipt as well.
    (proof / "note.receipt").unlink()
    _, received, _, _ = send(ada, ben, "--into", "in", "--receipts", "proof")
    assert (received["kept_files"], received["receipts"]) == (2, 2)
    assert stranger.run("verify", proof / "note.receipt", got / "note").returncode == 0


def test_signed_files_without_receipts(ada: Machine, ben: Machine) -> None:
    (ada.home / "note").write_bytes(b"hello")
    sent, received, _, talk = send(ada, ben, "--into", "in", files=("note",))
    assert received["signer"] == sent["signer"] is not None
    assert (sent["receipts"], received["receipts"]) == (1, 0)
    assert f"Each file is signed by {sent['signer']}\n" in talk


def test_nobody_signs_where_signing_is_off(ada: Machine, ben: Machine) -> None:
    (ada.home / "note").write_bytes(b"hello")
    for machine in (ada, ben):
        machine.configure('signing = "off"\n')
    sent, received, said_by_ada, said_by_ben = send(ada, ben, "--config", "crust.toml", files=("note",))
    for record in (sent, received):
        assert record["signer"] is None
        assert record["receipts"] == 0
    assert "signed" not in said_by_ada + said_by_ben
    refused = ben.run("receive", "--config", "crust.toml", "--receipts", "proof", *LOCAL)
    assert refused.returncode == 2
    assert b"signing is off" in refused.stderr
    assert not (ben.home / "proof").exists()


def test_a_receipt_that_cannot_be_kept_is_an_error_but_the_file_is_there(ada: Machine, ben: Machine) -> None:
    (ada.home / "note").write_bytes(b"hello")
    (ben.home / "proof" / "note.receipt").mkdir(parents=True)
    with ben.start("receive", "--json", "--into", "in", "--receipts", "proof", *LOCAL) as process:
        assert process.stdout is not None
        contact = json.loads(process.stdout.readline())["contact"]
        assert ada.run("send", *LOCAL, contact, "note").returncode == 0
        out, talk = process.communicate(timeout=30)
    assert process.returncode == 1
    received, failed = map(json.loads, out.splitlines())
    assert received["receipts"] == 0
    assert "no receipt is kept for note" in failed["error"]
    assert b"no receipt is kept for note" in talk
    assert (ben.home / "in" / "note").read_bytes() == b"hello"


@pytest.mark.parametrize("signing", ["on", "off"])
def test_pipe_says_who_is_there_and_whether_it_is_signed(ada: Machine, ben: Machine, signing: str) -> None:
    for machine in (ada, ben):
        machine.configure(f'signing = "{signing}"\n')
    with ben.start("pipe", "--config", "crust.toml", "--listen", "127.0.0.1:0", *LOCAL[2:]) as process:
        assert process.stderr is not None
        contact = process.stderr.readline().decode().strip()
        dialled = ada.run("pipe", "--config", "crust.toml", *LOCAL[2:], contact, input=b"hello")
        out, talk = process.communicate(timeout=30)
    assert dialled.returncode == process.returncode == 0, dialled.stderr + talk
    assert out == b"hello"
    ids = {machine: json.loads(machine.run("id", "--json").stdout)["id"] for machine in (ada, ben)}
    for text, ours, theirs in ((dialled.stderr, ada, ben), (talk, ben, ada)):
        connected, signed = text.decode().splitlines()
        assert ids[theirs] in connected
        assert (ids[ours] in signed) == (signing == "on")
        assert ("Nothing is signed" in signed) == (signing == "off")
