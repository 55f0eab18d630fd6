"""The table of states."""

from __future__ import annotations

from crust.proto.utp.state import TRANSITIONS, Input, State


def test_every_state_ends() -> None:
    """From each state a fault and a RESET lead out, and each is reached."""
    ends = {State.CLOSED, State.FAILED}
    for state in set(State) - ends:
        assert TRANSITIONS[state, Input.FAULT] is State.FAILED
        assert TRANSITIONS[state, Input.RESET] in ends
    assert not any(state in ends for state, _ in TRANSITIONS)
    assert set(TRANSITIONS.values()) | {State.SYN_SENT, State.SYN_RECEIVED} == set(State)
