"""Everyday use of the `hf` command, HfFileSystem and curl."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.process import HubProcess
from tests.node import NodeProcess

MIB = 1 << 20
REPO = "acme/tiny"
BIG = random.Random(7).randbytes(12 * MIB + 5)
FILES = {"config.json": b'{"a": 1}', "data/rows.csv": b"x\n1\n2\n", "model.safetensors": BIG}
HF = str(Path(sys.executable).parent / "hf")


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    hub.folder.commit(REPO, FILES)
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def environment(node: NodeProcess, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUBMESH_"))}
    return kept | {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": node.url, "NO_PROXY": "*"}


def run(command: list[str], node: NodeProcess, home: Path) -> str:
    done = subprocess.run(
        command, env=environment(node, home), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    inside = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in inside}


def test_hf_download_with_its_options(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    old = hub.folder.load("models", REPO).refs["heads/main"]
    plan = run([HF, "download", REPO, "--dry-run"], node, tmp_path / "dry")
    assert "model.safetensors" in plan
    assert hub.stats()["total_bytes"] == 0, "a dry run costs no body bytes"
    run([HF, "download", REPO, "--local-dir", str(tmp_path / "all")], node, tmp_path / "home")
    assert contents(tmp_path / "all") == FILES
    hub.folder.commit(REPO, {"config.json": b'{"a": 2}'})
    run(
        [HF, "download", REPO, "--revision", old, "--include", "*.json", "--local-dir", str(tmp_path / "old")],
        node,
        tmp_path,
    )
    assert contents(tmp_path / "old") == {"config.json": FILES["config.json"]}
    assert hub.stats()["bytes"]["model.safetensors"] == len(BIG)


def test_hf_download_goes_on_after_the_client_was_killed(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    hub.turn(bandwidth=4 * MIB)
    command = [HF, "download", REPO, "--local-dir", str(tmp_path / "to")]
    client = subprocess.Popen(
        command, env=environment(node, tmp_path / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 20
    while hub.stats()["total_bytes"] < 3 * MIB and time.monotonic() < until:
        time.sleep(0.02)
    client.kill()
    client.wait()
    run(command, node, tmp_path / "home")
    assert contents(tmp_path / "to") == FILES
    assert hub.stats()["bytes"]["model.safetensors"] == len(BIG), "the fill went on while nobody read"


def test_hf_file_system_reads_ranges_and_whole_files(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    code = f"""
import hashlib
from huggingface_hub import HfFileSystem
fs = HfFileSystem()
print(sorted(path.partition("{REPO}/")[2] for path in fs.glob("{REPO}/**")))
with fs.open("{REPO}/model.safetensors", "rb") as file:
    file.seek(-100, 2)
    print(file.read().hex())
print(fs.read_text("{REPO}/data/rows.csv").split())
fs.get("{REPO}/model.safetensors", {str(tmp_path / "got")!r})
"""
    names, tail, rows = run([sys.executable, "-c", code], node, tmp_path / "home").splitlines()
    assert "model.safetensors" in names
    assert bytes.fromhex(tail) == BIG[-100:]
    assert rows == "['x', '1', '2']"
    assert (tmp_path / "got").read_bytes() == BIG


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_curl_takes_ranges_and_goes_on_where_it_was(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    url = f"{node.url}/{REPO}/resolve/main/model.safetensors"
    part = subprocess.run(["curl", "-sf", "-r", "100-299", url], capture_output=True, check=True)
    assert part.stdout == BIG[100:300]
    target = tmp_path / "file"
    target.write_bytes(BIG[: 5 * MIB + 3])
    subprocess.run(["curl", "-sf", "-C", "-", "-o", str(target), url], check=True)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == hashlib.sha256(BIG).hexdigest()
