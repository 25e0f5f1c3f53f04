"""`snapshot_download` of a repository of 300 small files from an origin 30 ms away: straight, cold and warm.

Also from a local server that replays recorded answers: the client's own time, which no server can improve on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

from loadtests.jobs.bench import Bench, children_cpu, make_file
from loadtests.measure import Bar, Sample, Table, interleave
from loadtests.rivals import Rival, cpu_seconds, free_port

REPO = "acme/many"
_FILES, _LATENCY = 300, 0.03
_SCRIPT = """
import sys, time
from huggingface_hub import snapshot_download
began = time.monotonic()
snapshot_download({repo!r}, max_workers=8)
print(time.monotonic() - began)
"""


def tables(bench: Bench) -> Iterator[Table]:
    """Seconds, each with an empty client cache; 280 files of 4 KiB and 20 of 1 MiB."""
    files = {}
    for number in range(_FILES):
        is_large = number % 15 == 0
        name = f"part-{number:03}.{'bin' if is_large else 'json'}"
        make_file(bench.files / name, (1 << 20 if is_large else 4096) + number)
        files[name] = bench.files / name
    bench.hub.folder.commit(REPO, files)
    bench.hub.turn(latency=dict.fromkeys(("resolve", "api", "cdn"), _LATENCY))

    def cold() -> Sample:
        with bench.node() as node:
            return _download(bench, node.url, node.pid)

    try:
        with bench.node() as warm:
            _download(bench, warm.url, warm.pid)
            port = free_port()
            command = [sys.executable, "-m", "loadtests.answerer", str(port), warm.url, REPO]
            answerer = bench.keep(Rival("answerer", port, command))
            assert answerer is not None
            targets: dict[str, Callable[[], Sample]] = {
                "straight": lambda: _download(bench, bench.hub.url, bench.hub.pid),
                "hubmesh cold": cold,
                "hubmesh warm": lambda: _download(bench, warm.url, warm.pid),
                "recorded answers": lambda: _download(bench, answerer.url, answerer.pid),
            }
            title = f"snapshot_download of {_FILES} files, origin {_LATENCY * 1000:.0f} ms away"
            table = Table("snapshot", title, "seconds", interleave(bench.rounds, targets))
    finally:
        bench.hub.turn(latency={})
    table.bars = [
        Bar("cold ÷ straight", table.ratio("hubmesh cold"), 1.15, at_most=True),
        Bar("warm ÷ straight", table.ratio("hubmesh warm"), 0.3, at_most=True),
    ]
    yield table


def _download(bench: Bench, endpoint: str, pid: int) -> Sample:
    home = bench.scratch("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUBMESH_"))}
    environment = kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    before, used = cpu_seconds(pid), children_cpu()
    said = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(repo=REPO)],
        check=True,
        env=environment | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    sample = Sample(float(said.stdout), cpu_seconds(pid) - before, children_cpu() - used)
    shutil.rmtree(home, ignore_errors=True)
    return sample
