"""Sharing of work: callers that ask for the same thing at the same time wait for one task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar, cast

from mesh.errors import MeshError
from proxy.hub.errors import HubError, OriginUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")


class Flights:
    """Work in progress, by key. It continues when its waiters leave, so that the next one finds the result."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work under this key, started if it is not running. Equal keys must mean equal work."""
        return cast("T", await asyncio.shield(self.start(key, work)))

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Start the work under this key if it is not running, without waiting for it."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_task(work(), name="flight")
            flight.add_done_callback(lambda done: self._land(key, done))
        return flight

    def __len__(self) -> int:
        return len(self._flights)

    async def close(self) -> None:
        """Cancel all work and wait until it has ended."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _land(self, key: Hashable, flight: asyncio.Task[Any]) -> None:
        self._flights.pop(key, None)
        if flight.cancelled():
            return
        error = flight.exception()  # retrieved here: if no waiter is left, asyncio should not log an expected one
        if error is not None and not isinstance(error, HubError | OriginUnavailable | MeshError):
            log.error("shared work failed", exc_info=error)  # without its key, which may contain a token
