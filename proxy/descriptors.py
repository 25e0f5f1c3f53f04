"""The limit on open files and connections of this process."""

from __future__ import annotations

import contextlib
import logging
import resource

log = logging.getLogger(__name__)

_MOST = 1 << 20  # used when there is no hard limit
_MOST_ON_MACOS = 10_240  # macOS allows no more, whatever its hard limit says
_A_READER = 3  # descriptors: the connection, its duplicate for the sending thread, and the file
_FEW = 4096


def allow_many() -> int:
    """Raise the soft limit to the hard limit; return the limit that now holds.

    The usual 1024 is meant for programs that use select(), which this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    for wanted in (most, min(most, _MOST_ON_MACOS)):
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                soft = wanted
    if soft != resource.RLIM_INFINITY and soft < _FEW:
        log.warning(
            "no more than %d files can be open here, enough for about %d clients at a time: "
            "raise the hard limit (ulimit -Hn, LimitNOFILE=, --ulimit nofile=)",
            soft,
            soft // _A_READER,
        )
    return soft
