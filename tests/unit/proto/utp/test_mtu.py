"""Path MTU search (RFC 8899)."""

from __future__ import annotations

import pytest

from crust.proto.utp.mtu import MtuSearch


def search(mtu: MtuSearch, path: int, probes: int = 60) -> list[int]:
    """Probe a path that takes `path` bytes; returns the sizes tried."""
    tried: list[int] = []
    while (size := mtu.next_probe()) is not None and len(tried) < probes:
        mtu.sent(len(tried), size)
        assert mtu.next_probe() is None
        tried.append(size)
        if size <= path:
            mtu.arrived()
        else:
            mtu.lost(100.0)
    return tried


def test_mtu_that_the_interface_has() -> None:
    mtu = MtuSearch(1200, 1452, 0)
    assert search(mtu, 1452) == [1452]
    assert mtu.current == 1452
    assert mtu.raise_at is None


@pytest.mark.parametrize(("path", "found"), [(1200, 1200), (1400, 1392), (1412, 1412), (1460, 1452), (8999, 8972)])
def test_mtu_of_the_path(path: int, found: int) -> None:
    mtu = MtuSearch(1200, 65_000, 0)
    tried = search(mtu, path)
    assert mtu.current == found
    assert len(tried) <= 3 * 5 + 1
    assert mtu.raise_at == 700.0


def test_mtu_inside_a_tunnel_leaves_room() -> None:
    mtu = MtuSearch(1100, 1500, 48)
    search(mtu, 1452 - 48)
    assert mtu.current == 1452 - 48


def test_mtu_probe_lost_by_chance() -> None:
    mtu = MtuSearch(1200, 1452, 0)
    for _ in range(2):
        mtu.sent(1, mtu.next_probe() or 0)
        mtu.lost(0.0)
    assert mtu.next_probe() == 1452


def test_mtu_refused_by_the_system() -> None:
    mtu = MtuSearch(1200, 9000, 0)
    mtu.sent(1, 9000)
    mtu.too_big(9000, 5.0)
    assert search(mtu, 1500)[0] < 9000
    assert mtu.current == 1472
    mtu.too_big(1300, 5.0)
    assert mtu.current == 1200
    assert search(mtu, 1299) == [1232]


def test_mtu_no_search() -> None:
    assert MtuSearch(1200, 1200, 0).next_probe() is None
    assert MtuSearch(1200, 1205, 0).next_probe() is None


def test_mtu_no_plateau_between() -> None:
    mtu = MtuSearch(1200, 1230, 0)
    assert search(mtu, 1200) == [1230] * 3


def test_mtu_black_hole() -> None:
    mtu = MtuSearch(1200, 1452, 0)
    assert not mtu.black_hole(0.0)
    search(mtu, 1452)
    assert mtu.black_hole(10.0)
    assert mtu.current == 1200
    assert mtu.next_probe() == 1392
    mtu.search_again()
    assert mtu.next_probe() == 1452


def test_mtu_of_another_path() -> None:
    mtu = MtuSearch(1200, 1452, 0)
    search(mtu, 1452)
    mtu.restart(9000)
    assert (mtu.current, mtu.next_probe()) == (1200, 9000)
    mtu.restart(100)
    assert mtu.next_probe() is None
    mtu.restart()
    assert mtu.ceiling == 1200
