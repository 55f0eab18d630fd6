"""A node under a flood of datagrams: what becomes of a running transfer, of newcomers, and of the node's memory.

    python tools/udp_attack.py [--rate 50000] [--seconds 4] [--attack NAME]... [--namespace] [--json]

Five processes on this machine: the node, a friend that transfers to it as fast as it can over µTP, newcomers that
connect over µTP alone, one after the other, and the generator. An attacker would bring a machine of his own, and here
the generator takes its share of this one's. So for each attack the transfer is measured undisturbed, under attack, and,
before and after that, while the generator sends the same to a port of nobody: what is kept of the last is the figure.
As root, or with --namespace (a network namespace of its own), sources are spoofed; otherwise they are ports of
127.0.0.0/8.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import crust
from crust.net.udp import SendOutcome, UdpSocket
from crust.proto.noise.envelope import outer_secret
from crust.proto.noise.handshake import Hello, Network, Signing
from crust.proto.tunnel.handshake import TunnelInitiator
from crust.wire.tunnel import Introduction

POOL = 4096
FRESH = 16_384  # more than the node remembers, so that each is as good as new
CHANCE = random.Random(1)


def config(**more: Any) -> crust.Config:
    base = {"listen": [], "transports": ["utp"], "port_mapping": False, "lan": False, "signing": "off"}
    return crust.Config(**{**base, **more})


def memory_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


# --- the node ---------------------------------------------------------------------------------------------------------


async def victim() -> None:
    async with crust.Node(config=config(listen=["127.0.0.1:0"])) as node:
        state = {"bytes": 0}

        async def serve(connection: crust.Connection) -> None:
            with contextlib.suppress(crust.CrustError):
                async for message in connection:
                    state["bytes"] += len(message.data)

        tasks = set()

        async def accept() -> None:
            async for connection in node:
                task = asyncio.create_task(serve(connection))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        accepting = asyncio.create_task(accept())
        say({"peer": str(node.id), "port": int(node.addresses[0].rpartition(":")[2])})
        endpoint = node._front.endpoint
        async for _ in lines():
            say(
                {
                    "bytes": state["bytes"],
                    "at": time.monotonic(),
                    "cpu": time.process_time(),
                    "memory_kib": memory_kib(),
                    "stats": dict(node.stats),
                    "tables": {
                        "indexes": endpoint.indexes,
                        "knocks": endpoint.pending,
                        "half_open": node._acceptor.half_open,
                        "ephemerals": len(node._core.seen),
                        "connections": len(node.connections),
                        "addresses": endpoint._entrance._admission.tracked,
                        "outgoing": len(endpoint._outgoing),
                        "agenda": len(endpoint._agenda),
                        "tasks": len(asyncio.all_tasks()),
                    },
                }
            )
        accepting.cancel()


async def friend(target: str) -> None:
    """Transfers for ever; tells its own address and some of its datagrams when asked."""
    taken: list[bytes] = []
    send = UdpSocket.send

    def record(self: UdpSocket, data: Any, size: int, address: Any) -> SendOutcome:
        if len(taken) < 600:
            taken.extend(bytes(data[at : at + size]) for at in range(0, len(data), size))
        return send(self, data, size, address)

    UdpSocket.send = record  # type: ignore[method-assign]
    async with crust.Node(config=config()) as node:
        connection = await node.connect(target, timeout=10)
        data = bytes(65_000)

        async def transfer() -> None:
            while True:
                await connection.send(data)

        task = asyncio.create_task(transfer())
        async for _ in lines():
            path = connection.path
            utp = next((path._link.association.utp for path in connection._paths.values()), None)
            say(
                {
                    "local": path and path.local,
                    "closed": connection.closed,
                    "taken": [each.hex() for each in taken],
                    "utp": utp
                    and {
                        "cwnd": utp.cwnd,
                        "srtt": utp.srtt,
                        "mtu": utp.mtu,
                        **{
                            key: getattr(utp.stats, key)
                            for key in ("packets_lost", "timeouts", "congestion_events", "loss_probes", "spurious")
                        },
                    },
                }
            )
        task.cancel()


async def newcomers(target: str) -> None:
    """For each line: connects a new node, and says how long it took (null: not within 10 s)."""
    async for _ in lines():
        async with crust.Node(config=config()) as node:
            began = time.monotonic()
            try:
                connection = await node.connect(target, timeout=10)
                await connection.ping()
                took: float | None = time.monotonic() - began
                await connection.close()
            except (crust.CrustError, TimeoutError):
                took = None
        say({"took": took})


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def lines() -> Any:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


class Role:
    """One of the processes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: str) -> Role:
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                *arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                limit=64 << 20,
            )
        )

    async def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(await self.process.stdout.readline())

    async def ask(self) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        return await self.hear()

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


# --- attacks ----------------------------------------------------------------------------------------------------------


