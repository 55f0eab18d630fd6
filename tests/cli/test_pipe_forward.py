"""`crust pipe`, `expose` and `forward`: bytes through a connection, both ways, to the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crust.crypto.keys import Identity
from tests.cli.conftest import Crust, Running

HOST = ("--no-lan", "--no-port-mapping")


def listen(crust: Crust, *arguments: object, **options: Any) -> tuple[Running, str]:
    """Start the waiting side of a pipe; its contact comes on standard error."""
    running = crust.start("pipe", "--listen", "127.0.0.1:0", *HOST, "--json", *arguments, user="listener", **options)
    running.wait_for("\n")
    first = json.loads(running.errors.splitlines()[0])
    assert set(first) == {"contact", "id"}
    return running, first["contact"]


def test_both_ways(crust: Crust, tmp_path: Path) -> None:
    here, there = random.Random(1).randbytes(5_000_000), random.Random(2).randbytes(3_000_000)
    (tmp_path / "there").write_bytes(there)
    with open(tmp_path / "there", "rb") as stdin, open(tmp_path / "out", "wb") as stdout:
        running, contact = listen(crust, stdin=stdin, stdout=stdout)
    (tmp_path / "here").write_bytes(here)
    with open(tmp_path / "here", "rb") as stdin, open(tmp_path / "back", "wb") as stdout:
        dialling = crust.start("pipe", contact, "--no-lan", stdin=stdin, stdout=stdout)
    assert dialling.end() == 0, dialling.errors
    assert running.end() == 0, running.errors
    assert (tmp_path / "out").read_bytes() == here
    assert (tmp_path / "back").read_bytes() == there


def test_a_question_and_its_answer(crust: Crust) -> None:
    """The end of one direction leaves the other open."""
    running, contact = listen(crust, stdin=subprocess.PIPE)
    dialling = crust.start("pipe", contact, "--no-lan", stdin=subprocess.PIPE)
    for pipe in (running, dialling):
        assert pipe.process.stdin is not None
    dialling.process.stdin.write("question\n")
    dialling.process.stdin.close()
    assert running.line() == "question"
    assert dialling.process.poll() is None
    running.process.stdin.write("answer\n")
    running.process.stdin.close()
    assert dialling.line() == "answer"
    assert (dialling.end(), running.end()) == (0, 0)


def test_the_reader_is_gone(crust: Crust) -> None:
    running, contact = listen(crust)
    assert running.process.stdout is not None
    dialling = crust.start("pipe", contact, "--no-lan", stdin=subprocess.PIPE)
    assert dialling.process.stdin is not None
    dialling.process.stdin.write("one\n")
    dialling.process.stdin.flush()
    assert running.line() == "one"
    running.process.stdout.close()
    try:
        while dialling.process.poll() is None:
            dialling.process.stdin.write("more\n" * 1000)
            dialling.process.stdin.flush()
    except BrokenPipeError:
        pass
    assert running.end() == 0
    assert dialling.end() in (4, 5)
    assert "Traceback" not in running.errors + dialling.errors
    with contextlib.suppress(BrokenPipeError):  # it holds what nobody reads
        dialling.process.stdin.close()


@pytest.mark.parametrize("listener_breaks_off", [False, True])
def test_what_is_broken_off_does_not_look_complete(crust: Crust, listener_breaks_off: bool) -> None:
    """Also the side whose input goes on for ever hears of it."""
    running, contact = listen(crust, stdin=subprocess.PIPE)
    dialling = crust.start("pipe", contact, "--no-lan", stdin=subprocess.PIPE)
    assert dialling.process.stdin is not None
    dialling.process.stdin.write("half\n")
    dialling.process.stdin.flush()
    assert running.line() == "half"
    interrupted, other = (running, dialling) if listener_breaks_off else (dialling, running)
    assert interrupted.signal() == 130
    assert other.end() == 5
    assert "the peer has broken off" in other.errors


def test_an_input_without_end_does_not_hold_who_has_lost_the_peer(crust: Crust) -> None:
    running, contact = listen(crust, stdin=subprocess.PIPE)
    dialling = crust.start("pipe", contact, "--no-lan", stdin=subprocess.PIPE)
    assert dialling.process.stdin is not None
    dialling.process.stdin.write("all\n")
    dialling.process.stdin.close()  # its direction has ended in good order, ours has not
    assert running.line() == "all"
    assert dialling.signal() == 130
    assert running.end() == 5


def test_a_pipe_to_what_is_none(crust: Crust) -> None:
    node = crust.start("node", "--listen", "127.0.0.1:0", *HOST, user="node")
    done = crust.run("pipe", node.line(), "--no-lan", input="x")
    assert done.returncode == 4
    assert "does not wait for a pipe" in done.stderr


def test_nobody_comes(crust: Crust) -> None:
    running, _ = listen(crust, "--timeout", "1")
    assert running.end() == 3


def test_listening_on_any_address(crust: Crust) -> None:
    running = crust.start("pipe", "--listen", *HOST, user="listener")
    running.wait_for("\n")
    done = crust.run("pipe", running.errors.splitlines()[0], "--no-lan", input="x")
    assert (done.returncode, running.end(), running.line()) == (0, 0, "x")


def test_pipe_only_from(crust: Crust) -> None:
    running, contact = listen(crust, "--from", Identity.generate().id)
    assert crust.run("pipe", contact, "--no-lan", input="x").returncode == 4
    assert running.signal() == 130


# --- services ---


@pytest.fixture
def upper() -> Iterator[int]:
    """A TCP service that answers in capitals, after the end of the question; returns its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):  # a client may break off
                data = b""
                while chunk := connection.recv(65536):
                    data += chunk
                connection.sendall(data.upper())

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


