"""Fixtures that several parts of the suite share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tests.hub.process import HubProcess

# Nothing depends on how fast a machine is, or on what else runs on it.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# The loop that nodes run on. asyncio's own forgets, before Python 3.13, a connection that it accepted as its server was
# being closed (CPython issue 109564), and a later test fails for the socket that nobody closed.
if sys.version_info < (3, 14):  # from there on policies are deprecated
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    """A stand-in Hub without repositories."""
    with HubProcess(tmp_path / "hub") as process:
        yield process
