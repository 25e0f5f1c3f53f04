"""Which blobs are public: anybody may get them from the origin. A file's mode keeps this: readable by all, or by us."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from mesh.content import Digest

log = logging.getLogger(__name__)

_PUBLIC_MODE, _PRIVATE_MODE = 0o444, 0o400


class Marks:
    """The set of public blobs. `file_of` returns the file that keeps a complete blob's mark, None for other blobs."""

    def __init__(self, file_of: Callable[[Digest], Path | None]) -> None:
        self._file_of = file_of
        self._public: set[Digest] = set()

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._public

    def mode(self, digest: Digest) -> int:
        return _PUBLIC_MODE if digest in self._public else _PRIVATE_MODE

    def set(self, digest: Digest, *, is_public: bool) -> None:
        """Mark a blob as public or not, in memory and on disk."""
        if is_public != (digest in self._public):
            (self._public.add if is_public else self._public.discard)(digest)
            self.write(digest)

    def write(self, digest: Digest) -> None:
        """Write the mark to the blob's file. An error is logged."""
        file = self._file_of(digest)
        try:
            if file is not None:
                file.chmod(self.mode(digest))
        except OSError as error:
            log.warning("cannot write down whether %s is public: %s", digest, error)

    def read(self, digest: Digest) -> None:
        """Read the mark from the blob's file. Raises OSError."""
        file = self._file_of(digest)
        if file is not None and file.stat().st_mode & 0o004:
            self._public.add(digest)

    def forget(self, digest: Digest) -> None:
        """Forget the mark of a blob that is gone."""
        self._public.discard(digest)
