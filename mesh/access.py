"""The interface through which `mesh` reaches a blob at the origin, without knowing what the origin is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from mesh.transfer import Location


class OriginAccess(Protocol):
    """One client's permitted way to a blob's bytes at the origin. The client's secrets stay inside."""

    @property
    def key(self) -> Hashable:
        """Equal for two accesses that are the same way."""

    @property
    def hint(self) -> bytes:
        """What a seed needs to reach the bytes itself; empty when nothing may be passed on."""

    async def locate(self, refused: Location | None) -> Location:
        """Return where the bytes are. `refused` is the location that the origin just refused, if any.

        Raises LocationRefused when this client may not have the bytes, SourceFailed when the origin cannot say now.
        """
