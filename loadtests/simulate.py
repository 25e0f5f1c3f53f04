"""Simulate a swarm of any size: the real ledger, fluid rates, latencies, slow nodes, churn.

    python -m loadtests.simulate --nodes 1000 --size 4GiB --origin 1GB/s --up 125MB/s --down 125MB/s

`loadtests.simulation` says what is simulated and how. Prints `ratio`, the time of the last node ÷ the lower bound that
the links allow, and with `--timeline` how busy the links were over time. Needs NumPy. The figures that our policy was
chosen by are in docs/assignment-policy.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np

from loadtests import timeline
from loadtests.simulation import Simulation
from mesh.streams import ORIGIN_STREAMS
from proxy.units import parse_rate, parse_size


def figures(simulation: Simulation, seconds: float) -> dict[str, object]:
    """Return the results: times in seconds, `ratio` to the lower bound. Only `last_slow` includes slow nodes."""
    first = [n for n in simulation.nodes if n.is_alive and not n.is_seed and n.joined_at == 0.0]
    fast = sorted(n.done_at for n in first if not n.is_slow and n.done_at is not None)
    slow = [n.done_at for n in first if n.is_slow and n.done_at is not None]
    sent = np.array([n.sent for n in first if not n.is_slow])
    return {
        "bound": round(simulation.bound, 3),
        "last_fast": round(fast[-1], 3),
        "median_fast": round(fast[len(fast) // 2], 3),
        "ratio": round(fast[-1] / simulation.bound, 3),
        "last_slow": round(max(slow), 3) if slow else None,
        "origin_copies": round(simulation.origin_bytes / simulation.size, 4),
        "busiest_upload_to_mean": round(float(sent.max() / max(1, sent.mean())), 3),
        "idlest_upload_to_mean": round(float(sent.min() / max(1, sent.mean())), 3),
        "broken_off": simulation.lost,
        "reports": simulation.reports,
        "ledger_us_per_report": round(1e6 * simulation.ledger_seconds / max(1, simulation.reports)),
        "ledger_us_per_piece": round(1e6 * simulation.ledger_seconds / (simulation.pieces.count * len(first))),
        "pieces": simulation.pieces.count,
        "origin_streams": ORIGIN_STREAMS,
        "took": round(seconds, 1),
    }


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--nodes", type=int, default=200)
    out.add_argument("--size", type=parse_size, default="1GiB")
    out.add_argument("--origin", type=parse_rate, default="1GB/s", help="rate of the origin, for all nodes together")
    out.add_argument("--up", type=parse_rate, default="125MB/s", help="uplink of each node")
    out.add_argument("--down", type=parse_rate, default="125MB/s", help="downlink of each node")
    out.add_argument("--seeds", type=int, default=0, help="additional nodes, the only ones that go to the origin")
    out.add_argument("--seed-up", type=parse_rate, default=None, help="uplink of each seed, if different")
    out.add_argument("--slow", type=float, default=0.0, help="share of the nodes that are ten times slower")
    out.add_argument("--without-slow", action="store_true", help="end when all but the slow nodes are done")
    out.add_argument("--churn", action="store_true", help="ten times, 1 %% of the nodes die and are replaced")
    out.add_argument("--step", type=float, default=None, help="length of a step in seconds")
    out.add_argument("--random", type=int, default=1, help="seed of the random numbers")
    out.add_argument("--timeline", action="store_true", help="how busy the links were, for each 25th of the bound")
    out.add_argument("--json", action="store_true")
    return out


def main() -> None:
    options = parser().parse_args()
    began = time.perf_counter()
    simulation = Simulation(options)
    simulation.run()
    result = figures(simulation, time.perf_counter() - began)
    if options.timeline:
        uplinks = float(simulation.flows.up[: simulation.origin].sum())
        print("\n".join(timeline.lines(simulation.timeline, options.origin, uplinks)))
    print(json.dumps(result) if options.json else "\n".join(lines(result)))


def lines(result: dict[str, object]) -> Iterator[str]:
    width = max(len(name) for name in result)
    for name, value in result.items():
        yield f"{name:{width}}  {value}"


if __name__ == "__main__":
    main()
