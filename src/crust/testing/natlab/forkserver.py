"""A process of a lab that has a program loaded and forks for each call of it, which saves the time of the imports.

Starting Python with all of Crust takes 0.3 s of a core; a matrix does it thousands of times, and on a small machine
that is most of its work, and disturbs what it measures. The child of a fork differs from a fresh process in nothing
that a program could notice: it has namespaces, environment, directory, arguments and standard streams of its own, and
it belongs to the keeper, as all programs of the lab.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["main"]

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_MESSAGE_BYTES = 1 << 20
_MAX_DESCRIPTORS = 8

_Program = Callable[[list[str]], int]


def _serve(control: socket.socket, program: _Program) -> None:
    """Fork once for each message: its descriptors are a network namespace and the three standard streams."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, _MAX_DESCRIPTORS)
        if not data:
            return
        pid = _fork(program, json.loads(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(str(pid).encode())


def _fork(program: _Program, call: dict[str, Any], descriptors: list[int]) -> int:
    """Fork twice, so that the child's parent is the first process of the namespace: the keeper."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle == 0:
        child = os.fork()
        if child == 0:
            os.close(writing)
            _become(program, call, descriptors)
        os.write(writing, str(child).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return int(pipe.read())


def _become(program: _Program, call: dict[str, Any], descriptors: list[int]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        namespace, *streams = descriptors
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        for target, descriptor in enumerate(streams):
            os.dup2(descriptor, target, inheritable=True)
        os.closerange(3, max(descriptors) + 1)
        os.environ.clear()
        os.environ.update(call["environment"])
        if call["directory"] is not None:
            os.chdir(call["directory"])
        _open_streams()
        sys.argv = call["argv"]
        code = program(sys.argv[1:])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _open_streams() -> None:
    """Python's own streams, as a fresh process would have them."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - they stay open
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


def main() -> None:
    """Serve on descriptor 3: the arguments are `MODULE:FUNCTION` and modules that it will want."""
    control = socket.socket(fileno=3)
    module, _, function = sys.argv[1].partition(":")
    program = getattr(importlib.import_module(module), function)
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Pages that a collection touches in a child are no longer shared.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(ConnectionError):
        control.send(b"ready")
        _serve(control, program)


if __name__ == "__main__":
    main()
