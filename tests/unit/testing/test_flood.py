"""The generator sends what it was told, from where it was told."""

from __future__ import annotations

import io
import json
import socket
import sys

import pytest

from crust.testing.flood import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="calls sendmmsg")

DATAGRAMS = [bytes([n]) * (n + 1) for n in range(100)]


@pytest.mark.parametrize(
    ("more", "count"),
    [({}, 1), ({"sources": ["127.0.0.7:0", "127.0.0.8:0"]}, 2), ({"gso": True}, 100)],
)
def test_every_datagram_arrives(more: dict[str, object], count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        order = {"rate": 1e9, "seconds": 0.02, "datagrams": [data.hex() for data in DATAGRAMS], **more}
        out = io.StringIO()
        main([f"127.0.0.1:{sock.getsockname()[1]}"], io.StringIO(json.dumps(order)), out)
        assert json.loads(out.getvalue())["sent"] >= 100
        found: set[bytes] = set()
        sources = set()
        for _ in range(100):
            data, source = sock.recvfrom(2000)
            found.add(data)
            sources.add(source)
        assert found <= set(DATAGRAMS)
        if count <= 2:
            assert len(sources) == count
            assert {host for host, _ in sources} <= {"127.0.0.1", "127.0.0.7", "127.0.0.8"}
