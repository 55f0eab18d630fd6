"""Configuration of a node: what the user chooses, and every limit with its reason.

A `Config` is frozen. In Python it is built with keywords, from a file with `Config.from_file` (TOML, same names).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from crust.errors import ConfigError
from crust.types import CandidateKind, Transport

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["Config", "SigningMode"]

SigningMode = Literal["on", "strict", "off"]

KIB = 1024
MIB = 1024 * 1024

# Least and greatest values that make sense; outside them `Config` refuses.
_RANGES: dict[str, tuple[float, float]] = {
    "max_message_bytes": (1, (1 << 32) - 1),
    "send_queue_bytes": (64 * KIB, 1 << 32),
    "receive_window_bytes": (256 * KIB, 1 << 31),
    "retention_bytes": (512 * KIB, 1 << 32),
    "stream_window_bytes": (64 * KIB, 1 << 30),
    "max_streams": (1, 1 << 20),
    "max_connections": (1, 1 << 20),
    "max_half_open": (1, 1 << 20),
    "max_incoming": (1, 1 << 20),
    "accept_queue": (1, 1 << 20),
    "event_queue": (1, 1 << 20),
    "handshake_timeout": (0.1, 600),
    "incoming_timeout": (0.1, 3600),
    "heartbeat": (0.05, 3600),
    "inactivity_timeout": (0.1, 86400),
    "path_timeout": (0.05, 3600),
    "resume_timeout": (0.0, 86400),
    "close_timeout": (0.1, 600),
    "dial_stagger": (0.0, 10),
    "max_datagram_bytes": (1280, 65535),
    "max_punch_datagrams": (0, 2000),
    "max_punch_sockets": (1, 256),
}


_MOST_FILE_BYTES: Final = 256 * KIB


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node does and how much it may use.

    Attributes:
        listen: "ADDR:PORT" or "[ADDR6]:PORT", each opened for TCP and UDP on that port (0: a random one). None: every
            interface on a random port. An empty list: dial only.
        transports: which transports to use, "tcp" and "utp".
        network_name: nodes of different names cannot connect to each other; it isolates, it does not hide.
        network_key: a secret (text or bytes) shared by the whole network, mixed into every handshake; None for none.
        bootstrap: contacts of nodes to stay connected to.
        signing: "on", "strict" (deliver only what is verified) or "off" (needs the same from the peer); True and
            False mean "on" and "off".
        relay: allow relayed paths.
        direct: offer and dial the addresses of interfaces. Without it only mapped, punched and relayed paths are left
            to peers; bootstrap nodes are dialled all the same.
        punch: allow hole punching.
        port_mapping: ask the router for a port mapping.
        lan: find peers on the local network.
        dht: publish and find addresses on the Mainline DHT.
        directory: URL of a shared directory, such as "redis://host/0"; None for none.
        stun_servers: "HOST:PORT" of STUN servers to ask for our outside addresses, from the ports that we listen on.
            Rendezvous nodes tell them too: these are for swapping contacts without any.
        stun_service: "ADDR:PORT" to serve others' STUN clients on, over UDP and TCP; ports of their own. Of two
            addresses of one family at one port the next port is used too, to tell clients their NAT's behaviour (RFC
            5780).
        max_message_bytes: the largest message sent or taken; a message is held whole in memory.
        send_queue_bytes: unsent bytes held for each priority before `send` waits; a few round trips of a fast link.
        receive_window_bytes: received but unread bytes for each priority before the sender must stop; bounds
            throughput to window / round-trip time (160 MB/s at 100 ms).
        retention_bytes: sent but unacknowledged bytes kept for sending again, and the same for reordering; the
            bandwidth-delay product that one connection can fill.
        stream_window_bytes: the same window for one stream.
        max_streams: streams that a peer may have open on one connection.
        max_connections: peers connected at once; further ones are refused.
        max_half_open: TCP handshakes under way at once; beyond it a random unauthenticated one is dropped, never the
            newcomer.
        max_incoming: peers waiting for `incoming()` to decide.
        accept_queue: accepted connections that nobody took yet; further ones are refused.
        event_queue: events kept for each reader of `events()`; the oldest are dropped.
        handshake_timeout: seconds for one handshake (PROTOCOL 5).
        incoming_timeout: seconds that a peer waits for `incoming()` to decide.
        heartbeat: seconds of silence after which the peer is asked for a sign of life.
        inactivity_timeout: seconds without any sign of life after which a path is given up.
        path_timeout: seconds for which a path that was asked for a sign of life may stay silent.
        resume_timeout: awake seconds for which a connection without a path is kept for its peer to come back.
        close_timeout: seconds that `close` waits for progress of what was sent.
        dial_stagger: seconds between the starts of two attempts of one dial.
        max_datagram_bytes: the largest IP packet that µTP tries, headers included; the path may take less.
        max_punch_datagrams: requests that one dial sends through NATs over UDP; 1,750 find a random port in 99.9 % of
            cases, most dials need ten.
        max_punch_sockets: UDP sockets that one dial may have open; 256 are what a random port is found by.
    """

    listen: list[str] | None = None
    transports: list[Transport] = msgspec.field(default_factory=lambda: ["tcp", "utp"])
    network_name: str = "crust"
    network_key: Any = None
    bootstrap: list[str] = msgspec.field(default_factory=list)
    signing: SigningMode | bool = "on"
    relay: bool = True
    direct: bool = True
    punch: bool = True
    port_mapping: bool = True
    lan: bool = True
    dht: bool = False
    directory: str | None = None
    stun_servers: list[str] = msgspec.field(default_factory=list)
    stun_service: list[str] = msgspec.field(default_factory=list)

    max_message_bytes: int = 64 * MIB
    send_queue_bytes: int = 4 * MIB
    receive_window_bytes: int = 16 * MIB
    retention_bytes: int = 16 * MIB
    stream_window_bytes: int = 1 * MIB
    max_streams: int = 1024
    max_connections: int = 10_000
    max_half_open: int = 1024
    max_incoming: int = 256
    accept_queue: int = 1024
    event_queue: int = 1024
    handshake_timeout: float = 10.0
    incoming_timeout: float = 60.0
    heartbeat: float = 20.0
    inactivity_timeout: float = 120.0
    path_timeout: float = 10.0
    resume_timeout: float = 900.0
    close_timeout: float = 10.0
    dial_stagger: float = 0.005
    max_datagram_bytes: int = 65_535
    max_punch_datagrams: int = 2000
    max_punch_sockets: int = 256

    def __post_init__(self) -> None:
        """Check what the types cannot say.

        Raises:
            ConfigError: naming the field and what it takes.
        """
        if isinstance(self.signing, bool):
            msgspec.structs.force_setattr(self, "signing", "on" if self.signing else "off")
        if self.signing not in ("on", "strict", "off"):
            raise ConfigError(f'signing: {self.signing!r} is not "on", "strict" or "off"')
        if not isinstance(self.network_key, (str, bytes, type(None))):
            raise ConfigError("network_key: takes a text or bytes")
        if self.network_key is not None and not self.network_key:
            raise ConfigError("network_key: it is empty; leave it out to have none")
        if not self.transports or any(t not in ("tcp", "utp") for t in self.transports):
            raise ConfigError(f'transports: {self.transports!r}; give one or both of "tcp" and "utp"')
        for name in ("listen", "bootstrap", "stun_servers", "stun_service"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f'{name} takes a list of texts, such as ["0.0.0.0:4000"]')
        for name in ("listen", "stun_servers", "stun_service"):
            for entry in getattr(self, name) or ():
                parse_listen(entry, name)
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise ConfigError(f"{name}: {value!r} is not between {least:,} and {most:,}")

    def allows(self, kind: CandidateKind) -> bool:
        """Whether addresses of a kind are offered to peers, and those of peers dialled."""
        if kind == "host":
            return self.direct
        if kind == "relayed":
            return self.relay
        return self.punch or kind == "mapped"

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Config:
        """Read a TOML file whose keys are the names of the fields.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or has a field that is unknown or of the wrong type.
        """
        try:
            with open(path, "rb") as file:
                data = file.read(_MOST_FILE_BYTES + 1)
            if len(data) > _MOST_FILE_BYTES:
                raise ConfigError(f"{path}: a configuration has at most {_MOST_FILE_BYTES >> 10} KiB")
            table = tomllib.loads(data.decode())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        except RecursionError as error:
            raise ConfigError(f"{path}: not TOML: nested too deeply") from error
        except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
            raise ConfigError(f"{path}: not TOML: {error}") from error
        return cls.from_dict(table, source=str(path))

    @classmethod
    def from_dict(cls, table: dict[str, Any], *, source: str = "configuration") -> Config:
        """Build a configuration from plain values, such as parsed TOML.

        Raises:
            ConfigError: a field is unknown, of the wrong type or out of range; the text names it.
        """
        try:
            return msgspec.convert(table, cls)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, ConfigError):
                raise ConfigError(f"{source}: {error.__cause__}") from error
            raise ConfigError(f"{source}: {_in_words(str(error), cls.__struct_fields__)}") from error
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error