def requests(peer: crust.PeerId, network: str, count: int, cookie: bytes | None = None) -> list[bytes]:
    """Authentic first messages, of new keys; each comes in several envelopes, since making keys takes time.

    Args:
        peer: to whom.
        network: in which.
        count: how many.
        cookie: what they claim to have been given.
    """
    found: list[bytes] = []
    while len(found) < count:
        identity = crust.Identity.generate()
        introduction = Introduction(
            CHANCE.getrandbits(32), bytes(16), Hello(identity.id, signing=Signing.OFF, hashes=1)
        )
        made = TunnelInitiator(
            identity, peer, Network.of(network), introduction, outer_secret(peer), random=secrets.token_bytes
        )
        made._cookie = cookie
        found.extend(made.request() for _ in range(8))
    CHANCE.shuffle(found)
    return found


def unreadable(peer: crust.PeerId, network: str, count: int) -> list[bytes]:
    """The envelope is right, what is inside is of another network."""
    return requests(peer, network + " not", count)


def mutated(taken: list[bytes]) -> list[bytes]:
    found = []
    for _ in range(POOL):
        data = bytearray(CHANCE.choice(taken))
        data[CHANCE.randrange(32, len(data))] ^= 1 << CHANCE.randrange(8)
        found.append(bytes(data))
    return found


def truncated(taken: list[bytes]) -> list[bytes]:
    return [(data := CHANCE.choice(taken))[: CHANCE.randrange(1, len(data))] for _ in range(POOL)]


def noise(least: int, most: int) -> list[bytes]:
    return [CHANCE.randbytes(CHANCE.randint(least, most)) for _ in range(POOL)]


def attacks(peer: crust.PeerId, taken: list[bytes], local: str) -> dict[str, dict[str, Any]]:
    """What is sent, and from where: "many" sources, as many as datagrams ("each"), "one", "friend", or "batches"."""
    small = [data for data in taken if len(data) <= 1500]
    first = [data for data in taken if len(data) < 800][:1]
    fresh = requests(peer, "crust", FRESH)
    return {
        "noise": {"datagrams": noise(48, 1472), "from": "many"},
        "noise as long as requests": {"datagrams": noise(227, 738), "from": "many"},
        "noise in batches": {"datagrams": noise(227, 738), "from": "batches"},
        "short": {"datagrams": noise(0, 47), "from": "many"},
        "replayed requests": {"datagrams": first * POOL, "from": "many"},
        "replayed data": {"datagrams": (small * POOL)[:POOL], "from": "many"},
        "replayed from the friend's address": {"datagrams": (small * POOL)[:POOL], "from": "friend"},
        "mutated": {"datagrams": mutated(small), "from": "many"},
        "mutated from the friend's address": {"datagrams": mutated(small), "from": "friend"},
        "noise from the friend's address": {"datagrams": noise(227, 738), "from": "friend"},
        "truncated": {"datagrams": truncated(small), "from": "many"},
        "requests of another network": {"datagrams": unreadable(peer, "crust", FRESH), "from": "many"},
        "authentic requests": {"datagrams": fresh, "from": "many"},
        "authentic requests of one source": {"datagrams": fresh, "from": "one"},
        "authentic requests, each of another source": {"datagrams": fresh, "from": "each"},
        "requests with invented cookies": {"datagrams": requests(peer, "crust", FRESH, bytes(16)), "from": "many"},
    }


def sources(kind: str, local: str, raw: bool) -> list[str]:
    if kind == "friend":
        return [local]
    if kind == "one":
        return ["127.9.9.9:9999"]
    if raw:
        return [
            f"127.{CHANCE.randrange(1, 255)}.{CHANCE.randrange(255)}.{CHANCE.randrange(1, 255)}"
            f":{CHANCE.randrange(1024, 65536)}"
            for _ in range(FRESH if kind == "each" else POOL)
        ]
    return [f"127.{CHANCE.randrange(1, 255)}.{CHANCE.randrange(255)}.1:0" for _ in range(64)]


async def generate(port: int, order: dict[str, Any]) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "crust.testing.flood",
        f"127.0.0.1:{port}",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps(order).encode())
    answer: dict[str, float] = json.loads(out)
    return answer


async def speed(node: Role, seconds: float) -> tuple[float, float]:
    """MB/s, and the share of a processor that the node takes."""
    first = await node.ask()
    await asyncio.sleep(seconds)
    last = await node.ask()
    passed = last["at"] - first["at"]
    return (last["bytes"] - first["bytes"]) / passed / 1e6, (last["cpu"] - first["cpu"]) / passed


