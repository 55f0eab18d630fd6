"""The STUN client against coturn over loopback, UDP and TCP, and coturn's own client against our server."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crust.net.clock import monotonic
from crust.net.stun_service import StunService
from crust.proto.nat.stun import (
    StunClient,
    StunEvent,
    StunStreamClient,
    StunSucceeded,
)
from crust.wire.stun import Address, ChangeRequest

HOSTS = ("127.0.0.1", "127.0.0.2")


class Socket(asyncio.DatagramProtocol):
    """A UDP socket that gives what arrives to a `StunClient`."""

    def __init__(self, client: StunClient) -> None:
        self.client = client
        self.events: asyncio.Queue[StunEvent] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.client.receive_datagrams([(data, addr)], monotonic())
        while (event := self.client.next_event()) is not None:
            self.events.put_nowait(event)

    async def ask(self, server: Address, change: ChangeRequest | None = None) -> StunEvent:
        self.client.request(server, monotonic(), change=change)
        async with asyncio.timeout(10):
            while self.events.empty():
                for data, to in self.client.datagrams_to_send(monotonic()):
                    self.transport.sendto(data, to)
                await asyncio.sleep(0.05)
                self.client.handle_timeout(monotonic())
            return self.events.get_nowait()


async def open_client() -> tuple[Socket, Address]:
    loop = asyncio.get_running_loop()
    made = Socket(StunClient(os.urandom))
    transport, _ = await loop.create_datagram_endpoint(lambda: made, local_addr=("127.0.0.1", 0))
    return made, transport.get_extra_info("sockname")


def free_ports() -> int:
    """A port that is free, with the one after it, on both hosts for UDP and TCP."""
    for port in range(20000 + os.getpid() % 5000 * 2, 60000, 2):
        try:
            for host in HOSTS:
                for offset in (0, 1):
                    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                        with socket.socket(socket.AF_INET, kind) as probe:
                            probe.bind((host, port + offset))
        except OSError:
            continue
        return port
    raise AssertionError("no free ports")


@pytest.fixture
async def coturn(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a coturn with two hosts and two ports (RFC 5780)."""
    program = shutil.which("turnserver")
    if program is None:
        pytest.skip("coturn is not installed")
    port = free_ports()
    command = [
        program,
        "-n",
        *("--stun-only", "--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--simple-log", "--log-file=stdout"),
        *(f"--listening-port={port}", f"--alt-listening-port={port + 1}", f"--pidfile={tmp_path / 'pid'}"),
        *(f"--listening-ip={host}" for host in HOSTS),
        f"--db={tmp_path / 'turndb'}",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection(HOSTS[0], port)
                except OSError:
                    if server.poll() is not None:
                        pytest.skip(f"coturn does not start here (exit code {server.returncode})")
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                break
        yield port
    finally:
        server.kill()
        server.wait()


async def test_udp(coturn: int) -> None:
    client, local = await open_client()
    event = await client.ask((HOSTS[0], coturn))
    assert isinstance(event, StunSucceeded)
    assert event.observed == local
    # Nobody can tell which request was answered, where a busy machine had it sent twice (RFC 8489 §6.2.1).
    assert event.rtt is None or event.rtt < 1
    assert event.message.software is not None
    client.transport.close()


async def test_rfc_5780(coturn: int) -> None:
    """coturn tells its other address, and answers from it when asked to."""
    client, local = await open_client()
    event = await client.ask((HOSTS[0], coturn))
    assert isinstance(event, StunSucceeded)
    assert event.message.response_origin == (HOSTS[0], coturn)
    assert event.message.other_address == (HOSTS[1], coturn + 1)
    for change, source in (
        (ChangeRequest(change_port=True), (HOSTS[0], coturn + 1)),
        (ChangeRequest(change_ip=True, change_port=True), (HOSTS[1], coturn + 1)),
    ):
        event = await client.ask((HOSTS[0], coturn), change)
        assert isinstance(event, StunSucceeded)
        assert event.source == source
        assert event.observed == local
    client.transport.close()


async def test_tcp(coturn: int) -> None:
    reader, writer = await asyncio.open_connection(HOSTS[0], coturn)
    client = StunStreamClient((HOSTS[0], coturn), os.urandom)
    for _ in range(2):
        client.request(monotonic())
        writer.write(client.data_to_send())
        async with asyncio.timeout(10):
            while (event := client.next_event()) is None:
                client.receive_data(await reader.read(2048), monotonic())
        assert isinstance(event, StunSucceeded)
        assert event.observed == writer.get_extra_info("sockname")
    writer.close()
    await writer.wait_closed()


async def run_program(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    return out.decode(errors="replace")


async def ask_our_server(program: str, *options: str) -> tuple[int, str]:
    """The port of our server, and what a program of coturn says about it."""
    path = shutil.which(program)
    if path is None:
        pytest.skip("coturn is not installed")
    port = free_ports()
    service = StunService(lambda _: None)
    await service.open([f"{host}:{port}" for host in HOSTS])
    try:
        return port, await run_program(path, *options, "-L", HOSTS[0], "-p", str(port), HOSTS[0])
    finally:
        service.close()


async def test_our_server_answers_coturns_client() -> None:
    port, out = await ask_our_server("turnutils_stunclient", "-f")
    assert out.count("UDP reflexive addr: 127.0.0.1:") == 2
    assert f"Other addr: : {HOSTS[1]}:{port + 1}" in out
    assert f"Response origin: : {HOSTS[1]}:{port + 1}" in out
    assert "The response is an error 420" in out  # PADDING, which would be answered at length


async def test_our_server_tells_coturns_client_the_behaviour_of_a_nat() -> None:
    """RFC 5780: there is no NAT on loopback, and anybody gets in."""
    _, out = await ask_our_server("turnutils_natdiscovery", "-m", "-f")
    assert "No NAT! (Endpoint Independent Mapping)" in out
    assert "NAT with Endpoint Independent Filtering!" in out


async def test_our_server_answers_aioices_client() -> None:
    """The STUN client of aiortc: WebRTC in Python."""
    ice = pytest.importorskip("aioice.ice")
    stun = pytest.importorskip("aioice.stun")
    service = StunService(lambda _: None)
    await service.open(["127.0.0.1:0"])
    loop = asyncio.get_running_loop()
    receiver = ice.Connection(ice_controlling=True)
    _, protocol = await loop.create_datagram_endpoint(lambda: ice.StunProtocol(receiver), local_addr=("127.0.0.1", 0))
    try:
        question = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
        async with asyncio.timeout(20):
            answer, source = await protocol.request(question, service.addresses[0])
        assert answer.attributes["XOR-MAPPED-ADDRESS"] == protocol.transport.get_extra_info("sockname")
        assert source == service.addresses[0]
    finally:
        protocol.transport.close()
        service.close()
