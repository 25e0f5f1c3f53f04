"""The load tests named in docs/benchmarks.md run, and print what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(module: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *flags], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_a_small_swarm_costs_one_copy() -> None:
    ended = run("loadtests.swarm", "--nodes", "3", "--size", "4MiB")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "origin bytes ÷ one copy:   1.000" in ended.stdout
    assert json.loads((ROOT / ".build/swarm.json").read_text())["copies"] == 1.0


@pytest.mark.slow
def test_a_small_bench_measures_and_judges() -> None:
    ended = run("loadtests.bench", "--jobs", "warm,cold", "--rounds", "1", "--size", "32MiB")
    assert ended.returncode in (0, 1), ended.stderr  # 1: a bar was missed, which means nothing at this size
    tables = json.loads((ROOT / ".build/bench.json").read_text())
    assert [table["name"] for table in tables] == [
        *("warm-1", "warm-8", "warm-64", "range-8m", "range-64k"),
        *("cold-limited", "cold", "peer"),
    ]
    assert all(sample["value"] > 0 for table in tables for sample in table["samples"]["hubmesh"])
