"""The clocks: monotonic seconds, which do not count while the machine sleeps (on Linux), and the wall clock.

Nothing is decided by the wall clock; it goes into signatures, as what their maker claims.
"""

from __future__ import annotations

import time
from time import monotonic
from time import time as wall_clock
from typing import Final

__all__ = ["TIMER_SLACK", "monotonic", "seconds_slept", "wall_clock"]

# Not `loop.time()`: uvloop's has a resolution of a millisecond, which is fifty round trips over loopback. Both have the
# same origin, so deadlines can be handed to `loop.call_at`.

TIMER_SLACK: Final = 0.0005
"""To be added to what `loop.call_at` is given: uvloop rounds to the nearest millisecond, and who is called before his
deadline finds nothing to do, asks again, and so keeps the processor busy until it comes."""


def seconds_slept() -> float:
    """For how long the machine has slept since it was started; 0.0 where the system does not say."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
