"""Kinds and layouts: what writing and reading frames have in common."""

from __future__ import annotations

import struct
from typing import Final

RECORD_LIMIT: Final = 65536
"""Most bytes in one record, so in one fragment or chunk (a masked 16-bit field holds the length - 1)."""

INLINE_LIMIT: Final = 16384
"""Fragments and chunks up to this size travel inside the control record: copying them is cheaper than a record."""

PADDING, HELLO, ACK, CREDIT, STREAM_CREDIT, PING, PONG, GONE, PATH_CLOSE = range(9)
DATAGRAM, PATH_SERVICE, MAX_STREAMS, SIGNATURE_DELAY = range(9, 13)
MESSAGES, FRAGMENT, ABORT, STREAM_OPEN, STREAM_DATA = range(0x10, 0x15)
STREAM_FIN, STREAM_RESET, STREAM_STOP, CLOSE, SEED, SIGNATURE, SERVICE = range(0x15, 0x1C)

HELLO_BODY = struct.Struct(">B16s16sQIII")
ACK_BODY = struct.Struct(">BQ")
CREDIT_BODY = struct.Struct(">BBQ")
STREAM_CREDIT_BODY = struct.Struct(">BQQ")
GONE_BODY = struct.Struct(">B16sB")
SIZED_BODY = struct.Struct(">BH")
MESSAGES_BODY = struct.Struct(">BQBH")
LENGTH = struct.Struct(">H")
FRAGMENT_BODY = struct.Struct(">BQBQIB")
ABORT_BODY = struct.Struct(">BQB")
STREAM_OPEN_BODY = struct.Struct(">BQQBB")
STREAM_DATA_BODY = struct.Struct(">BQQIB")
STREAM_BODY = struct.Struct(">BQQ")
STREAM_CODE_BODY = struct.Struct(">BQQI")
CLOSE_BODY = struct.Struct(">BQI")
SEED_BODY = struct.Struct(">BQ32s")
SIGNATURE_BODY = struct.Struct(">BQH")

PRIORITIES: Final = 8
