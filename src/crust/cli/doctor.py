"""What this network allows, found out without a peer: addresses, NAT behaviour, port mapping, IPv6, and what a dial
to each kind of peer would take.

How the network looks from outside can only be told by others: by the bootstrap nodes of the configuration, and by STUN
servers that are named here. A bootstrap node tells how the NAT maps ports; so do two STUN servers at different hosts;
a STUN server with two addresses (RFC 5780) tells the filtering too. The router is asked for a port, which is given
back.

Exit code 0, whatever the network is like. How to read it: docs/howto/diagnose.md.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from crust.cli.options import add_node_options, load_config
from crust.cli.output import CommandError, Output, printable, table

if TYPE_CHECKING:
    from crust.node.doctor import Diagnosis
    from crust.proto.nat.verdict import Access
    from crust.wire.stun import Address

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `crust doctor` takes."""
    add_node_options(parser)


async def run(args: argparse.Namespace, out: Output) -> int:
    """Examine the network, print the findings.

    Raises:
        CommandError: a STUN server cannot be found.
    """
    from crust.config import parse_listen
    from crust.crypto.keys import Identity
    from crust.node.doctor import Doctor

    config = load_config(args)
    identity = Identity.load_or_create(args.identity) if args.identity else None
    named = [parse_listen(entry, "stun_servers") for entry in config.stun_servers]
    servers = [address for host, port in named for address in await _resolve(host, port)]
    diagnosis = await Doctor(config, identity, stun=servers, progress=out.say).examine()
    out.data(_text(diagnosis), diagnosis.to_dict())
    return 0


async def _resolve(host: str, port: int) -> list[Address]:
    from crust.net.stun import resolve_server

    try:
        return await resolve_server(host, port)
    except OSError as error:
        raise CommandError(f"--stun {host}: {error.strerror or error}", code=2) from error


# --- for people ------------------------------------------------------------------------------------------------------


def _text(found: Diagnosis) -> str:
    record = found.to_dict()
    parts = [
        _addresses(found),
        _observers(record),
        _verdicts(found, record),
        _port_mapping(found),
        _dials(found),
    ]
    if found.advice:
        parts.append("Advice\n" + "\n".join(f"  - {printable(each)}" for each in found.advice))
    return "\n\n".join(part for part in parts if part)


def _addresses(found: Diagnosis) -> str:
    rows = [
        [each.interface, f"{each.host}/{each.prefix_length}", f"IPv{each.version}", _scope(each.scope.name)]
        for each in found.addresses
    ]
    lines = ["Addresses", _indent(table(["interface", "address", "", ""], rows)) if rows else "  none but loopback"]
    lines += [f"  router: {each.host}{' (a guess)' if each.guessed else ''}" for each in found.gateways]
    return "\n".join(lines)


def _scope(name: str) -> str:
    return "" if name == "GLOBAL" else name.lower().replace("_", "-")


def _observers(record: dict[str, Any]) -> str:
    if not record["observers"]:
        return ""
    rows = [
        [
            each["protocol"].upper(),
            each["observer"],
            each["via"],
            each["local"] or "",
            each["observed"] or f"{each['outcome']}: {printable(each['error'])}",
        ]
        for each in record["observers"]
    ]
    return "Seen from outside\n" + _indent(table(["", "observer", "", "from", "seen as"], rows))


def _verdicts(found: Diagnosis, record: dict[str, Any]) -> str:
    lines = ["This network"]
    for name, access in (("UDP", found.udp), ("TCP", found.tcp)):
        lines.append(f"  {name}   {_verdict(access, record[name.lower()])}")
    ipv6 = {True: "works", False: "none", None: "there are addresses; nobody was there to say whether it works"}
    return "\n".join([*lines, f"  IPv6  {ipv6[found.ipv6]}"])


def _verdict(access: Access, record: dict[str, Any]) -> str:
    if not access.used:
        return "not used"
    if access.passes is False:
        return "does not get out"
    if not record["words"]:
        return "not known: nobody was there to say" if access.passes is None else "gets out; outside address not known"
    words: str = record["words"]
    if access.only_ports is not None:
        words += f"; only to port {' and '.join(map(str, sorted(access.only_ports)))}"
    if record["mapping"] is None:
        return words
    return f"{words} (mapping: {record['mapping_sureness']})"


def _port_mapping(found: Diagnosis) -> str:
    report = found.port_mapping
    if report is None:
        return ""
    rows = [
        [each.method, each.gateway, each.protocol.upper(), each.outcome, printable(each.detail)]
        for each in report.attempts
    ]
    if not rows:
        return "Port mapping\n  no router to ask"
    return "Port mapping\n" + _indent(table(["", "router", "", "came of it", ""], rows))


def _dials(found: Diagnosis) -> str:
    rows = [
        [
            each.peer.text,
            each.best.value,
            "-" if each.udp is None else each.udp.value,
            "-" if each.tcp is None else each.tcp.value,
            each.sureness.value,
        ]
        for each in found.dials
    ]
    header = ["a dial to a peer that has", "takes", "over µTP", "over TCP", ""]
    return "Dials\n" + _indent(table(header, rows))


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
