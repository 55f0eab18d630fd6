"""The table of states."""

from __future__ import annotations

from pathlib import Path

from crust.proto.utp.state import TRANSITIONS, Input, State


def test_every_state_ends() -> None:
    """From each state a fault and a RESET lead out, and each is reached."""
    ends = {State.CLOSED, State.FAILED}
    for state in set(State) - ends:
        assert TRANSITIONS[state, Input.FAULT] is State.FAILED
        assert TRANSITIONS[state, Input.RESET] in ends
    assert not any(state in ends for state, _ in TRANSITIONS)
    assert set(TRANSITIONS.values()) | {State.SYN_SENT, State.SYN_RECEIVED} == set(State)


def test_documented() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "explanation" / "utp.md").read_text(encoding="utf-8")
    listed = {line for line in page.splitlines() if line.count("|") == 4 and line[2:3].islower()}

    def words(name: str) -> str:
        return name.lower().replace("_", " ")

    assert {
        f"| {words(state.name)} | {words(event.name)} | {words(after.name)} |"
        for (state, event), after in TRANSITIONS.items()
        if after is not State.FAILED
    } <= listed
