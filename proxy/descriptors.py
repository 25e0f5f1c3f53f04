"""How many files and connections this process may have open."""

from __future__ import annotations

import contextlib
import logging
import resource

log = logging.getLogger(__name__)

_MOST = 1 << 20  # where the hard limit is none
_MOST_ON_MACOS = 10_240  # whatever its hard limit says
_A_READER = 3  # its connection, a second descriptor of that for the thread that sends, and the file
_FEW = 4096


def allow_many() -> int:
    """Raise the soft limit to the hard one; what it is now.

    The usual 1024 are for programs that wait with select(), which we do not.
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
