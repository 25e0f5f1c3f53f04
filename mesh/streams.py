"""How many connections a fetcher uses at once."""

from __future__ import annotations

import os

# Connections to the origin for one blob. One may not fill the line; more than there are cores bring nothing more in.
ORIGIN_STREAMS = min(6, max(4, os.cpu_count() or 1))
URGENT_STREAMS = 2  # connections beyond these, for readers that would otherwise wait behind long runs
PEER_STREAMS = 8  # connections to all peers for one blob
