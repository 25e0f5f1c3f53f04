"""`@huggingface/hub` and `@huggingface/transformers` in Node, unmodified from npm."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import environment, node_packages
from tests.hub.process import HubProcess
from tests.node import NodeProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm on this machine"),
]

MIB = 1 << 20
REPO = "acme/tiny"
BIG = random.Random(9).randbytes(12 * MIB + 5)
FILES = {"config.json": b'{"a": 1}', "sub/rows.csv": b"x\n1\n", "model.safetensors": BIG}
HUB, TRANSFORMERS = "@huggingface/hub@2.17.5", "@huggingface/transformers@4.3.1"

_HUB = """
import { createHash } from "node:crypto";
import { readFileSync, realpathSync } from "node:fs";
import { basename } from "node:path";
import { downloadFile, fileDownloadInfo, fileExists, listFiles, snapshotDownload } from "@huggingface/hub";
console.debug = () => {};
const [hubUrl, repo, cacheDir] = process.argv.slice(2);
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const listed = {}, sums = {}, cached = {};
for await (const file of listFiles({ repo, hubUrl, recursive: true })) {
  if (file.type !== "file") continue;
  listed[file.path] = file.size;
  const blob = await downloadFile({ repo, hubUrl, path: file.path });
  sums[file.path] = sha256(Buffer.from(await blob.arrayBuffer()));
}
const info = await fileDownloadInfo({ repo, hubUrl, path: "model.safetensors" });
const part = await downloadFile({ repo, hubUrl, path: "model.safetensors", downloadInfo: info });
const folder = await snapshotDownload({ repo, hubUrl, cacheDir });
for (const path of Object.keys(listed)) cached[path] = sha256(readFileSync(`${folder}/${path}`));
console.log(JSON.stringify({
  listed, sums, cached,
  info: [info.size, info.etag, info.url, info.xet ?? null],
  part: Buffer.from(await part.slice(100, 300).arrayBuffer()).toString("hex"),
  blob: basename(realpathSync(`${folder}/model.safetensors`)),
  commit: basename(folder),
  missing: [await downloadFile({ repo, hubUrl, path: "nope" }), await fileExists({ repo, hubUrl, path: "nope" })],
}));
"""

_TRANSFORMERS = """
import { AutoTokenizer, env, pipeline } from "@huggingface/transformers";
const [host, repo, cacheDir] = process.argv.slice(2);
Object.assign(env, { remoteHost: `${host}/`, cacheDir, allowLocalModels: false });
const extract = await pipeline("feature-extraction", repo, { dtype: "fp32" });
const tokenizer = await AutoTokenizer.from_pretrained(repo);
const output = await extract("a mesh of hubs");
console.log(JSON.stringify({ ids: tokenizer.encode("a mesh of hubs"), dims: output.dims, data: [...output.data] }));
"""

# A model that looks up word vectors: word n is the vector (n, n + 0.5, -n, 1).
_MAKE = """
import json, pathlib, sys
import numpy, onnx
from onnx import TensorProto, helper, numpy_helper
folder = pathlib.Path(sys.argv[1])
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "mesh", "of", "hub", "##s"]
table = numpy.array([[n, n + 0.5, -n, 1] for n in range(len(words))], numpy.float32)
inputs = ("input_ids", "attention_mask", "token_type_ids")
graph = helper.make_graph(
    [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])], "tiny",
    [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
    [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "length", 4])],
    [numpy_helper.from_array(table, "table")])
(folder / "onnx").mkdir(parents=True)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.save(model, folder / "onnx/model.onnx")
def write(name, value): (folder / name).write_text(json.dumps(value))
special = [dict(id=n, content=words[n], single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
           for n in range(5)]
def piece(name): return {"SpecialToken": {"id": name, "type_id": 0}}
sequence = [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]")]
tokens = {word: {"id": word, "ids": [words.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")}
write("config.json", {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 4})
write("tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 64})
write("tokenizer.json", {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                   "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing", "single": sequence, "pair": sequence, "special_tokens": tokens},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100, "vocab": {word: n for n, word in enumerate(words)}}})
"""


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def run(package: str, code: str, *arguments: str) -> Any:
    """Return the JSON that a module prints. It runs in the package's folder, where imports are looked up."""
    folder = node_packages(package)
    done = subprocess.run(
        ["node", "--input-type=module", "-", *arguments],
        input=code,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": arguments[-1], "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_hub_library_lists_and_downloads(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    commit = hub.folder.commit(REPO, FILES)
    sums = {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}
    for attempt in ("cold", "warm"):
        said = run(HUB, _HUB, node.url, REPO, str(tmp_path / attempt))
        assert said["listed"] == {path: len(content) for path, content in FILES.items()}
        assert said["sums"] == said["cached"] == sums
        url = f"{node.url}/{REPO}/resolve/main/model.safetensors"
        assert said["info"] == [len(BIG), f'"{sums["model.safetensors"]}"', url, None]
        assert bytes.fromhex(said["part"]) == BIG[100:300]
        assert said["blob"] == sums["model.safetensors"]
        assert said["commit"] == commit
        assert said["missing"] == [None, False]
    assert hub.stats()["total_bytes"] == sum(map(len, FILES.values()))


def test_transformers_runs_a_model(hub: HubProcess, node: NodeProcess, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    python = environment("onnx==1.23.2") / "python"
    subprocess.run([str(python), "-c", _MAKE, str(folder)], check=True)
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    hub.folder.commit(REPO, files)
    ids = [2, 5, 6, 7, 8, 9, 3]
    expected = {"ids": ids, "dims": [1, len(ids), 4], "data": [x for n in ids for x in (n, n + 0.5, -n, 1)]}
    assert run(TRANSFORMERS, _TRANSFORMERS, node.url, REPO, str(tmp_path / "cold")) == expected
    hub.turn(dark="close")
    assert run(TRANSFORMERS, _TRANSFORMERS, node.url, REPO, str(tmp_path / "dark")) == expected
    hub.turn(dark="")
    assert hub.stats()["bytes"] == {path: file.stat().st_size for path, file in files.items()}
