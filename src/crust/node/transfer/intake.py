"""From the bytes of a transfer's stream to files: runs in the receiver's thread, one chunk after another."""

from __future__ import annotations

from crust.errors import RemoteProtocolError
from crust.node.transfer.destination import Destination
from crust.node.transfer.digest import DIGEST_BYTES
from crust.node.transfer.error import FailureKind
from crust.node.transfer.frame import FILE, HEADER, WHOLE, Frame, parse_failure, parse_header

__all__ = ["Intake"]


class Intake:
    """Parses what follows the VERDICT and writes it.

    Args:
        destination: where the files go.
    """

    def __init__(self, destination: Destination) -> None:
        self._finished = False
        self._destination = destination
        self._buffer = bytearray()  # a frame of which only a part has come
        self._data_left = 0  # of a DATA that is being passed on

    def done(self) -> bytes:
        """The stream has ended; returns the hash over the hashes of all files.

        Raises:
            RemoteProtocolError: it ended too soon.
        """
        if not self._finished:
            raise RemoteProtocolError("the stream of the transfer ended too soon")
        return self._destination.done()

    def feed(self, chunk: bytes) -> None:
        """Take some bytes, split anywhere.

        Raises:
            RemoteProtocolError: the sender broke the protocol.
            TransferError: the disk failed, or the sender gave up.
        """
        view = memoryview(chunk)
        while view:
            if self._data_left:
                part = view[: self._data_left]
                self._destination.write(part)
                self._data_left -= len(part)
                view = view[len(part) :]
            elif self._buffer:
                view = self._fill(view)
            elif len(view) < HEADER.size:
                self._buffer += view
                return
            else:
                kind, length = parse_header(view[: HEADER.size])
                if kind is Frame.DATA:
                    self._data_left = length
                    view = view[HEADER.size :]
                elif len(view) >= HEADER.size + length:
                    self._handle(kind, view[HEADER.size : HEADER.size + length])
                    view = view[HEADER.size + length :]
                else:
                    self._buffer += view
                    return

    def _fill(self, view: memoryview) -> memoryview:
        """Add to the frame that began in an earlier chunk; returns the rest."""
        buffer = self._buffer
        if len(buffer) < HEADER.size:
            missing = HEADER.size - len(buffer)
            buffer += view[:missing]
            view = view[missing:]
            if len(buffer) < HEADER.size:
                return view
        kind, length = parse_header(memoryview(buffer)[: HEADER.size].tobytes())
        if kind is Frame.DATA:
            self._buffer = bytearray()
            self._data_left = length
            return view
        missing = HEADER.size + length - len(buffer)
        buffer += view[:missing]
        if len(buffer) == HEADER.size + length:
            self._buffer = bytearray()
            self._handle(kind, memoryview(buffer)[HEADER.size :])
        return view[missing:]

    def _handle(self, kind: Frame, body: memoryview) -> None:
        destination = self._destination
        if self._finished:
            raise RemoteProtocolError(f"a {kind.name} after the end")
        if kind is Frame.WHOLE:
            if len(body) < WHOLE.size:
                raise RemoteProtocolError("a truncated WHOLE")
            number, expected = WHOLE.unpack_from(body)
            destination.write_whole(number, expected, body[WHOLE.size :])
        elif kind is Frame.FILE:
            if len(body) != FILE.size:
                raise RemoteProtocolError("a FILE of the wrong length")
            destination.begin(*FILE.unpack(body))
        elif kind is Frame.END:
            if len(body) != DIGEST_BYTES:
                raise RemoteProtocolError("an END of the wrong length")
            destination.end(bytes(body))
        elif kind is Frame.DONE:
            self._finished = True
        elif kind is Frame.FAIL:
            failed = parse_failure(bytes(body), "sender")
            if failed.kind is not FailureKind.INTERRUPTED:
                destination.discard_open()  # it changed: what came of it is of no use
            raise failed
        else:
            raise RemoteProtocolError(f"a {kind.name} where none belongs")
