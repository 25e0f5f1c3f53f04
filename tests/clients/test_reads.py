"""Clients that read parts of remote files: safetensors headers, Parquet by pyarrow and by DuckDB."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import environment
from tests.hub.process import HubProcess
from tests.node import NodeProcess

MIB = 1 << 20
ROWS = "acme/rows"

_MAKE = """
import sys
import numpy, pyarrow, pyarrow.parquet
table = pyarrow.table({"x": range(800_000), "noise": numpy.random.default_rng(1).random(800_000)})
pyarrow.parquet.write_table(table, sys.argv[1], row_group_size=100_000)
"""

_FOOTER = """
import json
import pyarrow.parquet
from huggingface_hub import HfFileSystem
path = "datasets/acme/rows/data/train.parquet"
with HfFileSystem().open(path, block_size=1 << 20) as file:
    parquet = pyarrow.parquet.ParquetFile(file)
    group = parquet.read_row_group(7, columns=["x"])["x"].to_pylist()
    print(json.dumps([parquet.metadata.num_rows, parquet.metadata.num_row_groups, sum(group)]))
"""

_PYARROW = """
import json
import pyarrow.dataset, pyarrow.parquet
from huggingface_hub import HfFileSystem
by_path = pyarrow.parquet.read_table("datasets/acme/rows/data/train.parquet", filesystem=HfFileSystem())
by_uri = pyarrow.parquet.read_table("hf://datasets/acme/rows/data/train.parquet")
folder = pyarrow.dataset.dataset("datasets/acme/rows/data", format="parquet", filesystem=HfFileSystem())
few = folder.to_table(filter=pyarrow.dataset.field("x") >= 799_990)
print(json.dumps([by_path.equals(by_uri), sum(by_path["x"].to_pylist()), few["x"].to_pylist()]))
"""

_DUCKDB = """
import json
import duckdb
from huggingface_hub import HfFileSystem
duckdb.register_filesystem(HfFileSystem())
found = duckdb.sql("SELECT count(*), sum(x)::BIGINT, max(noise) FROM 'hf://datasets/acme/rows/data/*.parquet'")
print(json.dumps(found.fetchall()[0]))
"""


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def run(python: Path | str, code: str, node: NodeProcess, home: Path) -> Any:
    """Return the JSON that a script prints, with the node as its Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUBMESH_"))}
    ours = {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": node.url, "NO_PROXY": "*"}
    done = subprocess.run(
        [str(python), "-c", code], env=kept | ours, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("long", [False, True])
def test_a_safetensors_header_is_read_alone(hub: HubProcess, node: NodeProcess, tmp_path: Path, long: bool) -> None:
    """Up to 100 kB the header comes with the first range; a longer one needs a second."""
    count, noise = 2000 if long else 3, random.Random(2).randbytes(24 * MIB)
    ends = {n: [8 * n, 8 * n + 8] for n in range(count)}
    tensors = {f"layer.{n}.weight": {"dtype": "F32", "shape": [2], "data_offsets": ends[n]} for n in ends}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    assert (len(header) > 100_000) == long
    hub.folder.commit("acme/tiny", {"model.safetensors": len(header).to_bytes(8, "little") + header + noise})
    code = """
import json
from huggingface_hub import get_safetensors_metadata, parse_safetensors_file_metadata
whole = get_safetensors_metadata("acme/tiny")
file = parse_safetensors_file_metadata("acme/tiny", "model.safetensors")
print(json.dumps([whole.sharded, sorted(file.tensors), file.metadata, whole.parameter_count]))
"""
    said = run(sys.executable, code, node, tmp_path / "home")
    assert said == [False, sorted(tensors), {"format": "pt"}, {"F32": 2 * count}]
    assert hub.stats()["bytes"]["model.safetensors"] <= 8 * MIB, "one piece, not the file"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parquet_is_read_in_parts_and_as_a_whole(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    python = environment("huggingface_hub==2.4.0", "pyarrow==26.0.1", "duckdb==2.0.1", "numpy==2.4.1") / "python"
    file = tmp_path / "train.parquet"
    subprocess.run([str(python), "-c", _MAKE, str(file)], check=True)
    hub.folder.commit(ROWS, {"data/train.parquet": file, "README.md": b"# rows\n"}, repo_type="datasets")
    assert run(python, _FOOTER, node, tmp_path / "footer") == [800_000, 8, sum(range(700_000, 800_000))]
    assert hub.stats()["bytes"]["data/train.parquet"] < file.stat().st_size / 2
    everything = sum(range(800_000))
    assert run(python, _PYARROW, node, tmp_path / "pyarrow") == [True, everything, list(range(799_990, 800_000))]
    count, total, most = run(python, _DUCKDB, node, tmp_path / "duckdb")
    assert (count, total) == (800_000, everything)
    assert 0.99 < most < 1
    assert hub.stats()["bytes"]["data/train.parquet"] == file.stat().st_size


_NAMES = """
import json
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
folder, names = snapshot_download("acme/names"), HfApi().list_repo_files("acme/names")
print(json.dumps({name: [
    open(f"{folder}/{name}").read(),
    open(hf_hub_download("acme/names", name, force_download=True)).read(),
    HfFileSystem().read_text(f"acme/names/{name}"),
] for name in names}))
"""


def test_names_that_look_encoded_are_taken_literally(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    names = ["100%.txt", "%41.txt", "per%20cent.txt", "a%2Fb.txt", "%2e%2e/up.txt", "per%20cent.bin", "a%2Fb.bin"]
    hub.folder.commit("acme/names", {name: name.encode() for name in names})
    assert run(sys.executable, _NAMES, node, tmp_path) == {name: [name] * 3 for name in names}


def test_access_to_an_old_id_without_an_owner_can_be_checked(
    hub: HubProcess, node: NodeProcess, tmp_path: Path
) -> None:
    hub.folder.commit("acme/gpt2", {"config.json": b"{}"})
    hub.folder.create("gpt2", moved_to="acme/gpt2")
    checked = "from huggingface_hub import HfApi; print(HfApi().auth_check('gpt2') or 'true')"
    assert run(sys.executable, checked, node, tmp_path) is True
