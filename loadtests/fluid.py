"""Bytes as a fluid: transfers share the links of a network fairly, in steps of time. Needs NumPy."""

from __future__ import annotations

import numpy as np


class Flows:
    """The transfers under way, in parallel arrays: ends, bytes left, and the times when they begin and are checked."""

    def __init__(self, up: np.ndarray, down: np.ndarray) -> None:
        self.up, self.down = up, down
        self.source = np.zeros(1024, np.int64)
        self.target = np.zeros(1024, np.int64)
        self.left = np.zeros(1024)
        self.begins = np.full(1024, np.inf)
        self.until = np.full(1024, np.inf)
        self._free = list(range(1023, -1, -1))

    def add(self, source: int, target: int, size: float, begins: float, until: float) -> int:
        if not self._free:
            count = len(self.left)
            self.source = np.concatenate([self.source, np.zeros(count, np.int64)])
            self.target = np.concatenate([self.target, np.zeros(count, np.int64)])
            self.left = np.concatenate([self.left, np.zeros(count)])
            self.begins = np.concatenate([self.begins, np.full(count, np.inf)])
            self.until = np.concatenate([self.until, np.full(count, np.inf)])
            self._free = list(range(2 * count - 1, count - 1, -1))
        flow = self._free.pop()
        self.source[flow], self.target[flow], self.left[flow] = source, target, size
        self.begins[flow], self.until[flow] = begins, until
        return flow

    def remove(self, flow: int) -> None:
        self.begins[flow] = self.until[flow] = np.inf
        self._free.append(flow)

    def advance(self, now: float, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Let bytes flow for one step. Return the flows that moved, the bytes of each, and the flows that finished."""
        flows = np.nonzero(self.begins <= now)[0]
        rate = self._rates(self.source[flows], self.target[flows])
        self.left[flows] -= rate * step
        # Rounded to the nearest step, so that on average flows finish neither early nor late.
        return flows, rate * step, flows[self.left[flows] <= rate * step / 2]

    def _rates(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return max-min fair rates in bytes per second, by progressive filling; five rounds leave little over."""
        rate = np.zeros(len(source))
        up, down = self.up.copy(), self.down.copy()
        live = np.arange(len(source))
        for _ in range(5):
            if not len(live):
                break
            s, t = source[live], target[live]
            share_up = up / np.maximum(1, np.bincount(s, minlength=len(up)))
            share_down = down / np.maximum(1, np.bincount(t, minlength=len(down)))
            more = np.minimum(share_up[s], share_down[t])
            rate[live] += more
            up -= np.bincount(s, more, len(up))
            down -= np.bincount(t, more, len(down))
            live = live[(up[s] > 1e-3 * self.up[s]) & (down[t] > 1e-3 * self.down[t])]
        return rate
