"""The process that moves packets: packet sockets in, engine, packet sockets out, and a control socket.

It holds one end of every virtual cable of a lab. Packet sockets need nothing but a network namespace of one's own,
where a TUN device would also need access to /dev/net/tun; with PACKET_VNET_HDR they carry whole trains of segments.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import select
import socket
import struct
import sys
import time
from ipaddress import ip_address
from random import Random
from typing import Any

from crust.testing.natlab.fabric.nat import NatBox, NatParameters
from crust.testing.natlab.fabric.network import Clockwork, Filter, Link, Member, Network, Port, Router
from crust.testing.natlab.fabric.packet import ICMP, TCP, UDP, Packet

__all__ = ["Pump", "main"]

# linux/if_packet.h, linux/if_ether.h
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 263, 15, 20, 23
_PACKET_STATISTICS = 6
_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE = 33
_PR_SET_NAME = 15
_RECEIVE_BUFFER_BYTES = 16 << 20
_FRAMES_PER_TURN = 64
_FRAME_BYTES = 65536 + 128
_MESSAGE_BYTES = 1 << 18
_PROTOCOLS = {"icmp": ICMP, "tcp": TCP, "udp": UDP}
_PCAP_HEADER = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 101)  # LINKTYPE_RAW


class _Timer:
    """A timerfd: epoll counts in milliseconds, which is too coarse to delay packets."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self._spec = (ctypes.c_long * 4)()
        self._armed: float | None = None

    def arm(self, when: float | None) -> None:
        if when == self._armed:
            return
        self._armed = when
        seconds, nanoseconds = divmod(int((when or 0.0) * 1e9), 1_000_000_000)
        self._spec[2], self._spec[3] = seconds, nanoseconds
        self._libc.timerfd_settime(self.descriptor, 1, self._spec, None)

    def acknowledge(self) -> None:
        self._armed = None
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 8)


