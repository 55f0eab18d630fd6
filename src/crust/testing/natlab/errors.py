"""What can go wrong with a lab."""

from __future__ import annotations

from crust.errors import CrustError

__all__ = ["LabError", "LabUnavailable", "NotAsDeclared"]


class LabError(CrustError):
    """A lab that cannot do what it was asked."""


class LabUnavailable(LabError):
    """This machine cannot hold such a lab; the text is one sentence that says what is missing."""


class NotAsDeclared(LabError):
    """A kind of place that does not behave as it is declared to."""
