"""The caps and times of one session, fixed when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from crust.config import Config

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """See `crust.Config` for each field's meaning and reason."""

    max_message_bytes: int
    receive_window_bytes: int
    retention_bytes: int
    stream_window_bytes: int
    max_streams: int
    heartbeat: float
    inactivity_timeout: float
    path_timeout: float
    resume_timeout: float
    close_timeout: float

    @classmethod
    def of(cls, config: Config) -> Limits:
        """The limits that a configuration sets."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})
