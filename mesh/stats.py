"""What the data plane counts. Whoever publishes figures reads them from here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock


@dataclass(slots=True)
class Stats:
    """Totals since the start; bytes unless the name says otherwise. Worker threads add to them under `lock`."""

    origin_received: int = 0
    peer_received: int = 0
    peer_sent: int = 0
    client_sent: int = 0
    pieces_rejected: Counter[str] = field(default_factory=Counter)  # by source: pieces whose bytes were wrong
    lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, name: str, count: int) -> None:
        """Add to one of the byte counters, from any thread."""
        with self.lock:
            setattr(self, name, getattr(self, name) + count)
