"""How a blob's bytes may be had from the origin, without knowing what the origin is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from mesh.transfer import Location


class OriginAccess(Protocol):
    """One way to a blob's bytes at the origin, as one client is allowed to go. Its secrets stay inside."""

    @property
    def key(self) -> Hashable:
        """Equal for the same way."""

    @property
    def hint(self) -> bytes:
        """What a seed needs to go there itself; empty when nothing may be passed on."""

    async def locate(self, refused: Location | None) -> Location:
        """Where the bytes are. `refused` is the address that was just turned down.

        Raises LocationRefused when this client may not have them, SourceFailed when the origin cannot say now.
        """
