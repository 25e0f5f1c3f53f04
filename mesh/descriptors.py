"""File descriptors, of which a process may have only so many: one for each file and each connection."""

from __future__ import annotations

import errno
import logging
import math
import os
import time

from mesh.errors import StoreUnusable, TooManyFiles

log = logging.getLogger(__name__)

_LACKING = (errno.EMFILE, errno.ENFILE)
_LOG_SECONDS = 60.0  # between two lines in the log
_logged_at = -math.inf


def duplicate(fd: int) -> int:
    """Return a duplicate of a descriptor. Raises TooManyFiles."""
    try:
        return os.dup(fd)
    except OSError as error:
        if notice_lack(error):
            raise TooManyFiles(f"{error.strerror}") from error
        raise


def unusable(what: str, error: OSError) -> StoreUnusable:
    """Return what to raise when a file cannot be opened, as `what` says."""
    return (TooManyFiles if notice_lack(error) else StoreUnusable)(f"{what}: {error}")


def notice_lack(error: OSError) -> bool:
    """Return whether an error means that there is no free descriptor; log it if so, at most once a minute."""
    global _logged_at  # the limit, too, is of the whole process
    if error.errno not in _LACKING:
        return False
    if (now := time.monotonic()) >= _logged_at + _LOG_SECONDS:
        _logged_at = now
        log.warning("%s: clients and peers are turned away until others end; raise the limit", error.strerror)
    return True
