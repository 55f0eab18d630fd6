"""The check list of one dial (RFC 8445 §6.1.2): which remote candidates are tried, when, and what became of each.

Unlike ICE's, a list grows while it runs (candidates trickle), starts every check within milliseconds of the one before
whatever the round trip time, and forms no pairs by local candidate: one socket serves all remote candidates of a
transport, so that a pair is a remote candidate.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from crust.errors import LocalProtocolError
from crust.proto.nat.candidates import RemoteCandidate
from crust.types import Transport
from crust.wire.stun import Address

__all__ = ["Check", "CheckList", "CheckState"]


class CheckState(enum.Enum):
    """Where one check stands (RFC 8445 §6.1.2.6; nothing is ever frozen)."""

    WAITING = "not begun"
    IN_PROGRESS = "begun"
    SUCCEEDED = "answered"
    FAILED = "failed"
    CANCELLED = "no longer needed"


class CheckInput(enum.Enum):
    """What happens to a check."""

    START = "its turn has come"
    SUCCESS = "the peer answered"
    FAILURE = "refused, unreachable or silent"
    CANCEL = "another one won, or the dial was given up"


_S, _I = CheckState, CheckInput

TRANSITIONS: dict[tuple[CheckState, CheckInput], CheckState] = {
    (_S.WAITING, _I.START): _S.IN_PROGRESS,
    (_S.WAITING, _I.SUCCESS): _S.SUCCEEDED,  # the peer was faster
    (_S.WAITING, _I.FAILURE): _S.FAILED,
    (_S.WAITING, _I.CANCEL): _S.CANCELLED,
    (_S.IN_PROGRESS, _I.SUCCESS): _S.SUCCEEDED,
    (_S.IN_PROGRESS, _I.FAILURE): _S.FAILED,
    (_S.IN_PROGRESS, _I.CANCEL): _S.CANCELLED,
    (_S.SUCCEEDED, _I.SUCCESS): _S.SUCCEEDED,
    (_S.SUCCEEDED, _I.FAILURE): _S.FAILED,  # lost again before the dial was over
    (_S.SUCCEEDED, _I.CANCEL): _S.SUCCEEDED,
    (_S.FAILED, _I.SUCCESS): _S.SUCCEEDED,  # a late answer
    (_S.FAILED, _I.FAILURE): _S.FAILED,
    (_S.FAILED, _I.CANCEL): _S.FAILED,
    (_S.CANCELLED, _I.SUCCESS): _S.SUCCEEDED,
    (_S.CANCELLED, _I.FAILURE): _S.CANCELLED,
    (_S.CANCELLED, _I.CANCEL): _S.CANCELLED,
}


@dataclass(slots=True)
class Check:
    """One remote candidate under test.

    Attributes:
        remote: the candidate.
        state: where it stands.
        started_at: when its turn came.
        ended_at: when it was answered, failed or cancelled.
        detail: the outcome in words.
    """

    remote: RemoteCandidate
    state: CheckState = CheckState.WAITING
    started_at: float | None = None
    ended_at: float | None = None
    detail: str = ""

    @property
    def key(self) -> tuple[Transport, Address]:
        """Transport and address."""
        return self.remote.candidate.transport, self.remote.address


class CheckList:
    """Remote candidates in order of priority, started one by one.

    Args:
        stagger: seconds between two starts.
        limit: how many candidates are taken at most.
    """

    def __init__(self, *, stagger: float = 0.005, limit: int = 64) -> None:
        self._stagger = stagger
        self._limit = limit
        self._checks: dict[tuple[Transport, Address], Check] = {}
        self._next_start = 0.0
        self._closed = False

    @property
    def checks(self) -> list[Check]:
        """All checks, in the order in which they were or will be started."""
        started = [check for check in self._checks.values() if check.started_at is not None]
        started.sort(key=lambda check: check.started_at or 0.0)
        return started + self._waiting() + [c for c in self._checks.values() if _never_started(c)]

    def add(self, candidates: Iterable[RemoteCandidate]) -> list[Check]:
        """Take candidates, also while the list runs.

        A known address is not tested twice; it keeps the higher trust of the two.

        Returns:
            The new checks.
        """
        added = []
        for remote in candidates:
            check = Check(remote)
            known = self._checks.get(check.key)
            if known is not None:
                if remote.trust > known.remote.trust:
                    known.remote = remote
            elif len(self._checks) < self._limit and not self._closed:
                self._checks[check.key] = check
                added.append(check)
        return added

    def __contains__(self, key: tuple[Transport, Address]) -> bool:
        return key in self._checks

    def start(self, now: float) -> list[Check]:
        """The checks whose turn has come; they count as begun.

        A timer that fires a little late costs nothing, as one start is made up for; after a pause there is no burst.
        """
        due = []
        for check in self._waiting():
            if self._next_start > now:
                break
            paused = now - self._next_start > 2 * self._stagger
            self._next_start = (now if paused else self._next_start) + self._stagger
            check.started_at = now
            self._step(check, CheckInput.START, now, "")
            due.append(check)
        return due

    def next_timeout(self) -> float | None:
        """When the next check is to be started."""
        return self._next_start if self._waiting() else None

    def succeeded(self, key: tuple[Transport, Address], now: float, detail: str = "") -> None:
        """The peer answered from there.

        Raises:
            LocalProtocolError: no such check.
        """
        self._step(self._find(key), CheckInput.SUCCESS, now, detail)

    def failed(self, key: tuple[Transport, Address], now: float, detail: str) -> None:
        """It was refused, is unreachable, or stayed silent.

        Raises:
            LocalProtocolError: no such check.
        """
        self._step(self._find(key), CheckInput.FAILURE, now, detail)

    def close(self, now: float, detail: str = "") -> None:
        """Cancel what is not decided; nothing is taken or started any more."""
        self._closed = True
        for check in self._checks.values():
            self._step(check, CheckInput.CANCEL, now, detail)

    @property
    def exhausted(self) -> bool:
        """Every check has ended, and none of them well."""
        return all(c.state in (CheckState.FAILED, CheckState.CANCELLED) for c in self._checks.values())

    def _find(self, key: tuple[Transport, Address]) -> Check:
        try:
            return self._checks[key]
        except KeyError:
            raise LocalProtocolError(f"no check of {key}") from None

    def _waiting(self) -> list[Check]:
        waiting = [check for check in self._checks.values() if check.state is CheckState.WAITING]
        waiting.sort(key=lambda check: (not check.remote.near, -check.remote.priority))
        return waiting

    def _step(self, check: Check, happened: CheckInput, now: float, detail: str) -> None:
        before, check.state = check.state, TRANSITIONS[check.state, happened]
        if check.state is not before and check.state is not CheckState.IN_PROGRESS:
            check.ended_at, check.detail = now, detail


def _never_started(check: Check) -> bool:
    return check.started_at is None and check.state is not CheckState.WAITING
