"""Requests and answers over a control socket, seen from asyncio."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from crust.testing.natlab.errors import LabError

__all__ = ["Channel"]

_MESSAGE_BYTES = 1 << 20


class Channel:
    """One side of a SOCK_SEQPACKET pair; the other is a process of the lab."""

    def __init__(self, peer: str, control: socket.socket, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Speak to a process.

        Args:
            peer: what to call the process in errors.
            control: our end; the channel owns it.
            on_event: takes messages that answer no request.
        """
        self._peer = peer
        self._control = control
        self._on_event = on_event
        self._waiting: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._serial = 0
        self._lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self._receive)

    async def call(self, verb: str, /, *, descriptors: Sequence[int] = (), **arguments: Any) -> Any:
        """Ask for something and wait for the answer.

        Raises:
            OSError: what the kernel said to it.
            LabError: the process failed, or is gone.
        """
        result, passed = await self._call(verb, descriptors, arguments)
        for descriptor in passed:
            os.close(descriptor)
        return result

    async def call_for_socket(self, verb: str, /, **arguments: Any) -> socket.socket:
        """Ask for a socket."""
        _, passed = await self._call(verb, (), arguments)
        made = socket.socket(fileno=passed[0])
        made.setblocking(False)
        return made

    async def _call(self, verb: str, descriptors: Sequence[int], arguments: dict[str, Any]) -> tuple[Any, list[int]]:
        if self._closed.is_set():
            raise LabError(f"the {self._peer} of the lab is gone")
        self._serial += 1
        number = self._serial
        message = json.dumps({"verb": verb, "id": number, **arguments}).encode()
        answer: asyncio.Future[tuple[Any, list[int]]] = self._loop.create_future()
        self._waiting[number] = answer
        try:
            async with self._lock:
                await self._send(message, list(descriptors))
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def _send(self, message: bytes, descriptors: list[int]) -> None:
        while True:
            try:
                socket.send_fds(self._control, [message], descriptors)
            except BlockingIOError:
                writable = asyncio.Event()
                self._loop.add_writer(self._control.fileno(), writable.set)
                try:
                    await writable.wait()
                finally:
                    self._loop.remove_writer(self._control.fileno())
            except BrokenPipeError:
                raise LabError(f"the {self._peer} of the lab is gone") from None
            else:
                return

    def _receive(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self.close()
                return
            message = json.loads(data)
            waiter = self._waiting.get(message.get("id", -1))
            if waiter is None or waiter.done():
                for descriptor in descriptors:
                    os.close(descriptor)
                if "id" not in message:
                    self._on_event(message)
            elif "error" not in message:
                waiter.set_result((message["result"], list(descriptors)))
            elif message["errno"] is None:
                waiter.set_exception(LabError(f"{self._peer}: {message['error']}"))
            else:
                waiter.set_exception(OSError(message["errno"], message["error"]))

    def close(self) -> None:
        """Let go of the process; whoever waits gets a LabError."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(LabError(f"the {self._peer} of the lab is gone"))
