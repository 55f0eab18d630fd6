"""Labs as wholes: programs, places, isolation, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from crust.testing.natlab import (
    NATS,
    Firewall,
    Host,
    Lab,
    LabError,
    LabUnavailable,
    Link,
    Nat,
    Router,
    workshop,
)

from .sockets import OpenDatagrams

pytestmark = pytest.mark.netns


async def python(host: Host, code: str, *arguments: str) -> tuple[bytes, bytes]:
    process = await host.run([sys.executable, "-I", "-S", "-c", textwrap.dedent(code), *arguments])
    return await process.communicate()


# Programs


async def test_a_program_runs_on_its_host(near: Lab) -> None:
    host = await (await near.site("home")).host()
    out, err = await python(
        host,
        """
        import socket
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        probe.connect(("11.0.99.1", 1))
        print(probe.getsockname()[0], sorted(name for _, name in socket.if_nameindex()))
        """,
    )
    assert (out.decode().strip(), err) == (f"{host.address} ['eth0', 'lo']", b"")


async def test_pipes_codes_environment_and_directory(near: Lab, tmp_path: Path) -> None:
    host = await near.public("host")
    process = await host.run(
        ["sh", "-c", 'read line; echo "$line $WORD $PWD"; echo oops >&2; exit 3'],
        env={"WORD": "word", "PATH": os.defpath},
        cwd=str(tmp_path),
    )
    assert process.returncode is None
    out, err = await process.communicate(b"hello\n")
    assert (out.decode(), err, process.returncode) == (f"hello word {tmp_path}\n", b"oops\n", 3)
    merged = await host.run(["sh", "-c", "echo one; echo two >&2"], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    assert await merged.communicate() == (b"one\ntwo\n", b"")


async def test_signals(near: Lab) -> None:
    host = await near.public("host")
    one, two = [await host.run(["sleep", "1000"]) for _ in range(2)]
    one.terminate()
    two.kill()
    assert [await one.wait(), await two.wait()] == [-signal.SIGTERM, -signal.SIGKILL]
    one.terminate()


async def test_a_program_that_does_not_exist(near: Lab) -> None:
    host = await near.public("host")
    # Where a directory of the PATH may not be read, it might be there.
    with pytest.raises((FileNotFoundError, PermissionError), match="no-such-program"):
        await host.run(["no-such-program"])


async def test_crust_commands_are_forks_of_one_process(near: Lab, tmp_path: Path) -> None:
    host = await near.public("host")
    version = await host.run_crust("--version")
    out, err = await version.communicate()
    assert (out.decode().split()[0], err, version.returncode) == ("crust", b"", 0)
    wrong = await host.run_crust("ping", "nobody")
    out, err = await wrong.communicate()
    assert (out, wrong.returncode) == (b"", 2)
    assert b"not a PeerId" in err
    nodes = [
        await host.run_crust("node", "--json", "--identity", f"{each}.key", cwd=str(tmp_path), stdin=subprocess.DEVNULL)
        for each in range(2)
    ]
    lines = [json.loads(await node.stdout.readline()) for node in nodes if node.stdout]
    assert lines[0]["id"] != lines[1]["id"]
    nodes[0].terminate()
    nodes[1].kill()
    assert [await node.wait() for node in nodes] == [0, -signal.SIGKILL]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["0.key", "1.key"]


async def test_a_host_may_bind_low_ports_even_without_privileges(near: Lab) -> None:
    made = await (await near.public("host")).socket(socket.AF_INET, socket.SOCK_STREAM)
    with made:
        made.bind(("0.0.0.0", 443))


# Places


async def test_a_site_with_the_same_range_as_another(near: Lab, datagrams: OpenDatagrams) -> None:
    rendezvous = await near.public("rendezvous")
    hosts = [await (await near.site(name)).host() for name in ("one", "two")]
    assert hosts[0].address == hosts[1].address == "192.168.1.2"
    there = await datagrams(rendezvous)
    seen = [await (await datagrams(host)).seen_by(there) for host in hosts]
    assert [address for address, _ in seen] == [host.site.address for host in hosts if host.site]
    assert seen[0][0] != seen[1][0]


async def test_hosts_behind_one_router(near: Lab, datagrams: OpenDatagrams) -> None:
    site = await near.site("home")
    one, two = [await datagrams(await site.host()) for _ in range(2)]
    one.send(b"neighbour", two.endpoint)
    assert await two.receive() == (b"neighbour", one.endpoint)


async def test_nested_routers_of_every_make(near: Lab, datagrams: OpenDatagrams) -> None:
    """The lab's own NAT behind a Linux router, and the other way round, three deep."""
    try:
        outer = await near.site("outer", Router(kernel=True), lan="100.64.0.0/10")
    except LabUnavailable as error:
        pytest.skip(str(error))
    middle = await outer.site("middle", Nat(ports="random"), lan="10.0.0.0/8")
    inner = await middle.site("inner", Router(kernel=True))
    assert (outer.address, middle.address, inner.address) == (outer.address, "100.64.0.2", "10.0.0.2")
    there = await datagrams(await near.public("there"))
    address, _ = await (await datagrams(await inner.host())).seen_by(there)
    assert address == outer.address
    await near.remove(outer)


