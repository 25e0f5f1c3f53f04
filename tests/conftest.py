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

# No test depends on the speed of the machine, or on what else runs on it.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# The loop that nodes run on. Before Python 3.13 asyncio's own loop loses a connection that it accepted while its server
# was being closed (CPython issue 109564), and a later test fails because of the unclosed socket.
if sys.version_info < (3, 14):  # policies are deprecated from 3.14 on
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    """A stand-in Hub without repositories."""
    with HubProcess(tmp_path / "hub") as process:
        yield process
