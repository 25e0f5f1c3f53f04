"""Fixtures that several parts of the suite share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.hub.process import HubProcess

# Nothing depends on how fast a machine is, or on what else runs on it.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    """A stand-in Hub without repositories."""
    with HubProcess(tmp_path / "hub") as process:
        yield process
