"""Side-by-side measurement: interleaved rounds, medians, ratios within a round, and the tables that show them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Rounds that run every target once before the counted rounds: caches, pools and clock frequencies warm up.
_WARM_UP = 1


@dataclass
class Sample:
    """One run of one target. `value` is in the table's unit; CPU times, `first_byte` and `p50` are in seconds."""

    value: float
    server_cpu: float = 0.0
    client_cpu: float = 0.0
    first_byte: float = 0.0
    p50: float = 0.0


@dataclass
class Bar:
    """A limit that the project commits to, and the measured value."""

    what: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{'holds' if self.holds else 'FALLS SHORT'}: {self.what} {self.value:.3g} ({sign} {self.limit:g})"


@dataclass
class Table:
    """One job: samples by target, in display order. The first target is the baseline of all others."""

    name: str
    title: str
    unit: str
    samples: dict[str, list[Sample]]
    bars: list[Bar] = field(default_factory=list)

    @property
    def baseline(self) -> str:
        return next(iter(self.samples))

    def median(self, target: str, what: Callable[[Sample], float] = lambda sample: sample.value) -> float:
        return statistics.median(what(sample) for sample in self.samples[target])

    def ratio(self, target: str, baseline: str = "", what: Callable[[Sample], float] = lambda s: s.value) -> float:
        """Return the median of the rounds' ratios: noise from other processes hits both targets of a round alike."""
        pairs = zip(self.samples[target], self.samples[baseline or self.baseline], strict=False)
        return statistics.median(what(mine) / what(theirs) if what(theirs) else 0.0 for mine, theirs in pairs)

    def __str__(self) -> str:
        lines = [f"## {self.title}", ""]
        head = ["", self.unit, "min – max", "ratio", "server CPU s", "client CPU s", "first byte ms"]
        lines += ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
        for target, samples in self.samples.items():
            values = [sample.value for sample in samples]
            cells = [
                target,
                f"{self.median(target):.3g}",
                f"{min(values):.3g} – {max(values):.3g}",
                f"{self.ratio(target):.2f}",
                f"{self.median(target, lambda s: s.server_cpu):.2f}",
                f"{self.median(target, lambda s: s.client_cpu):.2f}",
                f"{self.median(target, lambda s: s.first_byte) * 1000:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", *(f"- {bar}" for bar in self.bars)])


def interleave(rounds: int, targets: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """Run every target once per round, in rotated order; the first round is discarded."""
    samples: dict[str, list[Sample]] = {name: [] for name in targets}
    order = list(targets)
    for number in range(rounds + _WARM_UP):
        turned = order[number % len(order) :] + order[: number % len(order)]
        for name in turned:
            sample = targets[name]()
            if number >= _WARM_UP:
                samples[name].append(sample)
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return samples
