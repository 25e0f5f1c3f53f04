"""Measuring side by side: interleaved rounds, medians, ratios within a round, and the tables that show them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# A round in which every target runs once, before those that count: caches, pools and clocks warm up.
_WARM_UP = 1


@dataclass
class Sample:
    """One run of one target. `value` in the table's unit; CPU, `first_byte` and `p50` of the answers in seconds."""

    value: float
    server_cpu: float = 0.0
    client_cpu: float = 0.0
    first_byte: float = 0.0
    p50: float = 0.0


@dataclass
class Bar:
    """What we hold ourselves to, and what came."""

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
    """One job: samples by target, in the order they are shown; the first is what all others are compared with."""

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
        """The median of the rounds' ratios: what a noisy neighbour does to one round it does to both."""
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
    """Every target once a round, beginning with another one each time; the first round is thrown away."""
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