# What msgspec calls the types, and what people call them.
_TYPES: Final = {
    "array": "a list",
    "bool": "true or false",
    "bytes": "bytes",
    "float": "a number",
    "int": "a whole number",
    "null": "nothing",
    "object": "a table",
    "str": "a text",
}


_CHOICES: Final = {"signing": '"on", "strict" or "off"', "transports": '"tcp" or "utp"'}


def _in_words(problem: str, names: tuple[str, ...]) -> str:
    """What msgspec found wrong, with the name of the setting first."""
    if unknown := re.fullmatch(r"Object contains unknown field `(.+)`", problem):
        near = difflib.get_close_matches(unknown[1], names, 1)
        return f"{unknown[1]}: there is no such setting" + (f"; perhaps {near[0]}" if near else "")
    found = re.fullmatch(r"(.+) - at `\$\.(\w+)(.*)`", problem)
    if found is None:
        return problem
    what, name, place = found.groups()
    if types := re.fullmatch(r"Expected `(.+)`, got `(.+)`", what):
        wanted = [_TYPES.get(kind, kind) for kind in types[1].split(" | ") if kind != "null"]
        each = "each entry is " if place else "it takes "
        given = "a fraction" if types[2] == "float" else _TYPES.get(types[2], types[2])
        return f"{name}: {each}{' or '.join(wanted)}, not {given}"
    if value := re.fullmatch(r"Invalid enum value (.+)", what):
        return f"{name}: {value[1]} is not {_CHOICES[name]}"
    return f"{name}: {what}"


def parse_listen(entry: str, name: str = "listen") -> tuple[str, int]:
    """Split "ADDR:PORT" or "[ADDR6]:PORT" into host and port (0 to 65535).

    Args:
        entry: the text.
        name: the setting that has it.

    Raises:
        ConfigError: the text has another form.
    """
    host, colon, port = entry.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f'{name}: {entry!r} is not "ADDR:PORT" or "[ADDR6]:PORT"')
    return host, int(port)
