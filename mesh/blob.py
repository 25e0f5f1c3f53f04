"""One complete blob, open for reading."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from mesh.content import Digest
from mesh.shared import Stamp


@dataclass(slots=True)
class Blob:
    """A complete blob, open for reading and safe from eviction until closed."""

    digest: Digest
    size: int
    fd: int
    stamp: Stamp | None
    _release: Callable[[], None] = field(repr=False)

    is_here = True  # False in a `Reader` that came before its blob was proven

    def ready(self, position: int) -> int:
        """Return the end of the blob: all bytes are ready."""
        return self.size

    async def wait(self, position: int) -> None:
        """Return at once: all bytes are ready."""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._release()

    def __enter__(self) -> Blob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
