"""Work that several callers share."""

from __future__ import annotations

import asyncio

import pytest

from proxy.flights import Flights
from proxy.hub.errors import HubError, OriginUnavailable


@pytest.mark.parametrize("error", [KeyError("unforeseen"), HubError(404), OriginUnavailable("down")])
async def test_an_unforeseen_error_is_logged_though_nobody_waits_for_the_work(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def work() -> None:
        raise error

    flights = Flights()
    await asyncio.wait([flights.start("key", work)])
    while flights:
        await asyncio.sleep(0)
    assert ("unforeseen" in caplog.text) is isinstance(error, KeyError)
