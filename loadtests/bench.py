"""Benchmark a node beside the alternatives: one table per job, all targets of a job in the same run.

    make bench
    python -m loadtests.bench --jobs warm,cold --rounds 5 --size 1GiB

Server and client share this machine's cores, so CPU seconds stand beside each figure. A ratio is the median over the
rounds of the ratio within one round. Rivals that are not installed (nginx, squid) are left out; olah is installed from
its package into `.venvs/olah`. Writes `.build/bench.json` and, with matplotlib, `.build/bench.png`. Exits with status 1
if a bar of docs/benchmarks.md is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from loadtests.jobs import cold, rest, small, snapshot, warm
from loadtests.jobs.bench import Bench
from loadtests.measure import Table
from proxy.units import parse_size

OUTPUT = Path(".build")
_PLOTTED = ("GB/s", "requests/s", "seconds")
_COLUMNS = 3
JOBS = {
    "warm": warm.tables,
    "small": small.tables,
    "cold": cold.tables,
    "snapshot": snapshot.tables,
    "rest": rest.tables,
}


def plot(tables: list[Table], path: Path) -> bool:
    """Plot the tables that compare targets: medians, with bars from minimum to maximum. False without matplotlib."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    tables = [table for table in tables if table.unit in _PLOTTED]
    if not tables:
        return False
    rows = -(-len(tables) // _COLUMNS)
    figure, grid = pyplot.subplots(rows, _COLUMNS, figsize=(4.2 * _COLUMNS, 1.9 * rows), squeeze=False)
    for axes in grid.flat[len(tables) :]:
        axes.remove()
    for axes, table in zip(grid.flat, tables, strict=False):
        names = list(table.samples)
        values = [[sample.value for sample in table.samples[name]] for name in names]
        medians = [table.median(name) for name in names]
        spread = [[m - min(of), max(of) - m] for m, of in zip(medians, values, strict=True)]
        colors = ["#2e7d32" if name.startswith("hubmesh") else "#9e9e9e" for name in names]
        axes.barh(names, medians, color=colors, xerr=list(zip(*spread, strict=True)), ecolor="#424242", capsize=2)
        axes.invert_yaxis()
        axes.set_title(table.title, fontsize=9)
        axes.set_xlabel(f"{table.unit} ({'lower' if table.unit == 'seconds' else 'higher'} is better)", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="loadtests.bench", description=__doc__)
    parser.add_argument("--jobs", default=",".join(JOBS), help=f"some of {','.join(JOBS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=parse_size, default="1GiB", help="of the large file")
    parser.add_argument("--scratch", help="folder for the data; needs about ten times the size")
    options = parser.parse_args()
    if unknown := set(options.jobs.split(",")) - set(JOBS):
        parser.error(f"no such job: {', '.join(sorted(unknown))}")
    tables: list[Table] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hubmesh-bench-", dir=options.scratch)))
        bench = Bench(stack, folder / "work", options.rounds, options.size)
        for name in options.jobs.split(","):
            for table in JOBS[name](bench):
                print(table, end="\n\n", flush=True)
                tables.append(table)
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "bench.json").write_text(json.dumps([asdict(table) for table in tables], indent=1))
    plot(tables, OUTPUT / "bench.png")
    return 0 if all(bar.holds for table in tables for bar in table.bars) else 1


if __name__ == "__main__":
    sys.exit(main())