class _Cable:
    """A port with its packet socket."""

    def __init__(self, interface: str, mac: bytes) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self.socket.bind((interface, _ETH_P_ALL))
        self.addresses = mac + b"\x02\x00\x00\x00\x00\x00"
        self.port = Port(self.send)
        self.overrun = 0
        self.capture: int | None = None

    def send(self, packet: Packet) -> None:
        if self.capture is not None:
            self.record(packet)
        try:
            self.socket.sendmsg(packet.to_frame(self.addresses))
        except OSError as error:
            # A namespace that was taken down, or a full backlog: a wire would lose the packet, too.
            if error.errno not in (errno.ENETDOWN, errno.ENXIO, errno.ENOBUFS, errno.EAGAIN, errno.ENODEV):
                raise

    def record(self, packet: Packet) -> None:
        data, now = packet.to_bytes()[:262144], time.time()
        header = struct.pack("=IIII", int(now), int(now % 1 * 1e6), len(data), packet.size)
        os.write(self.capture or 0, header + data)

    def lost(self) -> int:
        """Packets that found the receive buffer full, since the start."""
        self.overrun += struct.unpack("=II", self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
        return self.overrun


def _packed(addresses: list[str]) -> list[bytes]:
    """Addresses as the engine wants them; `ADDRESS/64` is a routed prefix."""
    result = []
    for text in addresses:
        address, _, prefix = text.partition("/")
        packed = ip_address(address).packed
        result.append(packed[:8] if prefix else packed)
    return result


class Pump:
    """The event loop of the process."""

    def __init__(self, control: socket.socket, seed: int) -> None:
        """Serve one lab, which speaks JSON over `control`."""
        self._control = control
        self._clockwork = Clockwork(Random(seed))  # noqa: S311 - losses, not secrets
        self._seed = seed
        self._networks: dict[int, Network] = {}
        self._members: dict[int, Member] = {}
        self._routers: dict[int, Router] = {}
        self._cables: dict[int, _Cable] = {}
        self._by_member: dict[int, _Cable] = {}
        self._timer = _Timer()
        self._poll = select.epoll()
        self._serial = 0

    def run(self) -> None:
        """Move packets until the control socket is closed."""
        poll, timer, clockwork, monotonic = self._poll, self._timer, self._clockwork, time.monotonic
        poll.register(self._control.fileno(), select.EPOLLIN)
        poll.register(timer.descriptor, select.EPOLLIN)
        alive = True
        while alive:
            timer.arm(clockwork.next_timeout())
            for descriptor, _ in poll.poll():
                cable = self._cables.get(descriptor)
                if cable is not None:
                    self._drain(cable)
                elif descriptor == timer.descriptor:
                    timer.acknowledge()
                elif descriptor == self._control.fileno():
                    alive = self._serve()
                clockwork.handle_timeout(monotonic())

    def _drain(self, cable: _Cable) -> None:
        receive, inject, parse = cable.socket.recv, cable.port.inject, Packet.from_frame
        try:
            for _ in range(_FRAMES_PER_TURN):
                frame = receive(_FRAME_BYTES)
                try:
                    packet = parse(frame)
                except ValueError:
                    continue
                if cable.capture is not None:
                    cable.record(packet)
                inject(packet, time.monotonic())
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENETDOWN, errno.ENXIO, errno.ENODEV):
                raise

    def _serve(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1)
        except ConnectionResetError:
            return False
        if not data:
            return False
        request = json.loads(data)
        verb = request.pop("verb")
        number = request.pop("id")
        if descriptors:
            request["descriptor"] = descriptors[0]
        try:
            answer = {"id": number, "result": getattr(self, f"do_{verb}")(**request)}
        except OSError as error:
            answer = {"id": number, "error": error.strerror or str(error), "errno": error.errno}
        except Exception as error:
            answer = {"id": number, "error": f"{type(error).__name__}: {error}", "errno": None}
        self._control.send(json.dumps(answer).encode())
        return True

    def _random(self, number: int) -> Random:
        return Random(self._seed * 1000003 + number)  # noqa: S311 - ports that a lab can repeat

    def _number(self) -> int:
        self._serial += 1
        return self._serial

    # Verbs of the control socket

    def do_network(self, hops: int = 0, prefix: str | None = None, isolated: bool = False) -> int:
        """Make a network."""
        number = self._number()
        self._networks[number] = Network(self._clockwork, hops=hops, prefix=prefix, isolated=isolated)
        return number

    def do_port(
        self,
        network: int,
        interface: str,
        mac: str,
        addresses: list[str],
        up: dict[str, Any],
        down: dict[str, Any],
        gateway: bool = False,
    ) -> int:
        """Join the far end of an interface of this process' namespace to a network."""
        cable = _Cable(interface, bytes.fromhex(mac))
        member = self._networks[network].attach(
            cable.port, _packed(addresses), up=Link(**up), down=Link(**down), gateway=gateway
        )
        cable.port.member = member
        self._cables[cable.socket.fileno()] = cable
        self._poll.register(cable.socket.fileno(), select.EPOLLIN)
        number = self._number()
        self._members[number] = member
        self._by_member[number] = cable
        return number

    def do_router(
        self,
        network: int,
        address: str,
        lan: int,
        lan_address: str,
        nat: dict[str, Any],
        up: dict[str, Any],
        down: dict[str, Any],
        policy: dict[str, Any],
    ) -> int:
        """Make a NAT router between two networks; the number is also that of its attachment to the upper one."""
        number = self._number()
        outside, inside = _packed([address, lan_address])
        box = NatBox(NatParameters.from_dict(nat), outside, self._random(number))
        ports = policy["tcp_ports"]
        blocked = frozenset(_PROTOCOLS[name] for name in policy["blocked"])
        firewall = Filter(blocked, None if ports is None else frozenset(ports))
        router = Router(self._clockwork, box, firewall, inside)
        router.wan = self._networks[network].attach(router, [outside], up=Link(**up), down=Link(**down))
        router.lan = self._networks[lan].attach(router, [inside], gateway=True)
        self._routers[number] = router
        self._members[number] = router.wan
        return number

    def do_detach(self, member: int) -> None:
        """Remove an attachment, with its packet socket where it has one."""
        attachment = self._members.pop(member)
        attachment.network.detach(attachment)
        cable = self._by_member.pop(member, None)
        if cable is not None:
            del self._cables[cable.socket.fileno()]
            self._poll.unregister(cable.socket.fileno())
            cable.socket.close()
        router = self._routers.pop(member, None)
        if router is not None and router.lan is not None:
            router.lan.network.detach(router.lan)

    def do_link(self, member: int, changes: dict[str, Any]) -> None:
        """Change some figures of an attachment's links, for what is sent from now on."""
        cable = self._by_member.get(member)
        if cable is not None:
            self._drain(cable)
        for link in (self._members[member].up, self._members[member].down):
            for key, value in changes.items():
                setattr(link, key, value)

    def do_flush(self, router: int) -> None:
        """Let a NAT forget its mappings."""
        self._routers[router].box.flush()

    def do_mappings(self, router: int) -> list[dict[str, Any]]:
        """The mappings of a NAT."""
        return [
            {"protocol": protocol, "inside": _text(inside), "port": port, "remotes": [_text(each) for each in remotes]}
            for protocol, inside, port, remotes in self._routers[router].box.mappings(time.monotonic())
        ]

    def do_capture(self, member: int, descriptor: int) -> None:
        """Write what passes an attachment to a file, in pcap form."""
        os.write(descriptor, _PCAP_HEADER)
        self._by_member[member].capture = descriptor

    def do_counters(self) -> dict[str, int]:
        """Packets that were dropped, by reason, and whether the pump kept time."""
        clockwork = self._clockwork
        overrun = sum(cable.lost() for cable in self._by_member.values())
        latest = round(clockwork.latest * 1e6)
        return {**clockwork.dropped, "overrun": overrun, "late": clockwork.late, "latest_us": latest}


def _text(endpoint: tuple[bytes, int]) -> str:
    return f"{ip_address(endpoint[0])}:{endpoint[1]}"


def main() -> None:
    """Serve the lab on the descriptor that the command line names."""
    control = socket.socket(fileno=int(sys.argv[1]))
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"natlab-fabric", 0, 0, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    # The engine makes no reference cycles, and a collection would delay packets by milliseconds.
    gc.disable()
    Pump(control, int(sys.argv[2])).run()
