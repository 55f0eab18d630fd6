"""A NAT laboratory in network namespaces of one Linux machine, with no privileges beyond user namespaces.

    async with Lab() as lab:
        rendezvous = await lab.public("rendezvous")
        site = await lab.site("home", nat=Nat(mapping="endpoint-independent", filtering="address-dependent"))
        host = await site.host()
        process = await host.run(["crust", "node", "--json"])

Nothing in a lab reaches the real network, several labs can live side by side, and none leaves anything behind, even
when its owner is killed. `docs/explanation/natlab.md` tells how it works and what its NATs are worth.
"""

from __future__ import annotations

from crust.testing.natlab.declare import NATS, Behaviour, Firewall, Kind, Link, Nat, Ports, Router
from crust.testing.natlab.errors import LabError, LabUnavailable, NotAsDeclared
from crust.testing.natlab.expectation import Expectation, expect
from crust.testing.natlab.lab import Lab
from crust.testing.natlab.matrix import Outcome, run_matrix, table
from crust.testing.natlab.places import Host, LinkChanges, Site
from crust.testing.natlab.probe import Findings, measure, prove
from crust.testing.natlab.process import Process
from crust.testing.natlab.programs import CrustProgram, Program
from crust.testing.natlab.summary import PairSummary, Verdict, markdown_table, summarize

__all__ = [
    "NATS",
    "Behaviour",
    "CrustProgram",
    "Expectation",
    "Findings",
    "Firewall",
    "Host",
    "Kind",
    "Lab",
    "LabError",
    "LabUnavailable",
    "Link",
    "LinkChanges",
    "Nat",
    "NotAsDeclared",
    "Outcome",
    "PairSummary",
    "Ports",
    "Process",
    "Program",
    "Router",
    "Site",
    "Verdict",
    "expect",
    "markdown_table",
    "measure",
    "prove",
    "run_matrix",
    "summarize",
    "table",
]