Tunnel = Callable[..., tuple[Running, Running, tuple[str, int]]]


@pytest.fixture
def tunnel(crust: Crust) -> Tunnel:
    """Start both commands; returns them and where to connect."""

    def start(port: int, *arguments: object) -> tuple[Running, Running, tuple[str, int]]:
        place = ("--listen", "127.0.0.1:0", *HOST)
        exposing = crust.start("expose", f"127.0.0.1:{port}", *place, "--json", *arguments, user="exposing")
        contact = exposing.record()["contact"]
        forwarding = crust.start("forward", contact, "0", "--no-lan", "--json")
        record = forwarding.record()
        assert set(record) == {"listening", "peer"}
        host, _, local = record["listening"].rpartition(":")
        return exposing, forwarding, (host, int(local))

    return start


def ask(address: tuple[str, int], question: bytes) -> bytes:
    with socket.create_connection(address, timeout=30) as connection:
        writing = threading.Thread(target=lambda: (connection.sendall(question), connection.shutdown(socket.SHUT_WR)))
        writing.start()
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        writing.join()
        return answer


def test_a_service(tunnel: Tunnel, upper: int) -> None:
    exposing, forwarding, address = tunnel(upper)
    assert address[0] == "127.0.0.1"
    assert ask(address, b"hello") == b"HELLO"
    assert ask(address, b"") == b""
    large = random.Random(3).randbytes(4_000_000)
    assert ask(address, large) == large.upper()
    answers: list[bytes] = []
    askers = [threading.Thread(target=lambda: answers.append(ask(address, b"x" * 100_000))) for _ in range(10)]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join()
    assert answers == [b"X" * 100_000] * 10
    assert forwarding.signal(signal.SIGTERM) == 130
    assert exposing.signal(signal.SIGTERM) == 130


def test_a_service_that_is_down(tunnel: Tunnel) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        exposing, _, address = tunnel(taken.getsockname()[1])
        with socket.create_connection(address, timeout=30) as connection, pytest.raises(ConnectionResetError):
            assert connection.recv(10) == b"never"
        exposing.wait_for("Connection refused")


def test_a_client_that_breaks_off(tunnel: Tunnel, upper: int) -> None:
    _, forwarding, address = tunnel(upper)
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"half")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST at close
    assert ask(address, b"next") == b"NEXT"
    assert "Traceback" not in forwarding.errors


def test_the_exposing_side_is_gone(tunnel: Tunnel, upper: int) -> None:
    exposing, forwarding, address = tunnel(upper)
    assert ask(address, b"hello") == b"HELLO"
    assert exposing.signal() == 130
    # The reset may come before `connect` has returned.
    with pytest.raises(ConnectionResetError), socket.create_connection(address, timeout=60) as connection:
        assert connection.recv(10) == b"never"
    assert forwarding.signal() == 130


def test_a_port_that_is_taken(crust: Crust, upper: int) -> None:
    exposing = crust.start("expose", f"127.0.0.1:{upper}", "--listen", "127.0.0.1:0", *HOST, user="exposing")
    done = crust.run("forward", exposing.line(), upper, "--no-lan")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{upper}" in done.stderr


def test_expose_only_from(crust: Crust, upper: int) -> None:
    place = ("--listen", "127.0.0.1:0", *HOST)
    stranger = Identity.generate().id
    exposing = crust.start("expose", f"127.0.0.1:{upper}", *place, "--from", stranger, user="exposing")
    assert crust.run("forward", exposing.line(), "0", "--no-lan").returncode == 4


@pytest.mark.skipif(sys.platform == "win32", reason="terminals")
def test_a_terminal_ends_with_its_peer(crust: Crust) -> None:
    import pty

    leader, follower = pty.openpty()
    running, contact = listen(crust, stdin=follower)
    done = crust.run("pipe", contact, "--no-lan", input="bye\n")
    assert done.returncode == 0
    assert running.end() == 0
    assert running.rest() == ["bye"]
    os.close(leader)
    os.close(follower)
