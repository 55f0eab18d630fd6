"""The one clock: monotonic seconds, which do not count while the machine sleeps (on Linux)."""

from __future__ import annotations

from time import monotonic

__all__ = ["monotonic"]

# Not `loop.time()`: uvloop's has a resolution of a millisecond, which is fifty round trips over loopback. Both have the
# same origin, so deadlines can be handed to `loop.call_at`.
