"""The process that holds the namespaces of one lab, and whose end is the end of everything in them.

It is the first process of a PID namespace, so that the kernel kills every process of the lab when it goes, and the
network namespaces have no names, so that they go with the last descriptor. It goes when its control socket is closed
or its parent dies: a lab leaves nothing behind, however its owner ends. Like the fabric it imports nothing of Crust
but what it needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from crust.testing.natlab import netlink

__all__ = ["Keeper", "main"]

# linux/sched.h, linux/prctl.h
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_MESSAGE_BYTES = 1 << 20
_MAX_DESCRIPTORS = 8
_PRELOAD_SECONDS = 30.0
_IPV6_SETTINGS = Path("/proc/sys/net/ipv6")

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """This machine cannot hold a lab; the text says why in one sentence."""


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _die_with_parent() -> None:
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def enter_namespaces() -> None:
    """Move this process into namespaces of its own: as root directly, otherwise by way of a user namespace.

    Raises:
        Unavailable: neither is allowed here.
    """
    try:
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWPID)
    except OSError as error:
        if error.errno != errno.EPERM:
            full = error.errno == errno.ENOSPC
            why = "user.max_net_namespaces or user.max_pid_namespaces is reached" if full else error.strerror
            raise Unavailable(f"this kernel makes no network namespaces: {why}") from error
    else:
        return
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", _CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWPID)
    except OSError as error:
        raise Unavailable(
            f"user namespaces are forbidden here ({error.strerror}): run as root, or allow them, with the sysctls "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
        ) from error


class Keeper:
    """Namespaces by number; number 0 is that of the fabric, in which every cable has its far end."""

    def __init__(self, control: socket.socket) -> None:
        """Serve one lab, which speaks JSON over `control`."""
        self._control = control
        self._namespaces: dict[int, int] = {0: os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)}
        self._processes: dict[int, int] = {}
        self._forks: socket.socket | None = None
        try:
            _set_sysctls({"ipv6/conf/default/disable_ipv6": 1, "ipv4/ip_forward": 0})
        except OSError as error:
            raise Unavailable(f"/proc/sys/net cannot be written here ({error.strerror}): is it read-only?") from error

    def run(self) -> None:
        """Serve until the control socket is closed."""
        waker, wakened = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakened)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(waker, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == waker:
                    os.read(waker, 512)
                    self._reap()
                elif not self._serve():
                    return

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if self._processes.pop(pid, None) is not None:
                    self._send({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        # A lab that is gone is noticed by the next receive.
        with contextlib.suppress(OSError):
            socket.send_fds(self._control, [json.dumps(message).encode()], descriptors or [])

    def _serve(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, _MAX_DESCRIPTORS)
        except ConnectionResetError:
            return False
        if not data:
            return False
        request = json.loads(data)
        verb, number = request.pop("verb"), request.pop("id")
        passed: list[int] = []
        try:
            if descriptors:
                request["descriptors"] = descriptors
            result = getattr(self, f"do_{verb}")(**request)
            if isinstance(result, socket.socket):
                passed, result = [result.detach()], None
            self._send({"id": number, "result": result}, passed)
        except OSError as error:
            self._send({"id": number, "error": error.strerror or str(error), "errno": error.errno})
        except Exception as error:
            self._send({"id": number, "error": f"{type(error).__name__}: {error}", "errno": None})
        finally:
            for descriptor in (*descriptors, *passed):
                os.close(descriptor)
        return True

    def _inside(self, namespace: int, action: Callable[[], Any]) -> Any:
        """Run something in a namespace, and come back to that of the fabric."""
        _call("setns", self._namespaces[namespace], _CLONE_NEWNET)
        try:
            return action()
        finally:
            _call("setns", self._namespaces[0], _CLONE_NEWNET)

    # Verbs of the control socket

    def do_namespace(self, number: int, sysctls: dict[str, str | int]) -> None:
        """Make a network namespace with its loopback up."""
        _call("unshare", _CLONE_NEWNET)
        try:
            self._namespaces[number] = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            _set_sysctls(sysctls)
            netlink.set_link("lo", up=True)
        finally:
            _call("setns", self._namespaces[0], _CLONE_NEWNET)

    def do_sysctl(self, namespace: int, sysctls: dict[str, str | int]) -> None:
        """Change settings of a namespace."""
        self._inside(namespace, lambda: _set_sysctls(sysctls))

    def do_drop(self, namespace: int) -> None:
        """Kill the processes of a namespace and let go of it."""
        for pid in [pid for pid, home in self._processes.items() if home == namespace]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        os.close(self._namespaces.pop(namespace))

    def do_cable(
        self,
        namespace: int,
        name: str,
        far: str,
        mac: str,
        addresses: list[str],
        gateways: list[str],
        segments: int | None,
    ) -> None:
        """Make an interface in a namespace; its far end appears in the fabric's under the name `far`."""
        home = self._namespaces[namespace]
        netlink.add_veth(far, name, home, peer_mac=bytes.fromhex(mac), segments=segments)

        def configure() -> None:
            netlink.set_link(name, up=True)
            for address in addresses:
                netlink.add_address(name, address)
            for gateway in gateways:
                netlink.add_default_route(name, gateway)

        self._inside(namespace, configure)

    def do_uncable(self, far: str) -> None:
        """Remove a cable, named by its far end."""
        netlink.delete_link(far)

    def do_flush_conntrack(self, namespace: int) -> None:
        """Let a kernel router forget its mappings."""
        self._inside(namespace, netlink.flush_conntrack)

    def do_socket(self, namespace: int, family: int, kind: int, protocol: int) -> socket.socket:
        """Open a socket in a namespace and pass it on."""
        made: socket.socket = self._inside(namespace, lambda: socket.socket(family, kind, protocol))
        return made

    def do_signal(self, pid: int, number: int) -> None:
        """Signal a process of the lab."""
        if pid in self._processes:
            os.kill(pid, number)

    def do_execute(
        self,
        namespace: int,
        argv: list[str],
        environment: dict[str, str],
        directory: str | None,
        descriptors: list[int],
    ) -> int:
        """Start a program in a namespace; the descriptors become its 0, 1, 2, and 3 where there is one."""
        failed, failure = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            self._become(namespace, argv, environment, directory, descriptors, failure)
        os.close(failure)
        with os.fdopen(failed, "rb") as pipe:
            code = pipe.read()
        if code:
            raise OSError(int(code), f"{argv[0]}: {os.strerror(int(code))}")
        self._processes[pid] = namespace
        return pid

    def do_preload(self, argv: list[str], environment: dict[str, str], descriptors: list[int]) -> None:
        """Start a fork server, whose control socket is its descriptor 3, and wait until it has loaded its program."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.do_execute(0, argv, environment, None, [*descriptors, theirs.fileno()])
        ours.settimeout(_PRELOAD_SECONDS)
        if ours.recv(64) != b"ready":
            ours.close()
            raise OSError(errno.ECHILD, f"{argv[0]} did not start")
        self._forks = ours

    def do_fork(
        self,
        namespace: int,
        argv: list[str],
        environment: dict[str, str],
        directory: str | None,
        descriptors: list[int],
    ) -> int:
        """Start the fork server's program in a namespace; the descriptors become its 0, 1 and 2."""
        if self._forks is None:
            raise OSError(errno.ECHILD, "nothing is loaded")
        call = {"argv": argv, "environment": environment, "directory": directory}
        socket.send_fds(self._forks, [json.dumps(call).encode()], [self._namespaces[namespace], *descriptors])
        # An orphan's parent is the first process here: us. It is reaped later, by the loop, whenever it ends.
        pid = int(self._forks.recv(64))
        self._processes[pid] = namespace
        return pid

    def _become(
        self,
        namespace: int,
        argv: list[str],
        environment: dict[str, str],
        directory: str | None,
        descriptors: list[int],
        failure: int,
    ) -> NoReturn:
        try:
            os.setsid()
            _call("setns", self._namespaces[namespace], _CLONE_NEWNET)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            # First above the targets, so that no descriptor is overwritten before it has been copied.
            high = [_duplicate_above(descriptor, 64) for descriptor in descriptors]
            failure = _duplicate_above(failure, 64)
            for target, descriptor in enumerate(high):
                os.dup2(descriptor, target, inheritable=True)
            if directory is not None:
                os.chdir(directory)
            os.execvpe(argv[0], argv, environment)  # noqa: S606
        except OSError as error:
            os.write(failure, str(error.errno or errno.EIO).encode())
        finally:
            os._exit(127)


def _set_sysctls(settings: dict[str, str | int]) -> None:
    for key, value in settings.items():
        # Where there is no IPv6, it need not be switched off.
        if not key.startswith("ipv6/") or _IPV6_SETTINGS.exists():
            netlink.set_sysctl(key, value)


def _duplicate_above(descriptor: int, lowest: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)


def main() -> None:
    """Hold the lab whose control socket is on the descriptor that the command line names."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent = int(sys.argv[2])
    _libc.prctl(_PR_SET_NAME, b"natlab-keeper", 0, 0, 0)
    try:
        enter_namespaces()
        # Only now: a change of credentials clears this setting.
        _die_with_parent()
        if os.getppid() != parent:
            return
        child = os.fork()
        if child:
            control.close()
            os.waitpid(child, 0)
            return
        _die_with_parent()
        # Three descriptors for each host of a large lab; the fabric inherits the limit.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        keeper = Keeper(control)
    except (Unavailable, OSError) as error:
        control.send(json.dumps({"unavailable": str(error)}).encode())
        return
    control.send(json.dumps({"ready": True}).encode())
    keeper.run()
