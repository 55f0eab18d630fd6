"""`crust node` and `crust ping`: what they print, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import pytest

from crust.crypto.keys import Identity
from tests.cli.conftest import LOCAL, Crust, Running

Node = Callable[..., tuple[Running, str, str]]


def address(contact: str) -> str:
    """HOST:PORT of a contact's first candidate."""
    from crust.wire.contact import Contact

    candidate = Contact.parse(contact).candidates[0]
    return f"{candidate.host}:{candidate.port}"


def test_ping_json(crust: Crust, node: Node) -> None:
    _, contact, peer = node()
    done = crust.run("ping", contact, "--json", "-c", "3", "--no-lan")
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    record = json.loads(line)
    assert list(record) == ["peer", "connect_ms", "path", "paths", "rtt_ms", "report"]
    assert record["peer"] == peer
    assert len(record["rtt_ms"]) == 3
    assert all(0 < rtt < 5000 for rtt in record["rtt_ms"])
    assert record["connect_ms"] >= record["rtt_ms"][0]
    assert {"transport", "kind", "local", "remote"} <= set(record["path"])
    assert record["path"]["kind"] == "direct"
    assert record["paths"][0]["at_ms"] > 0
    assert record["report"]["winner"]["remote"] == record["path"]["remote"]


def test_ping_text(crust: Crust, node: Node) -> None:
    _, contact, peer = node()
    done = crust.run("ping", contact, "-c", "2", "--explain", "--no-lan")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == peer
    assert re.search(r"direct (tcp|utp)", lines[1])
    assert [line.partition(":")[0] for line in lines[2:4]] == ["1", "2"]
    assert lines[4].startswith("2 round trips")
    assert "candidate" in done.stderr
    assert "won" in done.stderr


def test_four_pings_a_fifth_of_a_second_apart(crust: Crust, node: Node) -> None:
    _, contact, _ = node()
    started = time.monotonic()
    done = crust.run("ping", contact, "--json", "--no-lan")
    assert len(json.loads(done.stdout)["rtt_ms"]) == 4
    assert time.monotonic() - started > 0.6


def test_ping_by_id_and_address(crust: Crust, node: Node) -> None:
    _, contact, peer = node()
    done = crust.run("ping", f"{peer}@{address(contact)}", "--json", "-c", "1", "--transport", "tcp", "--no-lan")
    assert done.returncode == 0, done.stderr


def failure(done: subprocess.CompletedProcess[str], peer: str, code: int) -> dict[str, object]:
    assert done.returncode == code, done.stderr
    (line,) = done.stdout.splitlines()
    record = json.loads(line)
    assert list(record) == ["peer", "error", "report"]
    assert record["peer"] == peer
    assert record["report"]["error"]
    assert record["error"] in done.stderr
    return dict(record)


def test_nobody_there(crust: Crust) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        peer = str(Identity.generate().id)
        target = f"{peer}@127.0.0.1:{taken.getsockname()[1]}"
        done = crust.run("ping", target, "--json", "--timeout", "5", "--no-lan", "--transport", "tcp")
    failure(done, peer, 3)


def test_an_id_alone_that_nobody_knows(crust: Crust) -> None:
    peer = str(Identity.generate().id)
    started = time.monotonic()
    failure(crust.run("ping", peer, "--json", "--no-lan"), peer, 3)
    assert time.monotonic() - started < 10  # 5 s and the start of the program


def test_another_key(crust: Crust, node: Node) -> None:
    _, contact, _ = node()
    peer = str(Identity.generate().id)
    done = crust.run("ping", f"{peer}@{address(contact)}", "--json", "--timeout", "2", "--no-lan", "--transport", "tcp")
    assert done.returncode in (3, 4)  # silence towards a stranger looks like nobody
    failure(done, peer, done.returncode)


def test_a_web_server(crust: Crust) -> None:
    peer = str(Identity.generate().id)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pinging = crust.start(
            "ping", f"{peer}@127.0.0.1:{server.getsockname()[1]}", "--json", "--timeout", "5", "--transport", "tcp"
        )
        connection, _ = server.accept()
        with connection:
            connection.recv(10)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert pinging.end() == 4
    (line,) = pinging.rest()
    assert "HTTP" in json.loads(line)["error"]


def test_refused(crust: Crust, node: Node) -> None:
    _, contact, peer = node("--from", Identity.generate().id)
    done = crust.run("ping", contact, "--json", "--timeout", "10", "--no-lan")
    failure(done, peer, 4)


def test_let_in_by_name(crust: Crust, node: Node) -> None:
    ours = crust.run("id").stdout.strip()
    _, contact, _ = node("--from", Identity.generate().id, "--from", ours)
    assert crust.run("ping", contact, "-c", "1", "--no-lan").returncode == 0


def test_oneself(crust: Crust, node: Node) -> None:
    _, contact, peer = node()
    done = crust.run("ping", contact, "--json", user="node")
    failure(done, peer, 2)
    assert "--identity" in done.stderr


def test_another_network(crust: Crust, node: Node) -> None:
    config = crust.home / "other.toml"
    config.write_text('network_name = "other"')
    _, contact, peer = node("--config", config)
    failure(crust.run("ping", contact, "--json", "--timeout", "10", "--no-lan"), peer, 4)


