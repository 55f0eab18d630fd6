"""What is set on every TCP socket: else priorities would not overtake (PROTOCOL 14)."""

from __future__ import annotations

import socket
import sys

import pytest

from crust.net.tcp import NOTSENT_LOWAT_BYTES, tune_socket


@pytest.mark.skipif(sys.platform != "linux", reason="the option's number differs")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_unsent_bytes_in_the_kernel_are_few(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        tune_socket(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, 25) == NOTSENT_LOWAT_BYTES == 128 * 1024
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_socket_that_has_no_such_options_stays_as_it_is() -> None:
    tune_socket(None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        tune_socket(sock)
