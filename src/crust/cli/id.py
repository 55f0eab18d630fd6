"""Print this machine's PeerId: the public key by which others dial it. Creates the identity when there is none."""

from __future__ import annotations

import argparse

from crust.cli.options import load_identity
from crust.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`crust id` has only the common options."""


def run(args: argparse.Namespace, out: Output) -> int:
    """Print the PeerId."""
    identity = load_identity(args)
    out.data(str(identity.id), {"id": identity.id})
    return 0
