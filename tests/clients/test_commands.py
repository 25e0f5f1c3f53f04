"""The command line against a real node in front of the stand-in Hub."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.node import NodeProcess

REPO = "acme/tiny"
FILES = {"config.json": b'{"a": 1}', "model.safetensors": os.urandom(3_000_000), "sub/vocab.txt": b"words\n" * 100}


@pytest.fixture
def node(tmp_path, hub):
    hub.folder.commit(REPO, FILES)
    with NodeProcess(tmp_path / "node", hub.url) as node:
        yield node


@pytest.fixture
def hubmesh(tmp_path, node):
    def hubmesh(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "proxy.cli", *arguments, "--data-dir", str(node.data_dir)],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_ENDPOINT": node.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return hubmesh


def test_preheat_then_pull_costs_the_hub_one_copy(hub, node, hubmesh, tmp_path):
    assert "downloads started; files: 3." in hubmesh("preheat", REPO)
    until = time.monotonic() + 30
    while sum(row["have"] for row in json.loads(hubmesh("ls", "--json"))) < sum(map(len, FILES.values())):
        assert time.monotonic() < until
    sent = hub.stats()["total_bytes"]
    said = hubmesh("pull", f"hf://{REPO}", "-O", str(tmp_path / "dest"))
    assert "0 B from the Hub" in said
    got = {str(p.relative_to(tmp_path / "dest")): p.read_bytes() for p in (tmp_path / "dest").rglob("*") if p.is_file()}
    assert got == FILES
    assert hub.stats()["total_bytes"] == sent
    assert node.metric("hubmesh_origin_received_bytes_total") == sum(map(len, FILES.values()))


def test_what_is_here_is_listed_pinned_and_dropped(hubmesh, node):
    hubmesh("pull", f"hf://{REPO}", "--quiet")
    assert "acme/tiny   3      3 MB  100%" in hubmesh("ls")
    assert "files protected from eviction: 3" in hubmesh("pin", REPO)
    assert "pinned" in hubmesh("ls")
    assert "files no longer protected: 3" in hubmesh("unpin", REPO)
    assert "acme/tiny: 3 MB freed" in hubmesh("rm", REPO)
    assert node.metric("hubmesh_blob_bytes") == 0
    assert "holds     0 complete and 0 incomplete files" in hubmesh("status")


def test_doctor_finds_nothing_wrong(hub, hubmesh):
    said = hubmesh("doctor", "--origin", hub.url, "--no-mdns")
    assert "BAD" not in said
    assert "ok  HF_ENDPOINT" in said


def test_a_node_that_cannot_start_says_why_in_one_line(node, tmp_path):
    def serve(*flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "proxy.cli", "serve", "--no-mdns", "--mesh-listen", "127.0.0.1:0", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stderr

    listen = node.url.removeprefix("http://")
    code, said = serve("--listen", listen, "--data-dir", str(tmp_path / "other"))
    assert (code, said) == (1, f"hubmesh: cannot listen on {listen} (--listen): Address already in use\n")
    code, said = serve("--listen", "127.0.0.1:0", "--data-dir", str(node.data_dir))
    assert code == 1
    assert f"{node.data_dir} is in use by another hubmesh node" in said
    assert said.count("\n") == 1
    # The running node was not harmed.
    assert json.loads((node.data_dir / "node.json").read_text())["listen"] == listen
    assert node.stop() == 0
    assert not (node.data_dir / "node.json").exists()
