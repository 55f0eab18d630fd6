"""Cost of the µTP engine in microseconds a packet: `python tests/bench/utp_engine.py [PACKET_BYTES]`.

Two engines in one process, without sockets or encryption. "send" is taking data, making headers and taking in
acknowledgements; "receive" is taking in packets, reading them and making acknowledgements. `run` hands over batches as
the tunnel does, `list` datagram by datagram as a bare socket does.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

from crust.proto.utp.config import UtpConfig
from crust.proto.utp.connection import UtpConnection


class Cost(NamedTuple):
    """Microseconds a packet."""

    send: float
    receive: float
    packets: int


def measure(mode: str, packet_bytes: int = 1400, total: int = 64 << 20, batch_datagrams: int = 64) -> Cost:
    """Transfer `total` bytes from one engine to the other."""
    config = UtpConfig(
        tunnel=True,
        mtu=packet_bytes,
        mtu_ceiling=packet_bytes,
        max_batch_datagrams=batch_datagrams,
        unsent_limit=1 << 20,
    )
    now = 1000.0
    a = UtpConnection.established(config, now, receive_id=1, send_id=2)
    b = UtpConnection.established(config, now, receive_id=2, send_id=1)
    block = memoryview(bytes(256 << 10))
    clock = time.process_time  # what others do on the machine does not count
    sending = receiving = 0.0
    packets = received = sent = 0
    body_bytes = packet_bytes - 20
    while received < total:
        now += 0.0001
        begun = clock()
        while a.send_space >= len(block) and sent < total:
            sent += a.send_data(block, now)
        batches = a.datagrams_to_send(now)
        sending += clock() - begun
        for batch in batches:
            # What the carrier would do, which is not the engine's cost.
            if mode == "run":
                headers, bodies = bytes(batch.headers), memoryview(b"".join(batch.bodies))
            else:
                datagrams = [memoryview(datagram) for datagram in batch.datagrams()]
            packets += len(batch.bodies)
            begun = clock()
            if mode == "run":
                b.receive_run(headers, bodies, body_bytes, now)
            else:
                b.receive_datagrams(datagrams, now)
            size = sum(len(buffer) for buffer in b.data_to_read())
            b.consumed(size)
            received += size
            acks = b.datagrams_to_send(now)
            receiving += clock() - begun
            back = [memoryview(datagram) for ack in acks for datagram in ack.datagrams()]
            begun = clock()
            a.receive_datagrams(back, now)
            sending += clock() - begun
        if not batches:
            now = max(now, a.next_timeout() or now)
            a.handle_timeout(now)
            b.handle_timeout(now)
            for ack in b.datagrams_to_send(now):
                a.receive_datagrams([memoryview(datagram) for datagram in ack.datagrams()], now)
    return Cost(sending / packets * 1e6, receiving / packets * 1e6, packets)


def main() -> None:
    """Print a line for each way of handing over."""
    packet_bytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1400
    for mode, batch in (("run", 64), ("list", 64), ("list", 2)):
        best = min((measure(mode, packet_bytes, batch_datagrams=batch) for _ in range(5)), key=sum)
        print(
            f"{mode:4} of {batch:2}: send {best.send:.2f} µs, receive {best.receive:.2f} µs a packet of "
            f"{packet_bytes} bytes ({best.packets} packets)"
        )


if __name__ == "__main__":
    main()
