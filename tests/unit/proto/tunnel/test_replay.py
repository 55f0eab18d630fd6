"""The replay window, against a set that remembers everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crust.proto.tunnel.constants import REPLAY_WINDOW
from crust.proto.tunnel.replay import ReplayWindow

STEPS = st.lists(
    st.tuples(st.integers(-REPLAY_WINDOW - 3, REPLAY_WINDOW + 3) | st.integers(-3, 3), st.integers(1, 64)), max_size=60
)


@given(STEPS)
def test_like_a_set(steps: list[tuple[int, int]]) -> None:
    window, seen, highest = ReplayWindow(), set[int](), -1
    for step, count in steps:
        counter = max(highest + step, 0)
        fresh = counter not in seen and counter > highest - REPLAY_WINDOW
        assert window.is_fresh(counter) == fresh
        if counter > highest and count > 1:
            window.add_run(counter, count)
            seen.update(range(counter, counter + count))
        elif fresh:
            window.add(counter)
            seen.add(counter)
        highest = max(seen, default=-1)
        assert window.highest == highest
        assert not window.is_fresh(highest) or highest < 0


def test_edges() -> None:
    window = ReplayWindow()
    assert window.is_fresh(0)
    window.add(REPLAY_WINDOW)
    assert window.is_fresh(1)
    assert not window.is_fresh(0)
    window.add(1)
    assert not window.is_fresh(1)
    window.add(2**64 - 2)
    assert not window.is_fresh(REPLAY_WINDOW)
    assert window.is_fresh(2**64 - 3)


def test_a_run_longer_than_the_jump_before_it() -> None:
    window = ReplayWindow()
    window.add_run(5, 3)
    window.add_run(8, 64)
    assert [counter for counter in range(80) if window.is_fresh(counter)] == [0, 1, 2, 3, 4, *range(72, 80)]


def test_a_run_far_ahead() -> None:
    window = ReplayWindow()
    window.add(0)
    window.add_run(10 * REPLAY_WINDOW, 4)
    assert window.is_fresh(10 * REPLAY_WINDOW - 1)
    assert not any(window.is_fresh(10 * REPLAY_WINDOW + at) for at in range(4))
