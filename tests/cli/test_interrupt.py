"""Ctrl-C and SIGTERM end every command within 2 s, wherever it is stuck."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crust.cli.interrupts import Interrupts, stuck_threads
from crust.cli.runner import run_coroutine
from crust.crypto.keys import Identity
from tests.cli.conftest import END_SECONDS, LOCAL, SCRIPT, Crust
from tests.waiting import poll

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["ping", "send", "pipe", "forward"])
def test_while_dialling(crust: Crust, silent: socket.socket, tmp_path: Path, command: str, number: int) -> None:
    (tmp_path / "file").write_text("x")
    rest = {"ping": [], "send": [tmp_path / "file"], "pipe": [], "forward": ["0"]}[command]
    target = f"{Identity.generate().id}@127.0.0.1:{silent.getsockname()[1]}"
    running = crust.start(command, target, *rest, "--no-lan", stdin=subprocess.PIPE)
    connection, _ = silent.accept()
    with connection:
        assert running.signal(number) == 130
    assert running.rest() == []


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", [["receive"], ["receive", "--keep"], ["expose", "localhost:9"], ["ping", "--swap"]])
def test_while_waiting(crust: Crust, tmp_path: Path, command: list[str], number: int) -> None:
    running = crust.start(*command, *LOCAL, cwd=tmp_path, stdin=subprocess.PIPE)
    running.line()
    assert running.signal(number) == 130


@pytest.mark.parametrize("number", SIGNALS)
def test_pipe_while_waiting(crust: Crust, number: int) -> None:
    running = crust.start("pipe", *LOCAL, stdin=subprocess.PIPE)
    running.wait_for("crust:")
    assert running.signal(number) == 130


def test_ping_between_pings(crust: Crust) -> None:
    node = crust.start("node", *LOCAL, user="node")
    running = crust.start("ping", node.line(), "-c", "1000", "--no-lan")
    while not running.line().startswith("2:"):
        pass
    assert running.signal() == 130


def test_ping_that_waits_for_a_peer(crust: Crust) -> None:
    running = crust.start("ping", str(Identity.generate().id), "--wait", "60", "--no-lan")
    running.wait_for("trying again")
    assert running.signal() == 130


@pytest.mark.parametrize("which", ["sender", "receiver"])
def test_in_the_midst_of_a_transfer(crust: Crust, tmp_path: Path, which: str) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.truncate(4 << 30)
    into = tmp_path / "into"
    receiving = crust.start("receive", "--into", into, *LOCAL, user="receiver")
    sending = crust.start("send", receiving.line(), tmp_path / "file", "--no-lan")
    poll(lambda: any(path.is_file() for path in into.rglob("*")))  # written by another process
    if which == "sender":
        assert sending.signal() == 130
        receiving.wait_for("The sender was interrupted. Waiting 30 s for it to come back.")
        assert receiving.signal() == 130
    else:
        assert receiving.signal() == 130
        assert sending.end() == 5
        assert "the receiver was interrupted" in sending.errors
        assert "Traceback" not in sending.errors
    assert not (into / "file").exists()
    shutil.rmtree(into)  # pytest keeps what it finds


def test_a_configuration_that_is_never_read(crust: Crust, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    running = crust.start("node", "--config", tmp_path / "fifo")
    with open(tmp_path / "fifo", "w"):  # comes back when the other end was opened
        assert running.signal() == 0


@pytest.fixture
def name_server() -> Iterator[socket.socket]:
    """Takes questions and never answers. Each process has an address of its own: tests run beside each other."""
    high, low = divmod(os.getpid() % 0xFF00, 0x100)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind((f"127.53.{high}.{low}", 53))
        except PermissionError:
            pytest.skip("no right to the port of DNS")
        server.settimeout(30)
        yield server


@pytest.fixture
def no_dns(tmp_path: Path, name_server: socket.socket) -> list[str]:
    """What to put before a command so that it asks that server."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {name_server.getsockname()[0]}\noptions timeout:30 attempts:5\n")
    script = f'mount --bind {resolv} /etc/resolv.conf && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no right to mount")
    return prefix


@pytest.mark.parametrize("number", SIGNALS)
def test_stuck_in_dns(crust: Crust, no_dns: list[str], name_server: socket.socket, number: int) -> None:
    target = f"{Identity.generate().id}@hangs.example:5"
    process = subprocess.Popen([*no_dns, SCRIPT, "ping", target, "--no-lan"], env=crust.environment())
    assert b"hangs" in name_server.recv(512)
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(20) == 130
    assert time.monotonic() - started < END_SECONDS


def test_a_time_limit_while_stuck_in_dns(crust: Crust, no_dns: list[str], name_server: socket.socket) -> None:
    target = f"{Identity.generate().id}@hangs.example:5"
    started = time.monotonic()
    done = subprocess.run(
        [*no_dns, SCRIPT, "ping", target, "--no-lan", "--timeout", "1"],
        env=crust.environment(),
        timeout=40,
        check=False,
    )
    assert done.returncode == 3
    assert b"hangs" in name_server.recv(512)
    assert time.monotonic() - started < 10


# --- the runner by itself ---


async def _seven() -> int:
    return 7


def test_run_coroutine() -> None:
    assert run_coroutine(_seven(), Interrupts()) == 7
    assert not stuck_threads()


def test_faults_in_callbacks_are_told_once() -> None:
    import asyncio

    async def faulty() -> int:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return 0

    told: list[BaseException] = []
    assert run_coroutine(faulty(), Interrupts(), told.append) == 0
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_tasks_that_are_left_are_cancelled() -> None:
    import asyncio

    ended = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    tasks = []

    async def careless() -> int:
        tasks.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)
        return 1

    assert run_coroutine(careless(), Interrupts()) == 1
    assert ended == [True]


def test_a_signal_cancels_the_command() -> None:
    import asyncio

    interrupts = Interrupts(code=9)
    interrupts.install()
    try:

        async def interrupted() -> int:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(30)
            return 0

        assert run_coroutine(interrupted(), interrupts) == 9
    finally:
        interrupts.finish()
