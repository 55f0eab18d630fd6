"""What one µTP connection may use and how it behaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crust.wire.utp import HEADER_BYTES

__all__ = ["UtpConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UtpConfig:
    """Settings of a connection.

    Attributes:
        tunnel: the packets travel inside an authenticated tunnel between two Crust nodes: our own extensions are used,
            and a peer that breaks the protocol ends the connection. Bare, anybody could have forged such a packet: it
            is dropped and counted.
        congestion: "cubic", or "ledbat" for what must give way to everything else.
        receive_window: bytes received and not yet consumed, reordered ones included.
        send_buffer: bytes sent and not acknowledged, or waiting to be sent.
        unsent_limit: bytes of these that may wait to be sent; what is still with the application can be reordered.
        mtu: size of a packet, header included, that every path carries (1280, the least MTU of IPv6, less IPv6, UDP
            and what a tunnel adds).
        mtu_ceiling: largest packet that the search tries; equal to `mtu` for no search.
        datagram_overhead: bytes that the carrier adds to each packet (the tunnel's header and tag), which counts when
            packets are gathered into one send.
        max_batch_datagrams: packets in one batch.
        ack_delay: seconds that the ack of a single packet may wait for company.
        peer_ack_delay: the same of a bare peer, for time-outs (libutp: 100 ms); in the tunnel it is `ack_delay`.
        keepalive: seconds without sending after which a packet keeps NATs open; 0 for never (a tunnel has its own).
        idle_timeout: seconds without a packet of the peer after which it is taken for dead; 0 for never.
        stall_timeout: seconds for which the peer may acknowledge nothing, or keep its window shut, while there is
            something to send.
        close_timeout: seconds to wait for the peer's end after ours has been acknowledged.
    """

    tunnel: bool = False
    congestion: Literal["cubic", "ledbat"] = "cubic"
    receive_window: int = 16 << 20
    send_buffer: int = 16 << 20
    unsent_limit: int = 1 << 20
    mtu: int = 1200
    mtu_ceiling: int = 1452
    datagram_overhead: int = 0
    max_batch_datagrams: int = 64
    ack_delay: float = 0.005
    peer_ack_delay: float = 0.1
    keepalive: float = 0.0
    idle_timeout: float = 0.0
    stall_timeout: float = 60.0
    close_timeout: float = 10.0

    def __post_init__(self) -> None:
        """Check what the types cannot say.

        Raises:
            ValueError: a setting that cannot work.
        """
        if not HEADER_BYTES + 256 <= self.mtu <= self.mtu_ceiling <= 65_507:
            raise ValueError("mtu and mtu_ceiling: 276 <= mtu <= mtu_ceiling <= 65507")
        if self.receive_window < self.mtu_ceiling or self.send_buffer < self.mtu_ceiling:
            raise ValueError("receive_window and send_buffer must hold a packet")
        if self.congestion not in ("cubic", "ledbat"):
            raise ValueError('congestion: "cubic" or "ledbat"')
