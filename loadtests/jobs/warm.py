"""Warm reads: whole files and ranges, beside nginx's sendfile and the hits of caching proxies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from loadtests.client import Load
from loadtests.jobs.bench import Bench, measure, run
from loadtests.measure import Bar, Sample, Table, interleave
from loadtests.rivals import nginx, squid

# Name and title of the table, file, shape of the load, and the bar for hubmesh ÷ nginx.
_LOADS: list[tuple[str, str, str, dict[str, int | float], float]] = [
    ("warm-1", "One stream, whole file", "large.bin", {"connections": 1, "requests": 2}, 1.3),
    ("warm-8", "Eight streams, whole file", "middle.bin", {"connections": 8, "requests": 8}, 1.5),
    ("warm-64", "Sixty-four streams, whole file", "small.bin", {"connections": 64, "requests": 64}, 1.1),
    ("range-8m", "Ranges of 8 MiB, 8 connections", "large.bin", {"connections": 8, "range_size": 8 << 20}, 1.3),
    ("range-64k", "Ranges of 64 KiB, 16 connections", "large.bin", {"connections": 16, "range_size": 64 << 10}, 0.25),
]
_RANGE_SECONDS = 1.0


def tables(bench: Bench) -> Iterator[Table]:
    """Throughput in GB/s. Server CPU seconds are per run: comparable only where the bytes are the same."""
    with bench.node() as node:
        for name in bench.sizes:
            run(Load([bench.url(node.url, name)]))
        servers = [
            ("nginx sendfile", bench.keep(nginx(bench.scratch("nginx"), bench.hub.cdn_url, bench.files)), "files")
        ]
        servers += [("nginx proxy_cache", servers[0][1], "cdn")]
        servers += [("squid", bench.keep(squid(bench.scratch("squid"), bench.hub.cdn_url)), "cdn")]
        for name, title, file, shape, bar in _LOADS:
            targets: dict[str, Callable[[], Sample]] = {}
            for server, rival, where in servers:
                if rival is None:
                    continue
                path = f"/files/{file}" if where == "files" else bench.signed(file).removeprefix(bench.hub.cdn_url)
                run(Load([rival.url + path]))
                targets[server] = partial(measure, _load(rival.url + path, shape, bench.sizes[file]), rival.pid)
            targets["hubmesh"] = partial(measure, _load(bench.url(node.url, file), shape, bench.sizes[file]), node.pid)
            table = Table(name, title, "GB/s", interleave(bench.rounds, targets))
            if "nginx sendfile" in targets:
                table.bars.append(Bar("hubmesh ÷ nginx sendfile", table.ratio("hubmesh"), bar))
            if "nginx sendfile" in targets and "requests" in shape:
                cost = table.ratio("hubmesh", what=lambda sample: sample.server_cpu)
                table.bars.append(Bar("server CPU ÷ nginx's", cost, 1.0, at_most=True))
            yield table


def _load(url: str, shape: dict[str, int | float], size: int) -> Load:
    load = Load([url], size=size, **shape)  # type: ignore[arg-type]
    load.seconds = _RANGE_SECONDS if load.range_size else 0.0
    return load
