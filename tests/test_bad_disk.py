"""A disk that changed while no node ran: files were written to, or more is stored than the limit allows now."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess, meet, until

MIB = 1 << 20
REPO = "acme/tiny"


def damage(data: Path, wrong: bytes, *, step: int = 1 << 40, is_hidden: bool = False) -> None:
    """Change bytes of each large blob, every `step`; with `is_hidden` as a disk does, without a trace in the times."""
    for blob in (data / "blobs" / "sha256").glob("*/*"):
        if not blob.suffix:
            about = blob.stat()
            blob.chmod(0o600)
            with blob.open("r+b") as file:
                for place in range(MIB // 2, about.st_size, step):
                    file.seek(place)
                    file.write(wrong)
            if is_hidden:
                os.utime(blob, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_bytes_that_changed_on_disk_reach_nobody(hub: HubProcess, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3 * MIB)
    hub.folder.commit(REPO, {"w.safetensors": content, "config.json": b"{}"})
    target = f"/{REPO}/resolve/main/w.safetensors"
    data = tmp_path / "a"
    with NodeProcess(data, hub.url) as node:
        assert ask(node.url + target).body == content
        assert ask(f"{node.url}/{REPO}/resolve/main/config.json").body == b"{}"
    damage(data, b"wrong")
    with NodeProcess(data, hub.url) as node:
        assert ask(node.url + target).body == content
        assert "was changed by another program, or by the disk; dropped" in node.log()
        assert node.metric("hubmesh_origin_received_bytes_total") == len(content), "and nothing else was fetched again"
        # The same while it runs, when another node is the first to ask.
        damage(data, b"WRONG")
        with NodeProcess(tmp_path / "b", hub.url, "--seed", node.mesh) as other:
            until(lambda: other.metric("hubmesh_peers") == 1, "they do not find each other")
            assert ask(other.url + target).body == content
            assert other.metric("hubmesh_pieces_rejected_total") == 0
        assert ask(node.url + target).body == content


def test_a_copy_of_the_data_is_believed_with_its_times_and_read_anew_without(hub: HubProcess, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3 * MIB)
    hub.folder.commit(REPO, {"w.safetensors": content})
    with NodeProcess(tmp_path / "a", hub.url) as node:
        assert ask(f"{node.url}/{REPO}/resolve/main/w.safetensors").body == content
    for options, is_read_anew in (("-a", False), ("-r", True)):
        copy = tmp_path / f"copy{options}"
        assert os.spawnlp(os.P_WAIT, "cp", "cp", options, str(tmp_path / "a"), str(copy)) == 0
        with NodeProcess(copy, hub.url, "--offline") as node:
            assert ask(f"{node.url}/{REPO}/resolve/main/w.safetensors").body == content
            assert ("reading it anew" in node.log()) == is_read_anew


def test_a_smaller_budget_goes_for_what_is_there(hub: HubProcess, tmp_path: Path) -> None:
    files = {f"{number}.bin": random.Random(number).randbytes(MIB) for number in range(5)}
    hub.folder.commit(REPO, files)
    with NodeProcess(tmp_path / "a", hub.url) as node:
        for name, content in files.items():
            assert ask(f"{node.url}/{REPO}/resolve/main/{name}").body == content
    with NodeProcess(tmp_path / "a", hub.url, "--max-size", "3MiB") as node:
        until(lambda: len(node.status()["blobs"]) == 3, "they do not arrive")
        left = {blob["path"] for blob in node.status()["blobs"]}
        assert left == {"2.bin", "3.bin", "4.bin"}, "what was used longest ago goes first"


def test_a_disk_that_hides_what_it_did_is_found_out_piece_by_piece_in_a_keyed_mesh(
    hub: HubProcess, tmp_path: Path
) -> None:
    content = random.Random(1).randbytes(8 * MIB)
    hub.folder.commit(REPO, {"w.safetensors": content})
    target = f"/{REPO}/resolve/main/w.safetensors"
    key = tmp_path / "key"
    key.write_text("k" * 40)
    flags = ("--mesh-key-file", str(key))
    with NodeProcess(tmp_path / "seed", hub.url, *flags, "--role", "seed", "--max-upload", "8MB/s") as seed:
        flags = (*flags, "--seed", seed.mesh)
        with NodeProcess(tmp_path / "bad", hub.url, *flags) as bad:
            assert ask(seed.url + target).body == content
            assert ask(bad.url + target).body == content
        damage(tmp_path / "bad", b"wrong", step=MIB, is_hidden=True)
    # The seed has lost the digests that it was told with the pieces: it knows them from its disk.
    with (
        NodeProcess(tmp_path / "seed", hub.url, *flags[:2], "--role", "seed", "--max-upload", "8MB/s") as seed,
        NodeProcess(tmp_path / "bad", hub.url, *flags[:2], "--seed", seed.mesh) as bad,
        NodeProcess(tmp_path / "new", hub.url, *flags[:2], "--seed", seed.mesh) as new,
    ):
        meet([seed, bad, new])
        answer = ask(new.url + target)
        assert answer.body == content, "the first download is right, and does not break off"
        assert new.metric("hubmesh_pieces_rejected_total") > 0
        assert f"peer {bad.status()['node_id']} sent wrong bytes for piece" in new.log()
        assert new.metric("hubmesh_origin_received_bytes_total") == 0
