"""Runs of packets."""

from __future__ import annotations

from crust.proto.utp.batch import Batch


def test_batch() -> None:
    headers = bytes(range(60))
    batch = Batch(headers, [b"aaaa", memoryview(b"bbbb"), b"c"])
    assert (batch.segment_size, batch.size, batch.probe) == (24, 69, False)
    assert batch.datagrams() == [headers[:20] + b"aaaa", headers[20:40] + b"bbbb", headers[40:] + b"c"]
    assert b"".join(batch.buffers()) == b"".join(batch.datagrams())
    assert [bytes(header) for header, _ in batch.packets()] == [headers[:20], headers[20:40], headers[40:]]
