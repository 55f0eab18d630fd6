"""Timers of an association, by name."""

from __future__ import annotations

import enum

__all__ = ["Timer"]


class Timer(enum.IntEnum):
    """What an association may wait for, beside µTP's own."""

    KEEPALIVE = 0  # nothing was sent for long: a NAT might forget us
    CHALLENGE = 1  # a new address has not answered: ask again, or give it up
    RENEW = 2  # the keys are old, or the peer has not answered our renewal
    OLD_KEY = 3  # what was sent under the old key has arrived by now
    QUIET = 4  # a stream of data has stopped: let the peer see where we are
