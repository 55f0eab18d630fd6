"""A port mapper that asks routers on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from crust.net.portmap import PortMapper, PortMapSettings
from tests.portmap_udp import LOOPBACK

PORTS = [("tcp", 4000), ("udp", 4000)]


def unstarted(router_port: int, **options: Any) -> PortMapper:
    return PortMapper(
        PORTS,
        on_change=options.pop("on_change", None),
        gateways=options.pop("gateways", lambda: [LOOPBACK]),
        addresses=options.pop("addresses", list),
        settings=PortMapSettings(
            **{"methods": ("pcp", "nat-pmp"), "router_port": router_port, "announcement_port": 0, **options}
        ),
    )


@contextlib.asynccontextmanager
async def mapper(router_port: int, **options: Any) -> AsyncIterator[PortMapper]:
    made = unstarted(router_port, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def outcomes(made: PortMapper) -> list[tuple[str, str, str]]:
    return [(a.method, a.protocol, a.outcome) for a in made.report().attempts]
