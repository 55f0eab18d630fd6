"""The tree of errors is as it is drawn, and has them all."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import crust
from crust import errors
from crust.node import transfer

_DRAWN = re.compile(r"^((?:│   |    )*)[├└]── (\w+)", re.MULTILINE)

_SIGNALS = {"TransferStopped", "NameRefusedError", "UpnpMissingError", "Discarded"}
"""Caught where they are raised from: they tell a caller inside what to do, and reach no application."""


def test_it_is_as_drawn() -> None:
    above: list[type] = [errors.CrustError]
    drawn = [(len(indent) // 4, name) for indent, name in _DRAWN.findall(errors.__doc__ or "")]
    assert len(drawn) > 20
    for depth, name in drawn:
        kind = getattr(errors, name, None) or getattr(transfer, name)
        assert kind.__bases__[0] is above[depth], name
        del above[depth + 1 :]
        above.append(kind)
    names = {name for _, name in drawn}
    assert {name for name in errors.__all__ if name != "CrustError"} <= names


def test_all_of_the_library_s_errors_are_in_it() -> None:
    outside = set()
    for module in pkgutil.walk_packages(crust.__path__, "crust."):
        if module.name.startswith(("crust.cli", "crust.bench", "crust.testing", "crust.discovery")):
            continue
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Exception) and kind.__module__.startswith("crust.") and not name.startswith("_"):
                outside |= set() if issubclass(kind, errors.CrustError) else {name}
    assert outside <= _SIGNALS
