"""Rate limits of real nodes: bytes take at least as long as the limit says; how much more depends on the machine."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess, meet

MIB = 1 << 20
REPO = "acme/tiny"
FILES = {f"{number}.bin": random.Random(number).randbytes(2 * MIB) for number in range(2)}
SIZE = 4 * MIB
RATE, SECONDS = "2MiB/s", 2.0
# Seconds' worth of bytes that may be ahead of the limit: each of eight sending threads has 50 ms in flight before it
# waits; receivers wait before they count.
AHEAD = {"--max-upload": 8 * 0.05, "--max-download": 0.01, "--max-origin": 0.01}


def read(node: NodeProcess) -> None:
    """Read all files at once: a limit applies to the node, not to each download."""
    with ThreadPoolExecutor() as pool:
        answers = pool.map(ask, [f"{node.url}/{REPO}/resolve/main/{path}" for path in FILES])
        assert [answer.body for answer in answers] == list(FILES.values())


@pytest.mark.parametrize("flag", AHEAD)
def test_what_comes_and_goes_stays_within_its_limit(hub: HubProcess, tmp_path: Path, flag: str) -> None:
    hub.folder.commit(REPO, FILES)
    theirs, ours = [(flag, RATE), ()] if flag == "--max-upload" else [(), (flag, RATE)]
    with (
        NodeProcess(tmp_path / "holder", hub.url, *theirs) as holder,
        NodeProcess(tmp_path / "node", hub.url, "--seed", holder.mesh, *ours) as node,
    ):
        meet([holder, node])
        if flag != "--max-origin":
            read(holder)
        began = time.monotonic()
        read(node)
        assert time.monotonic() - began >= SECONDS - AHEAD[flag]
        source = "origin" if flag == "--max-origin" else "peer"
        assert node.metric(f"hubmesh_{source}_received_bytes_total") == SIZE
    assert hub.stats()["total_bytes"] == SIZE
