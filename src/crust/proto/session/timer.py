"""What a session waits for."""

from __future__ import annotations

import enum

__all__ = ["Timer"]


class Timer(enum.IntEnum):
    """The timers of a session. Integers, as they are looked up for each record."""

    ACK = 1  # acknowledge what has come
    STALL = 2  # data without progress: probe the path
    HEARTBEAT = 3  # silence: ask for a sign of life
    DEADLINE = 4  # no sign of life: the path is dead
    CLOSE = 5  # the peer does not confirm our end
    RESUME = 6  # no path: the peer does not come back
    SIGN = 7  # a batch is due to be signed; the next write does it
    EXPIRY = 8  # a queued message expires
    CHECK = 9  # the peer has brought another path: does ours still answer?
