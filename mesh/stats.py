"""The counters of the data plane, from which all published figures are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock

_MAX_SOURCES = 1000  # counted by name; all further ones are counted as OTHERS
OTHERS = "others"


@dataclass(slots=True)
class Stats:
    """Totals since the start; bytes unless the name says otherwise. Worker threads add to them under `lock`."""

    origin_received: int = 0
    peer_received: int = 0
    peer_sent: int = 0
    client_sent: int = 0
    pieces_rejected: Counter[str] = field(default_factory=Counter)  # by source: pieces whose bytes were wrong
    lock: Lock = field(default_factory=Lock, repr=False)

    def reject(self, source: str, count: int = 1) -> None:
        """Count pieces whose bytes were wrong. The number of names is bounded: in an open mesh a node may use any."""
        if source not in self.pieces_rejected and len(self.pieces_rejected) >= _MAX_SOURCES:
            source = OTHERS
        self.pieces_rejected[source] += count

    def add(self, name: str, count: int) -> None:
        """Add to one of the byte counters, from any thread."""
        with self.lock:
            setattr(self, name, getattr(self, name) + count)