async def beside(order: dict[str, Any], node: Role, seconds: float) -> float:
    """MB/s while the generator sends to a port of nobody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        generating = asyncio.create_task(generate(sink.getsockname()[1], {**order, "seconds": seconds + 0.5}))
        await asyncio.sleep(0.5)
        found, _ = await speed(node, seconds)
        await generating
        return found


async def one(name: str, what: dict[str, Any], place: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    node, comer = place["node"], place["newcomer"]
    seconds = options.seconds
    raw = options.raw
    order = {
        "rate": options.rate,
        "seconds": seconds + 1.0,
        "datagrams": [data.hex() for data in what["datagrams"]],
        "sources": sources(what["from"], place["local"], raw) if what["from"] != "batches" else [],
        "raw": raw and what["from"] != "batches",
        "gso": what["from"] == "batches",
    }
    base, cpu_base = await speed(node, seconds / 3)
    elsewhere = [await beside(order, node, seconds / 3)]
    before = await node.ask()
    ally_before = await place["ally"].ask()
    attack = asyncio.create_task(generate(place["port"], order))
    await asyncio.sleep(0.5)
    took = []

    async def come() -> None:
        while not attack.done():
            took.append((await comer.ask())["took"])
            await asyncio.sleep(0.5)  # their own work is not what is measured

    coming = asyncio.create_task(come())
    under, cpu_under = await speed(node, seconds)
    sent = await attack
    await coming
    after = await node.ask()
    ally_after = await place["ally"].ask()
    again, _ = await speed(node, seconds / 3)
    elsewhere.append(await beside(order, node, seconds / 3))
    counted = {
        key: after["stats"].get(key, 0) - before["stats"].get(key, 0)
        for key in after["stats"]
        if after["stats"].get(key, 0) != before["stats"].get(key, 0)
    }
    return {
        "attack": name,
        "sent_per_s": round(sent["sent"] / sent["seconds"]),
        "mb_s": {"before": base, "generator_elsewhere": elsewhere, "under_attack": under, "afterwards": again},
        "kept": under / max(sum(elsewhere) / 2, 0.001),
        "kept_of_undisturbed": under / max((base + again) / 2, 0.001),
        "cpu": {"before": cpu_base, "under_attack": cpu_under},
        "newcomers_s": took,
        "memory_kib": after["memory_kib"] - before["memory_kib"],
        "tables": after["tables"],
        "sender": [ally_before["utp"], ally_after["utp"]],
        "counted": counted,
        "not_read": sent["sent"]
        - sum(v for k, v in counted.items() if k.startswith(("datagram.", "handshake.", "refused"))),
    }


async def siege(options: argparse.Namespace) -> None:
    node = await Role.start("victim")
    known = await node.hear()
    peer = crust.PeerId.parse(known["peer"])
    target = f"{peer}@127.0.0.1:{known['port']}"
    ally = await Role.start("friend", target)
    newcomer = await Role.start("newcomers", target)
    try:
        await asyncio.sleep(1.5)
        told = await ally.ask()
        place = {"node": node, "newcomer": newcomer, "ally": ally, "port": known["port"], "local": told["local"]}
        taken = [bytes.fromhex(text) for text in told["taken"]]
        for name, what in attacks(peer, taken, told["local"]).items():
            if options.attack and name not in options.attack:
                continue
            if what["from"] == "friend" and not options.raw:
                continue
            show(await one(name, what, place, options), as_json=options.json)
    finally:
        for role in (node, ally, newcomer):
            await role.stop()


def show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found), flush=True)
        return
    mb = found["mb_s"]
    times = [t for t in found["newcomers_s"] if t is not None]
    print(
        f"{found['attack']}: {found['sent_per_s']}/s, transfer keeps {found['kept']:.0%} "
        f"({' and '.join(f'{each:.0f}' for each in mb['generator_elsewhere'])} MB/s with the generator sending "
        f"elsewhere, {mb['under_attack']:.0f} under attack; {found['kept_of_undisturbed']:.0%} of "
        f"{mb['before']:.0f} and {mb['afterwards']:.0f} without it), "
        f"cpu {found['cpu']['before']:.2f} → {found['cpu']['under_attack']:.2f},\n"
        f"    newcomers {len(times)} of {len(found['newcomers_s'])}, median {median(times or [0]):.2f} s, "
        f"slowest {max(times, default=0):.2f} s, "
        f"memory {found['memory_kib']:+} KiB, not read {found['not_read']}\n"
        f"    {found['counted']}\n    {found['tables']}\n    {found['sender']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="*")
    parser.add_argument("--rate", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--attack", action="append")
    parser.add_argument("--namespace", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.namespace and "CRUST_INSIDE" not in os.environ:
        inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv]
        os.execvpe(
            "unshare", ["unshare", "--user", "--map-root-user", "--net", *inside], {**os.environ, "CRUST_INSIDE": "1"}
        )
    options.raw = os.geteuid() == 0
    loop = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop) as runner:
        if not options.role:
            runner.run(siege(options))
        elif options.role[0] == "victim":
            runner.run(victim())
        else:
            runner.run({"friend": friend, "newcomers": newcomers}[options.role[0]](options.role[1]))


if __name__ == "__main__":
    main()
