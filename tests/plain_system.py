"""A plugin that takes away what only Linux has, so that tests show what other systems run.

python -m pytest -p tests.plain_system tests/integration/test_node_messages.py

Off: UDP_SEGMENT and UDP_GRO, sockets watched by the event loop itself, TCP_NOTSENT_LOWAT, TCP_INFO, and the clock
that counts the sleep of the machine.
"""

from __future__ import annotations

import functools
import time

import pytest

import crust.net.tcp
import crust.node.node
from crust.net.udp import Features
from crust.node.udp import UdpFront

PLAIN = Features(segment=False, gro=False, reader=False)

crust.node.node.UdpFront = functools.partial(UdpFront, features=PLAIN)  # type: ignore[misc,assignment]
for name in ("_TCP_NOTSENT_LOWAT", "_TCP_INFO"):
    assert hasattr(crust.net.tcp, name)
    setattr(crust.net.tcp, name, None)
if hasattr(time, "CLOCK_BOOTTIME"):
    del time.CLOCK_BOOTTIME


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only Linux tells a socket for many peers that nobody listens where it sent to."""
    left_out = [item for item in items if item.name.startswith("test_nobody_there")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
