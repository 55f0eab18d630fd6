"""One scenario of the port mapper against a real miniupnpd, run by `test_miniupnpd.py` in namespaces of its own.

    python miniupnpd_lab.py SCENARIO DIRECTORY      as root of fresh user, network and mount namespaces

This process is the host 192.168.77.2 / 2001:db8:77::2; a child namespace is the router, another one the internet, from
where 44.0.0.2 / 2001:db8:ee::2 tries to reach the host. The outside address is an ordinary one, since miniupnpd counts
the documentation ranges as private. The last line of output is a JSON object.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crust.net.portmap import PortMapper, PortMapping, PortMapSettings
from crust.proto.nat import leases

HOST, HOST6 = "192.168.77.2", "2001:db8:77::2"
ROUTER, OUTSIDE = "192.168.77.1", "44.0.0.1"
PORTS = [("tcp", 4000), ("udp", 4000)]

RULES = """
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "lan1" accept
    meta l4proto icmpv6 accept
    jump miniupnpd
  }
  chain miniupnpd { }
  chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    jump postrouting_miniupnpd
    oifname "ext0" ip saddr 192.168.77.0/24 masquerade
  }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
"""

CONFIG = """
ext_ifname=ext0
ext_ifname6=ext0
listening_ip=lan1
secure_mode=yes
http_port=5000
system_uptime=no
min_lifetime=10
uuid=5cc0e61b-c2c8-4bf4-bf74-6f3e90f3265f
enable_natpmp=yes
enable_upnp=yes
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


class Lab:
    """The three namespaces and the daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.holders: list[subprocess.Popen[bytes]] = []
        self.daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Lab:
        router, internet = self._namespace(), self._namespace()
        self.router, self.internet = router, internet
        run("ip link set lo up")
        run(f"ip link add lan0 type veth peer name lan1 netns {router}")
        run(f"ip link add ext0 netns {router} type veth peer name out0 netns {internet}")
        for address in (f"{HOST}/24", f"{HOST6}/64"):
            run(f"ip addr add {address} dev lan0 nodad")
        run("ip link set lan0 up")
        for interface, *addresses in (
            ("lan1", f"{ROUTER}/24", "2001:db8:77::1/64"),
            ("ext0", "44.0.0.1/24", "2001:db8:ee::1/64"),
        ):
            for address in addresses:
                self.on(router, f"ip addr add {address} dev {interface} nodad")
            self.on(router, f"ip link set {interface} up")
        self.on(router, "ip link set lo up")
        for address in ("44.0.0.2/24", "2001:db8:ee::2/64"):
            self.on(internet, f"ip addr add {address} dev out0 nodad")
        self.on(internet, "ip link set out0 up")
        self.on(internet, "ip route add default via 44.0.0.1")
        self.on(internet, "ip -6 route add default via 2001:db8:ee::1")
        self.on(router, "ip -6 route add default via 2001:db8:ee::2")
        self.on(router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        run(f"ip route add default via {ROUTER}")
        self.on(router, "ip addr add fe80::1/64 dev lan1 nodad")
        run("ip -6 route add default via fe80::1 dev lan0")  # as router advertisements have it
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_daemon()
        for holder in self.holders:
            holder.kill()
            holder.wait()

    def _namespace(self) -> str:
        holder = subprocess.Popen(["unshare", "-n", "sleep", "300"])
        self.holders.append(holder)
        path = f"/proc/{holder.pid}/ns/net"
        wait_for(lambda: os.readlink(path) != os.readlink("/proc/self/ns/net"))
        return str(holder.pid)

    def on(self, namespace: str, command: str) -> str:
        return run(f"nsenter --net=/proc/{namespace}/ns/net {command}")

    def start_daemon(self, *options: str) -> None:
        rules = self.directory / "nft.conf"
        rules.write_text("flush ruleset\n" + RULES)
        self.on(self.router, f"nft -f {rules}")
        config = self.directory / "miniupnpd.conf"
        changed = {option.partition("=")[0] for option in options}
        kept = [line for line in CONFIG.splitlines() if line.partition("=")[0] not in changed]
        config.write_text("\n".join([*options, *kept, ""]))
        with open(self.directory / "miniupnpd.log", "ab") as log:
            self.daemon = subprocess.Popen(
                [
                    "nsenter",
                    f"--net=/proc/{self.router}/ns/net",
                    "miniupnpd",
                    "-d",
                    "-f",
                    str(config),
                    "-P",
                    str(self.directory / "pid"),
                ],
                stdout=log,
                stderr=log,
            )
        probe = "ss -ltn sport = 5000" if "enable_natpmp=no" in options else "ss -lun sport = 5351"
        wait_for(lambda: ROUTER in self.on(self.router, probe) or "*:" in self.on(self.router, probe).split("\n", 1)[1])

    def stop_daemon(self) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGKILL)  # a router that loses power says nothing
            self.daemon.wait()
            self.daemon = None

    def rules(self) -> str:
        return self.on(self.router, "nft list ruleset")

    def reach(self, host: str, port: int) -> bool:
        """Whether a TCP connection from the internet reaches the host."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with in_namespace(self.internet), socket.socket(family) as sock:
            sock.settimeout(2)
            try:
                sock.connect((host, port))
            except OSError:
                return False
            return True


