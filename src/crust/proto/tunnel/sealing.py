"""Batches of packets into datagrams and back: the code in which an endpoint spends its time.

All memory is prepared once: a buffer for whole batches, and for each size of datagram the slices of it that a batch
needs (a *plan*), as making a slice costs a tenth of what sealing costs. Loops over packets run inside `map`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import repeat
from operator import setitem
from struct import Struct
from typing import Any, Final

from crust.crypto.aead import TAG_BYTES
from crust.proto.tunnel.header import MAX_SEGMENTS, HeaderMask
from crust.proto.tunnel.keys import ReceiveKey, SendKey
from crust.wire.tunnel import HEADER_BYTES, NONCE_BYTES, SAMPLE_BYTES, SMALLEST_DATAGRAM
from crust.wire.utp import HEADER_BYTES as UTP_BYTES
from crust.wire.utp import Buffer

__all__ = ["BUFFER_BYTES", "Opener", "Sealer"]

BUFFER_BYTES: Final = 65_536
_SAMPLE_END: Final = HEADER_BYTES + SAMPLE_BYTES
_SMALL: Final = 1500
_PLANS_KEPT: Final = 4
# A batch of fewer datagrams is not worth a plan: its slices are made for it alone.
_PLAN_LEAST: Final = 6
_WHOLE: Final = repeat(slice(None))
_SET: Final[Callable[..., None]] = setitem
_LOW: Final = bytes(range(256)) * 2


@cache
def _header_fields(count: int) -> Struct:
    """So many headers, as bytes."""
    return Struct(f">{'32s' * count}")


@cache
def _nonce_fields(count: int) -> Struct:
    """Index and counter of so many headers."""
    return Struct(f">{'IQ20x' * count}")


def _run(calls: Iterable[Any]) -> None:
    """Exhaust a `map`."""
    deque(calls, maxlen=0)


def _slices(view: memoryview, start: int, length: int, stride: int, count: int) -> list[memoryview]:
    return [view[at : at + length] for at in range(start, start + stride * count, stride)]


def _samples(view: memoryview, stride: int, count: int) -> list[memoryview]:
    """The sample of each datagram, twice in a row, as `HeaderMask` takes them."""
    starts = range(HEADER_BYTES, stride * count, stride)
    return [view[at : at + SAMPLE_BYTES] for at in starts for _ in (0, 1)]


class _Plan:
    """The slices of a buffer for datagrams of one size."""

    __slots__ = ("headers", "plain", "samples", "sealed")

    def __init__(self, buffer: memoryview, plain: memoryview | None, size: int) -> None:
        count = min(len(buffer) // size, MAX_SEGMENTS)
        self.headers = _slices(buffer, 0, HEADER_BYTES, size, count)
        self.sealed = _slices(buffer, HEADER_BYTES, size - HEADER_BYTES, size, count)
        self.samples = _samples(buffer, size, count)
        body = size - SMALLEST_DATAGRAM
        self.plain = [] if plain is None else _slices(plain, 0, body, body, count) if body else [plain[:0]] * count


class _Planner:
    """Plans for the sizes used of late."""

    __slots__ = ("_buffer", "_plain", "_plans")

    def __init__(self, buffer: memoryview, plain: memoryview | None) -> None:
        self._buffer = buffer
        self._plain = plain
        self._plans: OrderedDict[int, _Plan] = OrderedDict()

    def find(self, size: int) -> _Plan | None:
        """The plan for a size, if there is one."""
        return self._plans.get(size)

    def plan(self, size: int) -> _Plan:
        """The plan for a size, made if need be."""
        plans = self._plans
        found = plans.get(size)
        if found is None:
            found = plans[size] = _Plan(self._buffer, self._plain, size)
            if len(plans) > _PLANS_KEPT:
                plans.popitem(last=False)
        else:
            plans.move_to_end(size)
        return found


class _Headers:
    """A buffer of unmasked headers and its slices."""

    __slots__ = ("associated", "nonces", "utp", "view")

    def __init__(self) -> None:
        self.view = memoryview(bytearray(HEADER_BYTES * MAX_SEGMENTS))
        self.nonces = _slices(self.view, 0, NONCE_BYTES, HEADER_BYTES, MAX_SEGMENTS)
        self.associated = _slices(self.view, 0, HEADER_BYTES, HEADER_BYTES, MAX_SEGMENTS)
        self.utp = _slices(self.view, NONCE_BYTES, UTP_BYTES, HEADER_BYTES, MAX_SEGMENTS)


class Sealer:
    """Seals batches; what it returns is valid until the next call."""

    __slots__ = ("_buffer", "_headers", "_planner")

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._headers = _Headers()
        self._planner = _Planner(self._buffer, None)

    def seal(
        self, key: SendKey, headers: bytes | bytearray, bodies: Sequence[Buffer], *, is_run: bool = False
    ) -> tuple[bytes | memoryview, int]:
        """Seal packets, all of one size but for the last, which may be shorter.

        Args:
            key: for the receiver.
            headers: the µTP headers, 20 bytes each.
            bodies: what follows each.
            is_run: the headers differ in their sequence number only, each one more than the one before.

        Returns:
            The datagrams one after the other, and the size of each.

        Raises:
            KeyExhaustedError: the key must not be used any more.
        """
        count = len(bodies)
        body = len(bodies[0])
        size = SMALLEST_DATAGRAM + body
        if count == 1:
            return self.seal_one(key, headers, bodies[0]), size
        own = self._headers
        plain = _tunnel_headers(key.index_bytes, key.take(count), headers, count, is_run)
        own.view[: len(plain)] = plain
        buffer = self._buffer
        if count < _PLAN_LEAST:
            starts = _slices(buffer, 0, HEADER_BYTES, size, count)
            outs = _slices(buffer, HEADER_BYTES, body + TAG_BYTES, size, count)
            samples = _samples(buffer, size, count)
        else:
            plan = self._planner.plan(size)
            starts, outs, samples = plan.headers, plan.sealed[:count], plan.samples[: 2 * count]
        last = len(bodies[-1])
        end = size * (count - 1) + SMALLEST_DATAGRAM + last
        if last != body:
            outs[-1] = buffer[end - last - TAG_BYTES : end]
        _run(map(key.aead.encrypt_into, own.nonces, bodies, own.associated, outs))
        masked = key.mask.apply(plain, b"".join(samples))
        _run(map(_SET, starts, _WHOLE, _header_fields(count).unpack(masked)))
        return buffer[:end], size

    def seal_one(self, key: SendKey, utp_header: bytes | bytearray, body: Buffer) -> bytes | memoryview:
        """Seal one packet into a datagram.

        Raises:
            KeyExhaustedError: the key must not be used any more.
        """
        header = key.index_bytes + key.take(1).to_bytes(8, "big") + utp_header
        size = SMALLEST_DATAGRAM + len(body)
        if size <= _SMALL:
            sealed = key.aead.encrypt(header[:NONCE_BYTES], body, header)
            return key.mask.apply_one(header, sealed[:SAMPLE_BYTES]) + sealed
        out = self._buffer[:size]
        key.aead.encrypt_into(header[:NONCE_BYTES], body, header, out[HEADER_BYTES:])
        out[:HEADER_BYTES] = key.mask.apply_one(header, bytes(out[HEADER_BYTES:_SAMPLE_END]))
        return out


def _tunnel_headers(
    index: bytes, first: int, headers: bytes | bytearray, count: int, is_run: bool
) -> bytes | bytearray:
    """Headers of 32 bytes: index, counter and µTP header of each packet."""
    low = first & 0xFFFF
    if is_run and low + count <= 0x10000:
        run = bytearray((index + first.to_bytes(8, "big") + headers[:UTP_BYTES]) * count)
        high, low = low >> 8, low & 0xFF
        run[11::32] = _LOW[low : low + count]
        if low + count > 256:
            run[10::32] = bytes((high,)) * (256 - low) + bytes((high + 1,)) * (low + count - 256)
        run[28::32] = headers[16::UTP_BYTES]
        run[29::32] = headers[17::UTP_BYTES]
        return run
    return b"".join(
        index + (first + at).to_bytes(8, "big") + headers[at * UTP_BYTES : (at + 1) * UTP_BYTES] for at in range(count)
    )


class Opener:
    """Unmasks and opens batches.

    Attributes:
        buffer: to receive into; batches that lie in it are opened with prepared slices.
        headers: the unmasked headers of the last batch, 32 bytes each.
    """

    __slots__ = ("_headers", "_memory", "_plain", "_planner", "buffer")

    def __init__(self) -> None:
        self._memory = bytearray(BUFFER_BYTES)
        self.buffer = memoryview(self._memory)
        self._plain = memoryview(bytearray(BUFFER_BYTES))
        self._headers = _Headers()
        self._planner = _Planner(self.buffer, self._plain)

    @property
    def headers(self) -> memoryview:
        """The unmasked headers of the last batch, 32 bytes each."""
        return self._headers.view

    def unmask(self, mask: HeaderMask, data: memoryview, size: int, count: int) -> tuple[int, ...]:
        """Unmask the headers of datagrams that lie one after the other.

        Args:
            mask: ours.
            data: the datagrams.
            size: of each but the last, which may be shorter; at least 48.
            count: how many.

        Returns:
            Index and counter of each, in turn.
        """
        if count == 1:
            return _nonce_fields(1).unpack(self.unmask_one(mask, data))
        plan = self._planner.find(size) if data.obj is self._memory else None
        if plan is None:
            starts = _slices(data, 0, HEADER_BYTES, size, count)
            samples = _samples(data, size, count)
        else:
            starts, samples = plan.headers[:count], plan.samples[: 2 * count]
        plain = mask.apply(b"".join(starts), b"".join(samples))
        self._headers.view[: len(plain)] = plain
        return _nonce_fields(count).unpack(plain)

    def unmask_one(self, mask: HeaderMask, datagram: memoryview) -> bytes:
        """Unmask the header of one datagram."""
        start = bytes(datagram[:_SAMPLE_END])
        plain = mask.apply_one(start[:HEADER_BYTES], start[HEADER_BYTES:])
        self._headers.view[:HEADER_BYTES] = plain
        return plain

    def utp_headers(self, count: int) -> bytes:
        """The µTP headers of the last batch, 20 bytes each."""
        return b"".join(self._headers.utp[:count])

    def open_run(self, key: ReceiveKey, data: memoryview, size: int, count: int) -> bytes:
        """Open all datagrams of the batch that was unmasked last, all under one key.

        Returns:
            Their bodies, one after the other.

        Raises:
            InvalidTag: at least one is not authentic.
        """
        own = self._headers
        if count == 1:
            return key.aead.decrypt(own.nonces[0], data[HEADER_BYTES:], own.associated[0])
        body = size - SMALLEST_DATAGRAM
        plain = self._plain
        plan = self._planner.find(size) if data.obj is self._memory else None
        if plan is None:
            sealed = _slices(data, HEADER_BYTES, body + TAG_BYTES, size, count)
            outs = _slices(plain, 0, body, body, count) if body else [plain[:0]] * count
        else:
            sealed, outs = plan.sealed[:count], plan.plain[:count]
        last = len(data) - size * (count - 1) - SMALLEST_DATAGRAM
        end = body * (count - 1) + last
        if last != body:
            sealed[-1] = data[size * (count - 1) + HEADER_BYTES :]
            outs[-1] = plain[end - last : end]
        _run(map(key.aead.decrypt_into, own.nonces, sealed, own.associated, outs))
        if plan is not None or (count >= _PLAN_LEAST and data.obj is self._memory):
            # Only now: strangers' batches of many sizes must not drive out the plans of those who use them.
            self._planner.plan(size)
        return bytes(plain[:end])

    def open_one(self, key: ReceiveKey, datagram: memoryview, at: int) -> bytes:
        """Open one datagram, the `at`-th of the batch that was unmasked last.

        Raises:
            InvalidTag: it is not authentic.
        """
        own = self._headers
        return key.aead.decrypt(own.nonces[at], datagram[HEADER_BYTES:], own.associated[at])
