"""Download managers that know nothing of the Hub: many connections at once, and resumed downloads."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.process import HubProcess
from tests.node import NodeProcess

MIB = 1 << 20
REPO = "acme/tiny"
BIG = random.Random(11).randbytes(40 * MIB + 7)
URL = f"/{REPO}/resolve/main/model.safetensors"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"there is no {program} on this machine")


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    hub.folder.commit(REPO, {"model.safetensors": BIG})
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def is_one_copy(hub: HubProcess) -> bool:
    """Allows for bytes in flight when a transfer is broken off because a reader elsewhere cannot wait for it."""
    return len(BIG) <= hub.stats()["bytes"]["model.safetensors"] < 1.05 * len(BIG)


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "NO_PROXY": "*", "no_proxy": "*"}


def run(home: Path, *command: str) -> str:
    done = subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs("aria2c")
@pytest.mark.parametrize("speed", [0, 12 * MIB])
def test_aria2_over_sixteen_connections(hub: HubProcess, node: NodeProcess, tmp_path: Path, speed: int) -> None:
    hub.turn(bandwidth=speed)
    options = ["-x16", "-s16", "-k1M", "--no-conf", "--console-log-level=warn", "--summary-interval=0"]
    run(tmp_path, "aria2c", *options, "-o", "got", f"{node.url}{URL}")
    assert (tmp_path / "got").read_bytes() == BIG
    assert is_one_copy(hub)


@needs("aria2c")
def test_aria2_does_not_go_on_from_wrong_bytes(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    """It goes on with a whole file in ranges that name their last byte, as readers of single ranges do."""
    hub.turn(corrupt={"model.safetensors": 10}, corrupt_times=1)
    command = ["aria2c", "--no-conf", "-q", "--retry-wait=1", "-o", "got", f"{node.url}{URL}"]
    for _ in range(2):
        done = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, timeout=90, check=False)
        assert done.returncode, "it has finished a wrong file"
    for file in tmp_path.glob("got*"):  # with what it notes about the download
        file.unlink()
    run(tmp_path, *command)
    assert (tmp_path / "got").read_bytes() == BIG


@needs("wget")
def test_wget_goes_on_where_it_was(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    hub.turn(bandwidth=12 * MIB)
    command = ["wget", "-q", "-c", "-O", "got", f"{node.url}{URL}"]
    target = tmp_path / "got"
    client = subprocess.Popen(command, env=environment(tmp_path), cwd=tmp_path)
    until = time.monotonic() + 30
    while not target.exists() or target.stat().st_size < 5 * MIB:
        assert time.monotonic() < until
        time.sleep(0.02)
    client.kill()
    client.wait()
    assert 5 * MIB <= target.stat().st_size < len(BIG)
    run(tmp_path, *command)
    assert target.read_bytes() == BIG
    # Nothing is left to fetch, and wget understands the answer to that.
    run(tmp_path, *command)
    assert target.read_bytes() == BIG
    assert is_one_copy(hub)


@needs("wget")
def test_wget_saves_a_file_under_its_own_name(node: NodeProcess, tmp_path: Path) -> None:
    run(tmp_path, "wget", "-q", "--content-disposition", f"{node.url}{URL}?download=true")
    assert (tmp_path / "model.safetensors").read_bytes() == BIG


@needs("curl")
def test_curl_fetches_parts_in_parallel(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    hub.turn(bandwidth=40 * MIB)
    step = 3 * MIB + 1
    parts = [(start, min(start + step, len(BIG)) - 1) for start in range(0, len(BIG), step)]
    lines = []
    for number, (first, last) in enumerate(reversed(parts)):
        lines += ["next"] if number else []
        lines += [f'url = "{node.url}{URL}"', f"range = {first}-{last}", f'output = "{first}"', "fail", "silent"]
    (tmp_path / "config").write_text("\n".join(lines))
    run(tmp_path, "curl", "--parallel", "--parallel-max", "16", "-K", "config")
    assert b"".join((tmp_path / str(first)).read_bytes() for first, _ in parts) == BIG
    assert is_one_copy(hub)