class in_namespace:
    """This thread in another network namespace (os.setns came with Python 3.12)."""

    def __init__(self, pid: str) -> None:
        self._path = f"/proc/{pid}/ns/net"

    def __enter__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._enter(os.open(self._path, os.O_RDONLY))

    def __exit__(self, *_: object) -> None:
        self._enter(self._home)

    def _enter(self, descriptor: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.setns(descriptor, 0x40000000)  # CLONE_NEWNET
        os.close(descriptor)
        if failed:
            raise OSError(ctypes.get_errno(), "setns")


def run(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return done.stdout


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the lab did not come up")
        time.sleep(0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def shown(mappings: list[PortMapping]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(mapping) for mapping in mappings]


async def map_and_reach(lab: Lab, wanted: int, **options: Any) -> dict[str, Any]:
    """Map, be reached from outside, give back."""
    began = time.monotonic()
    mapper = PortMapper(PORTS, settings=PortMapSettings(**options))
    await mapper.start()
    await mapper.settled()
    settled_ms = (time.monotonic() - began) * 1000
    await until(lambda: len(mapper.mappings) == wanted)
    result: dict[str, Any] = {
        "settled_ms": settled_ms,
        "mappings": shown(mapper.mappings),
        "report": mapper.report().to_dict(),
        "rules": lab.rules(),
    }
    servers = [await asyncio.start_server(lambda _, w: w.close(), host, 4000) for host in (HOST, HOST6)]
    outside = {m.external for m in mapper.mappings if m.protocol == "tcp"}
    result["reached"] = {host: await asyncio.to_thread(lab.reach, host, port) for host, port in outside}
    began = time.monotonic()
    await mapper.close()
    result["close_ms"] = (time.monotonic() - began) * 1000
    result["rules_after"] = lab.rules()
    result["reached_after"] = {host: await asyncio.to_thread(lab.reach, host, port) for host, port in outside}
    for server in servers:
        server.close()
        await server.wait_closed()
    return result


async def restart(lab: Lab, **options: Any) -> dict[str, Any]:
    """The router loses power and comes back; its announcement or the next poll tells."""
    mapper = PortMapper(PORTS, settings=PortMapSettings(**options))
    await mapper.start()
    await mapper.settled()
    await until(lambda: len(mapper.mappings) == 4)
    lab.stop_daemon()
    await asyncio.sleep(2.5)  # its clock must be seen to have gone back (RFC 6887 §8.5 allows 2 s)
    lab.start_daemon()
    began = time.monotonic()
    await until(lambda: lab.rules().count("4000") >= 4 and len(mapper.mappings) == 4)
    restored_ms = (time.monotonic() - began) * 1000
    result = {"restored_ms": restored_ms, "mappings": shown(mapper.mappings)}
    await mapper.close()
    return result


async def scenario(name: str, lab: Lab) -> dict[str, Any]:
    match name:
        case "all":
            lab.start_daemon()
            return await map_and_reach(lab, 4)
        case "nat-pmp":
            lab.start_daemon()
            return await map_and_reach(lab, 2, methods=("nat-pmp",))
        case "igd":
            lab.start_daemon("enable_natpmp=no")
            return await map_and_reach(lab, 4, methods=("igd",))
        case "igd-v1":
            lab.start_daemon("enable_natpmp=no", "force_igd_desc_v1=yes")
            return await map_and_reach(lab, 2, methods=("igd",))
        case "last":
            # miniupnpd without NAT-PMP still answers PCP over IPv6.
            lab.start_daemon("enable_natpmp=no")
            return await map_and_reach(lab, 4)
        case "behind another":
            lab.on(lab.router, "ip addr del 44.0.0.1/24 dev ext0")
            lab.on(lab.router, "ip addr add 10.9.0.1/24 dev ext0")
            lab.start_daemon()
            return await map_and_reach(lab, 2)
        case "restart":
            lab.start_daemon()
            return await restart(lab, methods=("pcp",), poll_interval=3.0)
        case "nobody":
            return await map_and_reach(lab, 0, search_timeout=1.0)
        case _:
            raise ValueError(name)


def main() -> None:
    # miniupnpd 2.3.1 refuses (NOT_AUTHORIZED) to delete an IPv6 pinhole that was renewed, and a retransmission counts
    # as a renewal: give it the time to answer the first request, on however busy a machine.
    leases.FIRST_WAIT = 5.0
    with Lab(Path(sys.argv[2])) as lab:
        result = asyncio.run(scenario(sys.argv[1], lab))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
