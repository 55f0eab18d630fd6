"""Settings."""

from __future__ import annotations

import pytest

from crust.proto.utp.config import UtpConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"mtu": 100},
        {"mtu": 1500, "mtu_ceiling": 1400},
        {"mtu_ceiling": 70_000},
        {"receive_window": 1000},
        {"send_buffer": 1000},
        {"congestion": "reno"},
    ],
    ids=str,
)
def test_config_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UtpConfig(**wrong)  # type: ignore[arg-type]
