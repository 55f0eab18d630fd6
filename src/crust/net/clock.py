"""The clocks: monotonic seconds, which do not count while the machine sleeps (on Linux), and the wall clock.

Nothing is decided by the wall clock; it goes into signatures, as what their maker claims.
"""

from __future__ import annotations

from time import monotonic
from time import time as wall_clock

__all__ = ["monotonic", "wall_clock"]

# Not `loop.time()`: uvloop's has a resolution of a millisecond, which is fifty round trips over loopback. Both have the
# same origin, so deadlines can be handed to `loop.call_at`.
