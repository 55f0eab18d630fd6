"""What is run in the pairs of a matrix: `crust node` and `crust ping`, or anything that speaks as they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from crust.crypto.keys import Identity, PeerId
from crust.testing.natlab.places import Host
from crust.types import Candidate, Transport
from crust.wire.contact import MAX_CANDIDATES, Contact

__all__ = ["CRUST", "CrustProgram", "Line", "Program"]

CRUST: Final = "crust"
"""As the first word of a command: the Crust of this interpreter, which a lab starts by `Host.run_crust`."""

Line = dict[str, Any]

# Addresses on the lab's internet that nobody has: what is sent there vanishes.
_DEAD_NETWORK = "11.254.0"
_DEAD_PORT = 40_000


class Program(Protocol):
    """What is run in a pair; each program speaks one JSON object per line on its standard output."""

    def rendezvous(self, host: Host) -> Sequence[str]:
        """The command for the node that both can reach; its first line is given to the others."""

    def listener(self, host: Host, rendezvous: Line, transport: str) -> Sequence[str]:
        """The command for the peer that is dialled; its first line is given to the dialler."""

    def dialler(self, host: Host, rendezvous: Line, listener: Line, transport: str) -> Sequence[str]:
        """The command for the peer that dials; its last line is the result, as that of `crust ping --json`."""

    def announce(self, host: Host) -> Line:
        """What the listener's first line will say, as far as the dialler needs it; asked only where it starts late."""


@dataclass(frozen=True, slots=True)
class CrustProgram:
    """`crust node` and `crust ping`.

    Attributes:
        directory: where the identities are kept, one file for each host.
        command: how to call `crust`; by default as forks of a process that has it loaded.
        options: for all three.
        dial_options: for the dialler.
        target: the key of the listener's first line that is dialled: "id" by way of the rendezvous, "contact" directly.
        timeout: seconds that a dial may take.
        wait: seconds for which a dialler asks again where the peer is not there yet.
        dead: how many addresses at which nobody answers are in the contact that is dialled, before those of the peer.
    """

    directory: Path
    command: tuple[str, ...] = (CRUST,)
    options: tuple[str, ...] = ()
    dial_options: tuple[str, ...] = ("-c", "1")
    target: str = "id"
    timeout: float = 15.0
    wait: float = 0.0
    dead: int = 0

    def _key_file(self, host: Host) -> Path:
        return self.directory / f"{host.name}.key"

    def _identity(self, host: Host) -> list[str]:
        return ["--identity", str(self._key_file(host)), *self.options]

    def announce(self, host: Host) -> Line:
        """The PeerId, which needs no program: a late listener is always dialled by it."""
        return {"id": str(Identity.load_or_create(self._key_file(host)).id)}

    def rendezvous(self, host: Host) -> list[str]:
        """A node on every address of the host, at port 443."""
        return [*self.command, "node", "--json", *self._listen(host), *self._identity(host)]

    @staticmethod
    def _listen(host: Host) -> list[str]:
        """A public peer listens at 443, so that those whose firewall allows nothing else can reach it."""
        if host.site is not None:
            return []
        return [f"--listen=[{each}]:443" if ":" in each else f"--listen={each}:443" for each in host.addresses]

    def listener(self, host: Host, rendezvous: Line, transport: str) -> list[str]:
        """A node that knows the rendezvous."""
        known = ["--bootstrap", rendezvous["contact"], *_only(transport)]
        return [*self.command, "node", "--json", *self._listen(host), *known, *self._identity(host)]

    def dialler(self, host: Host, rendezvous: Line, listener: Line, transport: str) -> list[str]:
        """One dial, by PeerId unless the contact is asked for, or has to hold dead addresses."""
        known = ["--bootstrap", rendezvous["contact"], *_only(transport), "--timeout", str(self.timeout)]
        known += ["--wait", str(self.wait)] if self.wait else []
        return [
            *self.command,
            "ping",
            with_dead_candidates(listener, self.dead) if self.dead else listener[self.target],
            "--json",
            *self.dial_options,
            *self._listen(host),
            *known,
            *self._identity(host),
        ]


def _only(transport: str) -> list[str]:
    """The option that restricts a node to a transport; "any" does not."""
    return [] if transport == "any" else ["--transport", transport]


def with_dead_candidates(listener: Line, number: int) -> str:
    """The contact of a first line (or of a bare PeerId) with addresses before its own that lead nowhere."""
    text = listener.get("contact")
    contact = Contact.parse(text) if text else Contact(PeerId.parse(listener["id"]))
    transports: tuple[Transport, ...] = ("tcp", "utp")
    dead = [
        Candidate(transports[each % 2], f"{_DEAD_NETWORK}.{each // 2 + 1}", _DEAD_PORT + each) for each in range(number)
    ]
    return str(replace(contact, candidates=(*dead, *contact.candidates)[:MAX_CANDIDATES]))
