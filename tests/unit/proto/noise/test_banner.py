"""Other servers, by what they say."""

from __future__ import annotations

import pytest

from crust.proto.noise.banner import may_become_banner, recognise
from crust.proto.noise.outcome import FailureReason

CASES = [
    (b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n", FailureReason.HTTP, "HTTP/1.1 400 Bad Request"),
    (b"<!DOCTYPE HTML PUBLIC", FailureReason.HTTP, "DOCTYPE"),
    (b"<html>\r\n<head>", FailureReason.HTTP, "<html>"),
    (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", FailureReason.SSH, "OpenSSH_9.2p1"),
    (b"\x15\x03\x01\x00\x02\x02\x46", FailureReason.TLS, "TLS"),
    (b"\x15\x03\x03\x00\x02\x02\x16", FailureReason.TLS, "TLS"),
    (b"220 mail.example.org ESMTP Postfix\r\n", FailureReason.MAIL_OR_FTP, "ESMTP Postfix"),
    (b"220-FTP here\r\n", FailureReason.MAIL_OR_FTP, "FTP here"),
    (b"500 5.5.2 Error: bad syntax\r\n", FailureReason.MAIL_OR_FTP, "bad syntax"),
]


@pytest.mark.parametrize(("data", "reason", "text"), CASES)
def test_recognised_from_its_first_bytes(data: bytes, reason: FailureReason, text: str) -> None:
    found = recognise(data)
    assert found is not None
    assert found[0] is reason
    assert text in found[1]
    first = next(size for size in range(len(data)) if recognise(data[:size]))
    assert first <= 9
    assert all(may_become_banner(data[:size]) for size in range(first))
    assert recognise(bytearray(data)) == found


def test_text_is_fit_for_a_terminal() -> None:
    found = recognise(b"SSH-2.0-\x1b[31mred\x00" + b"x" * 200 + b"\nmore")
    assert found is not None
    assert found[1].isprintable()
    assert "more" not in found[1]
    assert len(found[1]) < 200


@pytest.mark.parametrize("data", [b"\0", b"hello", b"HTML", b"22 ", b"\x16\x03\x01", b"\x15\x03\x05\x00\x02"])
def test_others(data: bytes) -> None:
    assert recognise(data) is None
    assert not may_become_banner(data)
