"""A disk that is really full: a clear answer, and nothing that was there is harmed."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    if os.geteuid():
        pytest.skip("only root may mount")
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(mount)], check=False)
    if made.returncode:
        pytest.skip("this machine does not let us mount")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.mark.parametrize("budget", ["6MiB", "1GiB"], ids=["budget", "disk"])
def test_no_room_is_507_and_harms_nothing(hub: HubProcess, small_disk: Path, budget: str) -> None:
    kept, large = random.Random(1).randbytes(3 * MIB), random.Random(2).randbytes(30 * MIB)
    hub.folder.commit("acme/tiny", {"kept.bin": kept, "large.bin": large})
    with NodeProcess(small_disk / "node", hub.url, "--max-size", budget) as node:
        base = f"{node.url}/acme/tiny/resolve/main"
        assert ask(f"{base}/kept.bin").body == kept
        for _ in range(2):
            answer = ask(f"{base}/large.bin", Range=f"bytes={25 * MIB}-{26 * MIB}")
            assert answer.status in (206, 507)
        failed = False
        try:
            answer = ask(f"{base}/large.bin")
            failed = answer.status == 507
        except Exception as error:  # the body had begun: it breaks off
            failed = "IncompleteRead" in type(error).__name__
        assert failed
        assert ask(f"{base}/kept.bin").body == kept
        assert node.get("/-/health") == b"alive\n"
