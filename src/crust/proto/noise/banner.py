"""Servers of other protocols, recognised by what they say to bytes that they do not understand."""

from __future__ import annotations

from typing import Final

from crust.proto.noise.outcome import FailureReason

__all__ = ["may_become_banner", "recognise"]

# A true message 2 begins like one of these by chance once in 2^29 handshakes. Of TLS: an alert record, in any version,
# of 2 bytes. SMTP and FTP greet or refuse with a number.
_BANNERS: Final = (
    (b"HTTP/", FailureReason.HTTP),
    (b"<!DOCTYPE", FailureReason.HTTP),
    (b"<html", FailureReason.HTTP),
    (b"SSH-", FailureReason.SSH),
    *((bytes((21, 3, minor, 0, 2)), FailureReason.TLS) for minor in range(5)),
    (b"220 ", FailureReason.MAIL_OR_FTP),
    (b"220-", FailureReason.MAIL_OR_FTP),
    (b"421 ", FailureReason.MAIL_OR_FTP),
    (b"500 ", FailureReason.MAIL_OR_FTP),
    (b"554 ", FailureReason.MAIL_OR_FTP),
)


def recognise(data: bytes | bytearray) -> tuple[FailureReason, str] | None:
    """Which server it is, and a sentence for people; None when nothing is recognised."""
    for banner, reason in _BANNERS:
        if data.startswith(banner):
            return reason, reason.value + _quote(data, reason)
    return None


def may_become_banner(data: bytes | bytearray) -> bool:
    """Whether further bytes could complete a banner."""
    return any(len(data) < len(banner) and banner.startswith(data) for banner, _ in _BANNERS)


def _quote(data: bytes | bytearray, reason: FailureReason) -> str:
    """The first line of a banner, as far as it has come, fit for a terminal."""
    if reason is FailureReason.TLS:
        return ""
    line = bytes(data[:80]).split(b"\n")[0].decode("ascii", errors="replace").strip()
    return f" ({line!r})"