def test_wait(crust: Crust, node: Node) -> None:
    identity = crust.home / "key"
    peer = crust.run("id", "--identity", identity).stdout.strip()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    target = f"{peer}@{place}"
    pinging = crust.start("ping", target, "--json", "-c", "1", "--wait", "30", "--transport", "tcp", "--no-lan")
    pinging.wait_for("trying again")
    crust.start("node", "--identity", identity, "--listen", place, "--no-lan", "--no-port-mapping", user="node")
    assert pinging.end() == 0


def test_wait_ends(crust: Crust) -> None:
    peer = str(Identity.generate().id)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"{peer}@127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        done = crust.run("ping", target, "--wait", "2.5", "--transport", "tcp", "--no-lan")
    assert done.returncode == 3
    assert time.monotonic() - started > 2.5


def test_swap(crust: Crust) -> None:
    pair = [
        crust.start("ping", "--swap", "--json", "-c", count, *LOCAL, user=f"user{count}", stdin=subprocess.PIPE)
        for count in (2, 6)
    ]
    first, second = (running.record() for running in pair)
    assert set(first) == {"contact", "id"}
    for running, other in zip(pair, (second, first), strict=True):
        assert running.process.stdin is not None
        running.process.stdin.write(other["contact"] + "\n")
        running.process.stdin.flush()
    records = []
    for running in pair:
        assert running.end() == 0, running.errors
        (line,) = running.rest()
        records.append(json.loads(line))
    assert [len(record["rtt_ms"]) for record in records] == [2, 6]
    assert [record["peer"] for record in records] == [second["id"], first["id"]]


def test_swap_without_an_answer(crust: Crust) -> None:
    done = crust.run("ping", "--swap", *LOCAL)
    assert done.returncode == 2
    assert "standard input ended" in done.stderr


def test_swap_with_nonsense(crust: Crust) -> None:
    done = crust.run("ping", "--swap", *LOCAL, input="nonsense\n")
    assert done.returncode == 2


# --- node ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_node_ends_with_0(crust: Crust, node: Node, number: int) -> None:
    running, contact, peer = node()
    assert crust.run("ping", contact, "-c", "1", "--no-lan").returncode == 0
    assert contact.startswith("crust:")
    assert peer.startswith("crust")
    assert running.signal(number) == 0
    assert running.rest() == []


def test_node_ends_while_peers_are_connected(crust: Crust, node: Node) -> None:
    running, contact, _ = node()
    pinging = crust.start("ping", contact, "-c", "1000", "--no-lan")
    while not pinging.line().startswith("1:"):
        pass
    assert running.signal(signal.SIGTERM) == 0
    assert pinging.end() == 5
    assert "closed" in pinging.errors


def test_node_that_is_killed_is_lost(crust: Crust, node: Node) -> None:
    running, contact, peer = node("--events")
    # Over TCP alone: the death of a process shows at once.
    options = ("--no-lan", "--json", "--timeout", "2", "--transport", "tcp")
    pinging = crust.start("ping", contact, "-c", "1000", *options)
    assert running.record()["event"] == "PeerConnected"
    running.process.kill()
    assert pinging.end() == 5
    (line,) = pinging.rest()
    record = json.loads(line)
    assert record["peer"] == peer
    assert record["error"]


def test_first_line_without_json_is_the_contact(crust: Crust) -> None:
    running = crust.start("node", *LOCAL)
    contact = running.line()
    assert crust.run("ping", contact, "-c", "1", "--no-lan", user="other").returncode == 0
    assert running.signal(signal.SIGTERM) == 0
    assert running.rest() == []


def test_events(crust: Crust, node: Node) -> None:
    running, contact, _ = node("--events")
    ours = crust.run("id").stdout.strip()
    assert crust.run("ping", contact, "-c", "1", "--no-lan").returncode == 0
    connected = running.record()
    assert connected["event"] == "PeerConnected"
    assert connected["peer"] == ours
    assert connected["path"]["transport"] in ("tcp", "utp")
    closed = running.record()
    if closed["event"] == "PathChanged":  # the path that stands by may end before the word that all is closed arrives
        closed = running.record()
    assert closed["event"] == "PeerClosed"
    assert closed["peer"] == ours
    assert running.signal(signal.SIGTERM) == 0


def test_events_that_nobody_reads(crust: Crust) -> None:
    reading, writing = os.pipe()
    with open(writing, "w") as pipe:
        running = crust.start("node", *LOCAL, "--events", "--json", stdout=pipe)
    contact = json.loads(os.read(reading, 4096))["contact"]
    os.close(reading)
    crust.run("ping", contact, "-c", "1", "--no-lan", user="other")
    assert running.end() == 0
    assert "Traceback" not in running.errors


def test_qr_goes_to_standard_error(crust: Crust) -> None:
    running = crust.start("node", *LOCAL, "--qr")
    assert running.line().startswith("crust:")
    running.wait_for("█")
    assert running.signal(signal.SIGTERM) == 0
    assert running.rest() == []


def test_a_port_that_is_taken(crust: Crust) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        done = crust.run("node", "--listen", place, "--transport", "tcp")
    assert done.returncode == 2
    assert place in done.stderr
