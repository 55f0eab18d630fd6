"""The options of every command that makes a node, and what becomes of them: identity and configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crust.cli.output import CommandError
from crust.types import format_address

if TYPE_CHECKING:
    from crust.config import Config
    from crust.crypto.keys import Identity, PeerId
    from crust.node.node import Node

__all__ = [
    "DEFAULT_TIMEOUT",
    "accepted_peers",
    "add_from_option",
    "add_node_options",
    "config_path",
    "identity_path",
    "listen_address",
    "load_config",
    "load_identity",
    "make_node",
    "positive_number",
    "stun_server",
    "timeout",
]

DEFAULT_TIMEOUT = 30.0
_STUN_PORT = 3478

# Option -> field of the configuration that it switches off.
_SWITCHES = {"relay": "relay", "direct": "direct", "punch": "punch", "port_mapping": "port_mapping", "lan": "lan"}


def positive_number(text: str) -> float:
    """An argument in seconds, for argparse."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def listen_address(text: str) -> str:
    """ADDR:PORT, for argparse."""
    from crust.config import parse_listen
    from crust.errors import ConfigError

    try:
        parse_listen(text)
    except ConfigError:
        raise argparse.ArgumentTypeError(f'{text!r} is not "ADDR:PORT" or "[ADDR6]:PORT"') from None
    return text


def stun_server(text: str) -> tuple[str, int]:
    """HOST, HOST:PORT or [ADDR6]:PORT of a STUN server, for argparse."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = text, str(_STUN_PORT)  # a name or an address without a port
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def add_node_options(parser: argparse.ArgumentParser, *, listen_alone: str | None = None) -> None:
    """Add the options that all commands with a node share.

    Args:
        parser: of the command.
        listen_alone: what `--listen` without a value means to this command; None: it needs one.
    """
    group = parser.add_argument_group("options of the node")
    group.add_argument(
        "--listen",
        action="append",
        type=listen_address,
        metavar="ADDR:PORT",
        nargs=None if listen_alone is None else "?",
        help=listen_alone or "listen here (repeatable; default: every interface, a random port)",
    )
    group.add_argument(
        "--transport",
        action="append",
        choices=["tcp", "utp"],
        help="use only this transport, to bootstrap nodes too (repeatable)",
    )
    for name, text in (
        ("relay", "never go through a relay"),
        ("direct", "neither tell nor dial the addresses of interfaces"),
        ("punch", "no hole punching"),
        ("port-mapping", "do not ask the router for a port"),
        ("lan", "do not look around in the local network"),
    ):
        group.add_argument(f"--no-{name}", action="store_true", help=text)
    group.add_argument(
        "--bootstrap", action="append", metavar="CONTACT", help="a node to stay connected to (repeatable)"
    )
    group.add_argument(
        "--stun",
        action="append",
        type=stun_server,
        metavar="HOST:PORT",
        help=f"a STUN server to ask for our outside addresses (repeatable; port {_STUN_PORT} when left out)",
    )
    group.add_argument(
        "--timeout",
        type=positive_number,
        metavar="SECONDS",
        help=f"how long to look for the peer, and to wait for it after a loss (default {DEFAULT_TIMEOUT:g})",
    )


def add_from_option(parser: argparse.ArgumentParser) -> None:
    """Add `--from`, for commands that accept peers."""
    parser.add_argument(
        "--from",
        dest="from_peers",
        action="append",
        metavar="PEERID",
        help="accept this peer only (repeatable; default: whoever has the contact)",
    )


def accepted_peers(args: argparse.Namespace) -> frozenset[PeerId] | None:
    """The peers that `--from` names, or None for all.

    Raises:
        ParseError: one of them is mistyped.
    """
    from crust.crypto.keys import PeerId

    return frozenset(map(PeerId.parse, args.from_peers)) if args.from_peers else None


def timeout(args: argparse.Namespace) -> float:
    """Seconds for a dial."""
    return DEFAULT_TIMEOUT if args.timeout is None else float(args.timeout)


def identity_path(args: argparse.Namespace) -> Path:
    """The key file: `--identity`, or the default one in the platform's data directory."""
    if args.identity:
        return Path(args.identity)
    from platformdirs import user_data_path

    return user_data_path("crust", appauthor=False) / "identity"


def load_identity(args: argparse.Namespace) -> Identity:
    """Read the identity, creating it when there is none.

    Raises:
        IdentityError: the key file cannot be read, trusted or written.
    """
    from crust.crypto.keys import Identity

    return Identity.load_or_create(identity_path(args))


def config_path(args: argparse.Namespace) -> Path | None:
    """The configuration file: `--config`, or the default one if it exists."""
    if args.config:
        return Path(args.config)
    from platformdirs import user_config_path

    path = user_config_path("crust", appauthor=False) / "config.toml"
    return path if path.is_file() else None


def load_config(args: argparse.Namespace, **defaults: Any) -> Config:
    """The configuration file with the command line's options over it.

    Args:
        args: as parsed.
        **defaults: fields that this command sets unless the file sets them.

    Raises:
        ConfigError: a setting cannot be used.
    """
    import msgspec

    from crust.config import Config

    path = config_path(args)
    config = Config.from_file(path) if path is not None else Config()
    plain = Config()
    fields = {name: value for name, value in defaults.items() if getattr(config, name) == getattr(plain, name)}
    if any(getattr(args, "listen", None) or ()):
        fields["listen"] = [address for address in args.listen if address]
    if getattr(args, "transport", None):
        fields["transports"] = list(dict.fromkeys(args.transport))
    if getattr(args, "bootstrap", None):
        fields["bootstrap"] = args.bootstrap
    if getattr(args, "stun", None):
        fields["stun_servers"] = [format_address(host, port) for host, port in args.stun]
    if getattr(args, "stun_service", None):
        fields["stun_service"] = args.stun_service
    if getattr(args, "directory", None):
        fields["directory"] = args.directory
    for option, field in _SWITCHES.items():
        if getattr(args, f"no_{option}", False):
            if field not in Config.__struct_fields__:
                raise CommandError(f"--no-{option}: this version has no other paths", code=2)
            fields[field] = False
    return msgspec.structs.replace(config, **fields)


def make_node(args: argparse.Namespace, **defaults: Any) -> Node:
    """A node as the options say, not started yet.

    A peer that is lost is waited for as long as a dial may take: a person sits in front of a command.

    Args:
        args: as parsed.
        **defaults: fields of the configuration that this command sets unless the file sets them.

    Raises:
        ConfigError, IdentityError: something cannot be used.
    """
    from crust.node.node import Node

    defaults = {"resume_timeout": timeout(args), **defaults}
    return Node(load_identity(args), load_config(args, **defaults))
