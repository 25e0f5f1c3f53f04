"""`git clone` and `git lfs pull` with the node as the remote."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import http
from tests.hub.process import HubProcess
from tests.node import NodeProcess

pytestmark = pytest.mark.skipif(
    not (shutil.which("git") and shutil.which("git-lfs")), reason="there is no git with LFS on this machine"
)

MIB = 1 << 20
REPO = "acme/tiny"
BIG = random.Random(3).randbytes(9 * MIB + 5)
OTHER = random.Random(4).randbytes(3 * MIB + 1)
FILES = {"config.json": b'{"a": 1}\n', "sub/rows.csv": b"x\n1\n", "model.safetensors": BIG, "sub/b.bin": OTHER}


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def git(home: Path, *arguments: str, skip_smudge: bool = False) -> subprocess.CompletedProcess[str]:
    """Run git with a home of its own, in which LFS is set up, and without password prompts."""
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "NO_PROXY": "*",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_LFS_SKIP_SMUDGE": str(int(skip_smudge)),
    }
    if not (home / ".gitconfig").exists():
        subprocess.run(["git", "lfs", "install", "--skip-repo"], env=environment, check=True, capture_output=True)
    return subprocess.run(["git", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False)


def done(answer: subprocess.CompletedProcess[str]) -> str:
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def contents(clone: Path) -> dict[str, bytes]:
    inside = [path for path in clone.rglob("*") if path.is_file() and ".git" not in path.relative_to(clone).parts]
    return {str(path.relative_to(clone)): path.read_bytes() for path in inside if path.name != ".gitattributes"}


@pytest.mark.parametrize("repo_type", ["models", "datasets"])
def test_two_clones_cost_the_hub_one_copy(hub: HubProcess, node: NodeProcess, tmp_path: Path, repo_type: str) -> None:
    hub.folder.commit(REPO, FILES, repo_type=repo_type)
    remote = f"{node.url}/{'datasets/' if repo_type == 'datasets' else ''}{REPO}"
    first, second = tmp_path / "first", tmp_path / "second"
    done(git(tmp_path / "home", "clone", remote, str(first)))
    assert contents(first) == FILES, "the bytes come with the clone"
    done(git(tmp_path / "home", "clone", f"{remote}.git", str(second), skip_smudge=True))
    assert contents(second)["model.safetensors"].startswith(b"version https://git-lfs")
    done(git(tmp_path / "home", "-C", str(second), "lfs", "pull"))
    assert contents(second) == FILES
    done(git(tmp_path / "home", "-C", str(second), "lfs", "fsck"))
    assert hub.stats()["bytes"] == {"model.safetensors": len(BIG), "sub/b.bin": len(OTHER)}
    assert node.metric("hubmesh_origin_received_bytes_total") == len(BIG) + len(OTHER)
    # Other clients get the bytes that git fetched.
    file = http.ask(f"{remote}/resolve/main/model.safetensors")
    assert file.body == BIG
    assert hub.stats()["bytes"]["model.safetensors"] == len(BIG)


def test_what_is_new_is_fetched_whatever_git_has_to_tell(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    """Git compresses its requests once they name many commits: they must arrive as they were sent."""
    for number in range(40):
        hub.folder.commit(REPO, {"config.json": b"%d" % number}, ref=f"heads/branch-{number}")
    clone = tmp_path / "clone"
    hub.folder.commit(REPO, FILES)
    done(git(tmp_path / "home", "clone", f"{node.url}/{REPO}", str(clone)))
    assert len(done(git(tmp_path / "home", "-C", str(clone), "branch", "-r")).splitlines()) == 42
    hub.folder.commit(REPO, {"config.json": b"new"})
    hub.folder.commit(REPO, {"model.safetensors": OTHER})
    done(git(tmp_path / "home", "-C", str(clone), "pull"))
    assert contents(clone) == FILES | {"config.json": b"new", "model.safetensors": OTHER}


def test_what_is_pushed_goes_to_the_hub(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.create(REPO, readers=["alice"])
    hub.folder.commit(REPO, FILES)
    home, clone = tmp_path / "home", tmp_path / "clone"
    remote = f"{node.url.replace('://', '://alice:hf_alice@')}/{REPO}"
    done(git(home, "clone", remote, str(clone), skip_smudge=True))
    large, many = random.Random(6).randbytes(2 * MIB), random.Random(7).randbytes(3 * MIB)
    (clone / "new.bin").write_bytes(large)
    (clone / "not-large.txt").write_bytes(many)  # over 1 MiB, git sends without a length
    done(git(home, "-C", str(clone), "add", "-A"))
    identity = ("-c", "user.name=alice", "-c", "user.email=alice@example.org")
    done(git(home, "-C", str(clone), *identity, "commit", "-qm", "More"))
    done(git(home, "-C", str(clone), "push", "origin", "HEAD"))
    pushed = done(git(home, "-C", str(clone), "rev-parse", "HEAD")).strip()
    assert done(git(home, "ls-remote", f"{hub.url}/{REPO}", "main")).split()[0] == pushed
    stored = hub.folder.folder("models", REPO) / "objects" / hashlib.sha256(large).hexdigest()
    assert stored.read_bytes() == large


def test_a_gated_one_is_for_those_whom_the_hub_lets_in(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.add_token("hf_mallory", "mallory")
    hub.folder.create(REPO, gated=True, readers=["alice"])
    hub.folder.commit(REPO, FILES)

    def remote(token: str) -> str:
        return f"{node.url.replace('://', f'://user:{token}@')}/{REPO}"

    clone = tmp_path / "clone"
    done(git(tmp_path / "home", "clone", remote("hf_alice"), str(clone)))
    assert contents(clone) == FILES
    for url in (f"{node.url}/{REPO}", remote("hf_mallory"), remote("hf_nobody")):
        assert git(tmp_path / "home", "clone", url, str(tmp_path / "not")).returncode != 0
        # Nor with another user's clone, which has the pointers.
        done(git(tmp_path / "home", "-C", str(clone), "remote", "set-url", "origin", url))
        shutil.rmtree(clone / ".git/lfs/objects", ignore_errors=True)
        assert git(tmp_path / "home", "-C", str(clone), "lfs", "fetch").returncode != 0
        assert not [path for path in (clone / ".git/lfs/objects").rglob("*") if path.is_file()]
    digest = hashlib.sha256(BIG).hexdigest()
    straight = f"{node.url}/{REPO}.git/info/lfs/objects/{digest}?size={len(BIG)}"
    assert http.ask(straight).status == 401
    assert http.ask(straight, token="hf_mallory").status == 403
    assert http.ask(straight, Authorization="Negotiate hf_alice").status == 401
    assert http.ask(straight, token="hf_alice").body == BIG
    assert http.ask(straight, token="hf_alice", Range="bytes=100-199").body == BIG[100:200]
    assert hub.stats()["bytes"]["model.safetensors"] == len(BIG)
    # A URL of the node must not turn one repository's files into another's.
    hub.folder.commit("acme/open", {"a.txt": b"a"})
    assert http.ask(straight.replace(REPO, "acme/open")).status == 404
    assert "hf_alice" not in node.log()


@pytest.mark.parametrize("role", ["peer", "seed"])
def test_two_nodes_cost_the_hub_one_copy(hub: HubProcess, tmp_path: Path, role: str) -> None:
    hub.folder.commit(REPO, FILES)
    with (
        NodeProcess(tmp_path / "first", hub.url, "--role", role) as first,
        NodeProcess(tmp_path / "second", hub.url, "--seed", first.mesh) as second,
    ):
        for name, process in (("a", second), ("b", first), ("c", second)):
            done(git(tmp_path / "home", "clone", f"{process.url}/{REPO}", str(tmp_path / name)))
            assert contents(tmp_path / name) == FILES
        assert hub.stats()["bytes"] == {"model.safetensors": len(BIG), "sub/b.bin": len(OTHER)}
        held = {(blob["repo"], blob["have"]) for blob in second.status()["blobs"]}
        assert held == {(f"models/{REPO}", len(BIG)), (f"models/{REPO}", len(OTHER))}
