"""A disk that is really full: the error is clear, and nothing already stored is harmed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import subprocess
import time
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
        assert read(f"{base}/large.bin") is None
        # On a disk that others fill, the least recently used blob goes; it is back once the failed download has let go.
        until = time.monotonic() + 30
        while (body := read(f"{base}/kept.bin", busy=429)) is None and time.monotonic() < until:
            time.sleep(0.1)
        assert body == kept
        assert node.get("/-/health") == b"alive\n"
        assert "Traceback" not in node.log()


def test_a_start_on_a_full_disk_loses_nothing(hub: HubProcess, small_disk: Path, tmp_path: Path) -> None:
    kept = random.Random(1).randbytes(3 * MIB)
    hub.folder.commit("acme/tiny", {"kept.bin": kept})
    node = NodeProcess(small_disk / "node", hub.url)
    node.log_file = tmp_path / "node.log"
    with node:
        target = f"{node.url}/acme/tiny/resolve/main/kept.bin"
        assert ask(target).body == kept
        order = json.dumps({"repo": "acme/tiny"}).encode()
        assert ask(f"{node.url}/-/pin", "POST", body=order, Content_Type="application/json").status == 200
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    for _ in range(2):  # as a supervisor would
        with pytest.raises(RuntimeError, match="cannot open the catalog"):
            node.start()
    assert "Traceback" not in node.log()
    filler.unlink()
    with NodeProcess(small_disk / "node", hub.url, "--offline") as node:
        answer = ask(f"{node.url}/acme/tiny/resolve/main/kept.bin")
        assert (answer.status, answer.body == kept) == (200, True)
        assert [blob["is_pinned"] for blob in node.status()["blobs"]] == [True]


def read(url: str, busy: int = 507) -> bytes | None:
    """Return the file, or None if there was no room for it: refused at once, or broken off later.

    `busy`: the status that is accepted while another download has the room.
    """
    try:
        answer = ask(url)
    except http.client.IncompleteRead:
        return None
    assert answer.status in (200, 507, busy), answer
    return answer.body if answer.status == 200 else None
