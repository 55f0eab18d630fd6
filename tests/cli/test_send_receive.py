"""`crust send` and `crust receive`: two processes, real files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crust.crypto.keys import Identity
from crust.node.transfer.manifest import STAGING_NAME
from tests.cli.conftest import LOCAL, Crust, Running
from tests.cli.gate import Gate
from tests.waiting import poll

LARGE = 96 << 20


@pytest.fixture
def album(tmp_path: Path) -> Iterator[Path]:
    album = tmp_path / "album"
    (album / "deep" / "er").mkdir(parents=True)
    (album / "nothing here").mkdir()
    for number in range(400):
        (album / "deep" / f"{number}.txt").write_bytes(b"%d" % number)
    (album / "empty").write_bytes(b"")
    (album / "run.sh").write_text("#!/bin/sh\n")
    (album / "run.sh").chmod(0o755)
    (album / "größe 📷.bin").write_bytes(random.Random(5).randbytes(3_000_000))
    yield album
    shutil.rmtree(album)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    large = tmp_path / "large.bin"
    block = random.Random(6).randbytes(1 << 20)
    with open(large, "wb") as file:
        for number in range(LARGE >> 20):
            file.write(number.to_bytes(8, "big") + block[8:])
    yield large
    large.unlink(missing_ok=True)  # pytest keeps what it finds


@pytest.fixture
def into(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "into"
    shutil.rmtree(tmp_path / "into", ignore_errors=True)


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def visible(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def receive(crust: Crust, into: Path, *arguments: object, **options: Any) -> tuple[Running, str, str]:
    running = crust.start("receive", "--into", into, "--json", *LOCAL, *arguments, user="receiver", **options)
    first = running.record()
    assert list(first) == ["contact", "id"]
    return running, first["contact"], first["id"]


def send(crust: Crust, contact: str, *files: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return crust.run("send", contact, *files, "--no-lan", "--json", "--timeout", "20", **options)


def last(lines: list[str]) -> dict[str, Any]:
    record = json.loads(lines[-1])
    assert isinstance(record, dict)
    return record


def test_files_and_folders(crust: Crust, album: Path, into: Path, tmp_path: Path) -> None:
    (tmp_path / "single").write_text("single")
    running, contact, peer = receive(crust, into)
    ours = crust.run("id").stdout.strip()
    sent = send(crust, contact, album, tmp_path / "single")
    assert sent.returncode == 0, sent.stderr
    assert running.end() == 0
    assert tree(into / "album") == tree(album)
    assert (into / "single").read_text() == "single"
    assert os.access(into / "album" / "run.sh", os.X_OK)
    assert not os.access(into / "album" / "empty", os.X_OK)
    for path in album.rglob("*"):
        assert (into / path.relative_to(tmp_path)).stat().st_mtime_ns == path.stat().st_mtime_ns
    assert not (into / STAGING_NAME).exists()
    for record, other in ((last(sent.stdout.splitlines()), peer), (last(running.rest()), ours)):
        assert record["files"] == 404
        assert record["bytes"] == sum(path.stat().st_size for path in album.rglob("*") if path.is_file()) + 6
        assert record["seconds"] > 0
        assert record["mb_s"] > 0
        assert record["hashes_equal"] is True
        assert record["peer"] == other
        assert {"transport", "kind", "local", "remote"} <= set(record["path"])
    assert "\x1b" not in sent.stderr  # no bar where there is no terminal


def test_text_for_people(crust: Crust, album: Path, into: Path) -> None:
    running = crust.start("receive", "--into", into, *LOCAL, user="receiver")
    contact = running.line()
    sent = crust.run("send", contact, album / "run.sh", "--no-lan")
    assert sent.returncode == 0
    assert sent.stdout == ""
    assert "Sent 1 file" in sent.stderr
    assert running.end() == 0
    assert running.rest() == []
    assert "Received 1 file" in running.errors
    assert f"crust send {contact}" in running.errors


def test_into_the_current_folder(crust: Crust, album: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    running = crust.start("receive", *LOCAL, "--json", user="receiver", cwd=tmp_path / "here")
    sent = send(crust, running.record()["contact"], "run.sh", cwd=album)
    assert sent.returncode == 0
    assert running.end() == 0
    assert (tmp_path / "here" / "run.sh").exists()


def test_a_bar_on_a_terminal(crust: Crust, tmp_path: Path, into: Path) -> None:
    import pty

    large = tmp_path / "large.bin"
    with open(large, "wb") as file:
        file.truncate(200 << 20)
    running, contact, _ = receive(crust, into)
    leader, follower = pty.openpty()
    sending = subprocess.Popen(
        [Path(sys.executable).with_name("crust"), "send", contact, large, "--no-lan"],
        env=crust.environment(),
        stdin=follower,
        stdout=subprocess.DEVNULL,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:  # the other side of a terminal is gone
        pass
    os.close(leader)
    assert sending.wait(30) == 0
    assert running.end() == 0
    text = shown.decode(errors="replace")
    assert "Sending" in text
    assert " of 209.7 MB" in text
    assert "MB/s" in text
    assert "left" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is back


# --- again ---


def _kill_under_way(process: Running, gate: Gate, into: Path, least: int) -> None:
    """SIGKILL a side when a part has arrived, and more is held back."""
    gate.wait_until_held()
    poll(lambda: sum(path.stat().st_size for path in into.rglob(".*-*")) > least)  # written by another process
    process.process.kill()
    process.process.wait()


def test_the_sender_is_killed_and_started_again(crust: Crust, large: Path, into: Path) -> None:
    running, contact, _ = receive(crust, into, "--timeout", "30")
    with Gate(contact) as gate:
        sending = crust.start("send", gate.target, large, "--no-lan", "--transport", "tcp")
        _kill_under_way(sending, gate, into, 10 << 20)
    assert visible(into) == []
    sent = send(crust, contact, large)
    assert sent.returncode == 0, sent.stderr
    assert running.end() == 0, running.errors
    for record in (last(sent.stdout.splitlines()), last(running.rest())):
        assert record["resumed_files"] == 1
        assert record["transferred_bytes"] < LARGE - (9 << 20)
        assert record["bytes"] == LARGE
        assert record["hashes_equal"] is True
    assert (into / "large.bin").read_bytes() == large.read_bytes()
    assert not (into / STAGING_NAME).exists()


def test_the_receiver_is_killed_and_started_again(crust: Crust, large: Path, into: Path) -> None:
    running, contact, peer = receive(crust, into)
    with Gate(contact) as gate:
        options = ("--no-lan", "--json", "--timeout", "4", "--transport", "tcp")
        sending = crust.start("send", gate.target, large, *options)
        _kill_under_way(running, gate, into, 10 << 20)
        gate.open()
        assert sending.end() == 5
    assert last(sending.rest())["error"]
    assert visible(into) == []
    running, contact, again = receive(crust, into)
    assert peer == again
    sent = send(crust, contact, large)
    assert sent.returncode == 0, sent.stderr
    assert running.end() == 0
    assert last(running.rest())["resumed_files"] == 1
    assert (into / "large.bin").read_bytes() == large.read_bytes()


def test_a_folder_is_continued(crust: Crust, album: Path, large: Path, into: Path) -> None:
    os.link(large, album / "zzz.bin")  # behind the small ones
    running, contact, _ = receive(crust, into, "--timeout", "30")
    with Gate(contact) as gate:
        sending = crust.start("send", gate.target, album, "--no-lan", "--transport", "tcp")
        _kill_under_way(sending, gate, into, 10 << 20)  # the large one: more than all others together
    (album / "late").write_text("late")
    sent = send(crust, contact, album)
    assert sent.returncode == 0, sent.stderr
    assert running.end() == 0
    record = last(running.rest())
    assert record["resumed_files"] == 1
    assert record["kept_files"] > 0
    assert tree(into / "album") == tree(album)


def test_a_lost_sender_that_does_not_come_back(crust: Crust, large: Path, into: Path) -> None:
    running, contact, _ = receive(crust, into, "--timeout", "6", "--transport", "tcp")
    with Gate(contact) as gate:
        sending = crust.start("send", gate.target, large, "--no-lan", "--transport", "tcp")
        _kill_under_way(sending, gate, into, 1 << 20)
    assert running.end() == 5
    assert "Waiting 6 s" in running.errors
    assert "Traceback" not in running.errors
    assert "lost" in last(running.rest())["error"]


def test_everything_is_there_already(crust: Crust, album: Path, into: Path) -> None:
    for kept in (0, 403):
        running, contact, _ = receive(crust, into)
        sent = send(crust, contact, album)
        assert sent.returncode == 0
        assert running.end() == 0
        assert last(sent.stdout.splitlines())["kept_files"] == kept


# --- refused ---


def test_files_that_differ_are_not_replaced(crust: Crust, album: Path, into: Path) -> None:
    (into / "album").mkdir(parents=True)
    (into / "album" / "run.sh").write_text("mine")
    running, contact, _ = receive(crust, into)
    sent = send(crust, contact, album)
    assert sent.returncode == 4
    assert "album/run.sh exists in the destination with other content" in sent.stderr
    assert running.end() == 4
    assert "--overwrite" in running.errors
    assert visible(into) == [into / "album", into / "album" / "run.sh"]
    assert (into / "album" / "run.sh").read_text() == "mine"
    running, contact, _ = receive(crust, into, "--overwrite")
    assert send(crust, contact, album).returncode == 0
    assert running.end() == 0
    assert tree(into / "album") == tree(album)


def test_links_are_left_out_with_a_note(crust: Crust, album: Path, into: Path) -> None:
    (album / "link").symlink_to("/etc/passwd")
    (album / "folder").symlink_to("/etc")
    os.mkfifo(album / "fifo")
    running, contact, _ = receive(crust, into)
    sent = send(crust, contact, album)
    assert sent.returncode == 0
    assert sent.stderr.count("left out") == 3
    assert running.end() == 0
    assert not {"link", "folder", "fifo"} & {path.name for path in into.rglob("*")}


@pytest.mark.parametrize("name", ["back\\slash", "new\nline", "bell\x07"])
def test_names_that_could_do_harm_are_not_sent(crust: Crust, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    peer = Identity.generate().id
    done = send(crust, f"{peer}@127.0.0.1:9", tmp_path / name)
    assert done.returncode == 2
    assert "name is refused" in done.stderr
    assert "\x07" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_not_there(crust: Crust, tmp_path: Path) -> None:
    done = send(crust, f"{Identity.generate().id}@127.0.0.1:9", tmp_path / "missing")
    assert done.returncode == 2
    assert "missing: No such file" in done.stderr


def test_a_destination_that_is_none(crust: Crust, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = crust.run("receive", "--into", tmp_path / "file")
    assert done.returncode == 2
    assert done.stdout == ""


def test_only_from(crust: Crust, album: Path, into: Path) -> None:
    ours = crust.run("id").stdout.strip()
    running, contact, _ = receive(crust, into, "--from", ours)
    stranger = send(crust, contact, album / "run.sh", user="stranger")
    assert stranger.returncode == 4
    assert send(crust, contact, album / "run.sh").returncode == 0
    assert running.end() == 0


def test_a_node_takes_no_files(crust: Crust, album: Path) -> None:
    running = crust.start("node", *LOCAL, user="node")
    done = send(crust, running.line(), album)
    assert done.returncode == 4
    assert "does not wait for files" in done.stderr


def test_nobody_sends(crust: Crust, into: Path) -> None:
    running, _, _ = receive(crust, into, "--timeout", "1")
    assert running.end() == 3
    assert "nobody sent anything" in last(running.rest())["error"]


def test_a_ping_does_not_end_the_waiting(crust: Crust, album: Path, into: Path) -> None:
    running, contact, _ = receive(crust, into)
    assert crust.run("ping", contact, "-c", "1", "--no-lan").returncode == 0
    assert send(crust, contact, album / "run.sh").returncode == 0
    assert running.end() == 0


def test_keep(crust: Crust, album: Path, into: Path) -> None:
    running, contact, _ = receive(crust, into, "--keep")
    assert send(crust, contact, album / "run.sh").returncode == 0
    (album / "run.sh").write_text("another")
    assert send(crust, contact, album / "run.sh").returncode == 4
    assert send(crust, contact, album / "empty").returncode == 0
    assert running.record()["files"] == 1
    assert "exists" in running.record()["error"]
    assert running.record()["files"] == 1
    assert running.signal(signal.SIGINT) == 130


# --- a full disk ---


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50 << 20, 50 << 20))


def test_a_limit_on_file_size(crust: Crust, large: Path, into: Path) -> None:
    running, contact, _ = receive(crust, into, preexec_fn=_small_files)
    sent = send(crust, contact, large)
    for code, text in ((sent.returncode, sent.stderr), (running.end(), running.errors)):
        assert code == 1
        assert "large.bin cannot be written: File too large" in text
    assert visible(into) == []
    running, contact, _ = receive(crust, into)
    assert send(crust, contact, large).returncode == 0
    assert running.end() == 0
    assert last(running.rest())["resumed_files"] == 1
    assert (into / "large.bin").read_bytes() == large.read_bytes()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "crust-test", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_is_too_small(crust: Crust, large: Path, disk: Path) -> None:
    running, contact, _ = receive(crust, disk)
    sent = send(crust, contact, large)
    assert sent.returncode == 1
    assert "not enough room in the destination" in sent.stderr
    assert running.end() == 1
    assert list(disk.rglob("*")) == []


def test_a_disk_that_fills_up(crust: Crust, large: Path, disk: Path) -> None:
    os.truncate(large, 60 << 20)
    running, contact, _ = receive(crust, disk)
    with Gate(contact) as gate:
        sending = crust.start("send", gate.target, large, "--no-lan", "--transport", "tcp")
        gate.wait_until_held()
        with open(disk / "other", "wb", buffering=0) as other, contextlib.suppress(OSError):
            while other.write(bytes(1 << 20)):
                pass
        gate.open()
        code = sending.end()
    assert code == 1
    assert "No space left on device" in sending.errors
    assert running.end() == 1
    assert "No space left on device" in running.errors
    assert visible(disk) == [disk / "other"]


def test_a_disk_that_is_read_only(crust: Crust, album: Path, disk: Path) -> None:
    running, contact, _ = receive(crust, disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    sent = send(crust, contact, album)
    assert sent.returncode == 1
    assert "Read-only file system" in sent.stderr
    assert running.end() == 1
    assert "Read-only file system" in running.errors
