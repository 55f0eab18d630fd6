"""Settings that every test shares."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

import crust.node.node  # noqa: F401 - loaded before a test takes the time of anything
from crust.node.mapping import PortMappings

# No deadline: the machines that run the suite are shared, and a slow one is no failure. "ci" draws the same examples
# each time, so that the suite says the same twice; "dev" and "thorough" look further
# (HYPOTHESIS_PROFILE=thorough make test).
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("dev"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def no_routers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The routers of this machine are none of the tests' business; a test that wants one brings it."""
    defaults = {**(PortMappings.__init__.__kwdefaults__ or {}), "gateways": list}
    monkeypatch.setattr(PortMappings.__init__, "__kwdefaults__", defaults)