async def test_flush_forgets_mappings(near: Lab, datagrams: OpenDatagrams) -> None:
    there = await datagrams(await near.public("there"))
    site = await near.site("home", Nat(ports="random"))
    host = await datagrams(await site.host())
    before = await host.seen_by(there)
    assert [(each["protocol"], each["port"]) for each in await site.mappings()] == [("udp", before[1])]
    await site.flush()
    assert await site.mappings() == []
    assert await host.seen_by(there) != before


async def test_flush_forgets_connections_of_a_kernel_router(near: Lab, datagrams: OpenDatagrams) -> None:
    there = await datagrams(await near.public("there"))
    try:
        site = await near.site("home", NATS["symmetric-random"].routers[0])
    except LabUnavailable as error:
        pytest.skip(str(error))
    host = await datagrams(await site.host())
    before = await host.seen_by(there)
    assert await host.seen_by(there) == before
    await site.flush()
    assert await host.seen_by(there) != before
    with pytest.raises(LabError, match="kernel router"):
        await site.mappings()


async def test_a_host_moves_from_one_network_to_another(near: Lab, datagrams: OpenDatagrams) -> None:
    there = await datagrams(await near.public("there"))
    home, office = await near.site("home"), await near.site("office", lan="10.1.0.0/16")
    host = await home.host()
    assert (await (await datagrams(host)).seen_by(there))[0] == home.address
    await host.move(office)
    assert (host.address, host.gateway, home.hosts, office.hosts) == ("10.1.0.2", "10.1.0.1", [], [host])
    assert (await (await datagrams(host)).seen_by(there))[0] == office.address
    await host.move(None, link=Link())
    assert (await (await datagrams(host)).seen_by(there))[0] == host.address


async def test_a_removed_place_is_gone(near: Lab) -> None:
    home = await near.site("home")
    host = await home.host()
    process = await host.run(["sleep", "1000"])
    await near.remove(home)
    assert await process.wait() == -signal.SIGKILL
    with pytest.raises(LabError):
        await host.socket()


async def test_a_dead_link_and_icmp_errors(near: Lab, datagrams: OpenDatagrams) -> None:
    host, there = await near.public("host"), await near.public("there")
    one, two = await datagrams(host), await datagrams(there)
    await host.set_link(up=False)
    one.send(b"lost", two.endpoint)
    # A busy kernel may still have it under way to the lab.
    while not (await near.counters()).get("lost"):
        pass
    await host.set_link(up=True)
    one.send(b"found", two.endpoint)
    assert (await two.receive())[0] == b"found"
    with await host.socket() as asker:
        asker.connect((there.address, 9))
        asker.send(b"anyone?")
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.get_running_loop().sock_recv(asker, 1)


