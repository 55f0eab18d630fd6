"""The queue of datagrams: bounded, and by what waits alone."""

from __future__ import annotations

import pytest

from crust.errors import LocalProtocolError
from crust.proto.session.datagram import DATAGRAM_LIMIT, DatagramQueue
from crust.proto.session.outbox import GroupBuilder
from crust.wire import frames


def written(queue: DatagramQueue) -> list[frames.Frame]:
    group = GroupBuilder()
    queue.fill(group)
    finished = group.finish()
    return [] if finished is None else frames.parse_frames(*finished, start=1)


def test_what_is_written_makes_room_in_full() -> None:
    """Else the queue would be full for ever after some ten thousand datagrams."""
    queue = DatagramQueue()
    for n in range(40_000):
        assert queue.put(b"%d" % n)
        assert written(queue) == [frames.Datagram(b"%d" % n)]
    assert not queue


def test_empty_ones_are_bounded_too() -> None:
    queue = DatagramQueue()
    assert sum(queue.put(b"") for _ in range(20_000)) == 1024 * 1024 // 64


def test_a_group_takes_what_fits() -> None:
    queue = DatagramQueue()
    for n in range(100):
        queue.put(bytes([n]) * DATAGRAM_LIMIT)
    first = written(queue)
    assert 50 < len(first) < 100
    assert [*first, *written(queue)] == [frames.Datagram(bytes([n]) * DATAGRAM_LIMIT) for n in range(100)]


def test_too_long() -> None:
    with pytest.raises(LocalProtocolError, match="1200"):
        DatagramQueue().put(bytes(DATAGRAM_LIMIT + 1))
