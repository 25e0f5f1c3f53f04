"""The ways to the origin for one blob, each opened by a client that may have the blob, and its location there."""

from __future__ import annotations

import asyncio
import logging
import time

from mesh.access import OriginAccess
from mesh.errors import LocationRefused, SourceFailed
from mesh.messages import ORIGIN
from mesh.transfer import Location

log = logging.getLogger(__name__)

_MOST = 8  # ways kept
_SOONEST_EXPIRY = 20.0  # seconds: a signed URL that expires sooner than this is renewed before it is used


class Ways:
    """The ways of one blob. Belongs to the event loop's thread. Falsy when no access is left."""

    def __init__(self) -> None:
        self._accesses: list[OriginAccess] = []
        self._location: Location | None = None
        self._locating = asyncio.Lock()

    def __bool__(self) -> bool:
        return bool(self._accesses)

    @property
    def hint(self) -> bytes:
        return next((access.hint for access in self._accesses if access.hint), b"")

    def add(self, access: OriginAccess) -> None:
        """Add a way. The newest is tried first, as its client is waiting."""
        self._accesses = [access, *(a for a in self._accesses if a.key != access.key)][:_MOST]

    async def locate(self) -> Location:
        """Return where the origin has the blob. Raises SourceFailed; LocationRefused when the last way is closed."""
        async with self._locating:
            if self._location is None or self._location.expires_at - time.time() <= _SOONEST_EXPIRY:
                self._location = await self._ask(None)
            return self._location

    async def renew(self, refused: Location) -> bool:
        """Replace a location that was refused: it has expired, or its client may not, or no longer, use it.

        Returns False when it has been replaced already. Raises as `locate` does.
        """
        async with self._locating:
            if refused is not self._location:
                return False
            self._location = None
            self._location = await self._ask(refused)
            return True

    async def _ask(self, refused: Location | None) -> Location:
        error = SourceFailed(ORIGIN, "no client here may have it any more")
        while self._accesses:
            access = self._accesses[0]
            try:
                return await access.locate(refused)
            except LocationRefused as final:
                log.info("this way to the origin is closed: %s", final.reason)
                error = final
                self._accesses = [other for other in self._accesses if other is not access]
        raise error
