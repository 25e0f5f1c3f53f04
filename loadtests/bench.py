"""How fast, beside what people would use instead: one table a job, all targets of a job in the same run.

    make bench
    python -m loadtests.bench --jobs warm,cold --rounds 5 --size 1GiB

Server and client share this machine's cores, so CPU seconds stand beside each figure. Ratios are medians over rounds of
the ratio within a round. Programs that are not installed (nginx, squid) are left out; olah is installed from its
package into `.venvs/olah`. Writes `.build/bench.json` and, with matplotlib, `.build/bench.png`. Ends with 1 if a bar
of docs/benchmarks.md is missed.
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
JOBS = {
    "warm": warm.tables,
    "small": small.tables,
    "cold": cold.tables,
    "snapshot": snapshot.tables,
    "rest": rest.tables,
}


def plot(tables: list[Table], path: Path) -> bool:
    """Each bar as a share of its limit; False without matplotlib."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    bars = [(f"{table.title}: {bar.what}", bar) for table in tables for bar in table.bars]
    figure, axes = pyplot.subplots(figsize=(9, 0.34 * len(bars) + 1.2))
    shares = [bar.limit / bar.value if bar.at_most else bar.value / bar.limit for _, bar in bars]
    colors = ["#2e7d32" if bar.holds else "#c62828" for _, bar in bars]
    axes.barh([name for name, _ in bars], shares, color=colors)
    axes.axvline(1.0, color="black", lw=1)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("times as good as asked for (right of the line: the bar holds)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="loadtests.bench", description=__doc__)
    parser.add_argument("--jobs", default=",".join(JOBS), help=f"some of {','.join(JOBS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=parse_size, default="1GiB", help="of the large file")
    parser.add_argument("--scratch", help="where the data goes; needs about ten times the size")
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
