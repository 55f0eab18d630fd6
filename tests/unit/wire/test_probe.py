"""Probes that show a socket of ours to a rendezvous node."""

from __future__ import annotations

import pytest

from crust.errors import RemoteProtocolError
from crust.wire.probe import PROBE_BYTES, parse_probe, serialize_probe

KEY, TOKEN, NUMBER = bytes(range(16)), b"a token.", b"a number"


def test_round_trip() -> None:
    data = serialize_probe(KEY, "utp", TOKEN, NUMBER)
    assert len(data) == PROBE_BYTES
    probe = parse_probe(data)
    assert (probe.token, probe.number) == (TOKEN, NUMBER)
    assert probe.authentic(KEY, "utp")


def test_what_is_not_authentic() -> None:
    data = serialize_probe(KEY, "utp", TOKEN, NUMBER)
    assert not parse_probe(data).authentic(KEY, "tcp")
    assert not parse_probe(data).authentic(bytes(16), "utp")
    for at in range(PROBE_BYTES):
        forged = bytearray(data)
        forged[at] ^= 1
        assert not parse_probe(bytes(forged)).authentic(KEY, "utp")


@pytest.mark.parametrize("size", [0, 1, PROBE_BYTES - 1, PROBE_BYTES + 1])
def test_another_length_is_no_probe(size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_probe(bytes(size))
