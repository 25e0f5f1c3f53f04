"""Small cached answers: HEAD resolve and API JSON on 32 connections, beside olah doing the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from loadtests.client import Load
from loadtests.jobs.bench import REPO, Bench, measure
from loadtests.measure import Bar, Sample, Table, interleave
from loadtests.rivals import olah

_CONNECTIONS, _SECONDS = 32, 1.5
_ENVIRONMENT = Path(".venvs/olah")


def tables(bench: Bench) -> Iterator[Table]:
    """Requests per second."""
    paths = {
        "head": ("HEAD resolve", "HEAD", f"/{REPO}/resolve/main/large.bin"),
        "api": ("Repository info (API JSON)", "GET", f"/api/models/{REPO}/revision/main"),
    }
    rival = bench.keep(olah(bench.scratch("olah"), bench.hub.url, bench.hub.cdn_url, _ENVIRONMENT))
    with bench.node() as node:
        for name, (title, method, path) in paths.items():
            targets: dict[str, Callable[[], Sample]] = {}
            if rival:
                targets["olah"] = partial(measure, _load(rival.url + path, method), rival.pid, "requests")
            targets["hubmesh"] = partial(measure, _load(node.url + path, method), node.pid, "requests")
            table = Table(name, f"{title}, {_CONNECTIONS} connections", "requests/s", interleave(bench.rounds, targets))
            if rival:
                table.bars.append(Bar("hubmesh ÷ olah", table.ratio("hubmesh"), 5.0))
            table.bars.append(Bar("p50, ms", table.median("hubmesh", lambda s: s.p50) * 1000, 5.0, at_most=True))
            yield table


def _load(url: str, method: str) -> Load:
    return Load([url], connections=_CONNECTIONS, seconds=_SECONDS, method=method)