async def test_a_capture_can_be_read(near: Lab, datagrams: OpenDatagrams, tmp_path: Path) -> None:
    host, there = await near.public("host"), await near.public("there")
    await host.capture(tmp_path / "host.pcap")
    one, two = await datagrams(host), await datagrams(there)
    one.send(b"look at me", two.endpoint)
    await two.receive()
    data = (tmp_path / "host.pcap").read_bytes()
    assert data[:4] in (b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1")
    assert b"look at me" in data


async def test_a_fragmented_datagram_passes_both_kinds_of_router(near: Lab, datagrams: OpenDatagrams) -> None:
    there = await datagrams(await near.public("there"))
    for name in ("full-cone", "port-restricted"):
        try:
            host = await datagrams(await near.place(name))
        except LabUnavailable as error:
            pytest.skip(str(error))
        host.send(bytes(5000), there.endpoint)
        data, sender = await there.receive()
        assert len(data) == 5000
        there.send(bytes(4000), sender)
        assert len((await host.receive())[0]) == 4000


async def test_ipv6_only_hosts_have_no_ipv4(near: Lab) -> None:
    try:
        host = await near.place("ipv6-firewall")
    except LabUnavailable as error:
        pytest.skip(str(error))
    assert host.gateway is None
    assert [":" in address for address in host.addresses] == [True]
    with await host.socket() as asker, pytest.raises(OSError, match="unreachable"):
        asker.connect(("11.0.0.1", 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Nat(mapping="address-dependent"),
        lambda: Nat(mapping="sometimes"),
        lambda: Nat(port_range=(9, 3)),
        lambda: Router(port_mapping=True),
        lambda: Router(nat=None),
        lambda: Router(nat=None, kernel=True),
        lambda: Router(nat=Nat(hairpinning=True), kernel=True),
        lambda: Router(nat=Nat(filtering="endpoint-independent"), kernel=True),
    ],
)
def test_declarations_that_cannot_be(make: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()  # type: ignore[operator]


async def test_a_site_of_a_kind_with_two_routers_is_refused(near: Lab) -> None:
    with pytest.raises(LabError, match=r"Lab\.place"):
        await near.site("home", "cgnat")


# Isolation and clean-up


async def test_nothing_reaches_the_real_machine(near: Lab, datagrams: OpenDatagrams) -> None:
    host = await near.public("host")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as real, await host.socket() as inside:
        real.bind(("0.0.0.0", 0))
        real.setblocking(False)
        addresses = {"127.0.0.1"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 1))
                addresses.add(probe.getsockname()[0])
            except OSError:
                pass
        for address in addresses:
            inside.sendto(b"out", (address, real.getsockname()[1]))
        there = await near.public("there")
        await (await datagrams(host)).seen_by(await datagrams(there))
        with pytest.raises(BlockingIOError):
            real.recv(10)


async def test_labs_side_by_side_do_not_meet(near: Lab, datagrams: OpenDatagrams) -> None:
    async with Lab(delay=0.0) as other:
        places = [[await each.public("one"), await each.public("two")] for each in (near, other)]
        assert [host.addresses for host in places[0]] == [host.addresses for host in places[1]]
        sockets = [[await datagrams(host, 4000) for host in pair] for pair in places]
        for number, (one, two) in enumerate(sockets):
            one.send(b"lab %d" % number, two.endpoint)
        assert [(await two.receive())[0] for _, two in sockets] == [b"lab 0", b"lab 1"]
        assert all(two.inbox.empty() for _, two in sockets)


async def test_a_closed_lab_ends_its_programs_and_says_so() -> None:
    try:
        lab = await Lab().__aenter__()
    except LabUnavailable as error:
        pytest.skip(str(error))
    host = await lab.public("host")
    process = await host.run(["sleep", "1000"])
    await lab.aclose()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(LabError, match="gone"):
        await host.run(["true"])
    await lab.aclose()


_OWNER = """
import asyncio, sys
from crust.testing.natlab import Lab

async def main():
    async with Lab() as lab:
        host = await (await lab.site("home")).host()
        await host.run(["sh", "-c", "(setsid sleep 1001 &) ; echo started; exec sleep 1002"], stdout=None)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def _descendants(root: int) -> dict[int, str]:
    """Every process below one, with its command line."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found: dict[int, str] = {}
    frontier = [root]
    while frontier:
        parent = frontier.pop()
        for pid, above in parents.items():
            if above == parent:
                found[pid] = commands[pid]
                frontier.append(pid)
    return found


@pytest.mark.parametrize("victim", ["owner", "keeper"])
def test_nothing_survives_a_kill(near: Lab, victim: str) -> None:
    """Whoever of the lab is killed, all of it goes, with the namespaces, and with daemons that left their session."""
    owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert owner.stdout is not None
    with owner, owner.stdout:
        assert owner.stdout.readline() == b"started\n"
        below = _descendants(owner.pid)
        assert sum("sleep 100" in command for command in below.values()) >= 2
        watched = [os.pidfd_open(pid) for pid in below]
        try:
            keeper = next(pid for pid, command in below.items() if "natlab.keeper" in command)
            os.kill(owner.pid if victim == "owner" else keeper, signal.SIGKILL)
            end = time.monotonic() + 10
            for descriptor in watched:
                ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
                assert ready
        finally:
            for descriptor in watched:
                os.close(descriptor)
            owner.kill()


_PROVE = """
import asyncio
from crust.testing.natlab import NATS, Lab, LabUnavailable, prove

async def main():
    async with Lab() as lab:
        for name in ("public", "symmetric-random", "igd-symmetric"):
            try:
                await prove(lab, NATS[name])
            except LabUnavailable as error:
                if " is missing" not in str(error):
                    raise

try:
    asyncio.run(main())
    print("proved")
except LabUnavailable as error:
    print("unavailable:", error)
"""

# The shell between has lost the privileges that setpriv still starts it with.
_AS_NOBODY = [
    *["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"],
    *["sh", "-c", 'exec "$@"', "sh"],
]


def _unprivileged(code: str, prefix: list[str]) -> str:
    """What a script says when somebody without privileges runs it."""
    for tool in ("setpriv", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    become = _AS_NOBODY if os.geteuid() == 0 else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"}
    run = functools.partial(
        subprocess.run, capture_output=True, text=True, timeout=30, check=False, env=environment, cwd="/"
    )
    said = ""
    # The interpreter of the tests may be one that nobody else may read.
    for interpreter in (sys.executable, "/usr/bin/python3"):
        test = run([*become, interpreter, "-c", "import crust.testing.natlab"])
        said = test.stderr.strip()[-200:]
        if test.returncode == 0:
            done = run([*become, *prefix, interpreter, "-c", code])
            return done.stdout.strip() or done.stderr.strip()
    pytest.skip(f"no interpreter for an unprivileged user: {said}")


def test_a_lab_needs_no_privileges(near: Lab) -> None:
    said = _unprivileged(_PROVE, [])
    if said.startswith("unavailable") and os.geteuid() == 0:
        pytest.skip(said)
    assert said == "proved"


def test_what_is_missing_is_said_in_one_sentence(near: Lab) -> None:
    """Inside a user namespace whose limit is none, and without the right to do without."""
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    said = _unprivileged(_PROVE, ["unshare", "-Ur", "sh", "-c", forbid, "sh"])
    assert said.startswith("unavailable: user namespaces are forbidden here"), said
    assert "run as root" in said


async def test_a_missing_program_is_named(near: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LabUnavailable, match="nft is missing"):
        await near.place("symmetric-random")
    assert await near.place("full-cone")


async def test_a_kernel_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, "_kernel_has_ipv6", lambda: False)
    try:
        lab = await Lab(delay=0.0).__aenter__()
    except LabUnavailable as error:
        pytest.skip(str(error))
    try:
        assert [":" in each for each in (await lab.public("host")).addresses] == [False]
        with pytest.raises(LabUnavailable, match="no IPv6"):
            await lab.place("ipv6-firewall")
    finally:
        await lab.aclose()


async def test_the_firewall_of_a_kernel_router(near: Lab, datagrams: OpenDatagrams) -> None:
    firewall = Firewall(blocked=frozenset({"udp"}), tcp_ports=frozenset({443}))
    try:
        site = await near.site("home", Router(kernel=True, firewall=firewall))
    except LabUnavailable as error:
        pytest.skip(str(error))
    host, there = await site.host(), await near.public("there")
    with await there.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((there.address, 443))
        server.listen()
        server_side = await datagrams(there, 443)
        (await datagrams(host)).send(b"blocked", server_side.endpoint)
        loop = asyncio.get_running_loop()
        with await host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            accepting = asyncio.ensure_future(loop.sock_accept(server))
            await loop.sock_connect(client, (there.address, 443))
            accepted, _ = await accepting
            accepted.close()
        assert server_side.inbox.empty()


async def test_a_site_is_ready_in_a_moment(near: Lab) -> None:
    """A matrix sets up dozens of sites."""
    times = []
    for number in range(3):
        begin = time.perf_counter()
        await (await near.site(f"site {number}")).host()
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.3
